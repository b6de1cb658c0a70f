"""Finished tasks are committed about every minute, beside the work, and at the end."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow as pa
import pytest

from jobs.core.errors import StopRequestedError
from jobs.tagging import committer as committer_module
from jobs.tagging.committer import Committer
from jobs.tagging.stage import FinishedTask
from pipeline.storage.delta import Change, ConflictError, DataFile
from pipeline.tagging.reader import read_tags, read_videos
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, tag_schema
from pipeline.tagging.tables import Changes, Ids, Rewrite, TagTables, create_tables, open_tables, rewritten
from pipeline.tagging.windows import video_id
from tests.support.tag_output import SETTINGS, commit, written


class Here:
    """Writes files anew in this process."""

    def __init__(self, output: Path) -> None:
        self.output = str(output)
        self.asked: list[Rewrite] = []

    def rewrite(self, files: Sequence[Rewrite], video_ids: Ids) -> list[tuple[Rewrite, Change]]:
        self.asked += files
        pairs = [(file, tag_schema() if file.table == TAGS else VIDEO_SCHEMA) for file in files]
        answers = [(file, rewritten(self.output, file, video_ids, schema)) for file, schema in pairs]
        return [(file, change) for file, change in answers if change is not None]


def _finished(output: Path, number: int, content: str = "1") -> FinishedTask:
    changes = written(str(output), [(f"{number:02d}", content, "ok")])
    return FinishedTask(number, changes.tags.adds[0], changes.videos.adds[0], 1, {"ok": 2})


def _committer(output: Path, seconds: float) -> tuple[TagTables, Committer]:
    tables = create_tables(str(output), SETTINGS)
    return tables, Committer(tables, Here(output), {"source": "here"}, seconds)


def test_all_at_the_end(tmp_path: Path) -> None:
    tables, committer = _committer(tmp_path, 1e6)
    for number in range(3):
        committer.add(_finished(tmp_path, number))
    assert tables.tags.version == 0
    committer.close()
    assert tables.tags.version == 1
    assert next(tables.tags.commits(1))["source"] == "here"
    assert (len(read_tags(str(tmp_path))), len(read_videos(str(tmp_path)))) == (6, 3)


def test_now_and_then_beside_the_work(tmp_path: Path) -> None:
    tables, committer = _committer(tmp_path, 0.0)
    for number in range(30):
        committer.add(_finished(tmp_path, number))
        time.sleep(0.05)
    committer.close()
    # A commit takes its share of the time at most, so there are fewer than tasks.
    assert 2 <= tables.tags.version < 30
    assert len(read_videos(str(tmp_path))) == 30


def test_what_is_replaced_and_deleted_is_removed_in_the_same_commit(tmp_path: Path) -> None:
    commit(str(tmp_path), *((f"{number:02d}", "1", "ok") for number in range(4)))
    commit(str(tmp_path), *((f"{number:02d}", "1", "ok") for number in range(4, 8)))
    tables, committer = _committer(tmp_path, 1e6)
    old = [("01", "1"), ("03", "1")]
    replaced = pa.table({"uri": [uri for uri, _ in old], "video_id": [video_id(*video) for video in old]})
    committer.add(_finished(tmp_path, 1, "2"), replaced)
    committer.close()
    assert tables.tags.version == 3
    for rows in (read_tags(str(tmp_path)), read_videos(str(tmp_path))):
        found = set(zip(rows["uri"].to_pylist(), rows["content_version"].to_pylist(), strict=True))
        assert found == {("01", "2")} | {(f"{number:02d}", "1") for number in (0, 2, 4, 5, 6, 7)}
    assert len({file.path for file in committer._rewriting.asked}) == 2  # type: ignore[attr-defined]


def test_only_deletions_are_a_commit_too(tmp_path: Path) -> None:
    commit(str(tmp_path), ("a", "1", "ok"), ("b", "1", "ok"))
    _, committer = _committer(tmp_path, 1e6)
    committer.remove(pa.table({"uri": ["a"], "video_id": np.array([video_id("a", "1")])}))
    committer.close()
    assert set(read_tags(str(tmp_path))["uri"].to_pylist()) == {"b"}


def test_nothing_to_commit_is_no_commit(tmp_path: Path) -> None:
    tables, committer = _committer(tmp_path, 0.0)
    committer.remove(pa.table({"uri": pa.array([], pa.string()), "video_id": pa.array([], pa.int64())}))
    committer.close()
    assert tables.tags.version == 0


class Recorded:
    """In the place of `TagTables`: what is committed, and the removals that were asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.removed: list[str] = []

    def to_rewrite(self, uris: pa.ChunkedArray) -> list[Rewrite]:
        self.removed += uris.to_pylist()
        return []

    def commit(self, changes: Changes, _facts: Mapping[str, str]) -> None:
        self.paths += [file.path for file in changes.tags.adds]


@contextmanager
def _signal_after(instructions: int) -> Iterator[None]:
    """Raise, as a handler of SIGTERM does, after so many instructions of the committer's code on this thread."""
    left = instructions

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left
        if frame.f_code.co_filename != committer_module.__file__:
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left < 0:
            raise StopRequestedError("stop")
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


@pytest.mark.parametrize("commit_seconds", [0.0, 1e6])
def test_a_signal_at_any_moment_parts_no_new_rows_from_the_removal_of_the_old_ones(commit_seconds: float) -> None:
    """And what was finished before is committed."""
    replaced = pa.table({"uri": ["b"], "video_id": [1]})
    for instructions in itertools.count():
        tables = Recorded()
        committer = Committer(tables, Here(Path()), {}, 1e6)  # type: ignore[arg-type]
        committer.add(_named("a"))
        committer._due = time.monotonic() + commit_seconds
        stopped = False
        try:
            with _signal_after(instructions):
                committer.add(_named("b"), replaced)
        except StopRequestedError:
            stopped = True
        committer.close()
        assert (tables.paths, tables.removed) in ((["a"], []), (["a", "b"], ["b"])), instructions
        if not stopped:
            break
    assert instructions > 20
    assert tables.removed == ["b"]


def _named(name: str) -> FinishedTask:
    return FinishedTask(0, DataFile(name, 1, "{}"), DataFile(name, 1, "{}"), 1, {"ok": 1})


def test_another_writer_ends_it(tmp_path: Path) -> None:
    _, committer = _committer(tmp_path, 1e6)
    other = open_tables(str(tmp_path))
    assert other is not None
    other.fence()
    committer.add(_finished(tmp_path, 0))
    with pytest.raises(ConflictError):
        committer.close()
    assert len(read_videos(str(tmp_path))) == 0
