"""The training stream in Ray Data: exact micro-batches in order, the same from any cursor and for any workers."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from pipeline.datasets import train as stages
from pipeline.datasets.train import iter_micro_batches, stream_execution_options, training_stream
from pipeline.sampling import ViewConfig
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage.files import StorageError
from tests.support.numbered import read_numbers
from tests.support.small_set import BROKEN, FRAMES, MICRO_BATCH, VIEW


def stream(prepared: PreparedSet, start: int, stop: int, view: ViewConfig = VIEW, **options: Any) -> ray.data.Dataset:
    return training_stream(
        prepared, view, seed=1, micro_batch=MICRO_BATCH, start_position=start, stop_position=stop, **options
    )


def test_what_a_set_holds(prepared: PreparedSet) -> None:
    assert prepared.splits() == {"train": 10, "val": 2}
    assert prepared.num_clips("train") == 10
    assert prepared.num_clips("all", labelled_only=True) == 9
    assert prepared.num_clips("test") == 0
    assert len(prepared.selection("train").groups) > len(prepared.shards)


def test_a_place_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run `python -m jobs"):
        open_prepared(str(tmp_path))
    (tmp_path / "dataset.json").write_text("no json")
    with pytest.raises(StorageError, match="not a prepared set"):
        open_prepared(str(tmp_path))


class Delayed(stages.DecodeMicroBatches):
    """Decoding that takes a random time, so that later micro-batches are often done first."""

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(random.random() * 0.2)
        return super().__call__(table)


@pytest.mark.ray
class TestStream:
    """One Ray for all."""

    pytestmark = pytest.mark.usefixtures("ray_cluster")

    def test_order_content_and_replacement(self, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two epochs of 10 clips x 2 repeats, from two decoders that take random times."""
        monkeypatch.setattr(stages, "DecodeMicroBatches", Delayed)
        view = dataclasses.replace(VIEW, repeats=2)
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

    @staticmethod
    def _fingerprint(batch: dict[str, Any]) -> tuple[int, tuple[str, ...], bytes]:
        return int(batch["position"][0]), tuple(batch["sample_id"]), batch["video"].tobytes()

    def test_known_failures_are_not_tried_again(self, prepared: PreparedSet) -> None:
        first = next(iter_micro_batches(stream(prepared, 0, 4, concurrency=1)))
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
