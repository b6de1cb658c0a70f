"""Versions of a tagging output: plan, chunks, commit, and the snapshot that a reader gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.storage.files import StorageError
from pipeline.tagging import writer as tag_output
from pipeline.tagging.reader import KnownVideos, last_commit, read_tags, read_videos
from pipeline.tagging.rows import tag_rows
from pipeline.tagging.source import SourceListing, list_source, new_or_changed, tombstones
from pipeline.tagging.windows import PROBED_SCHEMA, WindowGrid, plan_units
from pipeline.tagging.writer import PlannedVersion, unfinished_version, write_plan

GRID = WindowGrid(1.0, 1.0)
SETTINGS = {"weights_digest": "abc"}


def _tag_everything(source: Path, output: str, generation: int = 1) -> PlannedVersion | None:
    """One pass of a job whose videos all last 2.5 seconds; files named `bad*` fail."""
    listing, known = list_source(str(source)), KnownVideos(output)
    planned = unfinished_version(output, generation) or _plan(
        output, _fresh(listing, known), tombstones(listing, known)
    )
    if planned is None:
        return None
    for number in planned.missing_chunks():
        _write(planned, number)
    planned.commit({"run_id": "r"})
    return planned


def _fresh(listing: SourceListing, known: KnownVideos) -> pa.Table:
    parts = [PROBED_SCHEMA.empty_table(), *new_or_changed(listing, known, most=3)]
    assert all(len(part) <= 3 for part in parts)
    rows = pa.concat_tables(parts).to_pylist()
    for video in rows:
        good = "bad" not in video["uri"]
        video |= {"duration_seconds": 2.5, "num_frames": 25} if good else {"status": "corrupt", "message": "no frames"}
    return pa.Table.from_pylist(rows, schema=PROBED_SCHEMA)


def _plan(output: str, fresh: pa.Table, deleted: pa.Table, generation: int = 1) -> PlannedVersion | None:
    probed = pa.concat_tables([fresh, deleted]).sort_by("uri")
    if len(probed) == 0:
        return None
    committed = last_commit(output)
    version = committed["version"] + 1 if committed else 0
    assert write_plan(output, version, plan_units(probed, GRID, 4), SETTINGS)
    return PlannedVersion(output, version, generation)


def _write(planned: PlannedVersion, number: int) -> None:
    units = planned.chunk(number)
    scored: dict[tuple[int, int], dict[str, Any]] = {}
    for unit in units.to_pylist():
        for index in range(unit["first_window"], unit["first_window"] + unit["num_windows"]):
            best = [0.75, 0.25] if index else [0.5, 0.4]
            answer = {"labels": ["jump", "run"], "scores": best, "status": "ok", "message": "", "attempts": 1}
            if "partly" in unit["uri"] and index == 1:
                answer = {"labels": [], "scores": [], "status": "timeout", "message": "10 s"} | {"attempts": 2}
            scored[unit["unit_id"], index] = answer
    planned.write_chunk(number, tag_rows(units, scored, GRID, planned.version, "key"))


def _touch(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18 + len(content)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("a.mp4", "b, ' [c].webm", "bad.avi", "partly.mp4", "notes.txt"):
        _touch(folder / name, name.encode())
    return folder


def test_the_snapshot_follows_the_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_output, "ROWS_AT_ONCE", 2)  # of four videos: none is lost between two parts
    output = str(tmp_path / "out")
    with pytest.raises(StorageError, match="no committed tags"):
        read_tags(output)
    assert list_source(str(source)).skipped == {".txt": 1}
    _tag_everything(source, output)
    videos = {Path(row["uri"]).name: row for row in read_videos(output).to_pylist()}
    assert {name: (row["windows"], row["status"]) for name, row in videos.items()} == {
        "a.mp4": (3, "ok"), "b, ' [c].webm": (3, "ok"), "bad.avi": (0, "failed"), "partly.mp4": (3, "partial"),
    }  # fmt: skip
    assert videos["a.mp4"]["labels"] == ["jump", "run"]
    assert videos["a.mp4"]["scores"] == pytest.approx([2 / 3, 0.3])
    assert videos["a.mp4"]["run_id"] == "r"
    assert [span | {"score": None} for span in videos["partly.mp4"]["spans"]] == [
        {"label": label, "start_seconds": start, "end_seconds": end, "score": None}
        for start, end in ((0.0, 1.0), (1.5, 2.5))
        for label in ("jump", "run")
    ]
    assert (videos["partly.mp4"]["windows_failed"], videos["partly.mp4"]["attempts"]) == (1, 2)
    assert (videos["partly.mp4"]["error_class"], videos["partly.mp4"]["message"]) == ("timeout", "10 s")
    assert (videos["bad.avi"]["error_class"], videos["bad.avi"]["message"]) == ("corrupt", "no frames")
    before = read_tags(output)
    assert len(before) == 10

    assert _tag_everything(source, output) is None

    _touch(source / "a.mp4", b"another content")
    (source / "bad.avi").unlink()
    _touch(source / "new.mp4", b"new")
    _tag_everything(source, output)
    names = [Path(uri).name for uri in read_tags(output)["uri"].to_pylist()]
    assert {name: names.count(name) for name in names} == {
        "a.mp4": 3, "b, ' [c].webm": 3, "partly.mp4": 3, "new.mp4": 3,
    }  # fmt: skip
    versions = {Path(row["uri"]).name: row["version"] for row in read_videos(output).to_pylist()}
    assert versions == {"a.mp4": 1, "b, ' [c].webm": 0, "partly.mp4": 0, "new.mp4": 1}
    assert _tag_everything(source, output) is None


def test_a_cut_off_version_resumes(source: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    (source / "bad.avi").unlink()
    listing, known = list_source(str(source)), KnownVideos(output)
    planned = _plan(output, _fresh(listing, known), tombstones(listing, known))
    assert planned is not None
    assert not write_plan(output, 0, planned.units, SETTINGS)
    assert planned.missing_chunks() == [0, 1, 2]
    _write(planned, 1)
    with pytest.raises(StorageError, match="chunk 0 of version 0 is missing"):
        planned.commit({})
    again = unfinished_version(output, generation=2)
    assert again is not None
    assert again.settings == SETTINGS
    assert again.missing_chunks() == [0, 2]
    for number in again.missing_chunks():
        _write(again, number)
    again.commit({})
    assert unfinished_version(output) is None
    assert len(read_tags(output)) == 9
    # The earlier writer comes back: it touches no file of the later one, and its commit is refused.
    before = {path: path.read_bytes() for path in Path(output).rglob("*.*")}
    _write(planned, 0)
    with pytest.raises(StorageError, match="another job committed"):
        planned.commit({})
    assert {path: path.read_bytes() for path in before} == before
    assert len(read_tags(output)) == 9


def test_what_is_done_can_be_committed_and_the_rest_later(source: Path, tmp_path: Path) -> None:
    """Four chunks: a and half of b; the rest of b and half of partly; the rest of partly; bad."""
    output = str(tmp_path / "out")
    listing, known = list_source(str(source)), KnownVideos(output)
    planned = _plan(output, _fresh(listing, known), tombstones(listing, known))
    assert planned is not None
    for number in (0, 1):
        _write(planned, number)
    assert not planned.commit({}, partial=True)["complete"]
    names = [Path(uri).name for uri in read_tags(output)["uri"].to_pylist()]
    assert sorted(set(names)) == ["a.mp4", "b, ' [c].webm"]
    assert len(names) == 6
    _tag_everything(source, output)
    assert len(read_tags(output)) == 10
    assert len(read_videos(output)) == 4
    assert _tag_everything(source, output) is None


def test_what_the_storage_did_not_give_is_retried(source: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    listing, known = list_source(str(source)), KnownVideos(output)
    rows = _fresh(listing, known).to_pylist()
    for row in rows:
        row |= {"status": "unreadable" if "a.mp4" in row["uri"] else "corrupt", "message": "500"}
    planned = _plan(output, pa.Table.from_pylist(rows, schema=PROBED_SCHEMA), PROBED_SCHEMA.empty_table())
    assert planned is not None
    for number in planned.missing_chunks():
        _write(planned, number)
    planned.commit({})
    assert [Path(uri).name for uri in _fresh(listing, KnownVideos(output))["uri"].to_pylist()] == ["a.mp4"]


class DiedError(Exception):
    """Stands for a SIGKILL at a certain write."""


def test_a_kill_between_any_two_writes_leaves_every_unit_once(
    source: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its first write, started again, killed at its second, and so on: the snapshot of an undisturbed run."""
    _tag_everything(source, f"{place}/peace")
    output, writes, allowed = f"{place}/out", 0, 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes > allowed:
                raise DiedError
            return write(*arguments)

        return maybe

    for name in ("write_bytes", "write_table", "write_if_absent"):
        monkeypatch.setattr(tag_output, name, dying(getattr(tag_output, name)))
    for allowed in range(4):
        writes = 0
        with pytest.raises(DiedError):  # at the plan, at two chunks, between videos and commit
            _tag_everything(source, output, generation=allowed)
        assert last_commit(output) is None
    writes, allowed = 0, 9
    _tag_everything(source, output, generation=allowed)
    for read in (read_tags, read_videos):
        assert read(output).sort_by("uri").to_pylist() == read(f"{place}/peace").sort_by("uri").to_pylist()
