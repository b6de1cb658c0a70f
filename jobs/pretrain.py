"""Pretrain a Hiera encoder as a masked autoencoder on a prepared set of videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.cli import Command
from jobs.planning.dry_run import PlanConfig, dry_run_figures
from jobs.training.driver import run_training
from jobs.training.start import begin, preview
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase

DESCRIPTION = "Pretrain a Hiera encoder as a masked autoencoder on the videos of a prepared set."


def run(config: PretrainConfig) -> Mapping[str, Any]:
    """Train, then write weights, journal and pictures; returns the report."""
    with begin("pretrain", config) as start:
        return run_training(start, PretrainPhase.of(start))


def dry_run(config: PretrainConfig, plan: PlanConfig) -> Mapping[str, Any]:
    """Estimates of what a run takes."""
    start = preview("pretrain", config)
    return dry_run_figures(start, PretrainPhase.of(start), plan)


main = Command("pretrain", PretrainConfig, run, description=DESCRIPTION, dry_run=dry_run, dry_run_plan=PlanConfig)


if __name__ == "__main__":
    main()
