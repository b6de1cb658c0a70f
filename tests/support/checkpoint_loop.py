"""`python -m tests.support.checkpoint_loop OUTPUT`: checkpoints without end, resuming from the newest as runs do."""

from __future__ import annotations

import sys

import torch

from jobs.checkpoints.background_writer import CheckpointConfig, CheckpointWriter
from jobs.checkpoints.store import Checkpoint, discard_after, newest_cursor
from jobs.runs.fencing import acquire_token

VALUES = 4_000_000  # 16 MB a tensor: most of the time is spent writing


def main() -> None:
    """Write until killed."""
    output = sys.argv[1]
    token = acquire_token(output)
    step = newest_cursor(output).step
    discard_after(output, step)
    writer = CheckpointWriter(CheckpointConfig(every_steps=1, keep=2), token)
    print(f"from {step}", flush=True)
    while not writer.failure:
        step += 1
        values = torch.full((VALUES,), float(step))
        checkpoint = Checkpoint(step, step * 8, {"w": values}, {"w.exp_avg": -values})
        writer.save(checkpoint, f'{{"step": {step}}}\n')


if __name__ == "__main__":
    main()
