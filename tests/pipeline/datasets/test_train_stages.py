"""The stages of the training stream without Ray: what is read, how often, and how much is held."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.order import StreamOrder, StreamPart
from pipeline.datasets.train import DecodeMicroBatches, ReadMicroBatches
from pipeline.decode.config import DecodeConfig
from pipeline.shards.reader import PreparedSet, RowGroupReader
from pipeline.storage.files import StorageError
from tests.support.numbered import read_numbers
from tests.support.small_set import BROKEN, CLASSES, FRAMES, MICRO_BATCH, VIEW


def order_of(some: PreparedSet, repeats: int = 1, window_groups: int = 4) -> StreamOrder:
    clips = some.selection("train").clips_per_group
    return StreamOrder(clips, seed=1, digest=some.digest, repeats=repeats, window_groups=window_groups)


def read(some: PreparedSet, start: int, stop: int, part: StreamPart | None = None) -> Iterator[pa.Table]:
    stage = ReadMicroBatches(some.selection("train"), order_of(some), MICRO_BATCH, some.classes, start, part)
    yield from stage({"start": np.array([start]), "stop": np.array([stop])})


def positions(row: pa.Table) -> list[int]:
    return [run["position"].as_py() for run in row["runs"][0]]


def test_a_row_is_a_micro_batch(prepared: PreparedSet) -> None:
    rows = list(read(prepared, 0, 40))
    assert [len(row) for row in rows] == [1] * 10
    assert [positions(row) for row in rows] == [list(range(p, p + MICRO_BATCH)) for p in range(0, 40, MICRO_BATCH)]


def test_an_epoch_reads_every_row_group_once(prepared: PreparedSet) -> None:
    """With the window's row groups in the cache nothing is read twice, and no more than the cache is held."""
    selection = prepared.selection("train")
    order = order_of(prepared, repeats=3, window_groups=2)
    reader = RowGroupReader(selection)
    everything = RowGroupReader(selection)
    for clip in range(order.clips):
        everything.clip(clip)
    for run in order.runs(0, order.views_per_epoch):
        assert reader.clip(run.clip)["clip_id"][0].as_py() == everything.clip(run.clip)["clip_id"][0].as_py()
    assert reader.bytes_read == everything.bytes_read
    strict = RowGroupReader(selection, cache_bytes=1)
    for run in order.runs(0, order.views_per_epoch):
        strict.clip(run.clip)
        assert len(strict._groups) <= 3


@given(st.integers(1, 6), st.data())
def test_parts_of_a_stream_make_up_the_whole(nodes: int, data: st.DataObject) -> None:
    """Every micro-batch belongs to one part, and within it to the worker that one stream would give it to."""
    workers = data.draw(st.integers(1, 4))
    parts = [StreamPart(node * workers, workers, nodes * workers) for node in range(nodes)]
    for number in range(100):
        owners = [part for part in parts if part.has(number)]
        assert [part.first // workers for part in owners] == [number % (nodes * workers) // workers]


def test_a_part_holds_its_workers_micro_batches(prepared: PreparedSet) -> None:
    whole = [positions(row) for row in read(prepared, 8, 40)]
    second = [positions(row) for row in read(prepared, 8, 40, StreamPart(1, 1, 2))]
    assert second == whole[1::2]
    with pytest.raises(ValueError, match="must lie within"):
        StreamPart(1, 2, 2)


def test_decoding_a_micro_batch(prepared: PreparedSet) -> None:
    """Failures are replaced from the same micro-batch, chosen by position; all else is the clip's own."""
    stage = DecodeMicroBatches(VIEW, DecodeConfig(), 1, frozenset())
    for row in read(prepared, 0, 20):
        table = stage(row)
        samples, failures, others = (table[name][0].as_py() for name in ("sample_id", "failure", "replaced_by"))
        video = table["video"].combine_chunks().to_numpy()[0]
        good = [sample for sample, failure in zip(samples, failures, strict=True) if not failure]
        for number, sample in enumerate(samples):
            assert bool(failures[number]) == sample.startswith(f"{1000 + BROKEN}#")
            expected = good[positions(row)[number] % len(good)] if failures[number] else ""
            assert others[number] == expected
            clip = int((expected or sample).partition("#")[0]) - 1000
            assert all(n // FRAMES == clip for n in read_numbers(video[number]))


def test_a_shard_that_is_gone_is_one_error(prepared: PreparedSet) -> None:
    shards = tuple(dataclasses.replace(shard, uri=shard.uri + ".gone") for shard in prepared.shards)
    with pytest.raises(StorageError, match="no such file"):
        dataclasses.replace(prepared, shards=shards, digest="other").num_clips("train")


def test_an_epoch_holds_each_class_equally_and_each_view_once(prepared: PreparedSet) -> None:
    selection = prepared.selection("train", labelled_only=True, balance_classes=True)
    order = StreamOrder(selection.clips_per_group, seed=1, digest="d", repeats=2, window_groups=16)
    assert order.views_per_epoch == 3 * 3 * 2  # three classes, the largest has three clips, two repeats
    (table,) = ReadMicroBatches(selection, order, 18, CLASSES)({"start": [0], "stop": [18]})
    runs = table["runs"].combine_chunks().flatten().to_pylist()
    views = Counter(dict.fromkeys(range(3), 0))
    samples = []
    for run in runs:
        views[run["class_index"]] += run["views"]
        samples += [(run["clip_id"], run["first_repeat"] + number) for number in range(run["views"])]
    assert set(views.values()) == {6}
    assert len(set(samples)) == len(samples) == 18
    assert {repeat for clip, repeat in samples if clip == 1001} == {0, 1, 2, 3}  # one of two clips of its class
