"""Turn a pretrained encoder into a classifier of the labelled clips of a prepared set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.cli import Command, echo
from jobs.planning.dry_run import PlanConfig, dry_run_figures
from jobs.training.driver import run_training
from jobs.training.start import begin, preview
from jobs.training.steps.finetune import FinetuneConfig, FinetunePhase
from pipeline.shards.reader import PreparedSet

DESCRIPTION = "Fine-tune a pretrained encoder on the labelled clips of a prepared set."


def run(config: FinetuneConfig) -> Mapping[str, Any]:
    """Train, then write weights, journal and curves; returns the report."""
    with begin("finetune", config, labelled=True) as start:
        classes = start.prepared.classes
        empty = warn_empty_classes(start.prepared)
        if start.new_head and config.init:
            init = start.config.init
            echo(f"init={init}: has no head for these {len(classes)} classes in this order; the head starts new")
        report = run_training(start, FinetunePhase.of(start))
    return {**report, "classes": len(classes), "classes_without_clips": len(empty)}


def warn_empty_classes(prepared: PreparedSet) -> list[str]:
    """Classes without a training clip: they keep their logits, and are counted in the report."""
    empty = prepared.classes_without_clips("train")
    if empty:
        shown = f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}"
        echo(
            f"{len(empty)} of {len(prepared.classes)} classes of {prepared.uri} have no training "
            f"clip ({shown}); they will hardly be predicted",
            warning=True,
        )
    return empty


def dry_run(config: FinetuneConfig, plan: PlanConfig) -> Mapping[str, Any]:
    """Estimates of what a run takes."""
    start = preview("finetune", config, labelled=True)
    return dry_run_figures(start, FinetunePhase.of(start), plan)


main = Command("finetune", FinetuneConfig, run, description=DESCRIPTION, dry_run=dry_run, dry_run_plan=PlanConfig)


if __name__ == "__main__":
    main()
