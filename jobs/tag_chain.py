"""The visible chain of the tagging job: units → decoded windows → scores → whole chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from rich.progress import track

from jobs.classifier import ACTOR_RETRIES, ClassifierWeights, ScoringConfig, plan_actors, score_videos
from jobs.cluster import connect
from jobs.program import console
from pipeline import (
    OK,
    DecodeConfig,
    DecodeWindows,
    PlannedVersion,
    ProbeVideos,
    WindowGrid,
)

PROBES_PER_TASK = 16
DECODER_BYTES = 512 * 2**20
WINDOW_COLUMNS = ("chunk", "unit_id", "window_index", "status", "message")

ScoredWindows = dict[tuple[int, int], dict[str, Any]]


@dataclass(frozen=True)
class ScoringPlan:
    """How windows become scores, and on how many actors."""

    weights: ClassifierWeights
    grid: WindowGrid
    top_k: int
    scoring: ScoringConfig
    decode: DecodeConfig


def probe_videos(fresh: pa.Table, gone: pa.Table, decode: DecodeConfig, scoring: ScoringConfig) -> pa.Table:
    """What the plan must know of every new video, by probing them in parallel; those that are gone pass through."""
    if len(fresh) == 0:
        return gone
    connect()
    tasks = [fresh.slice(start, PROBES_PER_TASK) for start in range(0, len(fresh), PROBES_PER_TASK)]
    blocks = ray.data.from_arrow(tasks)
    blocks.context.enable_progress_bars = False
    probed = blocks.map_batches(
        ProbeVideos,
        fn_constructor_args=(decode,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(plan_actors(scoring).decode, len(tasks))),
        num_cpus=1,
        **ACTOR_RETRIES,
    )
    batches = probed.iter_batches(batch_size=None, batch_format="pyarrow")
    tables = list(track(batches, "probing videos", total=len(tasks), console=console))
    return pa.concat_tables([*tables, gone]).sort_by("uri")


def tagging_chain(chunks: Sequence[pa.Table], plan: ScoringPlan, attempts_folder: str | None = None) -> Dataset:
    """Chunks of units → a row per window with classes and scores, in no particular order.

    A chunk is one block and its windows leave the decoder in blocks of exactly one batch, so that the model always
    runs full batches, also over short videos.
    """
    actors = plan_actors(plan.scoring)
    frames, height, width = plan.weights.input_size
    blocks = ray.data.from_arrow(list(chunks))
    blocks.context.enable_progress_bars = False
    blocks.context.enable_fallback_to_arrow_object_ext_type = False
    blocks.context.target_max_block_size = plan.scoring.batch_size * frames * height * width * 3
    windows = blocks.map_batches(
        DecodeWindows,
        fn_constructor_args=(plan.decode, plan.grid, (frames, height, width), plan.scoring.batch_size, attempts_folder),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(actors.decode, len(chunks))),
        num_cpus=1,
        memory=DECODER_BYTES,
        **ACTOR_RETRIES,
    )
    return score_videos(windows, plan.weights, plan.scoring, actors.model, keep=WINDOW_COLUMNS, top_k=plan.top_k)


def scored_windows(
    planned: PlannedVersion, missing: Sequence[int], plan: ScoringPlan
) -> Iterator[tuple[int, ScoredWindows]]:
    """Each missing chunk once all of its windows are there: its number and (unit id, window index) → answer."""
    due = {number: planned.count_windows([number]) for number in missing}
    yield from ((number, {}) for number in missing if due[number] == 0)
    chunks = [planned.chunk(number) for number in missing if due[number] > 0]
    if not chunks:
        return
    connect()
    waiting: dict[int, ScoredWindows] = defaultdict(dict)
    for batch in tagging_chain(chunks, plan, planned.attempts_folder).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        for row in batch.to_pylist():
            waiting[row["chunk"]][row["unit_id"], row["window_index"]] = answer(row, plan.weights.classes)
        for number in [number for number, scored in waiting.items() if len(scored) == due[number]]:
            yield number, waiting.pop(number)
    if waiting:
        raise RuntimeError(f"chunks {sorted(waiting)} are incomplete after the last window; run tag again")


def answer(row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What one window's row says: labels and scores, or why there are none."""
    scored = row["status"] == OK
    return {
        "labels": [classes[index] for index in row["classes"]] if scored else [],
        "scores": row["scores"] if scored else [],
        "status": row["status"],
        "message": row["message"],
    }
