"""Tag a collection of videos: a row of labels and scores for every window of time, for every video rows or a reason.

Usage: ``python -m jobs.tag [RECIPE] source=FOLDER_OR_URI init=FINETUNE_OUTPUT output=PLACE``. The same command again
tags what is new or changed; after a crash it goes on with the chunks that are missing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.progress import MofNCompleteColumn, Progress

from jobs.core.cli import console, echo, replace, run_command
from jobs.core.config import config_dict
from jobs.core.errors import StopRequestedError, UserError
from jobs.core.signals import keeping_finished_work, stopping_on_sigterm
from jobs.reports.tag_html import VIDEO_COLUMNS, page
from jobs.reports.tag_thumbnails import choose_videos, gallery
from jobs.runs.claim import Claim, claim_output, refuse_difference, release_output
from jobs.runs.exclusive_lock import ExclusiveLock, exclusive_lock, last_sealed
from jobs.runs.tracking import recorded, start_run
from jobs.scoring.classifier import find_classifier, shared
from jobs.tagging.config import FREE_TAG_KEYS, ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.failure_budget import FailureWatch
from jobs.tagging.pipeline import probe_videos, scored_chunks
from jobs.weights.registry import initial_file
from pipeline.schema import OK, PARTIAL
from pipeline.storage.files import absolute, join, write_bytes
from pipeline.tagging.reader import KnownVideos, last_commit, read_videos
from pipeline.tagging.rows import tag_rows
from pipeline.tagging.source import SourceListing, list_source, new_or_changed, tombstones
from pipeline.tagging.windows import plan_units
from pipeline.tagging.writer import PlannedVersion, publish, unfinished_version, write_plan

__all__ = ["TagConfig", "TagJob", "main", "run"]

PUT_THREADS = 4
LOG_SECONDS = 20.0
MLFLOW_WAIT_SECONDS = 10.0
KEPT = "finished chunks are kept, the same command goes on"


@dataclass(frozen=True)
class TagJob:
    """One run of the command, once it has the output for itself."""

    plan: ScoringPlan
    output: str
    writer: ExclusiveLock
    run_key: str
    facts: Mapping[str, Any]
    """What every commit also tells."""

    @property
    def config(self) -> TagConfig:
        """What was asked for."""
        return self.plan.config


def run(config: TagConfig) -> dict[str, Any]:
    """Tag everything that is new or changed, one version of the output after another."""
    with initial_file(config.init, config.tracking, config.output) as file:
        weights = find_classifier(config.init, config.public_weights, fetched=file)
        return tag(plan_scoring(config, weights))


def tag(plan: ScoringPlan) -> dict[str, Any]:
    """`run`, once the weights are here."""
    config = plan.config
    output = absolute(config.output)
    refuse_other_settings(output, plan.settings())
    links = {"weights_digest": plan.weights.digest, **plan.weights.links}
    claim = claim_output(output, config, free_keys=FREE_TAG_KEYS, pins={"tags": links})
    plan = replace(plan, weights=shared(plan.weights, output))
    with exclusive_lock(output) as writer:
        publish_what_was_decided(output)
        listing = list_videos(config.source, output, claim, writer.generation)
        tracking = start_run(
            config.tracking, command="tag", run_key=claim.run_key, output=output, params=config_dict(config), tags=links
        )
        facts = {"source": absolute(config.source), "run_id": tracking.wait_for_id(MLFLOW_WAIT_SECONDS)}
        job = TagJob(plan, output, writer, claim.run_key, facts)
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


def publish_what_was_decided(output: str) -> None:
    """The commit of a run that died between deciding and showing it."""
    decided = last_sealed(output)
    if decided is not None:
        publish(output, decided)


def list_videos(source: str, output: str, claim: Claim, generation: int) -> SourceListing:
    """The videos of the source, which may all be gone by now.

    Raises:
        UserError: there were never any.
        StorageError: the source cannot be read.
    """
    listing = None
    try:
        listing = list_source(source)
        if len(listing.videos) == 0 and last_commit(output) is None:
            listing = None
            raise UserError(f"source={source}: holds no video; give a folder or prefix of videos, or a manifest")
    finally:
        if listing is None:
            release_output(output, claim, generation)
    return listing


def versions_to_tag(job: TagJob, listing: SourceListing) -> Iterator[PlannedVersion]:
    """The version that a crash left unfinished, then all that is new, changed or gone, in versions of bounded size."""
    unfinished = unfinished_version(job.output, job.writer.generation)
    if unfinished is not None:
        echo(f"going on with version {unfinished.version} of {job.output}")
        yield unfinished
    known = KnownVideos(job.output)
    gone = tombstones(listing, known)
    nothing_new = True
    for fresh in new_or_changed(listing, known, job.config.videos_per_commit):
        nothing_new = False
        yield plan_version(job, pa.concat_tables([probe_videos(fresh, job.config.decode, job.config), gone]))
        gone = gone.slice(0, 0)
    if len(gone):
        yield plan_version(job, gone)
    elif nothing_new:
        echo(f"nothing new: all {len(listing.videos)} videos of {job.config.source} are tagged in {job.output}")


def plan_version(job: TagJob, probed: pa.Table) -> PlannedVersion:
    """Keep the plan of the next version, before any of its work begins."""
    watch = FailureWatch(job.config.max_failed_share, len(probed))
    watch.count(probed.to_pylist())
    units = plan_units(probed.sort_by("uri"), job.config.grid, job.config.batch_size * job.config.chunk_batches)
    committed = last_commit(job.output)
    version = committed["version"] + 1 if committed else 0
    if not write_plan(job.output, version, units, job.plan.settings()):
        echo(f"version {version} was planned already, by a job that was cut off: going on with that plan")
    return PlannedVersion(job.output, version, job.writer.generation)


@dataclass(frozen=True)
class VersionFigures:
    """What it took to finish one version."""

    windows: int
    """Windows scored now."""
    chunks: int
    """Chunks done now."""
    chunks_skipped: int
    """Chunks that an earlier run had finished."""
    chunks_again: int
    """Chunks that were begun more than once, over all runs: what kills and dead workers cost."""
    seconds: float
    """From the first chunk to the commit."""


def tag_version(job: TagJob, planned: PlannedVersion) -> VersionFigures:
    """Score the missing chunks of a version, each into its file, and commit; on SIGTERM, commit what is there.

    Raises:
        StopRequestedError: SIGTERM.
        WorkStoppedError: too many videos failed, or another job took the output over.
    """
    started = time.monotonic()
    missing = planned.missing_chunks()
    begun = planned.count_begun(missing)
    try:
        with stopping_on_sigterm(KEPT):
            windows, repeats = score_chunks(job, planned, missing, begun)
    except StopRequestedError:
        if len(planned.missing_chunks()) < planned.num_chunks:
            planned.commit(job.facts, partial=True, seal=job.writer.seal)
        raise
    again = planned.chunks_lost() + repeats
    planned.commit({**job.facts, "chunks_done_again": again}, seal=job.writer.seal)
    skipped = planned.num_chunks - len(missing)
    return VersionFigures(windows, len(missing), skipped, again, time.monotonic() - started)


def score_chunks(job: TagJob, planned: PlannedVersion, missing: Sequence[int], begun: set[int]) -> tuple[int, int]:
    """Score chunks into their files; returns windows scored, and chunks repeated because a worker died meanwhile."""
    plan, windows, repeats = job.plan, 0, 0
    watch = FailureWatch(job.config.max_failed_share, planned.num_videos)
    with chunk_writer(planned) as write, progress_bar(planned, missing) as show:
        for chunk in scored_chunks(planned, missing, plan):
            job.writer.check()
            units = planned.chunk(chunk.number)
            rows = tag_rows(units, chunk.answers, plan.views.grid, planned.version, job.run_key, plan.embedding_size)
            write(chunk.number, rows)
            watch.count(rows.select(["video_id", "uri", "status", "message"]).to_pylist())
            windows += len(chunk.answers)
            repeats += chunk.again and chunk.number not in begun
            show(windows)
    return windows, repeats


@contextmanager
def chunk_writer(planned: PlannedVersion) -> Iterator[Callable[[int, pa.Table], None]]:
    """Writes chunk files beside the scoring; a write that fails stops the job at one of the next chunks."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(PUT_THREADS) as pool:

        def write(number: int, rows: pa.Table) -> None:
            pending.append(pool.submit(planned.write_chunk, number, rows))
            while len(pending) > PUT_THREADS:
                pending.popleft().result()

        yield write
        for left in pending:
            left.result()


@contextmanager
def progress_bar(planned: PlannedVersion, missing: Sequence[int]) -> Iterator[Callable[[int], None]]:
    """Windows done: a bar on a terminal, a line now and then in a log."""
    total = planned.count_windows(missing)
    title = f"tagging version {planned.version}"
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task(title, total=total)
        told = time.monotonic()

        def show(windows: int) -> None:
            nonlocal told
            progress.update(task, completed=windows)
            if not console.is_terminal and time.monotonic() - told > LOG_SECONDS:
                told = time.monotonic()
                console.print(f"{title}: {windows} of {total} windows")

        yield show


def summary(output: str, listing: SourceListing, figures: list[VersionFigures]) -> dict[str, Any]:
    """What the output holds now and what this run did for it."""
    commit = last_commit(output) or {"version": -1}
    videos = read_videos(output, ["status", "error_class"]) if commit["version"] >= 0 else None
    statuses = Counter(videos["status"].to_pylist() if videos else ())
    reasons = Counter(videos["error_class"].drop_null().to_pylist() if videos else ())
    windows = sum(figure.windows for figure in figures)
    seconds = sum(figure.seconds for figure in figures)
    return {
        "nothing_new": not figures,
        "version": commit["version"],
        "videos": statuses.total(),
        "failed_videos": statuses.total() - statuses[OK] - statuses[PARTIAL],
        "videos_by_status": dict(statuses.most_common()),
        "failures_by_reason": dict(reasons.most_common()),
        "files_skipped_by_suffix": dict(listing.skipped),
        "windows": windows,
        "chunks_done": sum(figure.chunks for figure in figures),
        "chunks_skipped": sum(figure.chunks_skipped for figure in figures),
        "chunks_done_again": sum(figure.chunks_again for figure in figures),
        "seconds": seconds,
        "windows_per_second": windows / seconds if seconds else 0.0,
    }


def write_page(job: TagJob, report: Mapping[str, Any]) -> str:
    """Write ``report.html`` with the figures and a gallery; returns its place."""
    videos = read_videos(job.output, VIDEO_COLUMNS)
    shown = list(gallery(choose_videos(videos, job.config.gallery_videos), job.config.decode))
    weights = f"{job.plan.weights.uri} ({job.plan.weights.digest})"
    facts = {"source": str(job.facts["source"]), "weights": weights, "run": str(job.facts["run_id"] or "")}
    place = join(job.output, "report.html")
    write_bytes(place, page(f"Tags of {report['videos']:,} videos", report, videos, shown, facts))
    return place


def main() -> None:
    """Entry point."""
    run_command("tag", TagConfig, run, description="Tag videos: labels and scores for every window of time.")


if __name__ == "__main__":
    main()
