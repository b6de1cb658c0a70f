"""Tag a collection of videos: labels and scores for every window of time, for every video rows or a reason.

Usage: ``python -m jobs.tag [RECIPE] source=FOLDER_OR_URI init=FINETUNE_OUTPUT output=PATH_OR_URI``. The same command
again tags new and changed videos; after a crash it resumes with the missing chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.cli import Command, existing_paths, replace
from jobs.core.config import config_dict
from jobs.core.errors import UserError
from jobs.core.signals import keeping_finished_work
from jobs.runs.claim import Claim, claim_output, refuse_difference, release_output
from jobs.runs.exclusive_lock import exclusive_lock
from jobs.runs.tracking import recorded, start_run
from jobs.scoring.classifier import find_classifier, shared
from jobs.tagging.config import FREE_TAG_KEYS, ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.job import KEPT, TagJob, publish_sealed_commit, refuse_vanished, tag_version, versions_to_tag
from jobs.tagging.report import summary, write_page
from jobs.weights.registry import initial_file
from pipeline.storage.files import absolute
from pipeline.tagging.reader import KnownVideos, last_commit
from pipeline.tagging.source import SourceListing, list_source, new_or_changed, vanished
from pipeline.tagging.writer import unfinished_version

__all__ = ["TagConfig", "main", "run"]

MLFLOW_WAIT_SECONDS = 10.0


def run(config: TagConfig) -> dict[str, Any]:
    """Tag everything that is new or changed, one version of the output after another."""
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
    with exclusive_lock(output) as lock:
        publish_sealed_commit(output)
        listing = list_videos(config.source, output, claim, lock.generation)
        refuse_vanished(listing, KnownVideos(output), config)
        tracking = start_run(
            config.tracking, command="tag", run_key=claim.run_key, output=output, params=config_dict(config), tags=links
        )
        facts = {"source": absolute(config.source), "run_id": tracking.wait_for_id(MLFLOW_WAIT_SECONDS)}
        job = TagJob(plan, output, lock, claim.run_key, facts)
        with recorded(tracking), keeping_finished_work(KEPT):
            figures = [tag_version(job, planned) for planned in versions_to_tag(job, listing)]
            report = summary(output, listing, figures)
            if figures and config.gallery_videos:
                report["report"] = write_page(job, report)
        if figures:
            numbers = {key: value for key, value in report.items() if type(value) in (int, float)}
            tracking.log_metrics(numbers, step=report["version"])
        tracking.finish()
    return {**report, "mlflow_run_id": tracking.run_id}


def refuse_other_settings(output: str, settings: Mapping[str, Any]) -> None:
    """One output never mixes the scores of two models or two ways to cut windows.

    Raises:
        UserError: the output, finished or not, was made with other settings.
    """
    unfinished = unfinished_version(output)
    committed = last_commit(output) or {"settings": settings}
    existing = unfinished.settings if unfinished else committed["settings"]
    holds, remedy = "holds tags made with other settings", "choose another output"
    refuse_difference(output, existing, settings, holds=holds, remedy=remedy)


def list_videos(source: str, output: str, claim: Claim, generation: int) -> SourceListing:
    """The videos of the source.

    Raises:
        UserError: the source holds no video, and neither does the output.
        StorageError: the source cannot be read.
    """
    try:
        listing = list_source(source)
        if len(listing.videos) == 0 and last_commit(output) is None:
            raise UserError(f"source={source}: holds no video; give a folder or prefix of videos, or a list")
    except BaseException:
        release_output(output, claim, generation)
        raise
    return listing


def dry_run(config: TagConfig) -> dict[str, Any]:
    """What a run would do, by listing the source; nothing is written and no video is opened."""
    listing, known = list_source(config.source), KnownVideos(absolute(config.output))
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
