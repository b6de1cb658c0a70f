"""What a tagging job writes: plans, immutable files, numbered commits. Readers: `pipeline.tagging.reader`.

    units/000002.parquet                 the plan of version 2, written only if absent
    tags/000002-000005-00000007.parquet  rows of its chunk 5, a single PUT by the writer of attempt 7
    videos/000002-00000008.parquet       one row a video, derived from them at the commit
    _commits/2.json                      written last: all files of the current view

A video that changed has rows of a later version, which supersede the earlier ones; one that is gone has a tombstone.
Files carry the attempt of their writer: one that was cut off and comes back touches nobody else's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.files import StorageError, join, read_bytes, write_bytes, write_if_absent
from pipeline.storage.parquet import parquet_bytes, read_table, table_bytes, write_table
from pipeline.tagging.reader import file_names, last_commit, last_number, read_files
from pipeline.tagging.rows import video_rows
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.windows import UNIT_SCHEMA

READ_THREADS = 8
FILES_AT_ONCE = 64
ROWS_AT_ONCE = 10_000

Commit = Mapping[str, Any]


class PlannedVersion:
    """One version of an output, from its plan to its commit."""

    def __init__(self, output: str, version: int, writer: int = 0) -> None:
        """Open the plan of ``version``.

        Args:
            writer: names the files that are written from here; higher than that of every earlier writer.

        Raises:
            StorageError: it cannot be read.
        """
        self.output, self.version, self.writer = output, version, writer
        self.units = read_table(_plan_uri(output, version))
        self.settings: dict[str, Any] = json.loads(self.units.schema.metadata[b"settings"])
        boundaries = np.flatnonzero(np.diff(self.units["chunk"].to_numpy(), prepend=-1))
        self._offsets = [*boundaries.tolist(), len(self.units)]

    @property
    def attempts_folder(self) -> str:
        """Where the attempts at this version's units are counted (`pipeline.decode.crash_budget`)."""
        return join(self.output, "_attempts", f"{self.version:06d}")

    @property
    def num_chunks(self) -> int:
        """Chunks of the plan, numbered from 0."""
        return len(self._offsets) - 1

    def chunk(self, number: int) -> pa.Table:
        """The units of one chunk."""
        start, end = self._offsets[number : number + 2]
        return self.units.slice(start, end - start)

    def count_windows(self, chunks: Sequence[int]) -> int:
        """Windows of some chunks."""
        return sum(sum(self.chunk(number)["num_windows"].to_pylist()) for number in chunks)

    def missing_chunks(self) -> list[int]:
        """Chunks without a file, by listing."""
        done = self._chunk_files()
        return [number for number in range(self.num_chunks) if number not in done]

    @property
    def num_videos(self) -> int:
        """Videos of the plan, those included that are gone."""
        return len(pc.unique(self.units["video_id"]))

    def count_begun(self, missing: Sequence[int]) -> set[int]:
        """Those of the missing chunks on which an earlier job had begun; their number is kept (`chunks_lost`)."""
        names = self._attempt_files()
        begun = {int(name.removesuffix(".json")) for name in names if name.endswith(".json")} & set(missing)
        if begun:
            write_bytes(join(self.attempts_folder, f"{self.writer:08d}.lost-{len(begun)}"), b"")
        return begun

    def chunks_lost(self) -> int:
        """How many chunks were begun and not finished by jobs that ended, all of them together."""
        return sum(int(name.rpartition("-")[2]) for name in self._attempt_files() if ".lost-" in name)

    def _attempt_files(self) -> list[str]:
        return file_names(self.output, f"_attempts/{self.version:06d}")

    def write_chunk(self, number: int, rows: pa.Table) -> None:
        """Write the rows of one chunk as its file: the same rows whenever and wherever it is done."""
        name = f"{self.version:06d}-{number:06d}-{self.writer:08d}.parquet"
        write_table(join(self.output, "tags", name), rows.cast(self._tag_schema))

    def commit(
        self, facts: Mapping[str, Any], *, partial: bool = False, seal: Callable[[Commit], None] = lambda _: None
    ) -> dict[str, Any]:
        """Derive ``videos/`` from the version's tags and name all files of the new view.

        Args:
            facts: what the commit should also tell (run id, source).
            partial: commit what is done; videos of which windows are missing are left to a later version.
            seal: decides, once all files are there, whether this commit holds; raises when it must not.

        Raises:
            StorageError: another job committed this version, or a chunk is missing.
        """
        files = self._chunk_files()
        missing = [number for number in range(self.num_chunks) if number not in files]
        if missing and not partial:
            raise StorageError(
                join(self.output, "tags"), f"chunk {missing[0]} of version {self.version} is missing", "run tag again"
            )
        tags = [files[number] for number in sorted(files)]
        videos = f"videos/{self.version:06d}-{self.writer:08d}.parquet"
        self._write_videos(videos, tags, facts)
        previous = last_commit(self.output) or {"version": -1, "tags": [], "videos": []}
        commit = {
            "version": self.version,
            "parent": previous["version"],
            "complete": not missing,
            "plan": f"units/{self.version:06d}.parquet",
            "tags": previous["tags"] + tags,
            "videos": [*previous["videos"], videos],
            "settings": self.settings,
            **facts,
        }
        seal(commit)
        publish(self.output, commit)
        return commit

    def _write_videos(self, name: str, tags: Sequence[str], facts: Mapping[str, Any]) -> None:
        told = {"weights_digest": str(self.settings["weights_digest"]), "run_id": facts.get("run_id")}
        rows = video_rows(self._tables(tags), self.units, told)
        batches = iter(lambda: list(itertools.islice(rows, ROWS_AT_ONCE)), [])
        tables = (pa.Table.from_pylist(batch, schema=VIDEO_SCHEMA) for batch in batches)
        write_bytes(join(self.output, name), parquet_bytes(tables, VIDEO_SCHEMA))

    def _tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Files in order, some of them read ahead; without embeddings, which no video's row holds."""

        def read(name: str) -> pa.Table:
            return read_files(self.output, [name], self._tag_schema, tag_schema().names)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            for start in range(0, len(names), FILES_AT_ONCE):
                yield from pool.map(read, names[start : start + FILES_AT_ONCE])

    @property
    def _tag_schema(self) -> pa.Schema:
        return tag_schema(self.settings.get("embedding_size", 0))

    def _chunk_files(self) -> dict[int, str]:
        """Chunk → its file, the first writer's where there are several."""
        names = file_names(self.output, "tags", f"{self.version:06d}-")
        return {int(name.split("-")[1]): f"tags/{name}" for name in sorted(names, reverse=True)}


def write_plan(output: str, version: int, units: pa.Table, settings: Mapping[str, Any]) -> bool:
    """Keep the plan of a version before any of its work begins.

    Returns:
        False when the version has a plan already; that one holds.
    """
    table = units.cast(UNIT_SCHEMA).replace_schema_metadata({"settings": json.dumps(dict(settings), sort_keys=True)})
    return write_if_absent(_plan_uri(output, version), table_bytes(table))


def unfinished_version(output: str, writer: int = 0) -> PlannedVersion | None:
    """The version that was planned but not committed, when an earlier run was cut off."""
    planned = last_number(output, "units", ".parquet")
    committed = last_number(output, "_commits", ".json")
    if planned is None or planned == committed:
        return None
    return PlannedVersion(output, planned, writer)


def publish(output: str, commit: Commit) -> None:
    """Show a commit to readers; one that is shown already stays as it is.

    Raises:
        StorageError: its version has another commit.
    """
    place = join(output, "_commits", f"{commit['version']}.json")
    content = json.dumps(dict(commit), indent=2).encode()
    if not write_if_absent(place, content) and read_bytes(place) != content:
        raise StorageError(place, "another job committed this version", "give each tagging job its own output")


def _plan_uri(output: str, version: int) -> str:
    return join(output, "units", f"{version:06d}.parquet")
