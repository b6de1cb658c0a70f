"""Model actors that other tasks call themselves: who sends views gets their classes and scores back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from jobs.core.ray_cluster import has_gpus
from jobs.scoring.classifier import ClassifierWeights
from jobs.scoring.config import ScoringConfig
from jobs.scoring.stage import ACTOR_RETRIES, Answers, ScoreViews, plan_actors

Video = npt.NDArray[np.uint8]  # [B, V * T, H, W, 3]


@contextmanager
def running_scorers(
    weights: ClassifierWeights, scoring: ScoringConfig, wanted: Answers
) -> Iterator[Sequence[ActorHandle]]:
    """As many model actors as the plan has, while the context lasts.

    They would end with their last handle as well, but a stream of Ray Data that has ended may keep handles for long.
    """
    use_gpu = has_gpus()
    actor = ray.remote(ScoreViews).options(num_cpus=0 if use_gpu else 1, num_gpus=1 if use_gpu else 0, **ACTOR_RETRIES)
    arguments = (weights, scoring.precision, use_gpu, (), wanted, scoring.batch_size)
    actors = [actor.remote(*arguments) for _ in range(plan_actors(scoring).model)]
    try:
        yield actors
    finally:
        for running in actors:
            with suppress(RayError):  # a cluster that is lost has ended them
                ray.kill(running)


class Scorers:
    """The model actors as one caller sees them: each batch goes to the one that has the fewest of this caller's."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = list(actors)
        # Callers begin with different actors.
        np.random.default_rng().shuffle(self._actors)
        self._waiting: dict[Any, int] = {}

    def submit(self, video: Video) -> Any:
        """Send one batch; returns what `result` takes."""
        load = [0] * len(self._actors)
        for number in self._waiting.values():
            load[number] += 1
        number = int(np.argmin(load))
        ticket = self._actors[number].__call__.remote({"video": video})
        self._waiting[ticket] = number
        return ticket

    def result(self, ticket: Any) -> pa.Table:
        """``classes``, ``scores`` and perhaps ``embedding`` of one batch (`ScoreViews`)."""
        answer: pa.Table = ray.get(ticket)
        del self._waiting[ticket]
        return answer
