"""Versions of a tagging output: plan, chunks, commit, and what a reader sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import StorageError
from pipeline.tag_output import (
    PlannedVersion,
    known_versions,
    last_commit,
    read_tags,
    read_videos,
    tag_rows,
    unfinished_version,
    write_plan,
)
from pipeline.tag_source import list_source, new_or_changed, tombstones
from pipeline.windows import WindowGrid, plan_units

GRID = WindowGrid(1.0, 1.0)
SETTINGS = {"weights_digest": "abc"}


def _tag_everything(source: Path, output: str) -> PlannedVersion | None:
    """One pass of a job whose videos all last 2.5 seconds; files named `bad*` fail."""
    listing, known = list_source(str(source)), known_versions(output)
    fresh, gone = new_or_changed(listing, known).to_pylist(), tombstones(listing, known).to_pylist()
    if not fresh and not gone:
        return None
    for video in fresh:
        good = "bad" not in video["uri"]
        video |= {"duration_seconds": 2.5, "num_frames": 25} if good else {"status": "corrupt", "message": "no frames"}
    schema = new_or_changed(listing, known).schema
    probed = schema.empty_table().from_pylist(fresh + gone, schema=schema)
    committed = last_commit(output)
    version = committed["version"] + 1 if committed else 0
    write_plan(output, version, plan_units(probed, GRID, 4), SETTINGS)
    planned = PlannedVersion(output, version)
    for number in planned.missing_chunks():
        _write(planned, number)
    planned.commit({"run_id": "r"})
    return planned


def _write(planned: PlannedVersion, number: int) -> None:
    units = planned.chunk(number)
    scored: dict[tuple[int, int], dict[str, Any]] = {}
    for unit in units.to_pylist():
        for index in range(unit["first_window"], unit["first_window"] + unit["num_windows"]):
            best = [0.75, 0.25] if index else [0.5, 0.4]
            answer = {"labels": ["jump", "run"], "scores": best, "status": "ok", "message": ""}
            if "partly" in unit["uri"] and index == 1:
                answer = {"labels": [], "scores": [], "status": "time-out", "message": "10 s"}
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


def test_the_view_follows_the_source(source: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with pytest.raises(StorageError, match="no committed tags"):
        read_tags(output)
    assert list_source(str(source)).skipped == {".txt": 1}
    _tag_everything(source, output)
    videos = {Path(row["uri"]).name: row for row in read_videos(output).to_pylist()}
    assert {name: (row["windows"], row["status"]) for name, row in videos.items()} == {
        "a.mp4": (3, "ok"), "b, ' [c].webm": (3, "ok"), "bad.avi": (0, "corrupt"), "partly.mp4": (3, "partial"),
    }  # fmt: skip
    assert videos["a.mp4"]["labels"] == ["jump", "run"]
    assert videos["a.mp4"]["scores"] == pytest.approx([2 / 3, 0.3])
    assert videos["partly.mp4"]["windows_failed"] == 1
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


def test_a_cut_off_version_goes_on_where_it_was(source: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    listing = list_source(str(source))
    probed = new_or_changed(listing, {}).to_pylist()
    for video in probed:
        video |= {"duration_seconds": 2.5, "num_frames": 25}
    table = new_or_changed(listing, {}).from_pylist(probed, schema=new_or_changed(listing, {}).schema)
    write_plan(output, 0, plan_units(table, GRID, 4), SETTINGS)
    with pytest.raises(StorageError, match="another program planned"):
        write_plan(output, 0, plan_units(table, GRID, 4), SETTINGS)
    planned = unfinished_version(output)
    assert planned is not None
    assert planned.missing_chunks() == [0, 1, 2]
    _write(planned, 1)
    with pytest.raises(StorageError, match="chunk 0 of version 0 is missing"):
        planned.commit({})
    again = unfinished_version(output)
    assert again is not None
    assert again.settings == SETTINGS
    assert again.missing_chunks() == [0, 2]
    for number in again.missing_chunks():
        _write(again, number)
    again.commit({})
    assert unfinished_version(output) is None
    assert len(read_tags(output)) == 12
    with pytest.raises(StorageError, match="another program committed"):
        planned.commit({})


def test_a_manifest_names_missing_files_too(source: Path, tmp_path: Path) -> None:
    manifest = source / "list.csv"
    manifest.write_text(f'path,label\na.mp4,x\n"b, \' [c].webm",y\n{source}/partly.mp4,\nnowhere/gone.mp4,z\n')
    versions = list_source(str(manifest)).content_versions
    assert [Path(uri).name for uri in versions] == ["a.mp4", "b, ' [c].webm", "partly.mp4", "gone.mp4"]
    assert versions[f"{source}/nowhere/gone.mp4"] == "missing"
    assert versions[f"{source}/a.mp4"] == list_source(str(source)).content_versions[f"{source}/a.mp4"]
    manifest.write_text("name\na.mp4\n")
    with pytest.raises(StorageError, match="has no column uri or path"):
        list_source(str(manifest))
