"""From a command's configuration to its plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from hiera_video.models.config import EncoderConfig
from jobs.core.errors import UserError
from jobs.planning.cluster import Cluster
from jobs.planning.figures import Figure
from jobs.planning.measured import passes_of
from jobs.planning.memory import size_of
from jobs.planning.scoring import FLOAT32_BYTES, ROW_BYTES, ScoringPlan
from jobs.planning.step_time import of_frames
from jobs.planning.training import TrainingPlan, plan_training
from jobs.planning.unit_costs import ASSUMED, Collection, UnitCost, UnitCosts
from jobs.scoring.config import EvaluateConfig, ScoringConfig
from jobs.tagging.config import TagConfig
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from jobs.weights.model_config import overridden_config

ASSUMED_MODEL = "hiera_base_16x224"


class Plan(Protocol):
    """What a plan of any command has."""

    @property
    def hours(self) -> float:
        """Of the whole command, without start-up."""

    def figures(self) -> Iterator[Figure]:
        """All lines."""


def plan_of_training(
    config: PretrainConfig | FinetuneConfig, collection: Collection, cluster: Cluster, costs: UnitCosts
) -> TrainingPlan:
    """The plan of a configuration whose `workers` are the cluster's GPUs."""
    model = config.encoder
    if isinstance(config, FinetuneConfig) and collection.classes is not None:
        model = config.model_config(collection.classes)
    return plan_training(config, model, passes_of(config), collection, cluster, costs)


def plan_of_evaluation(
    config: EvaluateConfig, collection: Collection, cluster: Cluster, costs: UnitCosts
) -> ScoringPlan:
    """Several views of every clip of a split."""
    model = classifier_of(config)
    return ScoringPlan(
        collection=collection,
        model=_named(config),
        views=config.views.views,
        decoded_views=config.views.clips,
        decode_seconds=_of_frames(model, costs.decode_seconds, costs),
        multiply_adds=size_of(model).multiply_adds,
        precision=config.precision,
        video_bytes=collection.stored_bytes(costs, is_video=model.is_video),
        row_bytes=FLOAT32_BYTES * model.num_classes / config.views.views,
        word="views",
        cluster=cluster,
        costs=costs,
    )


def plan_of_tagging(config: TagConfig, collection: Collection, cluster: Cluster, costs: UnitCosts) -> ScoringPlan:
    """Every window of every video."""
    model = classifier_of(config)
    windows = config.whole_video.clips or int(config.grid.count(collection.seconds)) if model.is_video else 1
    embedding = FLOAT32_BYTES * model.widths[-1] if config.embeddings else 0
    return ScoringPlan(
        collection=collection,
        model=_named(config),
        views=windows,
        decoded_views=windows,
        decode_seconds=_of_frames(model, costs.window_seconds, costs),
        multiply_adds=size_of(model).multiply_adds,
        precision=config.precision,
        video_bytes=collection.source_bytes(costs, is_video=model.is_video),
        row_bytes=ROW_BYTES + embedding,
        word="windows",
        cluster=cluster,
        costs=costs,
    )


def classifier_of(config: ScoringConfig) -> Any:
    """The model config of a classifier that does not exist yet: `model`, else Base.

    Raises:
        UserError: no such preset, or a change that it does not permit.
    """
    try:
        return overridden_config(config.model or ASSUMED_MODEL, config.model_overrides)
    except ValueError as error:
        raise UserError(str(error)) from error


def _named(config: ScoringConfig) -> Figure:
    """The line that says which model is planned for."""
    return Figure("model", config.model or ASSUMED_MODEL, "", "given" if config.model else ASSUMED)


def _of_frames(model: EncoderConfig, view: UnitCost, costs: UnitCosts) -> UnitCost:
    """Seconds of one core for a view of a model's length."""
    return of_frames(model.input_size[0], view) if model.is_video else costs.image_seconds
