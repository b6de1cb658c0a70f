"""Validation during training: the loss on clips that are not trained on, and a nearest-neighbour probe of the encoder.

Measured at intervals by all ranks on a copy of the model, so that training itself is not touched: no random number, no
gradient, no buffer of DeepSpeed's. Clips, masks and draws are the same every time and go one by one, so the
figures depend neither on the number of workers nor on restarts.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hiera_video.metrics.knn_probe import nearest_neighbour_top1
from jobs.training.agreement import gathered
from jobs.training.config import KNN_TOP1, LOSS
from jobs.training.job import TrainingJob
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.step import TrainStep
from pipeline.datasets.validation import FixedView, fixed_views
from pipeline.storage.files import StorageError, join, write_bytes

logger = logging.getLogger(__name__)

PICTURE_CLIPS = 6
CUT_SHORT = "cut_short"  # storage did not deliver all clips


class Probe(NamedTuple):
    """A clip as the nearest-neighbour probe sees it."""

    number: int
    label: int
    features: np.ndarray
    """``[C]``"""


class Validator:
    """Measures copies of the model, which are built when first needed; all ranks call it alike.

    Args:
        device: where the copies compute.
        on_clip: called before every clip, as progress.
    """

    def __init__(self, job: TrainingJob, device: torch.device, on_clip: Callable[[int], None]) -> None:
        self._job, self._config, self._device, self._on_clip = job, job.config.validation, device, on_clip
        self._copy: Any = None
        self._cut_short = False
        labelled_only = job.phase.labelled_only
        self._possible = self._config.clips > 0 and job.prepared.num_clips(self._config.split, labelled_only) > 0

    def due(self, step: int) -> bool:
        """Whether a measurement is due after ``step`` optimizer steps."""
        return self._possible and (step % self._job.steps_between_measurements == 0 or step == self._job.total_steps)

    @torch.no_grad()
    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Figures for the journal from the whole weights: `loss` and others; `knn_top1`; `seconds`; `picture`."""
        started, self._cut_short = time.monotonic(), False
        copy = self._loaded_copy(weights)
        shown: list[Tensor] = []
        figures: dict[str, Any] = dict(_mean(_by_number([*self._measured(copy, shown)])))
        if self._config.knn_clips and figures:
            figures |= self._probed(copy)
        cut_short = any(gathered(self._cut_short))
        if cut_short and figures:
            figures |= {CUT_SHORT: True}
        if shown and dist.get_rank() == 0:
            figures |= self._drawn(copy, shown, step)
        return {**figures, "seconds": time.monotonic() - started} if figures else {}

    def metric(self, figures: Mapping[str, Any]) -> float | None:
        """How good the model is, lower is better; None when the deciding figure was not measured, or on fewer clips."""
        value = figures.get(self._config.best_by)
        if value is None or CUT_SHORT in figures:
            return None
        return float(value) if self._config.best_by == LOSS else 1.0 - float(value)

    def _loaded_copy(self, weights: Mapping[str, Tensor]) -> Any:
        if self._copy is None:
            with torch.random.fork_rng():
                self._copy = self._job.phase.build_step(load_init=False)
            self._copy.model.to(self._device).eval()
        self._copy.model.load_state_dict(weights)
        return self._copy

    def _measured(self, copy: TrainStep[Any], shown: list[Tensor]) -> Iterator[tuple[int, Mapping[str, float]]]:
        """Number and figures of this rank's validation clips; keeps the first few pictures."""
        for clip in self._clips(self._config.split, self._config.clips, labelled_only=self._job.phase.labelled_only):
            batch = self._batch(clip)
            if len(shown) < PICTURE_CLIPS:
                shown.append(batch.frames[0].cpu())
            yield clip.number, copy.measure(batch)

    def _probed(self, copy: TrainStep[Any]) -> dict[str, float]:
        bank, queries = (_by_number([*self._probes(copy, split)]) for split in ("train", self._config.split))
        if not bank or not queries:
            return {}
        features = [torch.from_numpy(np.stack([probe.features for probe in probes])) for probes in (bank, queries)]
        labels = [torch.tensor([probe.label for probe in probes]) for probes in (bank, queries)]
        return {KNN_TOP1: nearest_neighbour_top1(features[0], labels[0], features[1], labels[1])}

    def _probes(self, copy: TrainStep[Any], split: str) -> Iterator[Probe]:
        for clip in self._clips(split, self._config.knn_clips, labelled_only=True):
            features = copy.embed(self._batch(clip))
            if features is not None:
                yield Probe(clip.number, clip.label, features[0].float().cpu().numpy())

    def _clips(self, split: str, count: int, *, labelled_only: bool) -> Iterator[FixedView]:
        """This rank's share; storage that does not answer ends it early, with a warning."""
        share = {"part": dist.get_rank(), "parts": dist.get_world_size(), "count": count}
        views, decode = self._job.config.views, self._job.config.decode.limits
        clips = fixed_views(self._job.prepared, views, split=split, labelled_only=labelled_only, decode=decode, **share)
        try:
            for clip in clips:
                self._on_clip(clip.number)
                yield clip
        except StorageError as error:
            self._cut_short = True
            logger.warning("measured on fewer validation clips, so not compared with other checkpoints: %s", error)

    def _batch(self, clip: FixedView) -> MicroBatch:
        return MicroBatch(
            frames=torch.from_numpy(clip.frames)[None].to(self._device),
            labels=torch.tensor([clip.label], device=self._device),
            sample_ids=[f"{clip.clip_id}#validation"],
            epochs=[0],
            position=0,
            seed=self._job.config.seed,
            step=0,
            index=clip.number,
        )

    def _drawn(self, copy: TrainStep[Any], shown: list[Tensor], step: int) -> dict[str, str]:
        uri = join(self._job.config.output, "pictures", f"step-{step:08d}.png")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            if not copy.picture(torch.stack(shown).to(self._device), path):
                return {}
            try:
                write_bytes(uri, path.read_bytes())
            except StorageError as error:
                logger.warning("no picture of step %d: %s", step, error)
                return {}
        return {"picture": uri}


def _by_number(mine: list[Any]) -> list[Any]:
    """All ranks' items in the order of their numbers, which come first; all ranks must call it."""
    return sorted((item for items in gathered(mine) for item in items), key=lambda item: int(item[0]))


def _mean(measured: list[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    keys = measured[0][1].keys() if measured else ()
    return {key: sum(figures[key] for _, figures in measured) / len(measured) for key in keys}
