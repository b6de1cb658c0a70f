"""From any collection of videos to a prepared set: validated, transcoded, shuffled shards with labels and splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.core.cli import Command, console
from jobs.core.config import config_dict
from jobs.core.errors import UserError
from jobs.core.ray_cluster import connect
from jobs.core.signals import keeping_finished_work
from jobs.runs.claim import FREE_KEYS, Claim, claim_output, release_output
from jobs.runs.tracking import TrackingConfig, data_tags, recorded, start_run
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.text_columns import ManifestError
from pipeline.manifest.vanished import MAX_DELETED_SHARE, VanishedSourceError, refuse_no_share
from pipeline.prepare.run import Outcome, PlannedSet, PrepareSettings, finish_set, plan_set, preview_set
from pipeline.shards.reader import open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.storage.files import StorageError, absolute, exists, join, read_text
from pipeline.transcode.config import TranscodeConfig

COUNTS = (
    "videos", "clips", "clips_by_split", "labelled_clips", "rejected", "skipped_files", "source_bytes", "stored_bytes",
)  # fmt: skip


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
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: must not be negative; leave it out for the default")

    @property
    def settings(self) -> PrepareSettings:
        """What the set is made of."""
        names = [field.name for field in dataclasses.fields(ManifestConfig)]
        manifest = ManifestConfig(**{name: getattr(self, name) for name in names})
        return PrepareSettings(manifest, self.transcode, self.decode, self.store, self.seed)


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare and report.

    Raises:
        UserError: annotations that do not follow their convention, or an output with other settings.
        StorageError: the source cannot be read or the output not be written, before anything was done.
        WorkStoppedError: storage failed later; the same command resumes.
        StopRequestedError: SIGTERM arrived; the same command resumes.
    """
    config = dataclasses.replace(config, source=absolute(config.source), output=absolute(config.output))
    claim = claim_output(config.output, config, free_keys=(*FREE_KEYS, "exclude", "max_deleted_share"))
    planned = _planned(config, claim)
    if isinstance(planned, Outcome):
        return _report(planned)
    if config.workers != 0:
        connect()
    tracking = start_run(
        config.tracking, command="prepare", run_key=claim.run_key, output=config.output, params=config_dict(config)
    )
    kept = "finished videos are kept, the same command resumes"
    with recorded(tracking), keeping_finished_work(kept), _progress_bar() as progress:
        outcome = finish_set(planned, config.workers, progress)
    report = _report(outcome)
    figures = {key: value for key, value in report.items() if type(value) in (int, float)}
    tracking.log_metrics(figures, step=report["version"])
    tracking.set_tags(data_tags(open_prepared(config.output, report["version"])))
    tracking.finish()
    return {**report, "mlflow_run_id": tracking.run_id}


def dry_run(config: PrepareConfig) -> dict[str, Any]:
    """What a run would do, by listing the source and reading its annotations; nothing is written.

    Raises:
        UserError: annotations that do not follow their convention.
    """
    with _manifest_errors_reported():
        return preview_set(absolute(config.source), config.output, config.settings, _excluded(config.exclude))


def _planned(config: PrepareConfig, claim: Claim) -> PlannedSet | Outcome:
    try:
        with _manifest_errors_reported():
            exclude = _excluded(config.exclude)
            return plan_set(config.source, config.output, config.settings, exclude, config.max_deleted_share)
    except (UserError, StorageError):
        if not exists(join(config.output, "_prepare")):
            release_output(config.output, claim)  # nothing was planned yet: the corrected command is not refused
        raise


@contextmanager
def _manifest_errors_reported() -> Iterator[None]:
    try:
        yield
    except (ManifestError, VanishedSourceError) as error:
        raise UserError(str(error)) from error


def _excluded(place: str | None) -> list[str]:
    if place is None:
        return []
    if not place.lower().endswith(".txt"):
        return [place]
    return [line.strip() for line in read_text(place).split("\n") if line.strip()]


def _report(outcome: Outcome) -> dict[str, Any]:
    version: Mapping[str, Any] = outcome.version
    counts = version["counts"]
    return {
        "status": "prepared" if outcome.is_new else "already up to date",
        "version": version["version"],
        "digest": version["digest"],
        **{key: counts[key] for key in COUNTS},
        "classes": len(version["classes"]),
        "classes_without_training_clips": counts.get("classes_without_training_clips", []),
        "exclude_unmatched": version.get("exclude_unmatched", []),
        "missing_in_source": outcome.missing_in_source,
        "files_skipped": counts.get("files_skipped", {}),
    }


@contextmanager
def _progress_bar() -> Iterator[Any]:
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


main = Command("prepare", PrepareConfig, run, description=__doc__ or "", dry_run=dry_run)


if __name__ == "__main__":
    main()
