"""The model's stage of the tagging chain: decoded windows → classes, scores and, if wanted, features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hiera_video.augmentation.basic import normalize_video
from jobs.scoring.classifier import AUTOCAST, Classifier, ClassifierWeights, Precision

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What is kept of the model's answer to a window."""

    top_k: int
    """Classes a window; all of them when it is larger than their number."""
    allowed: tuple[int, ...] = ()
    """Numbers of the only classes to keep; none: all."""
    multi_label: bool = False
    """A score of its own for every class (sigmoid), instead of shares of one (softmax)."""
    views: int = 1
    """Views of a window, one after the other in time, whose scores and features are averaged."""
    embeddings: bool = False
    """Keep the features before the head too."""

    def rows_at_once(self, views_at_once: int) -> int:
        """Windows that go through the model together."""
        return max(1, views_at_once // self.views)


class ScoreWindows:
    """A Ray Data stage; the model stays loaded in the actor. Legend: B windows, V views each, C classes, D features."""

    def __init__(
        self,
        weights: ClassifierWeights,
        precision: Precision,
        use_gpu: bool,
        keep: tuple[str, ...],
        wanted: Answers,
        views_at_once: int,
    ) -> None:
        classifier = Classifier(weights.place, precision, use_gpu, weights.architecture)
        self.model, self.device, self.dtype = classifier.model, classifier.device, AUTOCAST[precision]
        self.keep = keep
        self.wanted = wanted
        self.views_at_once = views_at_once

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """``video`` uint8 ``[B, V * T, H, W, 3]`` → ``classes`` and ``scores``, each ``[B, top_k]``, best first."""
        scores, features = self._means(np.require(batch["video"], np.uint8, ["C", "W"]))
        columns = {name: pa.array(batch[name]) for name in self.keep}
        columns |= best_classes(scores, self.wanted)
        if self.wanted.embeddings:
            columns["embedding"] = pa.array(list(features))
        return pa.table(columns)

    def _means(self, video: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Scores ``[B, C]`` and features ``[B, D]``, each the mean over a window's views."""
        windows, views = len(video), self.wanted.views
        clips = torch.from_numpy(video.reshape(windows * views, -1, *video.shape[2:]))
        parts = [self._score(some) for some in torch.split(clips, self.views_at_once)]
        scores, features = (
            torch.cat(part).view(windows, views, -1).mean(1).numpy() for part in zip(*parts, strict=True)
        )
        return scores, features

    @torch.inference_mode()
    def _score(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 ``[b, T, H, W, 3]`` → scores ``[b, C]``, features ``[b, D]``, float32 on the CPU."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            features = self.model.embed(normalize_video(clips.to(self.device))).float()
        logits = self.model.head(features)
        scores = logits.sigmoid() if self.wanted.multi_label else logits.softmax(dim=1)
        return scores.cpu(), features.cpu()


def best_classes(scores: Floats, wanted: Answers) -> dict[str, pa.Array]:
    """Scores ``[B, C]`` → columns ``classes`` and ``scores``, the best of those that are allowed."""
    allowed = np.asarray(wanted.allowed or range(scores.shape[1]))
    among = scores[:, allowed]
    best = np.argsort(-among, axis=1, kind="stable")[:, : wanted.top_k]
    return {
        "classes": pa.array(list(allowed[best])),
        "scores": pa.array(list(np.take_along_axis(among, best, axis=1))),
    }
