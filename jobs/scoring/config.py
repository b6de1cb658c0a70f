"""The keys of the commands that score: what both share, and those of evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Precision, PublicWeightsConfig
from pipeline.datasets.evaluation import ViewProtocol
from pipeline.decode.config import DecodeConfig


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(PublicWeightsConfig):
    """The scoring actors: how many, and how they compute."""

    batch_size: int = 16
    """Views in one forward pass, from any videos."""
    workers: int | None = None
    """Model actors; each takes a GPU where the cluster has some, else one CPU. Default: all GPUs, or half the CPUs."""
    decode_workers: int | None = None
    """Decoding actors, one CPU each. Default: the CPUs that the models leave."""
    precision: Precision = "fp32"
    """Arithmetic of the model."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "workers", "decode_workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1; give a larger number")

    @property
    def public_weights(self) -> PublicWeightsConfig:
        """The keys that describe public weights."""
        return PublicWeightsConfig(model=self.model, model_overrides=self.model_overrides, classes=self.classes)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Which classifier to score on which videos, and how."""

    init: str
    """Classifier: the output of a fine-tuning run, its `.safetensors` file, an official or Hugging Face file, or a
    model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    data: str
    """Prepared set (the `output` of prepare)."""
    output: str
    """Path or URI for predictions and figures."""
    split: str = "val"
    """Split of the set to score."""
    frame_stride: int = 4
    """Frames from one sampled frame to the next, as in training."""
    label_separator: str = ""
    """For sets of several labels a video: the separator of names in `label`, for instance `|`; '' for one label."""
    sampling: Literal["uniform", "stride", "segments"] = "uniform"
    """How frames are chosen, as in training (see the `view` of fine-tuning)."""
    views: ViewProtocol = field(default_factory=ViewProtocol)
    """Views whose scores are averaged."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding; all views of a clip are one request."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow server and experiment of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride={self.frame_stride}: must be at least 1; give the stride of training")
