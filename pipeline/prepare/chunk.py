"""One chunk of a prepare plan: its videos in, one record of them and their clips' shards out.

A chunk writes the same files on every run: shards first, rejected rows next, the record of its videos last. The chunk
is done when its record exists, so a killed job resumes by listing, without duplicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.decode.config import DecodeConfig, DecodeError, VideoInfo
from pipeline.decode.crash_budget import FATAL, Attempts
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.images import ImageChecker, refuse_other_media
from pipeline.schema import REJECTED_SCHEMA, clip_id
from pipeline.shards.writer import ShardWriter, StoreConfig
from pipeline.storage.blame import Blame, blame
from pipeline.storage.files import StorageError, exists, join
from pipeline.storage.members import local_content, version_of
from pipeline.storage.parquet import read_table, write_table
from pipeline.transcode.config import Damage, StoredClip, TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder

VIDEO_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_version", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("clips", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("codec", pa.string()),
        pa.field("container", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("rotation", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_seconds", pa.float64()),
        pa.field("pixel_aspect", pa.float64()),
        pa.field("trimmed_frames", pa.int64()),
        pa.field("damaged_frames", pa.int64()),
    ]
)
"""One video that was looked at: ``status`` is ``ok`` or the reason it was rejected for; facts are the source's."""

STORED_BYTES_AT_MOST = 2**30
"""Of one clip's original bytes: a Parquet page holds less than 2 GiB, and a worker several copies of it."""
PLAN_ROWS_A_FILE = 2**15
_MESSAGE_LENGTH = 300


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What a prepared set is made of; equal settings and sources give equal shards."""

    manifest: ManifestConfig
    transcode: TranscodeConfig
    decode: DecodeConfig
    store: StoreConfig
    seed: int

    @property
    def keeps_bytes(self) -> bool:
        """Whether a clip is stored as the original bytes; an image always is, unless none are stored."""
        as_it_is = self.transcode.mode == "passthrough"
        return as_it_is or (self.manifest.media == "image" and self.transcode.mode != "reference")


@dataclasses.dataclass(frozen=True)
class ChunkSettings:
    """Everything that decides a chunk's files."""

    output: str
    version: int
    videos: int
    """Of the whole plan."""
    prepare: PrepareSettings

    @property
    def name(self) -> str:
        return f"v{self.version:04d}"

    @property
    def videos_per_chunk(self) -> int:
        """Small sets still keep many workers busy, large ones make few files."""
        return self.prepare.store.videos_per_chunk or min(256, max(4, self.videos // 64))

    @property
    def plan_rows_a_file(self) -> int:
        """Rows of one file of the plan: a whole number of chunks."""
        return max(1, PLAN_ROWS_A_FILE // self.videos_per_chunk) * self.videos_per_chunk

    def plan_file(self, number: int) -> str:
        return join(self.output, "_prepare", self.name, "plan", f"{number:05d}.parquet")

    def attempts(self, chunk: int) -> str:
        return join(self.output, "_prepare", self.name, "attempts", f"{chunk:06d}.json")

    def record(self, chunk: int) -> str:
        return join(self.output, "_prepare", self.name, "videos", f"{chunk:06d}.parquet")


class PrepareChunk:
    """Ray Data stage: chunk numbers in, a summary row per chunk out. Holds one transcoding child."""

    def __init__(self, settings: ChunkSettings) -> None:
        self.settings = settings
        self.transcoder = self._transcoder()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """One chunk; failing storage is reported in the row, because Ray would wrap the error in pages of traceback."""
        (chunk,) = batch["id"].tolist()
        videos, failure = 0, ""
        try:
            videos = self.prepare(chunk)
        except StorageError as error:
            failure = json.dumps([error.uri, error.happened, error.remedy])
        return {"chunk": batch["id"], "videos": np.array([videos]), "failure": np.array([failure], object)}

    def _transcoder(self) -> IsolatedTranscoder | ImageChecker:
        prepare = self.settings.prepare
        if prepare.manifest.media == "image":
            return ImageChecker(prepare.decode)
        return IsolatedTranscoder(prepare.transcode, prepare.decode)

    def prepare(self, chunk: int) -> int:
        """Do one chunk unless its record exists; returns its number of videos."""
        rows = read_plan(self.settings, chunk)
        if not exists(self.settings.record(chunk)):
            self._write(chunk, rows)
        return len(rows)

    def _write(self, chunk: int, rows: list[dict[str, Any]]) -> None:
        settings, name = self.settings, f"{self.settings.name}-{chunk:06d}"
        shards = ShardWriter(settings.output, name, settings.prepare.store, settings.prepare.seed)
        rejected: list[dict[str, Any]] = []
        # What killed the workers is unknown: it may have been a pre-emption, twice during one long video.
        attempts = Attempts(settings.attempts(chunk), refused_as="interrupted")
        videos = [self._video(row, attempts, shards, rejected) for row in rows]
        attempts.write()
        shards.flush()
        if rejected:
            rows_of_rejected = pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)
            write_table(join(settings.output, "rejected", f"{name}.parquet"), rows_of_rejected)
        record = pa.Table.from_pylist(videos, schema=VIDEO_SCHEMA)
        clips = [dataclasses.asdict(of_shard) for of_shard in shards.clips]
        record = record.replace_schema_metadata({"shards": json.dumps(shards.written), "clips": json.dumps(clips)})
        # Last, because it decides that the chunk is done; a worker killed before it leaves files that are overwritten.
        write_table(settings.record(chunk), record)

    def _video(
        self, row: dict[str, Any], attempts: Attempts, shards: ShardWriter, rejected: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Store a video's clips; its row for the record, with the reason where it was rejected."""
        facts = {name: row[name] for name in ("uri", "content_version", "label", "split")}
        facts |= {"status": "ok", "clips": 0, "stored_bytes": 0}
        try:
            for output in self._outputs(row["uri"], attempts, facts):
                if isinstance(output, Damage):
                    span = f"clip {output.start_seconds:.3f} to {output.end_seconds:.3f} s"
                    rejected.append(_rejected(row["uri"], "damaged", f"{span}: {output.message}"))
                else:
                    shards.add(_clip_row(row, facts["digest"], output))
                    facts["clips"] += 1
                    facts["stored_bytes"] += len(output.video or b"")
            if facts["clips"] == 0:
                facts["status"] = "damaged"
        except DecodeError as error:
            rejected.append(_rejected(row["uri"], error.reason, error.message))
            facts["status"] = error.reason
        return facts

    def _outputs(self, uri: str, attempts: Attempts, facts: dict[str, Any]) -> Iterator[StoredClip | Damage]:
        """The clips of a video; its facts are added to ``facts`` on the way."""
        with _fetched(uri, self.settings.prepare.decode.max_bytes) as path:
            facts |= _file_facts(path, uri, facts["content_version"])
            keeps_bytes = self.settings.prepare.keeps_bytes
            for output in self._processed(path, uri, attempts):
                if isinstance(output, VideoInfo):
                    facts |= dataclasses.asdict(output)
                elif isinstance(output, StoredClip) and keeps_bytes:
                    yield _with_bytes(output, path)
                else:
                    yield output

    def _processed(self, path: Path, uri: str, attempts: Attempts) -> Iterator[StoredClip | Damage | VideoInfo]:
        """What comes out of a video; when it kills the child before any clip came, a new child gets one more try."""
        begun = False
        while True:
            try:
                with attempts.at(uri):
                    for output in self.transcoder.process(path):
                        begun = True
                        yield output
            except DecodeError as error:
                refuse_other_media(path, error)
                if begun or error.reason not in FATAL or not attempts.left(uri):
                    raise
            else:
                return


def _with_bytes(clip: StoredClip, path: Path) -> StoredClip:
    """The clip with its original bytes: those of the whole file where it is the whole video."""
    with _objects_faults():
        size = path.stat().st_size if clip.video is None else len(clip.video)
        if size > STORED_BYTES_AT_MOST:
            most = f"{size} bytes are over {STORED_BYTES_AT_MOST}, a row's most; set clip_seconds="
            raise DecodeError("too_long_to_store", most)
        return clip if clip.video else dataclasses.replace(clip, video=path.read_bytes())


def read_plan(settings: ChunkSettings, chunk: int) -> list[dict[str, Any]]:
    """The manifest rows of one chunk."""
    start = chunk * settings.videos_per_chunk
    file = _plan_file(settings.plan_file(start // settings.plan_rows_a_file))
    rows: list[dict[str, Any]] = file.slice(start % settings.plan_rows_a_file, settings.videos_per_chunk).to_pylist()
    return rows


_plan_file = functools.lru_cache(maxsize=1)(read_table)  # neighbouring chunks share a file


def _file_facts(path: Path, uri: str, listed_version: str | None) -> dict[str, Any]:
    """Size, digest (whatever the file's times are) and content version of a video at hand; errors as `_fetched`."""
    with _objects_faults(), path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        version = listed_version or version_of(uri)
        return {"bytes": path.stat().st_size, "digest": digest, "content_version": version}


@contextlib.contextmanager
def _fetched(uri: str, max_bytes: int) -> Iterator[Path]:
    """A local path with the video's content. What is wrong with one object rejects it; what is wrong with the storage
    or this machine raises.

    Raises:
        DecodeError: missing, forbidden, unreadable, not_a_file, max_bytes.
        StorageError: the storage does not answer, or this machine's disk is full.
    """
    with contextlib.ExitStack() as stack:
        with _objects_faults():
            path = stack.enter_context(local_content(uri, max_bytes))
        yield path


@contextlib.contextmanager
def _objects_faults() -> Iterator[None]:
    """Around access to one object, and nothing else: errors of this machine are not the video's."""
    try:
        yield
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or type(error).__name__) from error
    except StorageError as error:
        if blame(error) is Blame.SURROUNDINGS and not error.missing:  # what is missing is taken as soon as it exists
            raise
        raise DecodeError(error.reason, error.happened) from error


def _clip_row(row: dict[str, Any], digest: str, clip: StoredClip) -> dict[str, Any]:
    number = clip_id(row["uri"], digest, clip.start_seconds, clip.end_seconds)
    return {"clip_id": number, "uri": row["uri"], "label": row["label"], "split": row["split"], **vars(clip)}


def _rejected(uri: str, reason: str, message: str) -> dict[str, Any]:
    return {"uri": uri, "reason": reason, "message": message[:_MESSAGE_LENGTH]}
