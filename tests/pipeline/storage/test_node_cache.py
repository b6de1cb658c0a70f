"""Folders that are built once per machine: by one of many, whole or not at all, and in nobody else's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.storage.errors import StorageError
from pipeline.storage.node_cache import UNUSED_SECONDS, once_per_node


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


RACER = """
import sys, time
from pathlib import Path
from pipeline.storage.node_cache import once_per_node
def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    (folder / "first").write_text("1")
    time.sleep(0.5)
    (folder / "second").write_text("2")
print(sorted(path.name for path in once_per_node("test", "key", build).iterdir()))
"""


def test_of_many_processes_one_builds_and_all_see_the_whole(node: Path) -> None:
    command = [sys.executable, "-c", RACER, str(node / "log")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {racer.communicate(timeout=60)[0] for racer in racers} == {"['first', 'second']\n"}
    assert (node / "log").read_text() == "built\n"


def test_a_builder_that_fails_leaves_nothing(node: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once_per_node("test", "key", fail)
    assert once_per_node("test", "key", lambda folder: (folder / "whole").touch()).joinpath("whole").exists()
    (root,) = node.iterdir()
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["key"]


def test_what_nobody_opens_is_deleted(node: Path) -> None:
    old = once_per_node("test", "old", lambda folder: (folder / "file").touch())
    used = once_per_node("test", "used", lambda folder: None)
    before = time.time() - UNUSED_SECONDS - 1
    for folder in (old, used):
        os.utime(folder, (before, before))
    once_per_node("test", "used", lambda folder: None)
    once_per_node("test", "new", lambda folder: None)
    assert (old.exists(), used.exists()) == (False, True)


def test_a_folder_of_others_and_a_full_disk_are_errors(node: Path) -> None:
    root = node / f"video-test-{os.getuid()}"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(StorageError, match="another user; set TMPDIR"):
        once_per_node("test", "key", lambda folder: None)
    root.chmod(0o700)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device; set TMPDIR"):
        once_per_node("test", "key", full)
