"""Stored clips wherever their bytes are: in the row, or at the original's place (prepare's `reference`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.order import StreamOrder
from pipeline.datasets.train import DecodeMicroBatches, ReadMicroBatches
from pipeline.decode import clip_decoder
from pipeline.decode.clip_decoder import ClipDecoder
from pipeline.decode.config import DecodeConfig, FrameView
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.storage.files import StorageError
from pipeline.transcode.config import Mode, TranscodeConfig
from tests.support.numbered import read_numbers, write_numbered
from tests.support.prepared import prepare

SIZE = (64, 96)
VIEW = ViewConfig(num_frames=4, size=32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four videos with their numbers painted in; written once a test, because clips are named by their bytes."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "abcd":
        write_numbered(folder / f"{name}.mp4", 24)
    return folder


def prepared_set(source: Path, mode: Mode) -> PreparedSet:
    output = str(source.parent / mode)
    settings = PrepareSettings(
        ManifestConfig(val_share=0), TranscodeConfig(mode=mode), DecodeConfig(), StoreConfig(), seed=0
    )
    prepare(str(source), output, settings, workers=0)
    return open_prepared(output)


def micro_batch(prepared: PreparedSet) -> pa.Table:
    selection = prepared.selection("train")
    order = partial(StreamOrder, seed=0, digest="same", repeats=1, window_groups=4)
    read = ReadMicroBatches(selection, order, 4, prepared.classes)
    (row,) = read({"start": np.array([0]), "stop": np.array([4])})
    return DecodeMicroBatches(VIEW, DecodeConfig(), 0, frozenset())(row)


def test_a_reference_trains_like_the_bytes_themselves(source: Path) -> None:
    batches = [micro_batch(prepared_set(source, mode)) for mode in ("reference", "passthrough")]
    assert batches[0].equals(batches[1])
    assert batches[0]["failure"].to_pylist() == [["", "", "", ""]]


def test_an_original_that_is_gone_is_replaced_and_told(source: Path) -> None:
    prepared = prepared_set(source, "reference")
    (source / "b.mp4").unlink()
    failures = micro_batch(prepared)["failure"].to_pylist()[0]
    assert sorted(failures) == ["", "", "", "missing"]


def test_frames_of_a_reference_are_the_originals(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "video.mp4", 24)
    clip = {"uri": str(path), "start_seconds": 0.0, "fps": 24.0}
    output = np.zeros((3, *SIZE, 3), np.uint8)
    nothing = pa.scalar(None, pa.large_binary())
    decoder = ClipDecoder(DecodeConfig())
    assert decoder.decode(clip, nothing, [FrameView(np.array([2, 9, 20]), None, SIZE)], [output]) == ""
    assert read_numbers(output) == [2, 9, 20]


def test_storage_that_is_down_is_no_bad_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reference")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("pipeline.storage.retry.BUDGET_SECONDS", 0.5)
    output = np.zeros((1, *SIZE, 3), np.uint8)
    clip = {"uri": "s3://bucket/video.mp4", "start_seconds": 0.0, "fps": 24.0}
    with pytest.raises(StorageError, match="EndpointConnectionError"):
        ClipDecoder(DecodeConfig()).decode(
            clip, pa.scalar(None, pa.large_binary()), [FrameView(np.array([0]), None, SIZE)], [output]
        )


@given(st.lists(st.integers(1, 40), max_size=12))
def test_images_share_requests_of_a_bounded_size(sizes: list[int]) -> None:
    """In their order, each once; a request is full where the next image would not fit."""
    with mock.patch.multiple(clip_decoder, IMAGES_A_REQUEST=3, BYTES_A_REQUEST=50):
        parts = list(clip_decoder._parts(sizes))
    assert [number for start, stop in parts for number in range(start, stop)] == list(range(len(sizes)))
    for start, stop in parts:
        assert 1 <= stop - start <= 3
        assert stop - start == 1 or sum(sizes[start:stop]) <= 50
        assert stop == len(sizes) or stop - start == 3 or sum(sizes[start : stop + 1]) > 50
