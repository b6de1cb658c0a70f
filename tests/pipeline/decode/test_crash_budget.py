"""Attempts at videos: counted over the deaths of decoders and workers, never more than two, no bystander blamed."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.decode.crash_budget import Attempts
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.chunk import PrepareChunk
from pipeline.prepare.run import PrepareSettings
from pipeline.prepare.versions import read_versions
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.numbered import write_numbered
from tests.support.prepared import prepare

SETTINGS = PrepareSettings(
    ManifestConfig(val_share=0), TranscodeConfig(), DecodeConfig(), StoreConfig(videos_per_chunk=8), seed=0
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "abcd":
        write_numbered(folder / f"{name}.mp4", 8)
    return folder


def attempt(place: Path, video: str, reason: str | None = None) -> None:
    """One attempt of a chunk that lives to its end."""
    attempts = Attempts(str(place))
    try:
        with attempts.at(video):
            if reason:
                raise DecodeError(reason, "it ended so")
    finally:
        attempts.write()


@pytest.mark.parametrize("reason", ["crashed", "timeout"])
def test_two_deaths_are_the_last(tmp_path: Path, reason: str) -> None:
    place = tmp_path / "chunk.json"
    for _ in range(2):
        with pytest.raises(DecodeError, match="it ended so"):
            attempt(place, "bad", reason)
        attempt(place, "good")
    with pytest.raises(DecodeError, match="2 attempts"):
        attempt(place, "bad")
    attempt(place, "good")


def test_attempts_that_end_are_not_counted(tmp_path: Path) -> None:
    place = tmp_path / "chunk.json"
    for _ in range(5):
        with pytest.raises(DecodeError, match="it ended so"):
            attempt(place, "damaged", "damaged")
        with pytest.raises(KeyboardInterrupt), Attempts(str(place)).at("stopped"):
            raise KeyboardInterrupt
    attempt(place, "damaged")
    attempt(place, "stopped")


def test_an_attempt_is_written_down_before_it_begins(tmp_path: Path) -> None:
    place = tmp_path / "chunk.json"
    attempts = Attempts(str(place))
    with attempts.at("one"):
        assert json.loads(place.read_text()) == {"one": 1}
    with attempts.at("two"):
        assert json.loads(place.read_text()) == {"two": 1}
    attempts.write()
    assert json.loads(place.read_text()) == {}


def test_a_video_that_kills_its_workers_is_rejected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies twice of the same video; the third one goes round it, and every other video is stored."""
    output, tried = tmp_path / "set", tmp_path / "tried"
    original = IsolatedTranscoder.process

    def deadly(self: IsolatedTranscoder, path: Path) -> Iterator[object]:
        if path.stem == "c":
            with tried.open("a") as file:
                file.write("x")
            os._exit(9)  # as the kernel does when memory runs out
        yield from original(self, path)

    monkeypatch.setattr(IsolatedTranscoder, "process", deadly)
    codes = []
    for _ in range(3):
        worker = multiprocessing.get_context("fork").Process(target=_prepare, args=(source, output))
        worker.start()
        worker.join()
        codes.append(worker.exitcode)
    assert codes == [9, 9, 0]
    assert tried.read_text() == "xx"
    (version,) = read_versions(str(output))
    assert version["counts"]["rejected"] == {"interrupted": 1}
    assert version["counts"]["clips"] == 3
    monkeypatch.undo()  # it was the machine: the next version tries once more
    assert prepare(str(source), str(output), SETTINGS, workers=0).version["counts"]["clips"] == 4


def _prepare(source: Path, output: Path) -> None:
    prepare(str(source), str(output), SETTINGS, workers=0)


def test_a_child_that_dies_has_one_more_try_over_all_workers(source: Path, tmp_path: Path) -> None:
    """The counts of a worker before: the video has one attempt left, whatever its decoder does."""
    output = tmp_path / "set"
    tries: list[str] = []

    class Crashing(PrepareChunk):
        def prepare(self, chunk: int) -> int:
            place = self.settings.attempts(chunk)
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).write_text(json.dumps({str(source / "b.mp4"): 1}))
            return super().prepare(chunk)

    original = IsolatedTranscoder.process

    def crashing(self: IsolatedTranscoder, path: Path) -> Iterator[object]:
        if path.stem in "ab":
            tries.append(path.stem)
            raise DecodeError("crashed", "the decoder died")
        yield from original(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IsolatedTranscoder, "process", crashing)
        patch.setattr("pipeline.prepare.run.PrepareChunk", Crashing)
        version = prepare(str(source), str(output), SETTINGS, workers=0).version
    assert sorted(tries) == ["a", "a", "b"]
    assert version["counts"]["rejected"] == {"crashed": 2}
