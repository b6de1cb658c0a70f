"""What both training phases configure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from hiera_video.optimization import OptimizerConfig, ScheduleConfig
from hiera_video.rules import Checked, Rules
from jobs.checkpoints.background_writer import CheckpointConfig
from jobs.runs.tracking import TrackingConfig
from pipeline.decode.config import DecodeConfig
from pipeline.sampling import DrawConfig, ViewConfig

LOSS, KNN_TOP1 = "loss", "knn_top1"
BestBy = Literal["loss", "top1", "knn_top1"]


@dataclass(frozen=True)
class ValidationConfig(Checked):
    """What is measured on clips that are not trained on, and when; of a classifier."""

    # The name that `prepare` gives to the clips that it holds out, and that annotations of every convention map to.
    split: ClassVar[str] = "val"

    clips: int = 64
    """Validation clips whose loss (and, with a classifier, top-1) is measured; 0 switches validation off."""
    every_epochs: float = 20.0
    """Effective epochs between validations; the last step always has one, and each comes with a checkpoint."""

    def rules(self) -> Rules:
        yield "clips", self.clips >= 0, "must not be negative; use 0 for none"
        yield "every_epochs", self.every_epochs > 0, "must be positive; clips=0 switches validation off"

    @property
    def knn_clips(self) -> int:
        """None: a classifier's own top-1 says more than a probe of its encoder."""
        return 0

    @property
    def best_by(self) -> BestBy:
        """What a classifier is for."""
        return "top1"

    def steps_between(self, steps_per_epoch: float) -> int:
        """Optimizer steps from one validation to the next."""
        return max(1, round(self.every_epochs * steps_per_epoch))


@dataclass(frozen=True)
class ProbedValidationConfig(ValidationConfig):
    """Validation of an encoder that has no head yet."""

    knn_clips: int = 512
    """Labelled training clips that a nearest-neighbour probe of the encoder votes with, and the most validation clips
    that it classifies; it is informative from about ten clips a class on. 0 switches it off."""
    best_by: Literal["loss", "knn_top1"] = "loss"
    """The figure that decides which checkpoint is best: the lowest loss, or the highest top-1 of the probe."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield "knn_clips", self.knn_clips >= 0, "must not be negative; use 0 for none"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """What both phases configure. Constants of training stand here too, but are no keys (`ClassVar`)."""

    # Training decodes clips that `prepare` has cut, transcoded and validated, so no clip comes near a default limit.
    decode: ClassVar[DecodeConfig] = DecodeConfig()
    # It decides the order of floating-point sums, so a run must not depend on the machine's number of cores.
    threads_per_worker: ClassVar[int] = 1

    TOPICS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "speed and memory": ("precision", "compile", "activation_checkpointing", "zero_stage", "decode_actors"),
        "failures": ("max_failures", "hang_minutes"),
        "logging": ("log_every_steps", "trace_samples", "picture_clips"),
    }
    """Headings of `--help` for keys outside slices."""

    data: str
    """Prepared set (the `output` of prepare): path, file:// or s3://."""
    output: str
    """Path or URI (file://, s3://) of checkpoints, journal and weights."""
    init: str | None = None
    """Weights to start from: output of a run, `.safetensors`, official or Hugging Face `.pth`, or a model of the MLflow
    registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`), of which a copy is kept under `output`."""
    workers: Any = 1
    """Training workers, one GPU each where there are GPUs; does not change what is computed. `[fewest, most]` is
    elastic: as many as the cluster has capacity for, fewer when a host is lost, more when one joins."""
    seed: int = 0
    """Seed of every random draw."""
    epochs: float | None = None
    """Length in effective epochs: views divided by clips, so that repeats count (paper Tab. 11); or give `steps`."""
    steps: int | None = None
    """Length in optimizer steps; or give `epochs`."""
    global_batch: int = 512
    """Views per optimizer step, over all workers."""
    micro_batch: int = 8
    """Views per forward pass on one worker."""
    view: DrawConfig = field(default_factory=DrawConfig)
    decode_actors: int = 2
    """Decoding processes of Ray Data."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 nothing partitioned, 1 optimizer state, 2 and gradients, 3 and weights."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of forward and backward (autocast); weights and optimizer state stay float32."""
    activation_checkpointing: bool = False
    """Recompute block activations in the backward pass: less memory, more arithmetic."""
    compile: bool = False
    """Compile the model (torch.compile) when training starts: minutes once, then faster steps; not with ZeRO 3."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    log_every_steps: int = 10
    """Optimizer steps between printed lines; the journal has every step."""
    trace_samples: bool = False
    """Write the sample ids of every step to the journal."""
    max_failures: int = 3
    """How often dead or hanging workers are restarted before the run fails."""
    hang_minutes: float = 30.0
    """Minutes without a step after which the stacks of all workers are written and the workers are restarted."""

    def rules(self) -> Rules:
        rule = f"with steps={self.steps}, exactly one must be given; set the other to null"
        yield "epochs", (self.epochs is None) != (self.steps is None), rule
        for key in ("global_batch", "micro_batch", "decode_actors", "log_every_steps"):
            yield key, getattr(self, key) >= 1, "must be at least 1; use 1 or more"
        yield "max_failures", self.max_failures >= 0, "must not be negative; use 0 for none"
        yield "hang_minutes", self.hang_minutes > 0, "must be positive; use 30"
        rule = "cannot be used with zero_stage=3, which gathers weights on demand; use zero_stage=2"
        yield "compile", not (self.compile and self.zero_stage == 3), rule
        for key in ("epochs", "steps"):
            value = getattr(self, key)
            yield key, value is None or value > 0, "must be positive; use 1 or more"
        whole = self.micro_batch * math.ceil(self.global_batch / self.micro_batch)
        rule = f"must be a multiple of micro_batch={self.micro_batch}; use {whole}"
        yield "global_batch", whole == self.global_batch, rule
        micro_batches = self.global_batch // self.micro_batch
        fitting = [str(n) for n in range(1, micro_batches + 1) if micro_batches % n == 0]
        who = "" if len(self.worker_range) == 1 else "every permitted number "
        rule = f"{who}must divide global_batch / micro_batch = {micro_batches}; use one of {', '.join(fitting)}"
        yield "workers", not any(micro_batches % workers for workers in self.worker_range), rule

    @property
    def worker_range(self) -> range:
        """The permitted numbers of workers.

        Raises:
            ValueError: ``workers`` is not a number or ``[fewest, most]``.
        """
        bounds = list(self.workers) if isinstance(self.workers, list | tuple) else [self.workers, self.workers]
        whole = len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        if not whole or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(
                f"workers={self.workers}: must be a whole number of at least 1, or [fewest, most]; use 1 or [1,2]"
            )
        return range(bounds[0], bounds[1] + 1)

    @property
    def input_size(self) -> tuple[int, ...]:
        """What the model takes: T, H, W for videos."""
        raise NotImplementedError(f"{type(self).__name__} must give its model's input size")

    @property
    def views(self) -> ViewConfig:
        """Training views in the shape that the model takes."""
        frames, size, _ = self.input_size
        return ViewConfig(num_frames=frames, size=size, **asdict(self.view))

    def check_input_size(self) -> None:
        """Refuse a model of images, or of videos that are not square: views are drawn square."""
        if len(self.input_size) != 3 or self.input_size[1] != self.input_size[2]:
            raise ValueError(
                f"model_overrides.input_size={'x'.join(map(str, self.input_size))}: training takes square videos; "
                "use a video preset, or model_overrides.input_size=[T,S,S]"
            )
