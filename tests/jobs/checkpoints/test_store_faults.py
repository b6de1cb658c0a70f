"""SIGKILL while checkpoints are written: there is always a complete one to resume from."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from jobs.checkpoints.store import Checkpoint, complete_steps, latest_checkpoint, read_checkpoint, write_checkpoint
from tests.support.runs import command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

KILLS = 20


def test_killed_twenty_times_while_checkpoints_are_written(tmp_path: Path) -> None:
    output, draw = str(tmp_path / "run"), random.Random(7)
    reached, torn = 0, 0
    for _ in range(KILLS):
        with subprocess.Popen(
            command("tests.support.checkpoint_loop", output), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline().strip() == f"from {reached}"
                while max(complete_steps(output), default=0) <= reached:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.5))
            finally:
                process.kill()
        complete = complete_steps(output)
        checkpoint = latest_checkpoint(output)
        assert checkpoint is not None
        assert checkpoint.step == complete[-1] > reached  # what has a marker is whole
        reached = checkpoint.step
        assert torch.equal(checkpoint.weights["w"].unique(), torch.tensor([float(reached)]))
        assert torch.equal(checkpoint.optimizer["w.exp_avg"].unique(), torch.tensor([-float(reached)]))
        assert len(complete) <= 3  # two are kept; a third may be new
        folders = {int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir() if any(path.iterdir())}
        torn += len(folders - set(complete))
    assert torn >= KILLS // 4, "the kills missed the writing"


@pytest.mark.parametrize("name", ["../../../outside-model-0.safetensors", "/outside-model-0.safetensors"])
def test_a_forged_marker_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    tensors = {"a": torch.zeros(2)}
    write_checkpoint(str(output), Checkpoint(3, 12, tensors, tensors))
    folder = output / "checkpoints/step-00000003"
    marker = json.loads((folder / "complete.json").read_text())
    (model,) = (file for file in marker["sha256"] if "-model-" in file)
    (tmp_path / "outside-model-0.safetensors").write_bytes((folder / model).read_bytes())
    marker["sha256"][name] = marker["sha256"].pop(model)
    (folder / "complete.json").write_text(json.dumps(marker))
    assert latest_checkpoint(str(output)) is None
    assert read_checkpoint(str(output), 3) is None
