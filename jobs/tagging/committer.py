"""Commits what tasks have finished, beside the work: about every minute, and what is left at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa

from jobs.tagging.stage import FinishedTask
from pipeline.series import LAST_COMMIT, stamp
from pipeline.storage.delta import Change, joined
from pipeline.tagging.schema import TAGS, VIDEOS
from pipeline.tagging.tables import Changes, Ids, Rewrite, TagTables, total

# Removing rows of changed videos rewrites files: the more that takes, the less often it is done.
MOST_SHARE_OF_TIME = 0.1


OLD_SCHEMA = pa.schema([("uri", pa.string()), ("video_id", pa.int64())])


class Rewriting(Protocol):
    """Rewrites files (`jobs.tagging.pipeline.TaskRunner`)."""

    def rewrite(self, files: Sequence[Rewrite], video_ids: Ids, /) -> list[tuple[Rewrite, Change]]:
        """The files that hold rows of these videos, rewritten without them."""


class Committer:
    """Holds the files of finished tasks until they are committed."""

    def __init__(
        self, tables: TagTables, rewriting: Rewriting, facts: Mapping[str, str], commit_seconds: float
    ) -> None:
        self._tables, self._rewriting, self._facts = tables, rewriting, facts
        self._finished: list[FinishedTask] = []
        self._old: list[pa.Table] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: Future[float] | None = None
        self._commit_seconds = commit_seconds
        self._due = time.monotonic() + commit_seconds

    def remove(self, videos: pa.Table) -> None:
        """Remove the rows of some videos with the next commit.

        Args:
            videos: ``uri`` and ``video_id``.
        """
        if len(videos):
            self._old.append(videos.select(OLD_SCHEMA.names).cast(OLD_SCHEMA))

    def add(self, finished: FinishedTask) -> None:
        """Commit a task with one of the next commits: now in a thread, where one is due and none is running."""
        self._finished.append(finished)
        if time.monotonic() >= self._due and (self._running is None or self._running.done()):
            self._wait()
            self._start()

    def close(self) -> None:
        """Commit what is left, and wait for it."""
        self._wait()
        if self._finished or self._old:
            self._start()
            self._wait()
        self._thread.shutdown()

    def abandon(self) -> None:
        """Wait for a commit that is running; what is left stays uncommitted."""
        self._thread.shutdown()

    def _start(self) -> None:
        finished, old = self._finished, self._old
        self._finished, self._old = [], []
        self._running = self._thread.submit(self._commit, finished, old)

    def _wait(self) -> None:
        if self._running is not None:
            seconds = self._running.result()
            self._running = None
            self._due = time.monotonic() + max(self._commit_seconds, seconds / MOST_SHARE_OF_TIME)

    def _commit(self, finished: Sequence[FinishedTask], old: Sequence[pa.Table]) -> float:
        """Returns how long it took, in seconds."""
        started = time.monotonic()
        changes = [task.changes for task in finished]
        if old:
            changes.append(self._without(pa.concat_tables(old)))
        self._tables.commit(total(changes), self._facts)
        stamp(LAST_COMMIT, program="tag")
        return time.monotonic() - started

    def _without(self, old: pa.Table) -> Changes:
        """The files that hold rows of these videos, replaced."""
        files = self._tables.to_rewrite(old["uri"])
        rewritten = self._rewriting.rewrite(files, np.sort(old["video_id"].to_numpy()))
        tags, videos = (joined(change for file, change in rewritten if file.table == name) for name in (TAGS, VIDEOS))
        return Changes(tags, videos)
