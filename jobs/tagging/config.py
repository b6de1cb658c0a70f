"""The keys of tag, and the plan of scoring that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.core.errors import UserError
from jobs.runs.claim import FREE_KEYS
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier, ClassifierWeights
from jobs.scoring.config import ScoringConfig
from jobs.scoring.stage import Answers
from jobs.weights.model_config import view_config
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.vanished import MAX_DELETED_SHARE, refuse_no_share
from pipeline.tagging.window_views import WholeVideo, WindowViews, grid_of
from pipeline.tagging.windows import WindowGrid

# Sizes and limits that no row depends on.
FREE_TAG_KEYS = (*FREE_KEYS, "decode_workers", "batch_size", "videos_per_task", "commit_seconds", "videos_at_once",
                 "max_failed_share", "max_repeated_windows", "max_deleted_share", "gallery_videos")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TagConfig(ScoringConfig):
    """Which videos to tag, with which classifier, and the output."""

    source: str
    """Folder or `s3://` prefix of videos, a list of videos as `prepare` takes it (`.csv`, `.parquet`, `.txt`; columns
    `uri`, `path`, `video`, or lines `path label`), the `manifest.json` of an S3 Inventory, or tar shards (WebDataset)
    and Parquet files with pictures inside, or a folder of those: every member has rows."""
    init: str
    """Classifier: the output of a fine-tuning run, its `.safetensors` file, an official or Hugging Face file, or a
    model of the MLflow registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`)."""
    output: str
    """Path or URI for the tables. Another model or window setting needs another output."""
    window_seconds: float = 2.0
    """Length of a window; best the time span that the model saw in training."""
    hop_seconds: float = 2.0
    """From the start of one window to the start of the next."""
    whole_video: WholeVideo = field(default_factory=WholeVideo)
    """Instead of windows."""
    top_k: int = 5
    """Labels kept per window, and per video."""
    threshold: float = 0.0
    """Lowest score of a label that is kept in a window; the time spans of a video are made of kept labels."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Thresholds of single labels, as `thresholds={jumping: 0.3, singing: 0.8}`."""
    labels: tuple[str, ...] = ()
    """The only labels to keep; none: all."""
    multi_label: bool = False
    """An independent score for every label (sigmoid) instead of shares of one (softmax), for classifiers trained so."""
    embeddings: bool = False
    """Add the features before the head to every window, as a list of float32 for a vector index."""
    videos_per_task: int = 16
    """Most videos in one task, which writes one file for each table: more means fewer files, and more work lost when a
    worker dies. It holds fewer where they are large (256 MiB together)."""
    commit_seconds: float = 60.0
    """Time between two commits: what a job that is killed loses at most, beside the tasks at work."""
    videos_at_once: int = 50_000
    """Videos that are planned together; bounds the memory of the driver."""
    max_failed_share: float = 0.5
    """The job stops when a larger share of the videos that are planned together has failed for reasons outside of them
    (storage, a full disk, a decoder that decodes nothing); of fewer than 20 any number may fail. Broken content is a
    warning."""
    max_repeated_windows: int = 1000
    """Most windows of one video beyond the number of its frames: they show the same pictures again."""
    max_deleted_share: float = MAX_DELETED_SHARE
    """The job stops before it changes anything when the source no longer holds a larger share of the tagged videos (10
    or more), or no video at all: a lost mount looks like deleted videos. 1 confirms that they are deleted."""
    gallery_videos: int = 24
    """Videos shown in `report.html`; 0: no report."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0, memory_bytes=3 * 2**29))
    """Limits of decoding; a request holds up to 16 windows of a video, hence the longer deadline."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow server and experiment of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_no_share(self.max_deleted_share)
        for key in (
            "window_seconds",
            "hop_seconds",
            "top_k",
            "videos_per_task",
            "videos_at_once",
            "max_repeated_windows",
        ):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; give a larger value")
        if self.commit_seconds < 0:
            raise ValueError(f"commit_seconds={self.commit_seconds}: must not be negative; 60 is a good value")
        if self.gallery_videos < 0:
            raise ValueError(f"gallery_videos={self.gallery_videos}: must not be negative; 0 writes no report")
        shares = {f"thresholds.{label}": value for label, value in self.thresholds.items()}
        for key, share in {**shares, "threshold": self.threshold, "max_failed_share": self.max_failed_share}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{key}={share}: must lie between 0 and 1; it is a share")

    @property
    def grid(self) -> WindowGrid:
        """The windows of a video."""
        return grid_of(self.window_seconds, self.hop_seconds, self.whole_video)


@dataclass(frozen=True)
class ScoringPlan:
    """From windows to scores, and from scores to labels."""

    config: TagConfig
    weights: ClassifierWeights
    views: WindowViews
    wanted: Answers
    thresholds: Mapping[str, float]
    """By label, of every label that may be kept."""
    embedding_size: int
    """Length of an embedding; 0 when none is wanted."""

    def settings(self) -> dict[str, Any]:
        """What every row of one output has in common."""
        config, whole = self.config, self.config.whole_video
        windows = {key: getattr(config, key) for key in ("window_seconds", "hop_seconds")}
        return {
            "weights_digest": self.weights.digest,
            **({"whole_video": asdict(whole)} if whole.clips else windows),
            **{key: getattr(config, key) for key in ("top_k", "threshold", "thresholds", "multi_label", "precision")},
            "labels": list(config.labels),
            "input_size": list(self.weights.input_size),
            "embedding_size": self.embedding_size,
        }


def plan_scoring(config: TagConfig, weights: ClassifierWeights) -> ScoringPlan:
    """Derive the plan; `UserError` for a label that the classifier does not know."""
    numbers = {name: number for number, name in enumerate(weights.classes)}
    for key, names in (("labels", config.labels), ("thresholds", config.thresholds)):
        if unknown := sorted(set(names) - numbers.keys()):
            raise UserError(
                f"{key}={unknown}: no labels of init={weights.uri}; choose among its {len(weights.classes)}: "
                f"{', '.join(weights.classes[:8])}{', ...' if len(weights.classes) > 8 else ''}"
            )
    kept = config.labels or weights.classes
    image = view_config(weights.encoder) if weights.media == "image" else None
    if image is not None and config.whole_video.clips:
        raise UserError(
            f"whole_video.clips={config.whole_video.clips}: init={weights.uri} classifies images, which have one view; "
            "leave it out"
        )
    views = WindowViews(config.grid, weights.input_size, config.whole_video, image)
    wanted = Answers(
        top_k=config.top_k,
        allowed=tuple(sorted(numbers[name] for name in set(config.labels))),
        multi_label=config.multi_label,
        views=views.per_window,
        embeddings=config.embeddings,
    )
    thresholds = {name: config.thresholds.get(name, config.threshold) for name in kept}
    size = 0
    if config.embeddings:  # from the loaded model: not every kind of file has a model config
        size = Classifier(weights.file, "fp32", False, weights.model_config).model.config.widths[-1]
    return ScoringPlan(config, weights, views, wanted, thresholds, size)
