"""Score a classifier on a split of a prepared set by the published protocol: several views a video, softmax, mean.

Usage: ``python -m jobs.evaluate [RECIPE] init=FINETUNE_OUTPUT data=PREPARED_SET output=PLACE``
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset
from rich.progress import track

from jobs.core.cli import console, echo, replace, run_command
from jobs.core.config import config_dict
from jobs.core.errors import UserError
from jobs.core.ray_cluster import connect
from jobs.core.signals import keeping_finished_work
from jobs.runs.claim import FREE_KEYS, claim_output, refuse_difference
from jobs.runs.tracking import Run, TrackingConfig, data_tags, recorded, start_run
from jobs.scoring.classifier import (
    ClassifierWeights,
    ScoringConfig,
    find_classifier,
    plan_actors,
    score_videos,
    shared,
)
from jobs.scoring.metrics import (
    PREDICTION_SCHEMA,
    confused_pairs_picture,
    confusion,
    confusion_picture,
    figures,
    predictions,
)
from jobs.weights.registry import initial_file
from pipeline.datasets.evaluation import ViewProtocol, evaluation_views
from pipeline.decode.config import DecodeConfig
from pipeline.prepare.versions import rejections
from pipeline.sampling import ViewConfig
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage.files import StorageError, absolute, exists, join, read_bytes, write_bytes

FIGURES = "figures.json"
VIEW_COLUMNS = ("clip_id", "uri", "label", "view", "repeats_frames", "status")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Which classifier to score on which videos, and how."""

    init: str
    """Classifier: the output of a fine-tuning run, its `.safetensors` file, an official or Hugging Face file, or a
    model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    data: str
    """Prepared set (the `output` of prepare)."""
    output: str
    """Where predictions and pictures go."""
    split: str = "val"
    """Split of the set to score."""
    frame_stride: int = 4
    """Frames from one sampled frame to the next, as in training."""
    label_separator: str = ""
    """For sets of several labels a video: what stands between them in `label`, for instance `|`; '' for one label."""
    sampling: Literal["uniform", "stride", "segments"] = "uniform"
    """How frames are chosen, as in training (see the `view` of fine-tuning)."""
    views: ViewProtocol = field(default_factory=ViewProtocol)
    """Views whose scores are averaged."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding; all views of a clip are one request."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride={self.frame_stride}: must be at least 1; give the stride of training")


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score the split and write predictions, pictures and figures; of a finished output, its figures."""
    with initial_file(config.init, config.tracking, config.output) as file:
        return evaluate(config, find_classifier(config.init, config.public_weights, fetched=file))


def evaluate(config: EvaluateConfig, found: ClassifierWeights) -> dict[str, Any]:
    """`run`, once the weights are here."""
    prepared = open_prepared(config.data)
    weights = named_by_the_set(found, prepared)
    warn_other_sampling(config, weights)
    logits_of_labels = match_classes(weights, prepared, config.label_separator)
    output = absolute(config.output)
    if prepared.num_clips(config.split) == 0:
        raise UserError(f"split={config.split}: {config.data} has no such clips; it has {prepared.splits()}")
    if prepared.num_clips(config.split, labelled_only=True) == 0:
        raise UserError(
            f"split={config.split}: no clip of it has a label to compare with (data={config.data}); use `jobs.tag`, or "
            "prepare the set with its annotations"
        )
    sources = {"data": absolute(config.data), "init": weights.uri}
    pins = {"weights_digest": weights.digest, "data_version": prepared.version}
    free = (*FREE_KEYS, "decode_workers")
    links = {"weights_digest": weights.digest, **weights.links}
    tags = {"tags": links | data_tags(prepared)}
    claim = claim_output(output, replace(config, **sources), free_keys=free, pins=pins | tags)
    refuse_what_changed(output, claim.pins, pins)
    if exists(join(output, FIGURES)):
        echo(f"evaluate: {output} holds the scores of these weights on this set; nothing is left to do")
        return dict(json.loads(read_bytes(join(output, FIGURES))))
    tracking = start_run(
        config.tracking,
        command="evaluate",
        run_key=claim.run_key,
        output=output,
        params=config_dict(config),
        tags=links,
        prepared=prepared,
    )
    with recorded(tracking), keeping_finished_work("nothing of this attempt is kept, the same command starts anew"):
        return score(config, shared(weights, output), prepared, logits_of_labels, output, tracking)


def refuse_what_changed(output: str, scored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """One output holds the scores of one set of weights on one version of the data.

    Raises:
        UserError: weights or data changed since the output was begun.
    """
    existing = {key: scored.get(key) for key in found}
    holds = "holds scores of other weights or data"
    refuse_difference(output, existing, found, holds=holds, remedy="choose another output")


def score(
    config: EvaluateConfig,
    weights: ClassifierWeights,
    prepared: PreparedSet,
    logits_of_labels: Mapping[int, tuple[int, ...]],
    output: str,
    tracking: Run,
) -> dict[str, Any]:
    """Score every clip, write what came of it, and end the run in MLflow."""
    absent = not_in_the_set(prepared, config.split)
    connect()
    started = time.monotonic()
    rows = sorted(
        predictions(view_scores(config, weights, prepared, logits_of_labels), weights.classes, config.views.views),
        key=lambda row: int(row["clip_id"]),
    )
    seconds = time.monotonic() - started
    result = figures(rows, weights.classes)
    report = {**asdict(result), **absent, "views_per_second": len(rows) * config.views.views / seconds}
    pictures = write_results(output, rows, weights)
    tracking.log_metrics({key: value for key, value in report.items() if type(value) in (int, float)}, step=0)
    with TemporaryDirectory() as folder:
        for name, picture in pictures.items():
            path = Path(folder) / name
            path.write_bytes(picture)
            tracking.log_artifact(path)
        tracking.finish()
    places = {name.removesuffix(".png"): join(output, name) for name in pictures}
    whole = {**report, **places, "mlflow_run_id": tracking.run_id}
    write_bytes(join(output, FIGURES), json.dumps(whole, indent=2).encode())
    return whole


def named_by_the_set(weights: ClassifierWeights, prepared: PreparedSet) -> ClassifierWeights:
    """Public weights without a class list take the set's, in its order, when it has as many names as they have logits.

    Raises:
        UserError: it has not.
    """
    if weights.has_class_names:
        return weights
    if len(prepared.classes) != len(weights.classes):
        raise UserError(
            f"init={weights.uri}: has {len(weights.classes)} classes without names, data={prepared.uri} has "
            f"{len(prepared.classes)}; give the weights' own list by classes="
        )
    echo(
        f"init={weights.uri} does not say what its classes are; the {len(prepared.classes)} names "
        f"of data={prepared.uri} are taken for them, in its order. Where that is another order, scores are at chance: "
        "then give classes=",
        warning=True,
    )
    return replace(weights, classes=prepared.classes)


def warn_other_sampling(config: EvaluateConfig, weights: ClassifierWeights) -> None:
    """Say where frames are chosen in another way than in training: scores are lower than they need be."""
    given = {"sampling": config.sampling, "frame_stride": config.frame_stride}
    other = {key: value for key, value in weights.sampling.items() if given[key] != value}
    if other.get("sampling", config.sampling) == config.sampling == "segments":
        return  # which has no stride
    if other:
        due = " ".join(f"{key}={value}" for key, value in other.items())
        echo(f"init={weights.uri} was trained with {due}; give {due} to score it so", warning=True)


def not_in_the_set(prepared: PreparedSet, split: str) -> dict[str, Any]:
    """Videos of the split that `prepare` could store no clip of, by reason, and those whose split nobody knows.

    They are not among ``videos_not_scored``, and papers differ in them: validation videos that are gone or damaged.
    """
    try:
        of_split, without_split = rejections(prepared.uri, prepared.version, split)
    except StorageError as error:
        if not error.missing:
            raise
        echo(f"what prepare rejected is not counted: {error}", warning=True)
        return {}
    return {
        "videos_not_in_the_set": sum(of_split.values()),
        "not_in_the_set_by_reason": of_split,
        "videos_never_read_by_reason": without_split,
    }


def match_classes(weights: ClassifierWeights, prepared: PreparedSet, separator: str = "") -> dict[int, tuple[int, ...]]:
    """Class number in the set → numbers of the logits with the same names; several for a label of several parts.

    Raises:
        UserError: the set has classes that the classifier does not know.
    """
    place = {name: number for number, name in enumerate(weights.classes)}
    parts = [name.split(separator) if separator else [name] for name in prepared.classes]
    unknown = sorted({part for names in parts for part in names} - place.keys())
    if unknown:
        raise UserError(
            f"data={prepared.uri}: has {len(unknown)} classes that the classifier was not trained on "
            f"({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); give the set of its own class list"
        )
    logits = {number: tuple(place[name] for name in names) for number, names in enumerate(parts)}
    return logits | {UNLABELLED: ()}


def view_scores(
    config: EvaluateConfig,
    weights: ClassifierWeights,
    prepared: PreparedSet,
    logits_of_labels: Mapping[int, tuple[int, ...]],
) -> Iterator[dict[str, Any]]:
    """Every view of the split with its scores, in no particular order."""
    chain = evaluation_chain(config, weights, prepared)
    batches = chain.iter_batches(batch_size=None, batch_format="pyarrow")
    views = prepared.num_clips(config.split) * config.views.views
    all_rows = (row for batch in batches for row in batch.to_pylist())
    for row in track(all_rows, "scoring views", total=views, console=console):
        yield row | {"truth": logits_of_labels[row["label"]]}


def evaluation_chain(config: EvaluateConfig, weights: ClassifierWeights, prepared: PreparedSet) -> Dataset:
    """The visible chain: clips of the split → views, all of a clip from one decode → scores of all classes."""
    actors = plan_actors(config)
    frames, size, _ = weights.input_size
    view = ViewConfig(num_frames=frames, frame_stride=config.frame_stride, size=size, sampling=config.sampling)
    try:
        views = evaluation_views(
            prepared, view, config.views, split=config.split, decode=config.decode, concurrency=actors.decode
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return score_videos(views, weights, config, actors.model, keep=VIEW_COLUMNS, top_k=len(weights.classes))


def write_results(output: str, rows: list[dict[str, Any]], weights: ClassifierWeights) -> dict[str, bytes]:
    """Write ``predictions.parquet`` and the pictures; returns the pictures by name."""
    table = pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(join(output, "predictions.parquet"), buffer.getvalue())
    counts = confusion(rows, weights.classes)
    pictures = {
        "confusion.png": confusion_picture(counts, weights.classes),
        "confused_pairs.png": confused_pairs_picture(counts, weights.classes),
    }
    for name, picture in pictures.items():
        write_bytes(join(output, name), picture)
    return pictures


def main() -> None:
    """Entry point."""
    run_command("evaluate", EvaluateConfig, run, description="Score a classifier on a split of a prepared set.")


if __name__ == "__main__":
    main()
