"""The scores of a prepared set: from its clips to predictions, figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from jobs.core.cli import echo
from jobs.core.errors import UserError
from jobs.reports.confusion import confused_pairs_picture, confusion_picture
from jobs.runs.progress import tracked
from jobs.scoring.classifier import ClassifierWeights
from jobs.scoring.config import EvaluateConfig
from jobs.scoring.metrics import PREDICTION_SCHEMA, confusion, predictions
from jobs.scoring.stage import Answers, plan_actors, score_views
from jobs.weights.model_config import view_config
from pipeline.datasets.evaluation import evaluation_views
from pipeline.prepare.versions import rejections
from pipeline.shards.reader import PreparedSet
from pipeline.storage.files import StorageError, join, write_bytes
from pipeline.storage.parquet import write_table

VIEW_COLUMNS = ("clip_id", "uri", "label", "view", "repeats_frames", "status")


def evaluation_graph(config: EvaluateConfig, weights: ClassifierWeights, prepared: PreparedSet) -> Dataset:
    """The dataset graph: clips of the split → views, all of a clip from one decode → scores of all classes."""
    view = view_config(weights.encoder, frame_stride=config.frame_stride, sampling=config.sampling)
    decoders = plan_actors(config).decode
    try:
        views = evaluation_views(
            prepared, view, config.views, split=config.split, decode=config.decode, concurrency=decoders
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return score_views(views, weights, config, Answers(top_k=len(weights.classes)), keep=VIEW_COLUMNS)


def clip_predictions(
    config: EvaluateConfig,
    weights: ClassifierWeights,
    prepared: PreparedSet,
    logits_of_labels: Mapping[int, tuple[int, ...]],
) -> list[dict[str, Any]]:
    """A row for every clip of the split (`jobs.scoring.metrics.predictions`), by clip id."""
    batches = evaluation_graph(config, weights, prepared).iter_batches(batch_size=None, batch_format="pyarrow")
    number = prepared.num_clips(config.split) * config.views.views
    views = tracked((row for batch in batches for row in batch.to_pylist()), "scoring", "views", number)
    with_truth = (row | {"truth": logits_of_labels[row["label"]]} for row in views)
    rows = predictions(with_truth, weights.classes, config.views.views)
    return sorted(rows, key=lambda row: int(row["clip_id"]))


def count_rejected(prepared: PreparedSet, split: str) -> dict[str, Any]:
    """Videos of the split that `prepare` stored no clip of, by reason, and those rejected before they had a split.

    They are not among ``videos_not_scored``. Papers differ in them: validation videos that are deleted or damaged.
    """
    try:
        of_split, without_split = rejections(prepared.uri, prepared.version, split)
    except StorageError as error:
        if not error.missing:
            raise
        echo(f"the videos that prepare rejected are not counted: {error}", warning=True)
        return {}
    return {
        "videos_not_in_the_set": sum(of_split.values()),
        "not_in_the_set_by_reason": of_split,
        "videos_never_read_by_reason": without_split,
    }


def write_predictions(output: str, rows: list[dict[str, Any]]) -> None:
    """Write ``predictions.parquet``."""
    write_table(join(output, "predictions.parquet"), pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA))


def write_pictures(output: str, rows: list[dict[str, Any]], weights: ClassifierWeights) -> dict[str, str]:
    """Draw the confusion matrix; returns the URIs of the pictures by name."""
    counts = confusion(rows, weights.classes)
    pictures = {
        "confusion.png": confusion_picture(counts, weights.classes),
        "confused_pairs.png": confused_pairs_picture(counts, weights.classes),
    }
    for name, picture in pictures.items():
        write_bytes(join(output, name), picture)
    return {name.removesuffix(".png"): join(output, name) for name in pictures}
