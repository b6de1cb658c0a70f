"""Score a classifier on a split of a prepared set by the published protocol: several views a video, softmax, mean.

Usage: ``python -m jobs.evaluate [RECIPE] init=FINETUNE_OUTPUT data=PREPARED_SET output=PATH_OR_URI``
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.core.cli import FIGURES, Command, echo, replace, write_figures
from jobs.core.config import config_dict
from jobs.core.ray_cluster import connect
from jobs.core.signals import keeping_finished_work
from jobs.runs.claim import FREE_KEYS, claim_output, refuse_difference
from jobs.runs.tracking import Run, data_tags, recorded, start_run
from jobs.scoring.classifier import ClassifierWeights, find_classifier, shared
from jobs.scoring.compatibility import (
    match_classes,
    refuse_nothing_to_score,
    refuse_other_protocol,
    warn_other_sampling,
    with_class_names,
)
from jobs.scoring.config import EvaluateConfig
from jobs.scoring.evaluation import clip_predictions, count_rejected, write_pictures, write_predictions
from jobs.scoring.metrics import figures, worded_for
from jobs.weights.model_config import refuse_other_media
from jobs.weights.registry import initial_file
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage.files import absolute, exists, join, read_json

__all__ = ["EvaluateConfig", "main", "run"]

PICTURE = "confusion"  # key of a picture's URI in it


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Score the split and write predictions, pictures and figures; of a finished output, return its figures."""
    with initial_file(config.init, config.tracking, config.output) as file:
        weights = find_classifier(config.init, config.public_weights, fetched=file)
        prepared = open_prepared(config.data)
        refuse_nothing_to_score(prepared, config.split)
        return evaluate(config, with_class_names(weights, prepared), prepared)


def evaluate(config: EvaluateConfig, weights: ClassifierWeights, prepared: PreparedSet) -> dict[str, Any]:
    """`run`, once weights and set are open.

    Raises:
        UserError: weights or data changed since the output was begun.
    """
    refuse_other_media(weights.encoder, prepared)
    refuse_other_protocol(weights, config.views)
    warn_other_sampling(weights, config.sampling, config.frame_stride)
    logits_of_labels = match_classes(weights, prepared, config.label_separator)
    output = absolute(config.output)
    links = {"weights_digest": weights.digest, **weights.links}
    pins = {"weights_digest": weights.digest, "data_version": prepared.version}
    claimed = replace(config, data=absolute(config.data), init=weights.uri)
    claim = claim_output(
        output, claimed, free_keys=(*FREE_KEYS, "decode_workers"), pins=pins | {"tags": links | data_tags(prepared)}
    )
    existing = {key: claim.pins.get(key) for key in pins}
    holds, remedy = "holds scores of other weights or data", "choose another output"
    refuse_difference(output, existing, pins, holds=holds, remedy=remedy)
    if (finished := _finished_figures(output)) is not None:
        echo(f"evaluate: {output} holds the scores of these weights on this set; nothing is left to do")
        return finished
    tracking = start_run(
        config.tracking, command="evaluate", run_key=claim.run_key, output=output, params=config_dict(config),
        tags=links, prepared=prepared,
    )  # fmt: skip
    with recorded(tracking), keeping_finished_work("nothing of this run is kept, the same command starts over"):
        return score(config, shared(weights, output), prepared, logits_of_labels, output, tracking)


def score(
    config: EvaluateConfig,
    weights: ClassifierWeights,
    prepared: PreparedSet,
    logits_of_labels: Mapping[int, tuple[int, ...]],
    output: str,
    tracking: Run,
) -> dict[str, Any]:
    """Score every clip, write the results, and end the run in MLflow."""
    rejected = count_rejected(prepared, config.split)
    connect()
    started = time.monotonic()
    rows = clip_predictions(config, weights, prepared, logits_of_labels)
    speed = len(rows) * config.views.views / (time.monotonic() - started)
    report = worded_for(prepared.media, asdict(figures(rows, weights.classes)) | rejected | {"views_per_second": speed})
    write_predictions(output, rows)
    write_figures(output, report)  # before the pictures, which must not cost the scores
    tracking.log_metrics({key: value for key, value in report.items() if type(value) in (int, float)}, step=0)
    uris = write_pictures(output, rows, weights)
    for uri in uris.values():
        tracking.log_stored_artifact(uri)
    tracking.finish()
    whole = {**report, **uris, "mlflow_run_id": tracking.run_id}
    # Written last: that the figures name the pictures makes the output finished.
    write_figures(output, whole)
    return whole


def _finished_figures(output: str) -> dict[str, Any] | None:
    """The figures of a finished output; None where none are written, or the pictures are still to be drawn."""
    if not exists(join(output, FIGURES)):
        return None
    figures = read_json(join(output, FIGURES))
    return figures if PICTURE in figures else None


main = Command("evaluate", EvaluateConfig, run, description="Score a classifier on a split of a prepared set.")


if __name__ == "__main__":
    main()
