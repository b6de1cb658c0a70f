"""From any collection of videos to a prepared set: validated, transcoded, shuffled shards with labels and splits."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.core.cli import Command, finish
from jobs.core.config import config_dict
from jobs.core.errors import WorkStoppedError
from jobs.core.ray_cluster import connect
from jobs.core.signals import keeping_finished_work
from jobs.prepare.config import PrepareConfig
from jobs.prepare.report import nothing_usable, preparation_report
from jobs.runs.claim import FREE_KEYS, Claim, claim_output, release_output
from jobs.runs.progress import counted
from jobs.runs.tracking import data_tags, recorded, start_run
from pipeline.manifest.errors import InputError
from pipeline.prepare.run import Outcome, PlannedSet, finish_set, plan_set, preview_set
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import StorageError, absolute, exists, join, read_text

__all__ = ["PrepareConfig", "main", "run"]


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare and report.

    Raises:
        InputError: annotations that do not follow their convention, or a source that lost its videos.
        UserError: an output with other settings.
        StorageError: the source cannot be read or the output not be written, before anything was done.
        WorkStoppedError: storage failed later; the same command resumes.
        StopRequestedError: SIGTERM arrived; the same command resumes.
    """
    config = dataclasses.replace(config, source=absolute(config.source), output=absolute(config.output))
    claim = claim_output(config.output, config, free_keys=(*FREE_KEYS, "exclude", "max_deleted_share"))
    planned = _planned(config, claim)
    if isinstance(planned, Outcome):
        return preparation_report(planned, config.source, config.media)
    if config.workers != 0:
        connect()
    tracking = start_run(
        config.tracking, command="prepare", run_key=claim.run_key, output=config.output, params=config_dict(config)
    )
    kept = "finished videos are kept, the same command resumes"
    with recorded(tracking), keeping_finished_work(kept), counted("preparing", "videos") as progress:
        outcome = finish_set(planned, config.workers, progress)
    report = preparation_report(outcome, config.source, config.media)
    figures = {key: value for key, value in report.items() if type(value) in (int, float)}
    tracking.log_metrics(figures, step=report["version"])
    tracking.set_tags(data_tags(open_prepared(config.output, report["version"])))
    tracking.finish()
    return {**report, "mlflow_run_id": tracking.run_id}


def run_for_clips(config: PrepareConfig) -> dict[str, Any]:
    """`run`, which is no success where every video was rejected; the set and its report are written all the same.

    Raises:
        WorkStoppedError: the set holds no clip, for another reason than `exclude`. Others as `run`.
    """
    report = run(config)
    if unusable := nothing_usable(report, config.source, absolute(config.output)):
        finish("prepare", config, report)
        raise WorkStoppedError(unusable)
    return report


def dry_run(config: PrepareConfig) -> dict[str, Any]:
    """What a run would do, by listing the source and reading its annotations; nothing is written.

    Raises:
        InputError: annotations that do not follow their convention.
    """
    return preview_set(absolute(config.source), config.output, config.settings, _excluded(config.exclude))


def _planned(config: PrepareConfig, claim: Claim) -> PlannedSet | Outcome:
    try:
        exclude = _excluded(config.exclude)
        return plan_set(config.source, config.output, config.settings, exclude, config.max_deleted_share)
    except (InputError, StorageError):
        if not exists(join(config.output, "_prepare")):
            release_output(config.output, claim)  # nothing was planned yet: the corrected command is not refused
        raise


def _excluded(given: str | None) -> list[str]:
    if given is None:
        return []
    if not given.lower().endswith(".txt"):
        return [given]
    return [line.strip() for line in read_text(given).split("\n") if line.strip()]


main = Command("prepare", PrepareConfig, run_for_clips, description=__doc__ or "", dry_run=dry_run)
