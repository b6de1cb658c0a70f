"""From epochs to steps, before any worker starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hiera_video.optimization import learning_rate_at
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.training.job import TrainingJob, plan_job
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase


def prepared(clips: int) -> Any:
    return SimpleNamespace(num_clips=lambda split, labelled_only: clips, version=1)


def plan(clips: int, *keys: str) -> TrainingJob:
    config = load_config(PretrainConfig, "pretrain", ["data=d", "output=o", *keys])
    return plan_job("pretrain", "key", config, PretrainPhase(config), prepared(clips))


def test_epochs_are_effective_repeats_count() -> None:
    """Tab. 11a on Kinetics-400: 800 epochs of 240,000 clips at a batch of 512, whatever the repeats of a clip."""
    for repeats in (1, 4):
        job = plan(240_000, "epochs=800", "global_batch=512", "schedule.warmup_epochs=120", f"view.repeats={repeats}")
        assert job.total_steps == 375_000
        assert job.warmup_steps == 56_250
    rates = [learning_rate_at(s, total_steps=375_000, warmup_steps=56_250, peak=8e-4) for s in (0, 56_249, 375_000)]
    assert rates == pytest.approx([8e-4 / 56_250, 8e-4, 0.0])


def test_a_set_without_clips_is_refused() -> None:
    with pytest.raises(UserError, match="holds no training clips"):
        plan(0, "steps=3")
