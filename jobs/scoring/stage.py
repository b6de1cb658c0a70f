"""The scoring stage of evaluate and tag: decoded views → classes, scores and features, in Ray Data actors.

Legend: B rows of a batch, V views of a row, T frames, H, W pixels, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from jobs.core.errors import UserError
from jobs.core.ray_cluster import has_gpus
from jobs.scoring.classifier import Classifier, ClassifierWeights, Precision
from jobs.scoring.config import ScoringConfig

# A video that kills its worker does so twice before it is given up, so a task must survive the death of two workers.
# Ray Data's default is to restart the actor and to retry the task without a limit.
ACTOR_RETRIES = {"max_restarts": 8, "max_task_retries": 4}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What is kept of the model's output for a row."""

    top_k: int
    """Classes a row; all of them when it is larger than their number."""
    allowed: tuple[int, ...] = ()
    """Numbers of the only classes to keep; none: all."""
    multi_label: bool = False
    """An independent score for every class (sigmoid), instead of shares of one (softmax)."""
    views: int = 1
    """Views of a row, one after the other in time, whose scores and features are averaged."""
    embeddings: bool = False
    """Keep the features before the head too."""

    def rows_at_once(self, views_at_once: int) -> int:
        """Rows that go through the model together."""
        return max(1, views_at_once // self.views)


class Actors(NamedTuple):
    """How many actors of each kind."""

    model: int
    decode: int


def plan_actors(scoring: ScoringConfig) -> Actors:
    """Share the connected cluster between models and decoders.

    On a CPU cluster both get half: they take turns on the cores, so none idles whichever of the two is slower.

    Raises:
        UserError: the cluster has fewer CPUs or GPUs than the actors take; Ray would wait for them without an error.
    """
    offered, use_gpu = ray.cluster_resources(), has_gpus()
    cpus, gpus = int(offered.get("CPU", 0)), int(offered.get("GPU", 0))
    model = scoring.workers or (gpus if use_gpu else max(1, cpus // 2))
    decode = scoring.decode_workers or max(1, cpus - (0 if use_gpu else model))
    wanted = {"CPUs": (decode + (0 if use_gpu else model), cpus), "GPUs": (model if use_gpu else 0, gpus)}
    for kind, (number, existing) in wanted.items():
        if number > existing:
            raise UserError(
                f"workers={model}, decode_workers={decode}: take {number} {kind} and the cluster has {existing}; "
                "lower them or add nodes"
            )
    return Actors(model, decode)


def score_views(
    rows: Dataset, weights: ClassifierWeights, scoring: ScoringConfig, wanted: Answers, *, keep: tuple[str, ...]
) -> Dataset:
    """Add the model's actor pool to a dataset graph of rows with ``video`` and columns to ``keep`` (`ScoreViews`)."""
    use_gpu = has_gpus()
    return rows.map_batches(
        ScoreViews,
        fn_constructor_args=(weights, scoring.precision, use_gpu, keep, wanted, scoring.batch_size),
        batch_size=wanted.rows_at_once(scoring.batch_size),
        batch_format="numpy",
        compute=ActorPoolStrategy(size=plan_actors(scoring).model),
        num_cpus=0 if use_gpu else 1,
        num_gpus=1 if use_gpu else 0,
        **ACTOR_RETRIES,
    )


@dataclass
class ScoreViews:
    """The stage; the model stays loaded in the actor."""

    weights: ClassifierWeights
    precision: Precision
    use_gpu: bool
    keep: tuple[str, ...]
    wanted: Answers
    views_at_once: int

    def __post_init__(self) -> None:
        self.classifier = Classifier(self.weights.file, self.precision, self.use_gpu, self.weights.model_config)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """``video`` uint8 ``[B, V * T, H, W, 3]`` → ``classes`` and ``scores``, each ``[B, top_k]``, best first."""
        scores, features = self._means(batch["video"])
        columns = {name: pa.array(batch[name]) for name in self.keep}
        columns |= best_classes(scores, self.wanted)
        if self.wanted.embeddings:
            columns["embedding"] = pa.array(list(features))
        return pa.table(columns)

    def _means(self, video: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Scores ``[B, C]`` and features ``[B, D]``, each the mean over a row's views."""
        rows, views = len(video), self.wanted.views
        clips = video.reshape(rows * views, -1, *video.shape[2:])
        # A row of more views than fit the model at once comes alone: its views are scored in parts.
        starts = range(0, len(clips), self.views_at_once)
        multi_label = self.wanted.multi_label
        parts = [self.classifier.score(clips[at : at + self.views_at_once], multi_label=multi_label) for at in starts]
        scores, features = (np.concatenate(part).reshape(rows, views, -1) for part in zip(*parts, strict=True))
        return scores.mean(1), features.mean(1)


def best_classes(scores: Floats, wanted: Answers) -> dict[str, pa.Array]:
    """Scores ``[B, C]`` → columns ``classes`` and ``scores``, the best of those that are allowed."""
    allowed = np.asarray(wanted.allowed or range(scores.shape[1]))
    among = scores[:, allowed]
    best = np.argsort(-among, axis=1, kind="stable")[:, : wanted.top_k]
    return {
        "classes": pa.array(list(allowed[best])),
        "scores": pa.array(list(np.take_along_axis(among, best, axis=1))),
    }
