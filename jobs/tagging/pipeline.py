"""The dataset graph of the tagging job: units → decoded windows → scores → whole chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from rich.progress import track

from jobs.core.cli import console
from jobs.core.ray_cluster import connect
from jobs.scoring.config import ScoringConfig
from jobs.scoring.stage import ACTOR_RETRIES, plan_actors, score_views
from jobs.tagging.config import ScoringPlan
from pipeline.decode.config import DecodeConfig
from pipeline.ray_data import configure_execution
from pipeline.schema import OK
from pipeline.tagging.stages import DecodeWindows, ProbeVideos
from pipeline.tagging.writer import PlannedVersion

PROBES_PER_TASK = 16
DECODER_BYTES = 512 * 2**20
RUN_AHEAD_BATCHES = 4  # per actor: decoded windows that are not scored yet are lost in a crash
WINDOW_COLUMNS = ("chunk", "unit_id", "window_index", "status", "message", "attempts", "repeated")


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk of the plan with all of its answers."""

    number: int
    answers: Mapping[tuple[int, int], Mapping[str, Any]]
    """(unit id, window index) → labels and scores, or the reason why there are none."""
    repeated: bool
    """Whether it was begun before, by a worker or a job that did not finish it."""


def probe_videos(fresh: pa.Table, decode: DecodeConfig, scoring: ScoringConfig) -> pa.Table:
    """The properties of new videos that the plan needs (`PROBED_SCHEMA`), probed in parallel."""
    connect()
    tasks = [fresh.slice(start, PROBES_PER_TASK) for start in range(0, len(fresh), PROBES_PER_TASK)]
    blocks = ray.data.from_arrow(tasks)
    blocks.context.enable_progress_bars = False
    probed = blocks.map_batches(
        ProbeVideos,
        fn_constructor_args=(decode,),
        **_actors(min(plan_actors(scoring).decode, len(tasks))),
    )
    batches = probed.iter_batches(batch_size=None, batch_format="pyarrow")
    return pa.concat_tables(track(batches, "probing videos", total=len(tasks), console=console))


def tagging_graph(chunks: Sequence[pa.Table], plan: ScoringPlan, begun_folder: str | None = None) -> Dataset:
    """Chunks of units → a row per window with classes and scores, in no particular order.

    A chunk is one block and its windows leave the decoder in blocks of exactly one batch, so that the model always
    runs full batches, also over short videos.
    """
    scoring, actors = plan.config, plan_actors(plan.config)
    frames, height, width = plan.views.stacked_size
    batch = plan.wanted.rows_at_once(scoring.batch_size)
    blocks = ray.data.from_arrow(list(chunks))
    batch_bytes = batch * frames * height * width * 3
    ahead = RUN_AHEAD_BATCHES * (actors.decode + actors.model) * batch_bytes
    options = ray.data.ExecutionOptions()
    options.resource_limits = options.resource_limits.copy(object_store_memory=ahead)
    configure_execution(blocks, block_bytes=batch_bytes, options=options)
    windows = blocks.map_batches(
        DecodeWindows,
        fn_constructor_args=(scoring.decode, plan.views, batch, begun_folder),
        memory=DECODER_BYTES,
        **_actors(min(actors.decode, len(chunks))),
    )
    return score_views(windows, plan.weights, scoring, plan.wanted, keep=WINDOW_COLUMNS)


def _actors(size: int) -> dict[str, Any]:
    """Arguments of ``map_batches`` for a pool of actors that take whole blocks."""
    pool = {"compute": ActorPoolStrategy(size=size), "num_cpus": 1, **ACTOR_RETRIES}
    return {"batch_size": None, "batch_format": "pyarrow", **pool}


def scored_chunks(planned: PlannedVersion, missing: Sequence[int], plan: ScoringPlan) -> Iterator[ScoredChunk]:
    """Each missing chunk as soon as all of its windows are scored."""
    expected = {number: planned.count_windows([number]) for number in missing}
    yield from (ScoredChunk(number, {}, repeated=False) for number in missing if expected[number] == 0)
    chunks = [planned.chunk(number) for number in missing if expected[number] > 0]
    if not chunks:
        return
    connect()
    waiting: dict[int, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
    repeated: set[int] = set()
    scored = tagging_graph(chunks, plan, planned.begun_folder)
    for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            waiting[row["chunk"]][row["unit_id"], row["window_index"]] = answer(row, plan)
            repeated |= {row["chunk"]} if row["repeated"] else set()
        for number in [number for number, answers in waiting.items() if len(answers) == expected[number]]:
            yield ScoredChunk(number, waiting.pop(number), number in repeated)
    if waiting:
        raise RuntimeError(f"chunks {sorted(waiting)} are incomplete after the last window; run tag again")


def answer(row: Mapping[str, Any], plan: ScoringPlan) -> dict[str, Any]:
    """Of one window's row the labels that reach their thresholds and their scores, or the reason why it has none."""
    common = {name: row[name] for name in ("status", "message", "attempts")}
    if row["status"] != OK:
        return {"labels": [], "scores": [], **common}
    named = [(plan.weights.classes[index], score) for index, score in zip(row["classes"], row["scores"], strict=True)]
    kept = [(label, score) for label, score in named if score >= plan.thresholds[label]]
    embedding = {"embedding": row["embedding"]} if plan.embedding_size else {}
    return {"labels": [label for label, _ in kept], "scores": [score for _, score in kept], **common, **embedding}
