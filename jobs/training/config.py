"""What both training phases configure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from hiera_video.models.config import EncoderConfig
from hiera_video.optimization import OptimizerConfig, ScheduleConfig, scaled_learning_rate
from hiera_video.rules import Checked, Rules
from jobs.checkpoints.background_writer import CheckpointConfig
from jobs.runs.tracking_config import TrackingConfig
from jobs.supervision.process_group import collective_seconds
from jobs.weights.model_config import view_config
from pipeline.decode.config import Backend, DecodeConfig
from pipeline.sampling import DrawConfig, ViewConfig

LOSS, KNN_TOP1 = "loss", "knn_top1"
AUTO = "auto"
DECODERS_FOR_CPUS = 2
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


@dataclass(frozen=True)
class DecoderConfig:
    """Who decodes clips; the limits are the defaults, since clips that `prepare` has transcoded come near none."""

    backend: Backend = "auto"
    """Decoding library: `auto` and `pyav` are PyAV; `decord` is decord, with PyAV where decord fails or is known to be
    wrong."""

    def __post_init__(self) -> None:
        DecodeConfig(backend=self.backend)  # refuses a library that is not installed

    @property
    def limits(self) -> DecodeConfig:
        """What the decoders take."""
        return DecodeConfig(backend=self.backend)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked, ABC):
    """What both phases configure. Constants of training stand here too, but are no keys (`ClassVar`)."""

    # It decides the order of floating-point sums, so a run must not depend on the machine's number of cores.
    threads_per_worker: ClassVar[int] = 1
    # Optimizer steps between printed lines; the journal has every step.
    log_every_steps: ClassVar[int] = 10

    TOPICS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "speed and memory": ("precision", "compile", "activation_checkpointing", "zero_stage", "decode_actors"),
        "failures": ("max_failures", "hang_minutes"),
        "logging": ("trace_samples", "picture_clips"),
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
    elastic: as many as the cluster has capacity for, fewer when a host is lost, more when one joins. Only numbers that
    divide `global_batch` / `micro_batch` are taken: of `[4,8]` with 256 micro-batches 4 and 8."""
    seed: int = 0
    """Seed of every random draw."""
    epochs: float | None = None
    """Length in effective epochs: views divided by clips, so that repeats count (paper Tab. 11); or give `steps`."""
    steps: int | None = None
    """Length in optimizer steps; or give `epochs`."""
    global_batch: int = 512
    """Views per optimizer step, over all workers: videos times `view.repeats`."""
    micro_batch: int = 8
    """Views per forward pass on one worker."""
    view: DrawConfig = field(default_factory=DrawConfig)
    decode_actors: Any = AUTO
    """Decoding processes of Ray Data for the most workers together, on the workers' own hosts where these have CPUs for
    them; `auto`: what the GPUs want (see `--dry-run`), as far as there are CPUs; two for training on CPUs."""
    decode: DecoderConfig = field(default_factory=DecoderConfig)
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
    trace_samples: bool = False
    """Write the sample ids of every step to the journal."""
    max_failures: int = 3
    """How often dead or hanging workers are restarted without a new checkpoint in between before the run fails."""
    hang_minutes: float = 30.0
    """Minutes without a step after which the stacks of all workers are written and the workers are restarted; time-outs
    of collective operations follow from it."""

    def rules(self) -> Rules:
        rule = f"with steps={self.steps}, exactly one must be given; set the other to null"
        yield "epochs", (self.epochs is None) != (self.steps is None), rule
        actors = self.decode_actors
        yield "decode_actors", actors == AUTO or (type(actors) is int and actors >= 1), "must be 1 or more; use auto"
        for key in ("global_batch", "micro_batch"):
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
        who = "one of its numbers " if isinstance(self.workers, list | tuple) else ""
        rule = f"{who}must divide global_batch / micro_batch = {micro_batches}; use one of {', '.join(fitting)}"
        yield "workers", bool(self.worker_numbers), rule

    @property
    def decoders(self) -> int:
        """Decoding actors; of `auto` before the cluster is known: two."""
        return DECODERS_FOR_CPUS if self.decode_actors == AUTO else int(self.decode_actors)

    @property
    def worker_numbers(self) -> tuple[int, ...]:
        """The permitted numbers of workers, rising: those that give every worker as many micro-batches.

        Raises:
            ValueError: ``workers`` is not a number or ``[fewest, most]``.
        """
        bounds = list(self.workers) if isinstance(self.workers, list | tuple) else [self.workers, self.workers]
        whole = len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        if not whole or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(
                f"workers={self.workers}: must be a whole number of at least 1, or [fewest, most]; use 1 or [1,2]"
            )
        micro_batches = self.global_batch // self.micro_batch
        return tuple(workers for workers in range(bounds[0], bounds[1] + 1) if micro_batches % workers == 0)

    @property
    def fewest_views(self) -> int:
        """The smallest micro-batch that the phase permits."""
        return 1

    @property
    def collective_seconds(self) -> int:
        """How long a rank may wait for the others in a collective operation."""
        return collective_seconds(self.hang_minutes, self.checkpoint.max_unsaved_minutes)

    @property
    def peak_learning_rate(self) -> float:
        """Of the whole global batch, at the end of the warm-up."""
        return scaled_learning_rate(self.optimizer, self.global_batch, self.view.repeats)

    @property
    @abstractmethod
    def encoder(self) -> EncoderConfig:
        """The model's configuration, without what its classes decide."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """What the model takes: T, H, W for videos, H, W for images."""
        return self.encoder.input_size

    @property
    def learning_names(self) -> tuple[str, ...]:
        """How the names of the parameters begin that learn: of all of them."""
        return ("",)

    @property
    def views(self) -> ViewConfig:
        """Training views in the shape that the model takes."""
        return view_config(self.encoder, **asdict(self.view))

    def check_input_size(self) -> None:
        """Refuse a model of videos or images that are not square: views are drawn square."""
        if self.input_size[-2] != self.input_size[-1]:
            raise ValueError(
                f"model_overrides.input_size={'x'.join(map(str, self.input_size))}: training takes square views; "
                "use model_overrides.input_size=[T,S,S], or [S,S] for images"
            )
