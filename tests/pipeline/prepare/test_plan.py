"""What a next version takes: videos that came, changed or may fare better now; one bad name costs one row."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import Outcome, PrepareSettings
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.numbered import write_numbered
from tests.support.prepared import prepare

SETTINGS = PrepareSettings(
    ManifestConfig(val_share=0), TranscodeConfig(), DecodeConfig(), StoreConfig(videos_per_chunk=8), seed=0
)


def listed(tmp_path: Path, *names: str) -> Path:
    """A CSV that lists videos beside it; whether they are there is up to the test."""
    place = tmp_path / "list.csv"
    place.write_text("\n".join(["path", *names]))
    return place


def run(source: Path, settings: PrepareSettings = SETTINGS) -> Outcome:
    return prepare(str(source), str(source.parent / "set"), settings, workers=0)


def test_a_listed_video_that_comes_later_or_changes_is_taken(tmp_path: Path) -> None:
    source = listed(tmp_path, "a.mp4", "b.mp4")
    write_numbered(tmp_path / "a.mp4", 8)
    assert run(source).version["counts"]["rejected"] == {"missing": 1}
    assert not run(source).is_new
    write_numbered(tmp_path / "b.mp4", 8)
    came = run(source).version["counts"]
    assert (came["clips"], came["rejected"]) == (2, {})
    write_numbered(tmp_path / "a.mp4", 12)
    changed = run(source)
    assert (changed.is_new, changed.version["counts"]["clips"]) == (True, 2)
    assert not run(source).is_new


@pytest.mark.parametrize("reason", ["crashed", "timeout", "out_of_memory"])
def test_what_ended_its_decoder_is_tried_by_one_more_version(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = listed(tmp_path, "a.mp4")
    write_numbered(tmp_path / "a.mp4", 8)

    def ending(self: IsolatedTranscoder, path: Path) -> Iterator[object]:
        raise DecodeError(reason, "it ended so")
        yield path

    with monkeypatch.context() as patch:
        patch.setattr(IsolatedTranscoder, "process", ending)
        assert [run(source).is_new for _ in range(3)] == [True, True, False]
    mended = listed(tmp_path, "a.mp4", "b.mp4")
    write_numbered(tmp_path / "b.mp4", 8)
    assert run(mended).version["counts"]["rejected"] == {reason: 1}  # twice was enough for the same bytes


def test_a_machine_that_was_at_fault_once_costs_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listed(tmp_path, "a.mp4")
    write_numbered(tmp_path / "a.mp4", 8)

    def without_memory(self: IsolatedTranscoder, path: Path) -> Iterator[object]:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
        yield path

    with monkeypatch.context() as patch:
        patch.setattr(IsolatedTranscoder, "process", without_memory)
        with pytest.raises(OSError, match="allocate"):
            run(source)
    assert run(source).version["counts"]["clips"] == 1


def test_a_name_that_no_file_can_have_is_a_row(tmp_path: Path) -> None:
    source = listed(tmp_path, "a.mp4", "b" * 300 + ".mp4", "https://server/c.mp4")
    write_numbered(tmp_path / "a.mp4", 8)
    counts = run(source).version["counts"]
    assert (counts["clips"], counts["rejected"]) == (1, {"unreadable": 2})
    assert not run(source).is_new


def test_original_bytes_that_no_row_can_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listed(tmp_path, "a.mp4", "b.mp4")
    write_numbered(tmp_path / "a.mp4", 8)
    write_numbered(tmp_path / "b.mp4", 80)
    monkeypatch.setattr("pipeline.prepare.chunk.STORED_BYTES_AT_MOST", (tmp_path / "a.mp4").stat().st_size)
    outcome = run(source, dataclasses.replace(SETTINGS, transcode=TranscodeConfig(mode="passthrough")))
    assert (outcome.version["counts"]["clips"], outcome.version["counts"]["rejected"]) == (1, {"too_long_to_store": 1})
