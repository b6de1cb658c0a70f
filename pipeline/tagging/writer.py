"""What a tagging job writes: plans, immutable files, numbered commits. Readers: `pipeline.tagging.reader`.

    units/000002.parquet                 the plan of version 2, written only if absent
    tags/000002-000005-00000007.parquet  rows of its chunk 5, a single PUT by the writer of generation 7
    videos/000002-00000008.parquet       one row a video, derived from them at the commit
    _commits/2.json                      written last: all files of the current snapshot
    _begun/000002/000005.json            chunk 5 was begun: attempts at its units (`pipeline.decode.crash_budget`)
    _begun/000002/00000008.lost-3        generation 8 found three chunks begun and not finished

A video that changed has rows of a later version, which supersede the earlier ones; a deleted one has a tombstone.
Files carry the generation of their writer, the number of its exclusive lock: a writer that was cut off and returns
never overwrites a file of a later one.
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

from pipeline.storage.files import StorageError, file_names, join, read_bytes, write_bytes, write_if_absent
from pipeline.storage.parquet import parquet_bytes, read_table, table_bytes, write_table
from pipeline.tagging.reader import last_commit, last_number, read_files
from pipeline.tagging.rows import video_rows
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.windows import UNIT_SCHEMA

READ_THREADS = 8
FILES_AT_ONCE = 64
ROWS_AT_ONCE = 10_000

Commit = Mapping[str, Any]


class PlannedVersion:
    """One version of an output, from its plan to its commit."""

    def __init__(self, output: str, version: int, generation: int = 0) -> None:
        """``generation`` names the files that this writer writes; higher than that of every earlier writer."""
        self.output, self.version, self.generation = output, version, generation
        self.units = read_table(_plan_uri(output, version))
        self.settings: dict[str, Any] = json.loads(self.units.schema.metadata[b"settings"])
        boundaries = np.flatnonzero(np.diff(self.units["chunk"].to_numpy(), prepend=-1))
        self._offsets = [*boundaries.tolist(), len(self.units)]

    @property
    def begun_folder(self) -> str:
        """Where each chunk that was begun has a file with the attempts at its units."""
        return join(self.output, "_begun", f"{self.version:06d}")

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
        return sorted(set(range(self.num_chunks)) - self._chunk_files().keys())

    @property
    def num_videos(self) -> int:
        """Videos of the plan, deleted ones included."""
        return len(pc.unique(self.units["video_id"]))

    def count_begun(self, missing: Sequence[int]) -> set[int]:
        """Those of the missing chunks that an earlier job had begun; their number is kept (`chunks_lost`)."""
        names = self._begun_files()
        begun = {int(name.removesuffix(".json")) for name in names if name.endswith(".json")} & set(missing)
        if begun:
            write_bytes(join(self.begun_folder, f"{self.generation:08d}.lost-{len(begun)}"), b"")
        return begun

    def chunks_lost(self) -> int:
        """How many chunks were begun and not finished by jobs that ended, all of them together."""
        return sum(int(name.rpartition("-")[2]) for name in self._begun_files() if ".lost-" in name)

    def _begun_files(self) -> list[str]:
        return file_names(self.begun_folder)

    def write_chunk(self, number: int, rows: pa.Table) -> None:
        """Write the rows of one chunk as its file: the same rows whenever and wherever it is done."""
        name = f"{self.version:06d}-{number:06d}-{self.generation:08d}.parquet"
        write_table(join(self.output, "tags", name), rows.cast(self._tag_schema))

    def commit(
        self, facts: Mapping[str, Any], *, partial: bool = False, seal: Callable[[Commit], None] = lambda _: None
    ) -> dict[str, Any]:
        """Derive ``videos/`` from the version's tags and name all files of the new snapshot.

        Args:
            facts: further entries of the commit (run id, source).
            partial: commit the finished chunks; videos of which windows are missing are left to a later version.
            seal: decides, once all files exist, whether this commit holds; raises when it must not.

        Raises:
            StorageError: another job committed this version, or a chunk is missing.
        """
        files = self._chunk_files()
        missing = sorted(set(range(self.num_chunks)) - files.keys())
        if missing and not partial:
            raise StorageError(
                join(self.output, "tags"), f"chunk {missing[0]} of version {self.version} is missing", "run tag again"
            )
        tags = [files[number] for number in sorted(files)]
        videos = f"videos/{self.version:06d}-{self.generation:08d}.parquet"
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
        # The seal takes the next generation by one conditional write. Without it, a writer that was cut off after its
        # last check of the lock could publish beside its successor. Who dies between the two lines has decided already:
        # the next start publishes the sealed commit.
        seal(commit)
        publish(self.output, commit)
        return commit

    def _write_videos(self, name: str, tags: Sequence[str], facts: Mapping[str, Any]) -> None:
        common = {"weights_digest": str(self.settings["weights_digest"]), "run_id": facts.get("run_id")}
        rows = video_rows(self._tables(tags), self.units, common)
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
        own, names = f"{self.version:06d}-", file_names(join(self.output, "tags"))
        return {int(name.split("-")[1]): f"tags/{name}" for name in reversed(names) if name.startswith(own)}


def write_plan(output: str, version: int, units: pa.Table, settings: Mapping[str, Any]) -> bool:
    """Write the plan of a version before any of its work begins; False when it has one already, which holds."""
    table = units.cast(UNIT_SCHEMA).replace_schema_metadata({"settings": json.dumps(dict(settings), sort_keys=True)})
    return write_if_absent(_plan_uri(output, version), table_bytes(table))


def unfinished_version(output: str, generation: int = 0) -> PlannedVersion | None:
    """The version that was planned but not committed, when an earlier run was cut off."""
    planned = last_number(output, "units", ".parquet")
    committed = last_number(output, "_commits", ".json")
    if planned is None or planned == committed:
        return None
    return PlannedVersion(output, planned, generation)


def publish(output: str, commit: Commit) -> None:
    """Make a commit visible to readers; a published one never changes, so another one raises `StorageError`."""
    uri = join(output, "_commits", f"{commit['version']}.json")
    content = json.dumps(dict(commit), indent=2).encode()
    if not write_if_absent(uri, content) and read_bytes(uri) != content:
        raise StorageError(uri, "another job committed this version", "give each tagging job its own output")


def _plan_uri(output: str, version: int) -> str:
    return join(output, "units", f"{version:06d}.parquet")
