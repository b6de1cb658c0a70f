"""The work of a tagging job: new, changed and deleted videos, in tasks, until everything is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.core.cli import echo
from jobs.core.errors import StopRequestedError, TooManyFailuresError, UserError, WorkStoppedError
from jobs.core.signals import stopping_on_sigterm
from jobs.runs.claim import refuse_difference
from jobs.runs.progress import counted
from jobs.tagging.committer import Committer
from jobs.tagging.config import ScoringPlan, TagConfig
from jobs.tagging.failure_budget import FailureBudget
from jobs.tagging.job_log import JobLog
from jobs.tagging.pipeline import TaskRunner, task_runner
from jobs.tagging.tasks import cut_into_tasks, order_of_reading, replaced
from pipeline.media import Media
from pipeline.series import record_windows
from pipeline.storage.delta import ConflictError, open_table
from pipeline.storage.errors import StorageError
from pipeline.storage.files import join
from pipeline.storage.records import as_record
from pipeline.tagging.old_layout import holds_old_layout
from pipeline.tagging.reader import KnownVideos
from pipeline.tagging.schema import TAGS
from pipeline.tagging.source import SourceListing, deleted, list_source, new_or_changed, vanished
from pipeline.tagging.tables import TagTables, create_tables, open_tables

KEPT = "finished videos are kept, the same command resumes"


@dataclass(frozen=True)
class TagJob:
    """One run of the command, once it may work on the output."""

    plan: ScoringPlan
    output: str
    log: JobLog
    columns: Mapping[str, Any]
    """Columns of every row: run key and run id."""
    facts: Mapping[str, str]
    """Entries of every commit."""

    @property
    def config(self) -> TagConfig:
        """The keys of the command."""
        return self.plan.config


@dataclass
class Figures:
    """The work of this run."""

    videos: int = 0
    """Videos that got their rows, failed ones included."""
    windows: int = 0
    """Windows scored."""
    deleted: int = 0
    """Videos whose rows were removed because the source no longer holds them."""
    seconds: float = 0.0
    """From the first task to the last commit."""


def settled_tables(job_log: JobLog, output: str) -> TagTables | None:
    """The tables of an output, with everything that was decided; a job that was cut off can commit no more."""
    tables = open_tables(output)
    if tables is not None:
        tables.finish()
        if job_log.follows_a_dead_one:
            tables.fence()
    return tables


def refuse_other_settings(output: str, settings: Mapping[str, Any]) -> None:
    """One output never mixes the scores of two models or two ways to cut windows.

    Raises:
        UserError: the output, finished or not, was made with other settings, or by a release without tables.
    """
    if holds_old_layout(output):
        raise UserError(
            f"output={output}: holds tags in the layout of an older release; convert them with `python -m "
            f"jobs.maintain output={output} convert=true`, or tag into a new output"
        )
    table = open_table(join(output, TAGS))
    existing = settings if table is None else as_record(table.uri, table.description)
    holds, remedy = "holds tags made with other settings", "choose another output"
    refuse_difference(output, existing, settings, holds=holds, remedy=remedy)


def list_videos(source: str, media: Media, tables: TagTables | None) -> SourceListing:
    """The videos, or images, of the source.

    Raises:
        UserError: the source is missing, or holds no video, and neither does the output.
        StorageError: the source cannot be read.
    """
    try:
        listing = list_source(source, media)
    except StorageError as error:
        if not error.missing:
            raise
        raise UserError(f"source={source}: {error}") from error
    if len(listing.videos) == 0 and tables is None:
        raise UserError(f"source={source}: holds no {media}; give a folder or prefix of {media}s, or a list")
    return listing


def refuse_vanished(listing: SourceListing, known: KnownVideos, config: TagConfig) -> None:
    """Stop before rows are removed because a source has lost its mount.

    Raises:
        VanishedSourceError: more videos than `max_deleted_share` are missing, or the source is empty.
    """
    vanished(listing, known).refuse_above(config.max_deleted_share, config.source)


def tag_listing(job: TagJob, listing: SourceListing, known: KnownVideos) -> Figures | None:
    """Tag what is new or changed and remove what was deleted; on SIGTERM, commit what is finished.

    Returns:
        None where there is nothing to do.

    Raises:
        StopRequestedError: SIGTERM.
        WorkStoppedError: too many videos failed, or another job has taken over.
    """
    parts = new_or_changed(listing, known, job.config.videos_at_once)
    first, old = next(parts, None), deleted(listing, known)
    if first is None and not len(old):
        count, source = f"{len(listing.videos)} {job.plan.weights.media}s", job.config.source
        echo(f"nothing new: all {count} of {source} are tagged in {job.output}")
        return None
    figures, started = Figures(deleted=len(old)), time.monotonic()
    tables = create_tables(job.output, job.plan.settings())
    with (
        task_runner(job.plan, job.output, job.columns, job.log) as runner,
        committing(job, tables, runner) as committer,
    ):
        committer.remove(old)
        for part in [] if first is None else [first, *parts]:
            tag_part(job, part, runner, committer, figures)
    if tables.is_scattered:
        echo("many small files: joining them into larger ones")
        tables.compact()
    figures.seconds = time.monotonic() - started
    return figures


@contextmanager
def committing(job: TagJob, tables: TagTables, runner: TaskRunner) -> Iterator[Committer]:
    """A committer that has committed everything at the end; at SIGTERM or too many failures, what is finished."""
    committer = Committer(tables, runner, job.facts, job.config.commit_seconds)
    stopped: Exception | None = None
    try:
        try:
            with stopping_on_sigterm(KEPT):
                yield committer
        except (StopRequestedError, TooManyFailuresError) as reason:
            stopped = reason
        committer.close()
    except ConflictError as error:
        job.log.check()
        raise WorkStoppedError(f"{error}; {KEPT}") from error
    except BaseException:
        committer.abandon()
        job.log.check()
        raise
    if stopped is not None:
        raise stopped


def tag_part(job: TagJob, part: pa.Table, runner: TaskRunner, committer: Committer, figures: Figures) -> None:
    """Tag some videos, task by task."""
    suspects = list(job.log.state.uris.values())
    tasks = cut_into_tasks(part, job.config.videos_per_task, last=suspects)
    budget = FailureBudget(job.config.max_failed_share, len(part))
    missing, waiting = set(range(len(tasks))), len(part)
    with counted("tagging", f"{job.plan.weights.media}s", len(part)) as show:
        for finished in runner.tag(order_of_reading(tasks, suspects)):
            job.log.check()
            missing.remove(finished.number)
            committer.add(finished, replaced(tasks[finished.number]))
            budget.count(finished)
            figures.videos += finished.num_videos
            figures.windows += finished.windows
            waiting -= finished.num_videos
            record_windows(finished.outcomes, waiting)
            show(len(part) - waiting, len(part))
    budget.warn()
    if missing:
        raise WorkStoppedError(f"{len(missing)} tasks have no result; {KEPT}")
