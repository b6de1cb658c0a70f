"""The training stream in Ray Data: exact micro-batches in order, the same from any cursor and for any workers."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets import train as stages
from pipeline.datasets.order import StreamOrder, StreamPart, segments
from pipeline.datasets.train import (
    DecodeMicroBatches,
    ReadMicroBatches,
    iter_micro_batches,
    stream_execution_options,
    training_stream,
)
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.sampling import ViewConfig, generator, random_resized_crop
from pipeline.schema import CLIP_SCHEMA, UNLABELLED
from pipeline.shards.reader import PreparedSet, RowGroupReader, open_prepared
from pipeline.shards.writer import StoreConfig, write_shard
from pipeline.storage.files import StorageError
from pipeline.transcode.config import TranscodeConfig
from tests.support.numbered import read_numbers
from tests.support.pictures import cropped, write_drawn
from tests.support.prepared import prepare
from tests.support.small_set import BROKEN, CLASSES, FRAMES, MICRO_BATCH, VIEW


def stream(prepared: PreparedSet, start: int, stop: int, view: ViewConfig = VIEW, **options: Any) -> ray.data.Dataset:
    return training_stream(
        prepared, view, seed=1, micro_batch=MICRO_BATCH, start_position=start, stop_position=stop, **options
    )


def test_what_a_set_holds(prepared: PreparedSet) -> None:
    assert prepared.splits() == {"train": 10, "val": 2}
    assert prepared.num_clips("train") == 10
    assert prepared.num_clips("all", labelled_only=True) == 9
    assert prepared.num_clips("test") == 0
    assert len(prepared.selection("train").clips_per_group) > len(prepared.shards)


def test_a_place_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run `python -m jobs"):
        open_prepared(str(tmp_path))
    (tmp_path / "dataset.json").write_text("no json")
    with pytest.raises(StorageError, match="is damaged: no JSON"):
        open_prepared(str(tmp_path))


# Of these, 12 micro-batches are dealt out to 1, 2, 3, 4, 6 or 12 workers.
MICRO_BATCHES = 12
GLOBAL_BATCH = MICRO_BATCHES * MICRO_BATCH


class Delayed(stages.DecodeMicroBatches):
    """Decoding that takes a random time, so that later micro-batches are often done first."""

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(random.random() * 0.2)
        return super().__call__(table)


@pytest.mark.ray
class TestStream:
    """One Ray for all."""

    pytestmark = pytest.mark.usefixtures("ray_cluster")

    @pytest.mark.parametrize("abreast", [1, MICRO_BATCH])
    def test_order_content_and_replacement(
        self, abreast: int, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two epochs of 10 clips x 2 repeats, from two decoders that take random times."""
        monkeypatch.setattr(stages, "DecodeMicroBatches", Delayed)
        view = dataclasses.replace(VIEW, repeats=2, clips_side_by_side=abreast)
        batches = list(iter_micro_batches(stream(prepared, 0, 40, view)))
        assert [batch["position"].tolist() for batch in batches] == [
            list(range(p, p + MICRO_BATCH)) for p in range(0, 40, 4)
        ]
        views = [(int(batch["epoch"][row]), batch["sample_id"][row]) for batch in batches for row in range(MICRO_BATCH)]
        samples = {f"{1000 + clip}#{repeat}" for clip in range(10) for repeat in range(2)}
        assert set(views[:20]) == {(0, sample) for sample in samples}
        assert set(views[20:]) == {(1, sample) for sample in samples}
        assert views[:20] != [(0, sample) for _, sample in views[20:]]
        for batch in batches:
            self._check(batch)
        clips = [{sample.partition("#")[0] for sample in batch["sample_id"]} for batch in batches]
        assert {len(of_batch) for of_batch in clips} == {MICRO_BATCH if abreast > 1 else MICRO_BATCH // 2}

    @staticmethod
    def _check(batch: dict[str, Any]) -> None:
        """Pictures and labels are the sample's own, or those of the view that stands in for it."""
        assert batch["video"].shape == (MICRO_BATCH, 4, 32, 32, 3)
        assert batch["video"].dtype == np.uint8
        for row in range(MICRO_BATCH):
            shown = batch["replaced_by"][row] or batch["sample_id"][row]
            assert bool(batch["replaced_by"][row]) == bool(batch["failure"][row])
            assert (batch["failure"][row] != "") == batch["sample_id"][row].startswith(str(1000 + BROKEN))
            clip = int(shown.partition("#")[0]) - 1000
            numbers = read_numbers(batch["video"][row])
            assert np.diff(numbers).tolist() == [2, 2, 2]
            assert FRAMES * clip <= numbers[0] <= numbers[-1] < FRAMES * (clip + 1)
            assert batch["label"][row] == (clip % 3 if clip % 4 else UNLABELLED)
            assert clip != BROKEN

    def test_resuming_and_workers_change_nothing(self, prepared: PreparedSet) -> None:
        """From a cursor inside an epoch, dealt to two workers: worker r has micro-batches r, r + 2, ... of the rest."""
        whole = [self._fingerprint(batch) for batch in iter_micro_batches(stream(prepared, 0, 32))]
        rest = stream(prepared, 8, 32, concurrency=1)
        rest.context.execution_options = stream_execution_options(object_store_bytes=2**28)
        workers = rest.streaming_split(2, equal=True)
        dealt = ray.get([_consume.remote(worker) for worker in workers])
        assert dealt[0] == whole[2::2]
        assert dealt[1] == whole[3::2]

    def test_streams_pinned_to_hosts_deal_what_one_stream_deals(self, prepared: PreparedSet) -> None:
        """Down to the pixels: three workers, two of which share a host and a stream."""
        whole = [self._fingerprint(batch) for batch in iter_micro_batches(stream(prepared, 8, 56))]
        here = ray.get_runtime_context().get_node_id()
        splits: dict[int, ray.data.DataIterator] = {}
        for ranks in ((0, 2), (1,)):
            options = stream_execution_options(2**27, here)
            part = stream(prepared, 8, 56, concurrency=1, part=StreamPart(ranks, 3), options=options)
            splits |= zip(ranks, part.streaming_split(len(ranks), equal=True), strict=True)
        dealt = ray.get([_consume.remote(splits[rank]) for rank in range(3)])
        assert dealt == [whole[rank::3] for rank in range(3)]

    @staticmethod
    def _fingerprint(batch: dict[str, Any]) -> tuple[int, tuple[str, ...], bytes]:
        return int(batch["position"][0]), tuple(batch["sample_id"]), batch["video"].tobytes()

    def test_known_failures_are_not_tried_again(self, prepared: PreparedSet) -> None:
        (first,) = iter_micro_batches(stream(prepared, 0, 4, concurrency=1))
        slow = [(0, first["sample_id"][row]) for row in range(MICRO_BATCH)]
        (again,) = iter_micro_batches(stream(prepared, 0, 4, concurrency=1, known_failures=slow))
        assert again["failure"] == ["failed_before"] * MICRO_BATCH
        assert again["label"].tolist() == [UNLABELLED] * MICRO_BATCH
        assert not again["video"].any()

    def test_a_slow_reader_costs_no_processor(self, prepared: PreparedSet) -> None:
        """Ray's scheduler turns without waiting when decoded work may not be read yet; it runs in this process here."""
        full = stream(prepared, 0, 800, concurrency=2)
        full.context.execution_options = stream_execution_options(object_store_bytes=2**20)
        batches = iter_micro_batches(full)
        next(batches)
        for _ in range(15):  # until as much is decoded as may be
            before = time.process_time()
            time.sleep(2)
            if (spent := time.process_time() - before) < 0.6:
                break
        assert spent < 0.6


@ray.remote(num_cpus=0.2)
def _consume(worker: ray.data.DataIterator) -> list[tuple[int, tuple[str, ...], bytes]]:
    return [TestStream._fingerprint(batch) for batch in iter_micro_batches(worker)]


# The stages of the training stream without Ray: what is read, how often, and how much is held.


def new_order(some: PreparedSet, repeats: int = 1, window_groups: int = 4) -> Callable[[Any], StreamOrder]:
    return partial(StreamOrder, seed=1, digest=some.digest, repeats=repeats, window_groups=window_groups)


def reading_stage(some: PreparedSet, part: StreamPart | None, start: int = 0) -> ReadMicroBatches:
    return ReadMicroBatches(some.selection("train"), new_order(some), MICRO_BATCH, some.classes, start, part)


def read(some: PreparedSet, start: int, stop: int, part: StreamPart | None = None) -> Iterator[pa.Table]:
    yield from reading_stage(some, part, start)({"start": np.array([start]), "stop": np.array([stop])})


def positions(row: pa.Table) -> list[int]:
    return [run["position"].as_py() for run in row["runs"][0]]


def test_a_row_is_a_micro_batch(prepared: PreparedSet) -> None:
    rows = list(read(prepared, 0, 40))
    assert [len(row) for row in rows] == [1] * 10
    assert [positions(row) for row in rows] == [list(range(p, p + MICRO_BATCH)) for p in range(0, 40, MICRO_BATCH)]


def test_an_epoch_reads_every_row_group_once(prepared: PreparedSet) -> None:
    """With the window's row groups in the cache nothing is read twice, and no more than the cache is held."""
    selection = prepared.selection("train")
    order = new_order(prepared, repeats=3, window_groups=2)(selection.clips_per_group)
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


def test_parts_of_a_stream_are_of_different_workers() -> None:
    for ranks in ((), (1, 1), (1, 0), (-1,), (0, 2)):
        with pytest.raises(ValueError, match="must name different workers"):
            StreamPart(ranks, 2)


@st.composite
def groups_of_workers(draw: st.DrawFn) -> list[list[tuple[int, ...]]]:
    """Groups that follow each other, of different sizes: for each, the ranks on every host, in any order."""
    groups = []
    for workers in draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=4)):
        host = draw(st.lists(st.integers(0, 4), min_size=workers, max_size=workers))
        groups.append([tuple(rank for rank in range(workers) if host[rank] == of) for of in sorted(set(host))])
    return groups


@settings(max_examples=25)
@given(groups_of_workers(), st.data())
def test_a_stream_on_each_host_gives_every_rank_what_one_stream_gives(
    prepared: PreparedSet, groups: list[list[tuple[int, ...]]], data: st.DataObject
) -> None:
    """Over elastic groups that resume within an epoch: the same micro-batches for each rank, in the same order."""
    steps = data.draw(st.lists(st.integers(1, 2), min_size=len(groups), max_size=len(groups)))
    begin = data.draw(st.integers(0, 3)) * GLOBAL_BATCH
    for hosts, taken in zip(groups, steps, strict=True):
        stop = begin + taken * GLOBAL_BATCH
        workers = sum(map(len, hosts))
        one = dealt(read(prepared, begin, stop), tuple(range(workers)))
        each = [dealt(read(prepared, begin, stop, StreamPart(ranks, workers)), ranks) for ranks in hosts]
        assert {rank: rows for of_host in each for rank, rows in of_host.items()} == one
        together = [one[number % workers][number // workers] for number in range(taken * MICRO_BATCHES)]
        assert together == list(map(content, read(prepared, begin, stop)))
        begin = stop


def dealt(rows: Iterator[pa.Table], ranks: Sequence[int]) -> dict[int, list[Any]]:
    """What a stream's split gives each of its ranks: the next row to the first that has the fewest."""
    given: dict[int, list[Any]] = {rank: [] for rank in ranks}
    for row in rows:
        min(given.values(), key=len).append(content(row))
    return given


def content(row: pa.Table) -> list[tuple[int, int, int, int, bytes]]:
    runs = row["runs"].combine_chunks().flatten().to_pylist()
    return [(run["position"], run["clip_id"], run["first_repeat"], run["views"], run["video"]) for run in runs]


def test_a_part_reads_its_own_videos_alone(tmp_path: Path) -> None:
    """Eight hosts together read an epoch's videos hardly more than once; whole row groups would be read by each."""
    some = set_of_noise(tmp_path)
    whole = bytes_read_in_an_epoch(some, None)
    assert whole > 64 * VIDEO_BYTES
    parts = [bytes_read_in_an_epoch(some, StreamPart((rank,), 8)) for rank in range(8)]
    assert sum(parts) < 1.3 * whole
    assert max(parts) < whole / 4


VIDEO_BYTES = 20_000


def set_of_noise(folder: Path) -> PreparedSet:
    """64 clips in four row groups, whose videos nobody decodes."""
    clips = [
        {"clip_id": number, "uri": "noise", "start_seconds": 0.0, "end_seconds": 1.0, "label": None, "split": "train",
         "width": 96, "height": 64, "fps": 25.0, "num_frames": 20, "video": random.randbytes(VIDEO_BYTES)}
        for number in range(64)
    ]  # fmt: skip
    shard = write_shard(str(folder), "0.parquet", pa.Table.from_pylist(clips, schema=CLIP_SCHEMA), 16 * VIDEO_BYTES)
    record = {"version": 1, "digest": "noise", "classes": CLASSES, "shards": [shard], "counts": {}}
    (folder / "dataset.json").write_text(json.dumps(record))
    return open_prepared(str(folder))


def bytes_read_in_an_epoch(some: PreparedSet, part: StreamPart | None) -> int:
    stage = reading_stage(some, part)
    assert len(stage.selection.clips_per_group) == 4
    list(stage({"start": [0], "stop": [64]}))
    return stage.reader.bytes_read


def test_pieces_of_a_stream_hold_as_many_micro_batches_for_every_worker(prepared: PreparedSet) -> None:
    """A piece that holds none of a part's would be a block without a row."""
    workers, rounds = 12, 2000
    pieces = segments(0, rounds * workers * MICRO_BATCH, MICRO_BATCH, of_workers=workers)
    numbers = [range(start // MICRO_BATCH, stop // MICRO_BATCH) for start, stop in pieces.tolist()]
    part = StreamPart((5,), workers)
    assert [sum(map(part.has, piece)) for piece in numbers] == [len(piece) // workers for piece in numbers]
    assert sum(map(len, numbers)) == rounds * workers


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
    stage = ReadMicroBatches(
        selection, partial(StreamOrder, seed=1, digest="d", repeats=2, window_groups=16), 18, CLASSES
    )
    assert stage.order.views_per_epoch == 3 * 3 * 2  # three classes, the largest has three clips, two repeats
    (table,) = stage({"start": [0], "stop": [18]})
    runs = table["runs"].combine_chunks().flatten().to_pylist()
    views = Counter(dict.fromkeys(range(3), 0))
    samples = []
    for run in runs:
        views[run["class_index"]] += run["views"]
        samples += [(run["clip_id"], run["first_repeat"] + number) for number in range(run["views"])]
    assert set(views.values()) == {6}
    assert len(set(samples)) == len(samples) == 18
    assert {repeat for clip, repeat in samples if clip == 1001} == {0, 1, 2, 3}  # one of two clips of its class


def test_views_of_images_are_crops_as_pillow_makes_them(tmp_path: Path) -> None:
    """From files to micro-batches, every pixel: the box that the sample's own draw gives, bicubic with antialiasing."""
    for number in range(6):
        write_drawn(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", seed=number, size=(80, 50 + number))
    manifest = ManifestConfig(media="image", val_share=0)
    settings = PrepareSettings(manifest, TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    prepare(str(tmp_path / "images"), str(tmp_path / "set"), settings, workers=0)
    some = open_prepared(str(tmp_path / "set"))
    view = ViewConfig(num_frames=1, size=32, media="image", interpolation="bicubic", crop_scale=(0.2, 1.0), repeats=2)
    order = partial(StreamOrder, seed=1, digest=some.digest, repeats=2, window_groups=4)
    (row,) = ReadMicroBatches(some.selection("train"), order, 12, some.classes)({"start": [0], "stop": [12]})
    columns = stages._columns(DecodeMicroBatches(view, DecodeConfig(), 1, frozenset())(row))
    assert columns["video"].shape == (12, 1, 32, 32, 3)
    assert set(columns["failure"]) == {""}
    runs = {str(run["clip_id"]): run for run in row["runs"].combine_chunks().flatten().to_pylist()}
    for frames, label, sample in zip(columns["video"], columns["label"], columns["sample_id"], strict=True):
        run = runs[sample.partition("#")[0]]
        with Image.open(run["uri"]) as picture:
            draw = generator(1, "crop", 0, sample)
            box = random_resized_crop(picture.height, picture.width, view.crop_scale, view.crop_aspect, draw)
            np.testing.assert_array_equal(frames[0], cropped(picture, box, 32))
        assert some.classes[label] == Path(run["uri"]).parent.name
    assert len(np.unique(columns["video"].reshape(12, -1), axis=0)) == 12
