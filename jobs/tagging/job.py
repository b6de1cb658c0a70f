"""The work of a tagging job: versions to tag, their plans, and their chunks until the commit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.progress import MofNCompleteColumn, Progress

from jobs.core.cli import console, echo
from jobs.core.errors import StopRequestedError, UserError
from jobs.core.signals import stopping_on_sigterm
from jobs.runs.exclusive_lock import ExclusiveLock, last_sealed
from jobs.tagging.config import ScoringPlan, TagConfig
from jobs.tagging.failure_budget import FailureBudget
from jobs.tagging.pipeline import probe_videos, scored_chunks
from pipeline.manifest.vanished import VanishedSourceError
from pipeline.tagging.reader import KnownVideos, last_commit
from pipeline.tagging.rows import tag_rows
from pipeline.tagging.source import SourceListing, new_or_changed, tombstones, vanished
from pipeline.tagging.windows import plan_units
from pipeline.tagging.writer import PlannedVersion, publish, unfinished_version, write_plan

PUT_THREADS = 4
LOG_SECONDS = 20.0
KEPT = "finished chunks are kept, the same command resumes"


@dataclass(frozen=True)
class TagJob:
    """One run of the command, once it holds the output's exclusive lock."""

    plan: ScoringPlan
    output: str
    lock: ExclusiveLock
    run_key: str
    facts: Mapping[str, Any]
    """Further entries of every commit."""

    @property
    def config(self) -> TagConfig:
        """The keys of the command."""
        return self.plan.config


@dataclass(frozen=True)
class VersionFigures:
    """The work that finished one version."""

    windows: int
    """Windows scored in this run."""
    chunks: int
    """Chunks finished in this run."""
    chunks_skipped: int
    """Chunks that an earlier run had finished."""
    chunks_again: int
    """Chunks that were begun more than once, over all runs: the cost of kills and dead workers."""
    seconds: float
    """From the first chunk to the commit."""


def publish_sealed_commit(output: str) -> None:
    """Publish the commit of a run that died after it had sealed it."""
    sealed = last_sealed(output)
    if sealed is not None:
        publish(output, sealed)


def versions_to_tag(job: TagJob, listing: SourceListing) -> Iterator[PlannedVersion]:
    """The unfinished version of a crashed run, then all new, changed and deleted videos in versions of bounded size."""
    unfinished = unfinished_version(job.output, job.lock.generation)
    if unfinished is not None:
        echo(f"resuming version {unfinished.version} of {job.output}")
        yield unfinished
    known = KnownVideos(job.output)
    if unfinished is not None:  # its videos count as well now
        refuse_vanished(listing, known, job.config)
    deleted = tombstones(listing, known)
    nothing_new = True
    for fresh in new_or_changed(listing, known, job.config.videos_per_commit):
        nothing_new = False
        yield plan_version(job, pa.concat_tables([probe_videos(fresh, job.config.decode, job.config), deleted]))
        deleted = deleted.slice(0, 0)
    if len(deleted):
        yield plan_version(job, deleted)
    elif nothing_new:
        echo(f"nothing new: all {len(listing.videos)} videos of {job.config.source} are tagged in {job.output}")


def refuse_vanished(listing: SourceListing, known: KnownVideos, config: TagConfig) -> None:
    """Stop before rows are replaced by tombstones because a source has lost its mount.

    Raises:
        UserError: more videos than `max_deleted_share` are missing, or the source is empty.
    """
    try:
        vanished(listing, known).refuse_above(config.max_deleted_share, config.source)
    except VanishedSourceError as error:
        raise UserError(str(error)) from error


def plan_version(job: TagJob, probed: pa.Table) -> PlannedVersion:
    """Write the plan of the next version, before any of its work begins."""
    budget = FailureBudget(job.config.max_failed_share, len(probed))
    budget.count(probed.to_pylist())
    units = plan_units(probed.sort_by("uri"), job.config.grid, job.config.batch_size * job.config.chunk_batches)
    committed = last_commit(job.output)
    version = committed["version"] + 1 if committed else 0
    if not write_plan(job.output, version, units, job.plan.settings()):
        echo(f"version {version} has a plan already, by a run that was cut off: continuing with that plan")
    return PlannedVersion(job.output, version, job.lock.generation)


def tag_version(job: TagJob, planned: PlannedVersion) -> VersionFigures:
    """Score the missing chunks of a version, each into its file, and commit; on SIGTERM, commit the finished ones.

    Raises:
        StopRequestedError: SIGTERM.
        WorkStoppedError: too many videos failed, or another job holds the output's exclusive lock.
    """
    started = time.monotonic()
    missing = planned.missing_chunks()
    begun = planned.count_begun(missing)
    try:
        with stopping_on_sigterm(KEPT):
            windows, repeats = score_chunks(job, planned, missing, begun)
    except StopRequestedError:
        if len(planned.missing_chunks()) < planned.num_chunks:
            planned.commit(job.facts, partial=True, seal=job.lock.seal)
        raise
    again = planned.chunks_lost() + repeats
    planned.commit({**job.facts, "chunks_done_again": again}, seal=job.lock.seal)
    skipped = planned.num_chunks - len(missing)
    return VersionFigures(windows, len(missing), skipped, again, time.monotonic() - started)


def score_chunks(job: TagJob, planned: PlannedVersion, missing: Sequence[int], begun: set[int]) -> tuple[int, int]:
    """Score chunks into their files.

    Returns:
        Windows scored, and chunks that were repeated because a worker died during this run.
    """
    plan, windows, repeats = job.plan, 0, 0
    budget = FailureBudget(job.config.max_failed_share, planned.num_videos)
    with chunk_writer(planned) as write, progress_bar(planned, missing) as show:
        for chunk in scored_chunks(planned, missing, plan):
            job.lock.check()
            units = planned.chunk(chunk.number)
            rows = tag_rows(units, chunk.answers, plan.views.grid, planned.version, job.run_key, plan.embedding_size)
            write(chunk.number, rows)
            budget.count(rows.select(["video_id", "uri", "status", "message"]).to_pylist())
            windows += len(chunk.answers)
            repeats += chunk.repeated and chunk.number not in begun
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
        logged_at = time.monotonic()

        def show(windows: int) -> None:
            nonlocal logged_at
            progress.update(task, completed=windows)
            if not console.is_terminal and time.monotonic() - logged_at > LOG_SECONDS:
                logged_at = time.monotonic()
                console.print(f"{title}: {windows} of {total} windows")

        yield show
