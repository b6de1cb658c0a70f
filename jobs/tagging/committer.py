"""Commits what tasks have finished, beside the work: about every minute, and what is left at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

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


class Waiting(NamedTuple):
    """What enters the tables in one commit or not at all: a signal may come between any two lines."""

    finished: FinishedTask | None
    """Whose rows are added."""
    old: pa.Table
    """Videos whose rows are removed."""


class Committer:
    """Holds the files of finished tasks until they are committed."""

    def __init__(
        self, tables: TagTables, rewriting: Rewriting, facts: Mapping[str, str], commit_seconds: float
    ) -> None:
        self._tables, self._rewriting, self._facts = tables, rewriting, facts
        self._waiting: deque[Waiting] = deque()  # the main thread appends, the other one takes: each in one step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: Future[float] | None = None
        self._commit_seconds = commit_seconds
        self._due = time.monotonic() + commit_seconds

    def remove(self, videos: pa.Table) -> None:
        """Remove the rows of some videos with the next commit.

        Args:
            videos: ``uri`` and ``video_id``.
        """
        self._waiting.append(Waiting(None, _of_schema(videos)))

    def add(self, finished: FinishedTask, replaced: pa.Table | None = None) -> None:
        """Commit a task with one of the next commits: now in a thread, where one is due and none is running.

        Args:
            replaced: ``uri`` and ``video_id`` of rows that leave with the commit that brings the task's own.
        """
        self._waiting.append(Waiting(finished, OLD_SCHEMA.empty_table() if replaced is None else _of_schema(replaced)))
        if time.monotonic() >= self._due and (self._running is None or self._running.done()):
            self._wait()
            self._start()

    def close(self) -> None:
        """Commit what is left, and wait for it."""
        self._wait()
        self._start()
        self._wait()
        self._thread.shutdown()

    def abandon(self) -> None:
        """Wait for a commit that is running; what is left stays uncommitted."""
        self._thread.shutdown()

    def _start(self) -> None:
        self._running = self._thread.submit(self._commit)

    def _wait(self) -> None:
        if self._running is not None:
            seconds = self._running.result()
            self._running = None
            self._due = time.monotonic() + max(self._commit_seconds, seconds / MOST_SHARE_OF_TIME)

    def _commit(self) -> float:
        """Commit what is waiting, if anything is; returns how long it took, in seconds."""
        started = time.monotonic()
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        changes = [one.finished.changes for one in waiting if one.finished is not None]
        old = pa.concat_tables([OLD_SCHEMA.empty_table(), *(one.old for one in waiting)])
        if len(old):
            changes.append(self._without(old))
        if not changes:
            return 0.0
        self._tables.commit(total(changes), self._facts)
        stamp(LAST_COMMIT, program="tag")
        return time.monotonic() - started

    def _without(self, old: pa.Table) -> Changes:
        """The files that hold rows of these videos, replaced."""
        files = self._tables.to_rewrite(old["uri"])
        rewritten = self._rewriting.rewrite(files, np.sort(old["video_id"].to_numpy()))
        tags, videos = (joined(change for file, change in rewritten if file.table == name) for name in (TAGS, VIDEOS))
        return Changes(tags, videos)


def _of_schema(videos: pa.Table) -> pa.Table:
    return videos.select(OLD_SCHEMA.names).cast(OLD_SCHEMA)
