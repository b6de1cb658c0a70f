"""Digests of what a prepared set holds: of each row group, of a shard, of a version.

A row group's is compared whenever it is read, so training sees what `prepare` stored, or stops. It covers the values
and not the file, so that it costs no second reading; of the videos it covers the digests, so that a single one can be
compared without the others. A shard's digest is that of its row groups', a version's that of
its shards': a run pins one text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.schema import CLIP_SCHEMA
from pipeline.storage.files import StorageError

REMEDY = "check the prepared set, or prepare it again"
_OF_GROUPS = "groups:"
FACTS = [name for name in CLIP_SCHEMA.names if name != "video"]


def group_digest(clips: pa.Table) -> str:
    """SHA-256 of the values of some clips (`CLIP_SCHEMA`), however they lie in memory or in a file."""
    return digest_of_parts(clips, video_digests(clips["video"]))


def digest_of_parts(clips: pa.Table, videos: Sequence[str | None]) -> str:
    """The same from the digests of the videos, which need not be read for it."""
    return hashlib.sha256(json.dumps([clips.select(FACTS).to_pydict(), list(videos)]).encode()).hexdigest()


def video_digests(videos: pa.ChunkedArray) -> list[str | None]:
    """SHA-256 of each video's bytes; None for a null."""
    return [hashlib.sha256(video.as_buffer()).hexdigest() if video.is_valid else None for video in videos]


def refuse_other_clips(uri: str, number: int, clips: pa.Table, digest: str) -> None:
    """Compare a whole row group with its digest, if it has one.

    Raises:
        StorageError: it holds other clips than were prepared.
    """
    if digest and group_digest(clips) != digest:
        raise other_clips(uri, number)


def other_clips(uri: str, number: int) -> StorageError:
    """The error of a row group whose content is not that of its digest."""
    return StorageError(uri, f"row group {number} holds other clips than were prepared", REMEDY)


def shard_digest(groups: Sequence[str]) -> str:
    """Of the digests of a shard's row groups. Its form differs from that of older shards, whose file it was of."""
    return _OF_GROUPS + hashlib.sha256("".join(groups).encode()).hexdigest()


def version_digest(shards: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Of the shards' content in order and of the class list: what training pins."""
    content = json.dumps([[shard["sha256"] for shard in shards], list(classes)])
    return hashlib.sha256(content.encode()).hexdigest()


def refuse_contradictions(path: str, record: Mapping[str, Any]) -> None:
    """Refuse a version's record whose digests do not belong together.

    Raises:
        StorageError: it was changed after `prepare` wrote it.
    """
    shards = record["shards"]
    # A set that was put together by hand may bear a name instead, which no run has pinned for a digest.
    has_digest = re.fullmatch("[0-9a-f]{64}", record["digest"]) is not None
    differs = has_digest and version_digest(shards, record["classes"]) != record["digest"]
    if differs or not all(map(_is_whole, shards)):
        raise StorageError(path, "its digests contradict each other", "restore it, or prepare the set again")


def _is_whole(shard: Mapping[str, Any]) -> bool:
    """Whether a shard has the digests that its own is of; one of an older release has none."""
    digests = shard.get("digests")
    if digests is None:
        return not shard["sha256"].startswith(_OF_GROUPS)
    return len(digests) == len(shard["row_groups"]) and shard_digest(digests) == shard["sha256"]
