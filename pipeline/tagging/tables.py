"""The two tables of a tagging output, for the one job that writes them.

    tags/      a row per window       both Delta Lake tables; a commit to `tags` decides, and its log entry holds
    videos/    a row per video        what the commit to `videos` with the same number adds and removes

A job that dies between the two commits has decided: the next one makes the second. Files that no commit names are of no
table. What a commit replaces or deletes it removes at once: files with such rows are rewritten without them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage.delta import Change, Table, create_table, joined, open_table, write_data_file
from pipeline.storage.files import join
from pipeline.storage.records import DAMAGED_REMEDY, DamagedError, as_record
from pipeline.tagging.reader import read_files
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema

TARGET_BYTES = 128 * 2**20
MANY_FILES = 100
OF_VIDEOS, NUMBER = "videos", "transaction"
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """What one transaction does to the two tables."""

    tags: Change
    videos: Change


def total(changes: Sequence[Changes]) -> Changes:
    """Several of them as one."""
    return Changes(joined([one.tags for one in changes]), joined([one.videos for one in changes]))


@dataclass(frozen=True)
class Rewrite:
    """A file of a table that may hold rows to remove."""

    table: str
    """`TAGS` or `VIDEOS`."""
    path: str


class TagTables:
    """Both tables of an output, as this process has read or committed them last.

    Only the job that holds the output's job log may write: call `finish` first, then the others.
    """

    def __init__(self, tags: Table, videos: Table) -> None:
        self.tags, self.videos = tags, videos

    @property
    def settings(self) -> dict[str, Any]:
        """What all rows have in common."""
        return as_record(self.tags.uri, self.tags.description)

    def finish(self) -> None:
        """Make the commit to `videos` that a job did not live to make, if there is one.

        Raises:
            ConflictError: another writer is at work.
            DamagedError: the log of `tags` does not say what that commit would be.
        """
        number = self.tags.transaction
        if number != self.videos.transaction + 1:
            return
        # As a rule it is the newest; others may have compacted the table since.
        entries = (entry for most in (1, 100, None) for entry in self.tags.commits(most))
        decided = next((entry for entry in entries if entry.get(NUMBER) == str(number)), None)
        if decided is None:
            happened = f"is damaged: its log does not hold transaction {number}, which `videos` lacks"
            raise DamagedError(self.tags.uri, happened, DAMAGED_REMEDY)
        self.videos.commit(Change.from_json(str(decided.get(OF_VIDEOS, "")), self.tags.uri), {}, number)

    def commit(self, changes: Changes, facts: Mapping[str, str]) -> None:
        """Make the next transaction, on top of what this writer has read.

        Args:
            facts: further entries of the log (run id, source).

        Raises:
            ConflictError: another writer has committed meanwhile.
        """
        number = self.tags.transaction + 1
        metadata = {**facts, NUMBER: str(number), OF_VIDEOS: changes.videos.to_json()}
        self.tags.commit(changes.tags, metadata, number)
        self.videos.commit(changes.videos, facts, number)

    def fence(self) -> None:
        """Commit nothing, so that a writer that was cut off and comes back cannot commit."""
        self.commit(total([]), {})

    def compact(self, target_bytes: int = TARGET_BYTES) -> None:
        """Join small files of both tables into larger ones."""
        for table in (self.tags, self.videos):
            table.compact(target_bytes)

    @property
    def is_scattered(self) -> bool:
        """Whether many files are small."""
        return any(
            sum(size < TARGET_BYTES / 4 for size in table.sizes()) >= MANY_FILES for table in (self.tags, self.videos)
        )

    def to_rewrite(self, uris: pa.ChunkedArray) -> list[Rewrite]:
        """The files that may hold rows of these URIs."""
        tables = {TAGS: self.tags, VIDEOS: self.videos}
        return [Rewrite(name, path) for name, table in tables.items() for path in table.paths_between(uris)]


def open_tables(output: str) -> TagTables | None:
    """The tables of an output, only read; None where there are none yet."""
    tags, videos = (open_table(join(output, name)) for name in (TAGS, VIDEOS))
    return None if tags is None or videos is None else TagTables(tags, videos)


def create_tables(output: str, settings: Mapping[str, Any]) -> TagTables:
    """The tables of an output, new and empty where there are none, with everything that was decided.

    Args:
        settings: what all rows have in common; with an ``embedding_size`` rows have embeddings.

    Raises:
        ConflictError: another writer is at work.
    """
    schemas = {TAGS: tag_schema(bool(settings.get("embedding_size"))), VIDEOS: VIDEO_SCHEMA}
    text = json.dumps(dict(settings), sort_keys=True)
    tables = TagTables(
        *(
            open_table(join(output, name)) or create_table(join(output, name), schema, text)
            for name, schema in schemas.items()
        )
    )
    tables.finish()
    return tables


def rewritten(output: str, file: Rewrite, video_ids: Ids, schema: pa.Schema) -> Change | None:
    """Rewrite a file without the rows of some videos; None where it holds none of them.

    Args:
        video_ids: ascending.
    """
    uri = join(output, file.table)
    rows = read_files([join(uri, file.path)], schema)
    kept = rows.filter(pa.array(~np.isin(rows["video_id"].to_numpy(), video_ids)))
    if len(kept) == len(rows):
        return None
    return Change((write_data_file(uri, kept),) if len(kept) else (), (file.path,))
