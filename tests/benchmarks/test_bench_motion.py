"""The verdict on rendered videos: single frames that tell the class fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.benchmarks import bench_motion


@pytest.mark.parametrize(("top1", "passed"), [(0.125, True), (0.2, True), (0.21, False)])
def test_a_leak_fails(top1: float, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.arange(bench_motion.FRAMES).view(1, -1, 1, 1, 1)

    def scores(clips: Tensor, *_: object) -> float:
        return top1 if clips.unique().numel() == 1 else 0.9

    monkeypatch.setattr(bench_motion, "_load", lambda *_: (frames, torch.zeros(1)))
    monkeypatch.setattr(bench_motion, "_train_and_test", scores)
    figures = bench_motion.run(quick=True)
    assert figures["top-1, moving frames"] == 0.9
    assert figures["no leak by single frames"] == {"top-1": top1, "due_at_most": 0.2, "passed": passed}
