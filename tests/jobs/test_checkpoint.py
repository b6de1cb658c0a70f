"""Checkpoints: complete or not there, kept by number, journal beside them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import checkpoint as module
from jobs.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    CheckpointWriter,
    complete_steps,
    latest_checkpoint,
    read_journal,
    write_checkpoint,
)
from pipeline import StorageError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "complete.json")


def make(step: int) -> Checkpoint:
    weights = {"w": torch.full((3,), float(step))}
    return Checkpoint(step, step * 8, weights, {"w.exp_avg": torch.ones(3), "step": torch.tensor(step)}, {"note": "x"})


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


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(FILES), kind=st.sampled_from(["missing", "cut", "flipped", "empty"]), data=st.data())
def test_a_damaged_checkpoint_is_never_loaded(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, data: st.DataObject
) -> None:
    output = tmp_path_factory.mktemp("run")
    write_checkpoint(str(output), make(1))
    write_checkpoint(str(output), make(2))
    victim = folder(output, 2) / name
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


def test_writer_keeps_the_newest_and_the_whole_journal(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), CheckpointConfig(keep=2))
    for step in (1, 2, 3, 4):
        writer.save(make(step), json.dumps({"step": step}) + "\n")
    writer.wait(must_succeed=True)
    assert complete_steps(str(tmp_path)) == [3, 4]
    assert [json.loads(line)["step"] for line in read_journal(str(tmp_path), 3).splitlines()] == [1, 2, 3]
    assert not (folder(tmp_path, 1) / "model.safetensors").exists()


def test_a_failed_write_is_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(str(tmp_path), CheckpointConfig())
    real, broken = module.write_bytes, True

    def fail_sometimes(uri: str, content: bytes) -> None:
        if broken:
            raise StorageError(uri, os.strerror(errno.ENOSPC), "free some room")
        real(uri, content)

    monkeypatch.setattr(module, "write_bytes", fail_sometimes)
    writer.save(make(1), '{"step": 1}\n')
    writer.wait()
    broken = False
    writer.save(make(2), '{"step": 2}\n')
    writer.wait(must_succeed=True)
    assert complete_steps(str(tmp_path)) == [2]
    assert read_journal(str(tmp_path), 2) == '{"step": 1}\n{"step": 2}\n'


def test_tells_when_nothing_can_be_saved_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str, content: bytes) -> None:
        raise StorageError(uri, "connection refused", "check the endpoint")

    monkeypatch.setattr(module, "write_bytes", fail)
    writer = CheckpointWriter(str(tmp_path), CheckpointConfig(max_unsaved_minutes=1e-9))
    writer.save(make(1), "")
    writer.wait()
    assert "max_unsaved_minutes" in writer.unsaved_too_long
    assert "connection refused" in writer.unsaved_too_long


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    """A run died between a journal segment and its checkpoint; the next one wrote the steps again."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "step-00000004.jsonl").write_text('{"step": 3}\n{"step": 4}\n')
    (tmp_path / "journal" / "step-00000006.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"step": 5}\n{"step": 6}\n')
    assert [json.loads(line)["step"] for line in read_journal(str(tmp_path), 5).splitlines()] == [3, 4, 5]
