"""What a next version takes: videos that came, changed or may fare better now; one bad name costs one row."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.manifest.errors import ManifestError, VanishedSourceError
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import Outcome, PrepareSettings, plan_set, preview_set
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


def test_links_that_lead_nowhere_end_no_plan(tmp_path: Path) -> None:
    """A link to itself once ended the listing of the whole folder."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_numbered(folder / "a.mp4", 8)
    (folder / "x.mp4").symlink_to("x.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    counts = run(folder).version["counts"]
    assert (counts["clips"], counts["rejected"]) == (1, {"missing": 1, "unreadable": 1})
    assert not run(folder).is_new


def test_original_bytes_that_no_row_can_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listed(tmp_path, "a.mp4", "b.mp4")
    write_numbered(tmp_path / "a.mp4", 8)
    write_numbered(tmp_path / "b.mp4", 80)
    monkeypatch.setattr("pipeline.prepare.chunk.STORED_BYTES_AT_MOST", (tmp_path / "a.mp4").stat().st_size)
    outcome = run(source, dataclasses.replace(SETTINGS, transcode=TranscodeConfig(mode="passthrough")))
    assert (outcome.version["counts"]["clips"], outcome.version["counts"]["rejected"]) == (1, {"too_long_to_store": 1})


@pytest.mark.parametrize("as_list", [False, True])
def test_a_source_that_lost_its_mount_is_refused_until_it_is_confirmed(tmp_path: Path, as_list: bool) -> None:
    """Nothing is planned, the set stays; afterwards the clips stay too."""
    folder = tmp_path / "videos"
    folder.mkdir()
    names = [f"{number}.mp4" for number in range(3)]
    for name in names:
        write_numbered(folder / name, 8)
    source = listed(folder, *names) if as_list else folder
    output = str(tmp_path / "set")
    before = prepare(str(source), output, SETTINGS, workers=0)
    for name in names:
        (folder / name).unlink()
    with pytest.raises(VanishedSourceError, match=r"holds no video any more: 3 of 3 are missing \(.*/0\.mp4"):
        prepare(str(source), output, SETTINGS, workers=0)
    assert preview_set(str(source), output, SETTINGS)["missing_in_source"] == 3
    confirmed = plan_set(str(source), output, SETTINGS, max_deleted_share=1)
    assert isinstance(confirmed, Outcome)
    assert (confirmed.version, confirmed.missing_in_source) == (before.version, 3)


def test_a_few_missing_videos_are_counted_and_keep_their_clips(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        write_numbered(folder / f"{number}.mp4", 8)
    output = str(tmp_path / "set")
    prepare(str(folder), output, SETTINGS, workers=0)
    (folder / "1.mp4").unlink()
    (folder / "2.mp4").unlink()
    write_numbered(folder / "new.mp4", 8)
    outcome = prepare(str(folder), output, SETTINGS, exclude=[" ./2.mp4"], workers=0)
    assert (outcome.is_new, outcome.missing_in_source) == (True, 1)
    assert outcome.version["counts"]["videos"] == 4  # 0, 1, 3 and the new one


def test_a_first_version_needs_a_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"^source=.*/empty: holds no video; give a folder"):
        plan_set(str(tmp_path / "empty"), str(tmp_path / "set"), SETTINGS)
    for name in ("jump", "run"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_numbered(tmp_path / "videos" / name / "v.mp4", 8)
    (tmp_path / "classes.txt").write_text("swim\n")
    settings = dataclasses.replace(SETTINGS, manifest=ManifestConfig(classes=str(tmp_path / "classes.txt")))
    with pytest.raises(ManifestError, match=r"none of 2 videos can be used \(unknown_label: 2; the first: "):
        plan_set(str(tmp_path / "videos"), str(tmp_path / "set"), settings)
    assert not (tmp_path / "set").exists()
