"""The dataset graph from a prepared set to decoded micro-batches, in Ray Data.

    segments of the stream ─▶ ReadMicroBatches (one actor, row groups) ─▶ DecodeMicroBatches (actors, one child each)

Every block is one row, and every row is one micro-batch: blocks can then neither be merged nor split in between, and
``streaming_split(n, equal=True)`` with ``preserve_order`` deals them in turn: worker r gets r, r + n, r + 2n, ...
A graph on each host gives its own workers the same ones (`StreamPart`); its actors are then pinned to that host.
`iter_micro_batches` gives the rows as arrays. Legend: B views of a micro-batch, T frames, H, W pixels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from ray.data.extensions import ArrowTensorArray

from pipeline.datasets.order import Run, StreamOrder, StreamPart, segments
from pipeline.decode.clip_decoder import ClipDecoder, training_view
from pipeline.decode.config import DecodeConfig, FrameView, ImageView
from pipeline.ray_data import configure_execution
from pipeline.sampling import Indices, ViewConfig, generator, random_resized_crop, training_indices
from pipeline.schema import CLIP_SCHEMA, UNLABELLED
from pipeline.shards.reader import PreparedSet, RowGroupReader, label_indices
from pipeline.shards.selection import Selection

Columns = dict[str, Any]

NODE_ID_LABEL = "ray.io/node-id"
"""Ray labels every host with its id under this key."""
WINDOW_GROUPS = 16
MICRO_BATCHES_AHEAD = 64  # at most, whose row groups are being read
READER_CPUS = 0.25
# A decoding actor sleeps while its child works, and its child while the actor copies: together less than one CPU.
DECODER_CPUS = 0.75
DECODER_MEMORY_BYTES = 512 * 2**20
# Ray Data restarts actors without end by default. It warns that these arguments go in 2.64, but has no others yet.
RESTARTS = {"max_restarts": 3, "max_task_retries": 3}

RUN_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in ("position", "epoch", "first_repeat", "views", "class_index")),
        *CLIP_SCHEMA,
    ]
)


def training_stream(
    prepared: PreparedSet,
    view: ViewConfig,
    *,
    seed: int,
    micro_batch: int,
    start_position: int,
    stop_position: int,
    split: str = "train",
    labelled_only: bool = False,
    decode: DecodeConfig | None = None,
    concurrency: int = 2,
    known_failures: Collection[tuple[int, str]] = (),
    part: StreamPart | None = None,
    options: ray.data.ExecutionOptions | None = None,
) -> ray.data.Dataset:
    """The micro-batches of positions ``start_position`` to before ``stop_position``, in order, decoded.

    Read it with `iter_micro_batches`.

    Args:
        micro_batch: views per row (B); fixed for a run, whatever the number of workers.
        split: a split's name, or "all".
        concurrency: decoding actors.
        known_failures: (epoch, sample id) of views that failed before: not decoded again ("failed_before"), so that a
            resumed run takes the decisions of the first.
        part: the micro-batches of some workers only, for one stream per host; default: all.
        options: from `stream_execution_options`; default: on any host.

    Raises:
        ValueError: the split holds no clip to train on, or the positions are none or no whole micro-batches.
    """
    if prepared.num_clips(split, labelled_only) == 0:
        raise ValueError("clips=0: a stream needs at least one clip; check split and labels of the data")
    selection = prepared.selection(split, labelled_only, view.balance_classes)
    order = partial(
        StreamOrder,
        seed=seed,
        digest=prepared.digest,
        repeats=view.repeats,
        window_groups=WINDOW_GROUPS * selection.groups_per_row_group,
        clips_side_by_side=view.clips_side_by_side,
    )
    pieces = segments(start_position, stop_position, micro_batch, of_workers=part.of_workers if part else 1)
    plan = ray.data.from_items([{"start": int(a), "stop": int(b)} for a, b in pieces], override_num_blocks=len(pieces))
    # One row a block. A second reader would read the same row groups again: neighbouring micro-batches share them.
    configure_execution(plan, block_bytes=1, options=options or stream_execution_options())
    read = plan.map_batches(
        ReadMicroBatches,
        fn_constructor_args=(selection, order, micro_batch, prepared.classes, start_position, part),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=READER_CPUS,
        **RESTARTS,
    )
    return read.map_batches(
        DecodeMicroBatches,
        fn_constructor_args=(view, decode or DecodeConfig(), seed, frozenset(map(tuple, known_failures))),
        batch_format="pyarrow",
        zero_copy_batch=True,
        **decoder_pool(concurrency),
    )


def decoder_pool(size: int) -> dict[str, Any]:
    """Arguments of ``map_batches`` for a stage of ``size`` actors that each keep a decoding child."""
    return {
        "batch_size": 1,
        "compute": ray.data.ActorPoolStrategy(size=size),
        "num_cpus": DECODER_CPUS,
        "memory": DECODER_MEMORY_BYTES,
        **RESTARTS,
    }


def stream_execution_options(object_store_bytes: int = 2 * 2**30, host: str | None = None) -> ray.data.ExecutionOptions:
    """What `training_stream` is executed with.

    Args:
        object_store_bytes: how much may be read and decoded ahead; at least a few micro-batches for every decoder.
        host: node id of the only host that may read and decode; default: any.
    """
    label_selector = {NODE_ID_LABEL: host} if host else None
    options = ray.data.ExecutionOptions(preserve_order=True, verbose_progress=False, label_selector=label_selector)
    options.resource_limits = options.resource_limits.copy(object_store_memory=object_store_bytes)
    return options


def stream_cpus(concurrency: int = 1) -> float:
    """Logical CPUs that a stream takes beside the training workers.

    With fewer than those of a single decoder it waits without end and without an error: check before starting.
    """
    return READER_CPUS + concurrency * DECODER_CPUS


def iter_micro_batches(stream: ray.data.Dataset | ray.data.DataIterator, prefetch: int = 2) -> Iterator[Columns]:
    """Each micro-batch as arrays, which are read-only windows into Ray's shared memory.

    Yields:
        ``video`` uint8 [B, T, H, W, 3] · ``label`` int64 [B], -1 for none · ``position``, ``epoch`` int64 [B] ·
        ``sample_id`` "clip_id#repeat" · ``failure``: '' or why the view could not be decoded · ``replaced_by``: the
        sample id of the view of this micro-batch that stands in for it, '' otherwise.
    """
    for table in stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
        yield _columns(table)


@dataclass
class ReadMicroBatches:
    """Stage: segments of the stream in, the encoded clips of one micro-batch per row out."""

    selection: Selection
    new_order: Callable[[npt.NDArray[np.int32]], StreamOrder]
    """Makes the order from the clips of each group, where it is used: it is as large as there are groups."""
    micro_batch: int
    classes: Sequence[str]
    start_position: int = 0
    part: StreamPart | None = None

    def __post_init__(self) -> None:
        self.order = self.new_order(self.selection.clips_per_group)
        self.reader = RowGroupReader(self.selection)

    def __call__(self, batch: Columns) -> Iterator[pa.Table]:
        for start, stop in zip(batch["start"], batch["stop"], strict=True):
            ahead: deque[list[Run]] = deque()
            for runs in self._requested(int(start), int(stop)):
                ahead.append(runs)
                if len(ahead) == MICRO_BATCHES_AHEAD or not self.reader.may_read_ahead:
                    yield self._row(ahead.popleft())
            yield from map(self._row, ahead)

    def _requested(self, start: int, stop: int) -> Iterator[list[Run]]:
        """The runs of each micro-batch of the part, whose row groups are being read."""
        expected_until = start
        for position in self._positions(start, stop):
            if position >= expected_until:
                expected_until = self._expect(position, stop)
            runs = self._runs(position)
            self.reader.prefetch(run.clip for run in runs)
            yield runs

    def _positions(self, start: int, stop: int) -> Iterator[int]:
        """Where the micro-batches of the part begin."""
        for position in range(start, stop, self.micro_batch):
            if not self.part or self.part.has((position - self.start_position) // self.micro_batch):
                yield position

    def _runs(self, position: int) -> list[Run]:
        return list(self.order.runs(position, position + self.micro_batch))

    def _expect(self, position: int, stop: int) -> int:
        """Let the reader know which clips of a window the part needs, where others read the rest; where they end."""
        end = min(stop, self.order.window_end(position))
        if self.part and len(self.part.ranks) < self.part.of_workers:
            self.reader.expect(run.clip for start in self._positions(position, end) for run in self._runs(start))
        return end

    def _row(self, runs: list[Run]) -> pa.Table:
        clips = pa.concat_tables([self.reader.clip(run.clip) for run in runs]).combine_chunks()
        # Each copy of a clip (balanced classes) counts its repeats after the others', so that its draws differ.
        copies = [self.selection.copy(self.selection.group(run.clip)) for run in runs]
        offsets = [self.order.repeats * copy for copy in copies]
        runs = [replace(run, first_repeat=run.first_repeat + add) for run, add in zip(runs, offsets, strict=True)]
        arrays = [pa.array([getattr(run, name) for run in runs], pa.int64()) for name in RUN_SCHEMA.names[:4]]
        arrays.append(pa.array(label_indices(clips["label"], self.classes)))
        arrays += [clips[name].combine_chunks() for name in CLIP_SCHEMA.names]
        struct = pa.StructArray.from_arrays(arrays, fields=list(RUN_SCHEMA))
        return pa.table({"runs": pa.ListArray.from_arrays(pa.array([0, len(runs)], pa.int32()), struct)})


@dataclass
class DecodeMicroBatches:
    """Stage: the encoded clips of a micro-batch in, its views out; a view that fails is replaced by another one."""

    view: ViewConfig
    decode: DecodeConfig
    seed: int
    known_failures: frozenset[tuple[int, str]]

    def __post_init__(self) -> None:
        self.decoder = ClipDecoder(self.decode, self.view.media)

    def __call__(self, table: pa.Table) -> pa.Table:
        runs = _runs(table)
        micro_batch = _MicroBatch(runs, self.view)
        wanted = [run for run in runs if not self._failed_before(run)]
        micro_batch.failure[:] = "failed_before"
        for run, failure in zip(wanted, self._decoded(wanted, micro_batch), strict=True):
            micro_batch.failure[run.rows] = failure
        micro_batch.replace_failures()
        return micro_batch.table()

    def _failed_before(self, run: _EncodedRun) -> bool:
        """The views of a run come from one decode, so they fail together."""
        return any((run.facts["epoch"], sample) in self.known_failures for sample in run.samples)

    def _decoded(self, runs: Sequence[_EncodedRun], micro_batch: _MicroBatch) -> list[str]:
        """Decode the views of some runs into the micro-batch; of each run '' or why it failed."""
        return self.decoder.decode_all(
            [run.facts for run in runs],
            [run.video for run in runs],
            [[self._draw(run.facts, sample) for sample in run.samples] for run in runs],
            [list(micro_batch.video[run.rows]) for run in runs],
        )

    def _draw(self, facts: dict[str, Any], sample: str) -> FrameView | ImageView:
        """The frames and the box of one view: a function of (seed, epoch, sample id)."""
        crop = generator(self.seed, "crop", facts["epoch"], sample)
        box = random_resized_crop(facts["height"], facts["width"], self.view.crop_scale, self.view.crop_aspect, crop)
        return training_view(self.view, box, partial(self._draw_frames, facts, sample))

    def _draw_frames(self, facts: dict[str, Any], sample: str) -> Indices:
        start = generator(self.seed, "start", facts["epoch"], sample)
        return training_indices(facts["num_frames"], facts["fps"], self.view, start)


class _EncodedRun(NamedTuple):
    """Views of one clip, before they are decoded."""

    facts: dict[str, Any]
    """Its columns of `RUN_SCHEMA` but the video."""
    video: pa.LargeBinaryScalar
    rows: slice
    """Its views in the micro-batch."""

    @property
    def samples(self) -> list[str]:
        """Ids of its views."""
        first = self.facts["first_repeat"]
        return [f"{self.facts['clip_id']}#{repeat}" for repeat in range(first, first + self.facts["views"])]


def _runs(table: pa.Table) -> list[_EncodedRun]:
    encoded = table["runs"].combine_chunks().flatten()
    facts = pa.Table.from_struct_array(encoded).drop_columns("video").to_pylist()
    stops = itertools.accumulate(run["views"] for run in facts)
    rows = [slice(stop - run["views"], stop) for run, stop in zip(facts, stops, strict=True)]
    return [_EncodedRun(*run) for run in zip(facts, encoded.field("video"), rows, strict=True)]


class _MicroBatch:
    """The columns of one micro-batch while it is filled."""

    def __init__(self, runs: Sequence[_EncodedRun], view: ViewConfig) -> None:
        views = runs[-1].rows.stop
        self.video = np.zeros((views, view.num_frames, view.size, view.size, 3), np.uint8)
        self.label = np.full(views, UNLABELLED, np.int64)
        self.position, self.epoch = np.zeros((2, views), np.int64)
        self.sample_id, self.failure, self.replaced_by = np.full((3, views), "", object)
        for run in runs:
            self.label[run.rows] = run.facts["class_index"]
            self.position[run.rows] = run.facts["position"] + np.arange(run.facts["views"])
            self.epoch[run.rows] = run.facts["epoch"]
            self.sample_id[run.rows] = run.samples

    def replace_failures(self) -> None:
        """Replace each by another view, chosen by position; with none left the view is black and has no label.

        From the same micro-batch, so that no worker waits for another one and a resumed run takes the same view.
        """
        failed = self.failure != ""
        good = np.flatnonzero(~failed)
        if len(good) == 0:
            self.video[:], self.label[:] = 0, UNLABELLED
            return
        for row in np.flatnonzero(failed):
            substitute = good[self.position[row] % len(good)]
            self.video[row], self.label[row] = self.video[substitute], self.label[substitute]
            self.replaced_by[row] = self.sample_id[substitute]

    def table(self) -> pa.Table:
        """One row; every column holds the whole micro-batch."""

        def column(values: npt.NDArray[Any]) -> pa.Array:
            is_text = values.dtype == object
            return pa.array([values], pa.list_(pa.string())) if is_text else ArrowTensorArray.from_numpy(values[None])

        return pa.table({name: column(values) for name, values in vars(self).items()})


def _columns(table: pa.Table) -> Columns:
    arrays = {name: table[name].combine_chunks() for name in table.column_names}
    return {
        name: array.to_numpy(zero_copy_only=True)[0] if isinstance(array, ArrowTensorArray) else array[0].as_py()
        for name, array in arrays.items()
    }
