"""`python -m tests.support.mishaps RECIPE key=value ...`: pretraining in which something goes wrong, or slowly.

The environment says what: `MISHAP=kind:rank:step:flag` lets one rank hang, die, stop or have a gradient that is
not a number in a step (counted from 0) unless the file ``flag`` is there, which it makes; `SECONDS_PER_MICRO_BATCH`
lets every micro-batch take so much longer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.core.cli import Command
from jobs.training.driver import run_training
from jobs.training.micro_batch import MicroBatch
from jobs.training.start import begin
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig, PretrainPhase


class MishapStep(MaskedAutoencoding):
    """Masked autoencoding with a mishap in its forward."""

    mishap: str
    seconds_per_micro_batch: float

    def forward(self, batch: MicroBatch) -> Tensor:
        """See `MaskedAutoencoding`."""
        time.sleep(self.seconds_per_micro_batch)
        if self.mishap:
            kind, rank, step, flag = self.mishap.split(":")
            if dist.get_rank() == int(rank) and batch.step == int(step) and not Path(flag).exists():
                Path(flag).touch()
                if kind == "gradient":
                    return super().forward(batch) + torch.sqrt(0 * next(self.parameters()).sum())
                MISHAPS[kind]()
        return super().forward(batch)


def fall_asleep() -> None:
    time.sleep(3600)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


MISHAPS = {"hang": fall_asleep, "die": die, "stop": stop}


@dataclass(frozen=True)
class MishapPhase(PretrainPhase):
    """Pretraining with a mishap."""

    mishap: str = ""
    seconds_per_micro_batch: float = 0.0

    def build_step(self, *, load_init: bool) -> MishapStep:
        """See `jobs.training.job.Phase`."""
        step = MishapStep(self.config)
        step.mishap, step.seconds_per_micro_batch = self.mishap, self.seconds_per_micro_batch
        return step


def run(config: PretrainConfig) -> Mapping[str, Any]:
    """Train; returns the report."""
    environment = os.environ.get("MISHAP", ""), float(os.environ.get("SECONDS_PER_MICRO_BATCH", "0"))
    with begin("pretrain", config) as start:
        return run_training(
            start, MishapPhase(start.worker_config, mishap=environment[0], seconds_per_micro_batch=environment[1])
        )


if __name__ == "__main__":
    Command("pretrain", PretrainConfig, run, description=__doc__ or "")()
