"""Checkpoints: complete or not there, kept by number, journal beside them."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.checkpoints import store as module
from jobs.checkpoints.store import (
    Checkpoint,
    collect_checkpoints,
    complete_steps,
    discard_after,
    latest_checkpoint,
    newest_cursor,
    read_journal,
    write_checkpoint,
    write_journal,
)
from pipeline.storage import files as storage

FILES = ("model-0.safetensors", "optimizer-0.safetensors", "state.json", "complete.json")


def make(step: int, metric: float | None = None) -> Checkpoint:
    weights = {"w": torch.full((3,), float(step))}
    optimizer = {"w.exp_avg": torch.ones(3), "step": torch.tensor(step)}
    return Checkpoint(step, step * 8, weights, optimizer, {"note": "x"}, metric)


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path)) is None
    write_checkpoint(str(tmp_path), make(3))
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert (found.step, found.position, found.extra) == (3, 24, {"note": "x"})
    assert torch.equal(found.weights["w"], torch.full((3,), 3.0))
    assert set(found.optimizer) == {"w.exp_avg", "step"}
    cursor = newest_cursor(str(tmp_path))
    assert (cursor.step, cursor.position, cursor.extra) == (3, 24, {"note": "x"})


def test_large_states_come_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 100)
    weights = {f"w{number}": torch.full((11,), float(number)) for number in range(7)}  # 44 bytes each
    write_checkpoint(str(tmp_path), Checkpoint(1, 8, weights, {}))
    assert len([name for name in os.listdir(folder(tmp_path, 1)) if "-model-" in name]) == 4
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert {name: value.tolist() for name, value in found.weights.items()} == {
        name: value.tolist() for name, value in weights.items()
    }


def test_a_checkpoint_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes and its tensors are never both in memory as a whole."""
    monkeypatch.setattr(module, "FILE_BYTES", 2**20)
    weights = {f"w{number}": torch.full((2**18,), float(number)) for number in range(16)}  # a MiB each
    write_checkpoint(str(tmp_path), Checkpoint(1, 8, weights, {}))
    tracemalloc.start()
    found = latest_checkpoint(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert torch.equal(found.weights["w15"], weights["w15"])
    assert peak < 1.5 * 16 * 2**20


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(FILES), kind=st.sampled_from(["missing", "cut", "flipped", "empty"]), data=st.data())
def test_a_damaged_checkpoint_is_never_loaded(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, data: st.DataObject
) -> None:
    output = tmp_path_factory.mktemp("run")
    write_checkpoint(str(output), make(1))
    write_checkpoint(str(output), make(2))
    victim = next(folder(output, 2).glob(f"*{name}"))
    content = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "missing":
        victim.unlink()
    elif kind == "flipped":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[: at if kind == "cut" else 0])
    found = latest_checkpoint(str(output))
    # A flip in the marker's white space or step leaves the digests whole: then, and only then, step 2 may load.
    assert found is not None
    assert found.step == 1 or name == "complete.json"
    assert torch.equal(found.weights["w"], torch.full((3,), float(found.step)))
    assert newest_cursor(str(output)).step == found.step


def test_a_cut_off_writer_cannot_spoil_a_later_attempts_checkpoint(tmp_path: Path) -> None:
    """Its files have other names, and the marker that is there stays."""
    write_checkpoint(str(tmp_path), make(2), generation=2)
    stale = make(2)
    stale.weights["w"].fill_(-1.0)
    write_checkpoint(str(tmp_path), stale, generation=1)
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert torch.equal(found.weights["w"], torch.full((3,), 2.0))
    collect_checkpoints(str(tmp_path), generation=2, keep=2, keep_best=0)
    assert not list(folder(tmp_path, 2).glob("generation-0001-*"))
    assert latest_checkpoint(str(tmp_path)) is not None


@pytest.mark.parametrize("keep", [1, 2])
def test_a_marker_that_comes_late_gives_way(tmp_path: Path, keep: int) -> None:
    """Of a writer that was cut off while it wrote the marker, whose files the next generation deleted meanwhile."""
    write_checkpoint(str(tmp_path), make(2), generation=1)
    late = (folder(tmp_path, 2) / "complete.json").read_bytes()
    discard_after(str(tmp_path), 0)
    (folder(tmp_path, 2) / "complete.json").write_bytes(late)
    (folder(tmp_path, 9)).mkdir()
    (folder(tmp_path, 9) / "complete.json").write_bytes(late)  # where nobody writes again
    for step in (1, 2):
        write_checkpoint(str(tmp_path), make(step), generation=2)
        collect_checkpoints(str(tmp_path), generation=2, keep=keep, keep_best=0)
    assert complete_steps(str(tmp_path)) == [1, 2][-keep:]
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.step == 2


def test_a_marker_that_gives_way_too_late_is_another_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While generation 2 replaces a torn marker it is cut off, and generation 3 saves the same step."""
    write_checkpoint(str(tmp_path), make(1), generation=1)
    next(folder(tmp_path, 1).glob("*model*")).unlink()
    real = storage.replace_if_unchanged

    def delayed(uri: str, before: bytes, data: bytes) -> bool:
        monkeypatch.setattr(storage, "replace_if_unchanged", real)
        discard_after(str(tmp_path), 0)
        write_checkpoint(str(tmp_path), make(1), generation=3)
        collect_checkpoints(str(tmp_path), generation=3, keep=1, keep_best=0)
        return real(uri, before, data)

    monkeypatch.setattr(storage, "replace_if_unchanged", delayed)
    write_checkpoint(str(tmp_path), make(1), generation=2)
    assert latest_checkpoint(str(tmp_path)) is not None
    marker = json.loads((folder(tmp_path, 1) / "complete.json").read_text())
    assert all(name.startswith("generation-0003-") for name in marker["sha256"])


def test_orphans_and_torn_checkpoints_are_collected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(str(tmp_path), make(step))
    (folder(tmp_path, 2) / "complete.json").unlink()  # an orphan: killed before its marker
    torn = next(folder(tmp_path, 4).glob("*model*"))
    torn.write_bytes(torn.read_bytes()[:-1])
    cursor = newest_cursor(str(tmp_path))
    assert cursor.step == 3
    discard_after(str(tmp_path), cursor.step)
    collect_checkpoints(str(tmp_path), generation=2, keep=5, keep_best=0)
    left = {path.parent.name for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert left == {"step-00000001", "step-00000003"}


def test_checkpoints_that_a_run_removes_meanwhile_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the reading of a marker, and while the newest is read."""
    for step in (1, 2):
        write_checkpoint(str(tmp_path), make(step))
    listing, reading = module._listed_checkpoints, module._checkpoint

    def listed(output: str) -> dict[int, set[str]]:
        found = listing(output)
        shutil.rmtree(folder(tmp_path, 1), ignore_errors=True)
        return found

    def read(path: str, marker: dict[str, object]) -> Checkpoint:
        if path.endswith("2"):
            shutil.rmtree(path)
            write_checkpoint(str(tmp_path), make(3))
        return reading(path, marker)

    monkeypatch.setattr(module, "_listed_checkpoints", listed)
    assert complete_steps(str(tmp_path)) == [2]
    monkeypatch.setattr(module, "_checkpoint", read)
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert found.step == 3


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    """A run died between a journal segment and its checkpoint; the next generation wrote the steps again."""
    write_journal(str(tmp_path), 4, 1, '{"step": 3, "by": 1}\n{"step": 4, "by": 1}\n')
    write_journal(str(tmp_path), 6, 1, '{"step": 5, "by": 1}\n{"step": 6, "by": 1}\n')
    write_journal(str(tmp_path), 5, 2, '{"step": 4, "by": 2}\n{"step": 5, "by": 2}\n')
    lines = [json.loads(line) for line in read_journal(str(tmp_path), 6).splitlines()]
    assert [(line["step"], line["by"]) for line in lines] == [(3, 1), (4, 2), (5, 2), (6, 1)]
