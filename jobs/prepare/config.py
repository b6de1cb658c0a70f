"""What a preparation configures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from jobs.runs.tracking_config import TrackingConfig
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.vanished import MAX_DELETED_SHARE, refuse_no_share
from pipeline.prepare.run import PrepareSettings
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import TranscodeConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(ManifestConfig):
    """Configuration of the command."""

    source: str
    """Folder, s3:// prefix, or manifest file (CSV, Parquet) of the videos."""
    output: str
    """Where the prepared set is written; the same path again adds what is new or changed."""
    seed: int = 0
    """Decides the global order and the splits."""
    workers: int | None = None
    """Transcoding processes. Default: the cluster's CPUs but one. 0: this process alone, without Ray."""
    exclude: str | None = None
    """A video's URI or path below the source, or a .txt file with one a line: taken out as a new version."""
    max_deleted_share: float = MAX_DELETED_SHARE
    """The command stops when the source no longer holds a larger share of the set's videos (10 or more of them), or no
    video at all: a lost mount looks like deleted videos. Their clips stay in the set; 1 confirms that they do."""
    transcode: TranscodeConfig = field(default_factory=TranscodeConfig)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    store: StoreConfig = field(default_factory=StoreConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_no_share(self.max_deleted_share)
        changed = [field.name for field in dataclasses.fields(TranscodeConfig) if field.name != "mode"
                   and getattr(self.transcode, field.name) != field.default]  # fmt: skip
        if self.media == "image" and changed:
            key, value = changed[0], getattr(self.transcode, changed[0])
            raise ValueError(f"transcode.{key}={value}: is for videos, images are stored as they are; leave it out")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: must not be negative; leave it out for the default")

    @property
    def settings(self) -> PrepareSettings:
        """What the set is made of."""
        names = [field.name for field in dataclasses.fields(ManifestConfig)]
        manifest = ManifestConfig(**{name: getattr(self, name) for name in names})
        return PrepareSettings(manifest, self.transcode, self.decode, self.store, self.seed)
