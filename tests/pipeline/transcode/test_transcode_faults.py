"""Every way of reading a video against its true frames: none is silently wrong.

Container x codec x GOP form x pixel format x display matrix x start time x time stamps x pixel aspect, as
`tests.support.video_matrix` generates them; each cell transcoded, as original bytes by number, cut at key frames, and
by time as tag reads. Left out because no encoder or muxer here writes them: Theora, VC-1, DV, ProRes RAW, interlaced
MXF, PNG in Matroska, pixel aspects in FLV, AVI and Matroska without one in the bit stream, matrices other than
rotations in Matroska. The fast suite has every 36th cell.

These ways run in the tests' own process, by PyAV; the cells that decord may decode are also read by it, in the isolated
child.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.decode.child import render
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, TimeView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.decode.decord_child import DECORD_CODECS, reader_of
from pipeline.decode.video_file import Video
from pipeline.transcode.config import StoredClip
from tests.support.transcoding import pictures, run
from tests.support.video_matrix import (
    FPS,
    MATRICES,
    Cell,
    cells,
    frame_ticks,
    painted,
    plain_frames,
    read_bits,
    shown,
    write_cell,
)

CELLS = list(cells(per_pair=8))
REFUSED = {"restart": "unsupported"}
"""Reason by kind of time stamps."""
GUESSED_TIMES = ("mpg", "vob")
"""Containers in which one time stamp stands for several frames; FFmpeg guesses the others."""


class Truth:
    """What FFmpeg shows of a file, and when."""

    def __init__(self, path: Path, cell: Cell) -> None:
        frames, stamps, self.matrix, self.aspect = plain_frames(path)
        assert self.matrix == MATRICES[cell.orientation]
        self.numbers = [read_bits(frame, (1, 0, 0, 1)) for frame in frames]
        ticks = frame_ticks(cell)
        first = self.numbers[0]
        self.times = [(ticks[number] - ticks[first]) / FPS for number in self.numbers]
        if cell.container in GUESSED_TIMES:
            self.times = stamps

    def picture(self, number: int, grey: bool) -> npt.NDArray[np.uint8]:
        picture = painted(number)
        if grey:
            picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
        return shown(picture, self.matrix, self.aspect)

    def at(self, seconds: float) -> int:
        return self.numbers[bisect.bisect_right(self.times, seconds + 1e-9) - 1]


def check_pictures(truth: Truth, cell: Cell, found: list[npt.NDArray[np.uint8]], numbers: list[int]) -> None:
    assert [read_bits(picture, truth.matrix) for picture in found] == numbers
    for picture, number in zip(found[::7], numbers[::7], strict=True):
        expected = truth.picture(number, cell.pixels == "gray")
        if picture.shape != expected.shape:
            assert abs(picture.shape[1] / picture.shape[0] - expected.shape[1] / expected.shape[0]) < 0.06
            expected = cv2.resize(expected, picture.shape[1::-1])
        difference = np.abs(picture.astype(int) - expected)
        assert difference.mean() < 10
        corners = difference[[4, 4, -5, -5], [4, -5, 4, -5]]
        assert corners.max() < 40, corners.tolist()


def read(path: Path, *views: FrameView | TimeView) -> list[npt.NDArray[np.uint8]]:
    outputs = [np.empty((len(view.keys), *view.size, 3), np.uint8) for view in views]
    with Video(str(path), DecodeConfig()) as video:
        render(video, views, outputs)
    return outputs


def check(path: Path, cell: Cell) -> None:
    write_cell(path, cell)
    truth = Truth(path, cell)
    (whole,), info = run(path, mode="passthrough")
    assert isinstance(whole, StoredClip)
    assert whole.num_frames == len(truth.numbers)
    size = whole.height, whole.width
    duration = whole.end_seconds
    assert duration == pytest.approx(truth.times[-1] + 1 / FPS, abs=0.05 + 1 / info.fps)
    # By number, in one pass and as single frames.
    (clip,) = read(path, FrameView(np.arange(whole.num_frames), None, size))
    check_pictures(truth, cell, list(clip), truth.numbers)
    for index in (whole.num_frames // 2 + 3, 1, whole.num_frames - 1):
        (clip,) = read(path, FrameView(np.array([index]), None, size))
        assert read_bits(clip[0], truth.matrix) == truth.numbers[index]
    # By time: windows in the middle of frames, from the start, the middle and the end.
    for start in (0.0, 0.4 * duration, 0.8 * duration):
        times = np.linspace(start, start + 0.15 * duration, 4)
        times = np.unique((np.floor(times * FPS) + 0.5) / FPS)
        times = times[times < truth.times[-1] + 1 / FPS]
        (clip,) = read(path, TimeView(times, None, size))
        check_pictures(truth, cell, list(clip), [truth.at(time) for time in times])
    # Transcoded: at a constant rate, so by time again.
    (stored,), _ = run(path, crf=8)
    assert isinstance(stored, StoredClip)
    ticks = np.arange(stored.num_frames) / stored.fps
    found = pictures(stored)
    if cell.stamps in ("regular", "cut") and cell.container not in GUESSED_TIMES:
        check_pictures(truth, cell, found, truth.numbers)
    else:
        numbers = [read_bits(picture, truth.matrix) for picture in found]
        assert stored.num_frames == pytest.approx(stored.fps * duration, abs=2.5)
        for tick, number in zip(ticks, numbers, strict=True):
            assert truth.at(max(0, tick - 1.05 / FPS)) <= number <= truth.at(tick + 1.05 / FPS)
    check_pieces(path, truth)


def check_pieces(path: Path, truth: Truth) -> None:
    """Cut at key frames: every piece holds the frames of its span, no frame is lost."""
    try:
        pieces, _ = run(path, mode="passthrough", clip_seconds=0.4)
    except DecodeError as error:
        if error.reason != "unsupported":  # that is the codec, or AVI with B-frames
            raise
        return
    kept: set[int] = set()
    for number, piece in enumerate(pieces):
        assert isinstance(piece, StoredClip), piece
        if piece.video is None:
            return
        file = path.with_name(f"piece{number}.bin")
        file.write_bytes(piece.video)
        (clip,) = read(file, FrameView(np.arange(piece.num_frames), None, (96, 128)))
        found = [read_bits(picture, truth.matrix) for picture in clip]
        first = bisect.bisect_left(truth.times, piece.start_seconds - 1e-3)
        assert found == truth.numbers[first : first + piece.num_frames]
        last = bisect.bisect_left(truth.times, piece.end_seconds - 1e-3)
        assert last == first + piece.num_frames
        kept.update(found)
    assert kept == set(truth.numbers)


def check_or_refused(tmp_path: Path, cell: Cell) -> None:
    path = tmp_path / f"video.{cell.container}"
    if cell.stamps in REFUSED:
        write_cell(path, cell)
        with pytest.raises(DecodeError) as caught:
            run(path)
        assert caught.value.reason == REFUSED[cell.stamps]
    else:
        check(path, cell)


@pytest.mark.parametrize("cell", CELLS[::36], ids=lambda cell: cell.name)
def test_sample_of_the_matrix(cell: Cell, tmp_path: Path) -> None:
    check_or_refused(tmp_path, cell)


@pytest.mark.faults
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_matrix(cell: Cell, tmp_path: Path) -> None:
    check_or_refused(tmp_path, cell)


def may_be_decords(cell: Cell) -> bool:
    codec = {"libx264": "h264", "libx265": "hevc", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(cell.codec, cell.codec)
    return cell.container in ("mp4", "mov", "m4v", "3gp", "mkv", "webm", "avi") and codec in DECORD_CODECS


DECORD_CELLS = [cell for cell in CELLS if may_be_decords(cell)]


@pytest.fixture(scope="module")
def decord_decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(DecodeConfig(backend="decord")) as decoder:
        yield decoder


def check_by_decord(decoder: IsolatedDecoder, path: Path, cell: Cell) -> bool:
    """All frames, single frames and times through the child; whether decord is chosen for such a file."""
    write_cell(path, cell)
    truth = Truth(path, cell)
    info = decoder.validate(path)
    size = info.height, info.width
    assert info.num_frames == len(truth.numbers)
    (clip,) = decoder.decode(path, [FrameView(np.arange(info.num_frames), None, size)])
    check_pictures(truth, cell, list(clip), truth.numbers)
    for index in (info.num_frames // 2 + 3, 1, info.num_frames - 1):
        (clip,) = decoder.decode(path, [FrameView(np.array([index]), None, size)])
        assert read_bits(clip[0], truth.matrix) == truth.numbers[index]
    times = np.array([(truth.times[number] + 0.4 / FPS) for number in (0, len(truth.times) // 2)])
    (clip,) = decoder.decode(path, [TimeView(times, None, size)])
    check_pictures(truth, cell, list(clip), [truth.at(time) for time in times])
    assert decoder.children_lost == 0
    with Video(str(path), DecodeConfig()) as video:
        return reader_of(video) is not None


@pytest.mark.parametrize("cell", DECORD_CELLS[::25], ids=lambda cell: cell.name)
def test_sample_by_decord_in_the_child(cell: Cell, decord_decoder: IsolatedDecoder, tmp_path: Path) -> None:
    check_by_decord(decord_decoder, tmp_path / f"video.{cell.container}", cell)


@pytest.mark.faults
def test_matrix_by_decord_in_the_child(decord_decoder: IsolatedDecoder, tmp_path: Path) -> None:
    chosen = 0
    failures = []
    for cell in DECORD_CELLS:
        try:
            chosen += check_by_decord(decord_decoder, tmp_path / f"video.{cell.container}", cell)
        except (AssertionError, DecodeError) as error:
            failures.append(f"{cell.name}: {error!r}"[:300])
    assert not failures, "\n".join(failures)
    assert chosen > len(DECORD_CELLS) // 3
