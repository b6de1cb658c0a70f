"""From any collection of videos to a prepared set: validated, transcoded, shuffled shards with labels and splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.cluster import connect
from jobs.errors import UserError
from jobs.output import FREE_KEYS, claim_output, release_output
from jobs.program import console, run_program
from pipeline import DecodeConfig, StorageError, absolute, exists, join, read_bytes
from pipeline.columns import ManifestError
from pipeline.conventions import Convention, ManifestConfig
from pipeline.prepare import Outcome, PrepareSettings, prepare
from pipeline.shard_writer import StoreConfig
from pipeline.transcode_config import TranscodeConfig


@dataclass(frozen=True)
class PrepareConfig:
    """Configuration of the program."""

    source: str
    """Folder, s3:// prefix, or manifest file (CSV, Parquet) of the videos."""
    output: str
    """Where the prepared set is written; the same place again adds what is new or changed."""
    seed: int = 0
    """Decides the global order and the splits."""
    workers: int | None = None
    """Transcoding processes. Default: the cluster's CPUs but one. 0: this process alone, without Ray."""
    exclude: str | None = None
    """A video's URI or path below the source, or a .txt file with one a line: taken out as a new version."""
    annotations: str | None = None
    """Annotation file or folder. Default: `annotations.csv` or `.parquet` in the source when there is one."""
    convention: Convention = "auto"
    """What the annotations follow; `auto` looks at the names and the first line. `folder`: class folders."""
    classes: str | None = None
    """The full class list, in the order of the indices: a text file (a name a line), a JSON list, or a name that
    ships with the project (kinetics400). Default: the list that the convention has, else all labels, sorted."""
    split_number: int = 1
    """Which of the official splits (UCF101, HMDB51: 1, 2, 3)."""
    val_share: float = 0.1
    """Share of each class's source videos held out as `val` where the annotations name no split."""
    unlisted: bool | None = None
    """Whether videos in the source that the annotations do not name are taken, without a label. Default: yes when
    the annotations are the source's own `annotations.csv` or `.parquet`."""
    transcode: TranscodeConfig = field(default_factory=TranscodeConfig)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    store: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: must not be negative; leave it out for the default")
        self.manifest()

    def manifest(self) -> ManifestConfig:
        """The slice that says how annotations are read."""
        names = [field.name for field in dataclasses.fields(ManifestConfig)]
        return ManifestConfig(**{name: getattr(self, name) for name in names})


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare and report.

    Raises:
        UserError: annotations that do not follow their convention, an output of other settings.
    """
    config = dataclasses.replace(config, source=absolute(config.source), output=absolute(config.output))
    claim = claim_output(config.output, config, free_keys=(*FREE_KEYS, "exclude"))
    if config.workers != 0:
        connect()
    settings = PrepareSettings(config.manifest(), config.transcode, config.decode, config.store, config.seed)
    with _progress_bar() as progress:
        try:
            outcome = prepare(
                config.source,
                config.output,
                settings,
                exclude=_excluded(config.exclude),
                workers=config.workers,
                progress=progress,
            )
        except (ManifestError, StorageError) as error:
            if not exists(join(config.output, "_prepare")):
                release_output(config.output, claim)  # nothing was planned yet: the mended command is not refused
            if isinstance(error, ManifestError):
                raise UserError(str(error)) from error
            raise
    return _report(outcome)


def _excluded(place: str | None) -> list[str]:
    if place is None:
        return []
    if not place.lower().endswith(".txt"):
        return [place]
    return [line.strip() for line in read_bytes(place).decode().splitlines() if line.strip()]


def _report(outcome: Outcome) -> dict[str, Any]:
    version: Mapping[str, Any] = outcome.version
    counts = version["counts"]
    return {
        "status": "prepared" if outcome.is_new else "already up to date",
        "version": version["version"],
        "digest": version["digest"],
        "videos": counts["videos"],
        "clips": counts["clips"],
        "clips_by_split": counts["clips_by_split"],
        "labelled_clips": counts["labelled_clips"],
        "classes": len(version["classes"]),
        "rejected": counts["rejected"],
        "skipped_files": counts["skipped_files"],
        "source_bytes": counts["source_bytes"],
        "stored_bytes": counts["stored_bytes"],
    }


@contextmanager
def _progress_bar() -> Iterator[Any]:
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Entry point of ``python -m jobs.prepare``."""
    run_program("prepare", PrepareConfig, run, description=__doc__)


if __name__ == "__main__":
    main()
