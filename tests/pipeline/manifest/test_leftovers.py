"""What systems, editors and downloads leave in a folder is neither class nor video, and is counted by kind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest.build import read_manifest
from pipeline.manifest.formats import ManifestConfig
from pipeline.tagging.source import list_source

SKIPPED = {
    ".git/a.mp4": ".git/",
    "walk/.ipynb_checkpoints/a-checkpoint.mp4": ".ipynb_checkpoints/",
    "__MACOSX/walk/._a.mp4": "__MACOSX/",
    "walk/@eaDir/a.mp4/SYNOVIDEO.mp4": "@eaDir/",
    "lost+found/a.mp4": "lost+found/",
    "System Volume Information/a.mp4": "System Volume Information/",
    "$RECYCLE.BIN/a.mp4": "$RECYCLE.BIN/",
    "FOUND.000/a.mp4": "FOUND.000/",
    ".Trash-1000/files/a.mp4": ".Trash-1000/",
    "walk/._a.mp4": "._*",
    "walk/.hidden.mp4": ".*",
    "walk/.DS_Store": ".*",
    "walk/~$a.mp4": "~$*",
    "walk/Thumbs.db": ".db",
    "walk/a.mp4~": ".mp4~",
    "walk/a.mp4.part": ".part",
    "walk/a.mp4.crdownload": ".crdownload",
    "walk/README": "(none)",
}
KEPT = ("walk/a.mp4", "run/b.mp4", "run/lost+found.mp4", "run/a..mp4", "run/x.git.mp4", "@walk/c.mp4", "_run/d.mp4")


@pytest.mark.parametrize("above", ["videos", ".cache/@eaDir/lost+found"])
def test_leftovers_are_skipped_and_counted_by_kind(tmp_path: Path, above: str) -> None:
    """Only below the source: the folders above it are the user's choice."""
    root = tmp_path / above
    for name in (*SKIPPED, *KEPT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    kinds = {kind: list(SKIPPED.values()).count(kind) for kind in sorted(SKIPPED.values())}
    manifest = read_manifest(str(root), ManifestConfig(), seed=0)
    assert manifest.classes == ("@walk", "_run", "run", "walk")
    assert sorted(manifest.rows["uri"].to_pylist()) == sorted(str(root / name) for name in KEPT)
    assert manifest.skipped == kinds
    for source in (str(root), f"{root}/", root.as_uri()):
        listing = list_source(source)
        assert sorted(listing.videos["uri"].to_pylist()) == sorted(str(root / name) for name in KEPT)
        assert listing.skipped == kinds


def test_a_folder_that_cannot_be_listed_is_counted_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("walk/a.mp4", "run/b.mp4", "run/closed.mp4/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: Any) -> Any:  # mode 000 does not hold root back, as which tests may run
        if Path(path).name == "closed.mp4":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    tagged, prepared = list_source(str(tmp_path)), read_manifest(str(tmp_path), ManifestConfig(), seed=0)
    assert tagged.skipped == prepared.skipped == {"run/closed.mp4/ (unreadable)": 1}
    assert len(tagged.videos) == len(prepared.rows) == 2
