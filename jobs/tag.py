"""Tag a collection of videos: a row of labels and scores for every window of time, for every video rows or a reason.

Usage: ``python -m jobs.tag source=FOLDER_OR_URI init=FINETUNE_OUTPUT output=PLACE``. The same command again tags what
is new or changed; after a crash it goes on with the chunks that are missing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
from rich.progress import MofNCompleteColumn, Progress

from jobs.classifier import ClassifierWeights, ScoringConfig, find_classifier
from jobs.config import config_dict
from jobs.errors import UserError
from jobs.output import FREE_KEYS, claim_output
from jobs.program import console, run_program
from jobs.stop_request import keeping_finished_work
from jobs.tag_chain import ScoringPlan, probe_videos, scored_windows
from jobs.tracking import TrackingConfig, recorded, start_run
from pipeline import (
    DecodeConfig,
    PlannedVersion,
    SourceListing,
    WindowGrid,
    absolute,
    known_versions,
    last_commit,
    list_source,
    new_or_changed,
    plan_units,
    read_videos,
    tag_rows,
    tombstones,
    unfinished_version,
    write_plan,
)

PUT_THREADS = 4
LOG_SECONDS = 20.0
MLFLOW_WAIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class TagConfig(ScoringConfig):
    """What to tag, with which model, and where the tags go."""

    source: str
    """Folder or `s3://` prefix of videos, or a manifest (`.csv`, `.parquet`) with a column `uri` or `path`."""
    init: str
    """Classifier: the output of a fine-tuning run, its `.safetensors` file, or an official or Hugging Face file."""
    output: str
    """Where tags, plan and commits go. Another model or window setting needs another output."""
    window_seconds: float = 2.0
    """Length of a window; best the span of time that the model saw in training."""
    hop_seconds: float = 2.0
    """From the start of one window to the start of the next."""
    top_k: int = 5
    """Labels kept per window."""
    chunk_batches: int = 8
    """Batches in one output file: what a crash can cost, and how many files there are."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(deadline_seconds=30.0))
    """Limits of decoding; a request holds up to 16 windows of a video, hence the longer deadline."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("window_seconds", "hop_seconds", "top_k", "chunk_batches"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; give a larger value")

    @property
    def grid(self) -> WindowGrid:
        """The windows of a video."""
        return WindowGrid(self.window_seconds, self.hop_seconds)


def run(config: TagConfig) -> dict[str, Any]:
    """Tag everything that is new or changed, one version of the output after another."""
    weights = find_classifier(config.init, config.public_weights)
    output = absolute(config.output)
    settings = tag_settings(config, weights)
    refuse_other_settings(output, settings)
    listing = list_source(config.source)
    if not listing.content_versions and last_commit(output) is None:
        raise UserError(
            f"source={config.source}: holds no video (other files by suffix: {dict(listing.skipped) or 'none'}); "
            "give a folder or prefix of videos, or a manifest"
        )
    claim = claim_output(output, config, free_keys=(*FREE_KEYS, "decode_workers"))
    links = {"weights_digest": weights.digest, **weights.links}
    tracking = start_run(
        config.tracking, program="tag", run_key=claim.run_key, output=output, params=config_dict(config), tags=links
    )
    facts = {"source": absolute(config.source), "run_id": tracking.wait_for_id(MLFLOW_WAIT_SECONDS)}
    plan = ScoringPlan(weights, config.grid, config.top_k, config, config.decode)
    with recorded(tracking), keeping_finished_work("finished chunks are kept, the same command goes on"):
        figures = [
            tag_version(planned, plan, claim.run_key, facts)
            for planned in versions_to_tag(config, output, settings, listing)
        ]
        report = summary(output, listing, figures)
    if figures:
        numbers = {key: value for key, value in report.items() if type(value) in (int, float)}
        tracking.log_metrics(numbers, step=report["version"])
    tracking.finish()
    return {**report, "mlflow_run_id": tracking.run_id}


def tag_settings(config: TagConfig, weights: ClassifierWeights) -> dict[str, Any]:
    """What every row of one output has in common."""
    return {
        "weights_digest": weights.digest,
        **asdict(config.grid),
        "top_k": config.top_k,
        "precision": config.precision,
        "input_size": list(weights.input_size),
    }


def refuse_other_settings(output: str, settings: Mapping[str, Any]) -> None:
    """One output never mixes the scores of two models or two ways to cut windows.

    Raises:
        UserError: the output, finished or not, was made with other settings.
    """
    unfinished = unfinished_version(output)
    committed = last_commit(output) or {"settings": settings}
    there = unfinished.settings if unfinished else committed["settings"]
    changed = [
        f"{key}: {there.get(key)} there, {value} now" for key, value in settings.items() if there.get(key) != value
    ]
    if changed:
        raise UserError(f"output={output}: holds tags made otherwise ({'; '.join(changed)}); choose another output")


def versions_to_tag(
    config: TagConfig, output: str, settings: Mapping[str, Any], listing: SourceListing
) -> Iterator[PlannedVersion]:
    """The version that a crash left unfinished, then one for all that is new, changed or gone."""
    unfinished = unfinished_version(output)
    if unfinished is not None:
        console.print(f"going on with version {unfinished.version} of {output}")
        yield unfinished
    known = known_versions(output)
    fresh, gone = new_or_changed(listing, known), tombstones(listing, known)
    if len(fresh) + len(gone) == 0:
        console.print(f"nothing new: all {len(known)} videos of {config.source} are tagged in {output}")
        return
    probed = probe_videos(fresh, gone, config.decode, config)
    committed = last_commit(output)
    version = committed["version"] + 1 if committed else 0
    units = plan_units(probed, config.grid, config.batch_size * config.chunk_batches)
    write_plan(output, version, units, settings)
    yield PlannedVersion(output, version)


@dataclass(frozen=True)
class VersionFigures:
    """What it took to finish one version."""

    windows: int
    """Windows scored now."""
    chunks: int
    """Chunks done now."""
    chunks_skipped: int
    """Chunks that an earlier run had finished."""
    seconds: float
    """From the first chunk to the commit."""


def tag_version(planned: PlannedVersion, plan: ScoringPlan, run_key: str, facts: Mapping[str, Any]) -> VersionFigures:
    """Score the missing chunks of a version, each into its file, and commit."""
    started = time.monotonic()
    missing = planned.missing_chunks()
    windows = 0
    with chunk_writer(planned) as write, progress_bar(planned, missing) as show:
        for number, scored in scored_windows(planned, missing, plan):
            write(number, tag_rows(planned.chunk(number), scored, plan.grid, planned.version, run_key))
            windows += len(scored)
            show(windows)
    planned.commit(facts)
    return VersionFigures(windows, len(missing), planned.num_chunks - len(missing), time.monotonic() - started)


@contextmanager
def chunk_writer(planned: PlannedVersion) -> Iterator[Callable[[int, pa.Table], None]]:
    """Writes chunk files beside the scoring; a write that fails stops the job at one of the next chunks."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(PUT_THREADS) as pool:

        def write(number: int, rows: pa.Table) -> None:
            pending.append(pool.submit(planned.write_chunk, number, rows))
            while len(pending) > PUT_THREADS:
                pending.popleft().result()

        yield write
        for left in pending:
            left.result()


@contextmanager
def progress_bar(planned: PlannedVersion, missing: Sequence[int]) -> Iterator[Callable[[int], None]]:
    """Windows done: a bar on a terminal, a line now and then in a log."""
    total = planned.count_windows(missing)
    title = f"tagging version {planned.version}"
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task(title, total=total)
        told = time.monotonic()

        def show(windows: int) -> None:
            nonlocal told
            progress.update(task, completed=windows)
            if not console.is_terminal and time.monotonic() - told > LOG_SECONDS:
                told = time.monotonic()
                console.print(f"{title}: {windows} of {total} windows")

        yield show


def summary(output: str, listing: SourceListing, figures: list[VersionFigures]) -> dict[str, Any]:
    """What the output holds now and what this run did for it."""
    commit = last_commit(output) or {"version": -1}
    statuses = Counter(read_videos(output)["status"].to_pylist()) if commit["version"] >= 0 else Counter()
    windows = sum(figure.windows for figure in figures)
    seconds = sum(figure.seconds for figure in figures)
    return {
        "nothing_new": not figures,
        "version": commit["version"],
        "videos": statuses.total(),
        "failed_videos": statuses.total() - statuses["ok"] - statuses["partial"],
        "videos_by_status": dict(statuses.most_common()),
        "files_skipped_by_suffix": dict(listing.skipped),
        "windows": windows,
        "chunks_done": sum(figure.chunks for figure in figures),
        "chunks_skipped": sum(figure.chunks_skipped for figure in figures),
        "seconds": seconds,
        "windows_per_second": windows / seconds if seconds else 0.0,
    }


def main() -> None:
    """Entry point."""
    run_program("tag", TagConfig, run, description="Tag videos: labels and scores for every window of time.")


if __name__ == "__main__":
    main()
