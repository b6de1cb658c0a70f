"""Tag a collection of videos: labels and scores for every window of time, for every video rows or a reason.

Usage: ``python -m jobs.tag [RECIPE] source=FOLDER_OR_URI init=FINETUNE_OUTPUT output=PATH_OR_URI``. The same command
again tags new and changed videos; after a crash it resumes with the videos that are missing in the tables.
"""

from __future__ import annotations

from typing import Any

from jobs.core.cli import Command, existing_paths, replace, write_figures
from jobs.core.config import config_dict
from jobs.core.signals import keeping_finished_work
from jobs.runs.claim import claim_output, release_output
from jobs.runs.tracking import recorded, start_run
from jobs.scoring.classifier import find_classifier, shared
from jobs.tagging.config import FREE_TAG_KEYS, ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.job import (
    KEPT,
    TagJob,
    list_videos,
    refuse_other_settings,
    refuse_vanished,
    settled_tables,
    tag_listing,
)
from jobs.tagging.job_log import working_on
from jobs.tagging.report import summary, write_page
from jobs.weights.registry import initial_file
from pipeline.storage.files import absolute
from pipeline.tagging.reader import KnownVideos
from pipeline.tagging.source import new_or_changed, vanished
from pipeline.tagging.tables import open_tables

__all__ = ["TagConfig", "main", "run"]

MLFLOW_WAIT_SECONDS = 10.0


def run(config: TagConfig) -> dict[str, Any]:
    """Tag everything that is new or changed, and remove what was deleted."""
    with initial_file(config.init, config.tracking, config.output) as file:
        weights = find_classifier(config.init, config.public_weights, fetched=file)
        return tag(plan_scoring(config, weights))


def tag(plan: ScoringPlan) -> dict[str, Any]:
    """`run`, once the weights are local."""
    config = plan.config
    output = absolute(config.output)
    refuse_other_settings(output, plan.settings())
    links = {"weights_digest": plan.weights.digest, **plan.weights.links}
    claim = claim_output(output, config, free_keys=FREE_TAG_KEYS, pins={"tags": links})
    plan = replace(plan, weights=shared(plan.weights, output))
    with keeping_finished_work(KEPT), working_on(output) as log:
        tables = settled_tables(log, output)
        try:
            listing = list_videos(config.source, plan.weights.media, tables)
        except BaseException:
            release_output(output, claim)
            raise
        known = KnownVideos(output)
        refuse_vanished(listing, known, config)
        tracking = start_run(
            config.tracking, command="tag", run_key=claim.run_key, output=output, params=config_dict(config), tags=links
        )
        columns = {"run_key": claim.run_key, "run_id": tracking.wait_for_id(MLFLOW_WAIT_SECONDS)}
        job = TagJob(plan, output, log, columns, {"source": absolute(config.source), "run_key": claim.run_key})
        with recorded(tracking):
            figures = tag_listing(job, listing, known)
            report = summary(job, listing, figures)
            write_figures(output, report)  # before the page, which must not cost them
            if figures and config.gallery_videos:
                report["report"] = write_page(job, report)
        if figures:
            numbers = {key: value for key, value in report.items() if type(value) in (int, float)}
            tracking.log_metrics(numbers, step=report["version"])
        tracking.finish()
    return {**report, "mlflow_run_id": tracking.run_id}


def dry_run(config: TagConfig) -> dict[str, Any]:
    """What a run would do, by listing the source; nothing is written and no video is opened."""
    with initial_file(config.init, config.tracking, config.output) as file:
        media = find_classifier(config.init, config.public_weights, fetched=file).media
    output = absolute(config.output)
    listing, known = list_videos(config.source, media, open_tables(output)), KnownVideos(output)
    missing = vanished(listing, known)
    return {
        **existing_paths(config),
        "videos": len(listing.videos),
        "new_or_changed": sum(map(len, new_or_changed(listing, known))),
        "missing_in_source": missing.count,
        "missing_in_source_examples": list(missing.examples),
        "files_skipped": dict(listing.skipped),
    }


main = Command(
    "tag",
    TagConfig,
    run,
    description="Tag videos: labels and scores for every window of time.",
    dry_run=dry_run,
)


if __name__ == "__main__":
    main()
