"""The plan of a prepared set's next version: what is new, changed or excluded since the last one."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.build import Manifest, read_manifest, shuffled_order
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.leftovers import of_the_other_kind
from pipeline.manifest.path_index import uri_of_path
from pipeline.manifest.vanished import EXAMPLES, MAX_DELETED_SHARE, Vanished
from pipeline.media import Media
from pipeline.prepare.chunk import VIDEO_SCHEMA, ChunkSettings, PrepareSettings
from pipeline.prepare.versions import (
    READERS,
    contents_with_status,
    current_videos,
    publish,
    read_versions,
    times_rejected,
)
from pipeline.schema import REJECTED_SCHEMA
from pipeline.storage.errors import size_of_file
from pipeline.storage.files import (
    StorageError,
    absolute,
    content_version,
    exists,
    join,
    local_path,
    read_json,
    write_if_absent,
)
from pipeline.storage.members import container_of
from pipeline.storage.parquet import write_table
from pipeline.storage.retry import in_threads

OUT_OF_REACH = ("missing", "forbidden", "unreadable")
DECODERS_END = ("timeout", "crashed", "out_of_memory", "interrupted")
VERSIONS_TRIED = 2
"""How many versions try a video that ended its decoder or worker: the cause may have been the machine."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call of `prepare` did."""

    version: Mapping[str, Any]
    """The newest version's record, as in ``dataset.json``."""
    is_new: bool
    """False when there was nothing to add or to take out."""
    missing_in_source: int = 0
    """Videos of the set that the source no longer holds; their clips stay."""


@dataclasses.dataclass(frozen=True)
class PlannedSet:
    """A version that is planned, and at most half done."""

    source: str
    output: str
    settings: PrepareSettings
    plan: Mapping[str, Any]
    parent: Mapping[str, Any] | None
    exclude: Sequence[str]
    """What was asked to be taken out; a plan that an earlier call left unfinished may not know of it."""
    max_deleted_share: float

    @property
    def forgets_exclude(self) -> bool:
        """Whether another version has to follow that takes out the rest."""
        return not {uri_of_path(self.source, uri) for uri in self.exclude} <= set(self.plan["excluded"])


def plan_set(
    source: str,
    output: str,
    settings: PrepareSettings,
    exclude: Sequence[str] = (),
    max_deleted_share: float = MAX_DELETED_SHARE,
) -> PlannedSet | Outcome:
    """Plan everything at first, later what is new or changed; the outcome when there is nothing to do.

    A plan that an earlier call left unfinished is the plan.

    Args:
        exclude: URIs (or paths below the source) to take out, now and in all later versions.
        max_deleted_share: largest share of the set's videos that may be missing in the source.

    Raises:
        ManifestError: annotations that do not follow their convention.
        VanishedSourceError: the source is empty, or a larger share is missing.
        StorageError: a path that cannot be read or written.
    """
    output = absolute(output)
    newest = next(reversed(read_versions(output)), None)
    if newest is not None:
        publish(output, newest)
    path = _plan_path(output, 1 if newest is None else newest["version"] + 1)
    if exists(path):
        return PlannedSet(source, output, settings, read_json(path), newest, exclude, max_deleted_share)
    draft = _draft(source, output, settings, newest, exclude)
    draft.vanished.refuse_above(max_deleted_share, source)
    if newest is not None and len(draft.rows) == 0 and draft.excluded == set(newest["excluded"]):
        return Outcome(newest, is_new=False, missing_in_source=draft.vanished.count)
    plan = _write_plan(output, settings, draft, newest)
    return PlannedSet(source, output, settings, plan, newest, exclude, max_deleted_share)


def preview_set(source: str, output: str, settings: PrepareSettings, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """What `prepare` would do, in figures; nothing is written and no video is opened. Errors as `plan_set`."""
    output = absolute(output)
    draft = _draft(source, output, settings, next(reversed(read_versions(output)), None), exclude)
    splits = pc.value_counts(draft.rows["split"].combine_chunks()) if len(draft.rows) else []
    sizes = pc.sum(draft.rows["size"]).as_py()
    return {
        "convention": draft.manifest.convention,
        "version": draft.version,
        "videos": len(draft.rows),
        "videos_by_split": {entry["values"].as_py(): entry["counts"].as_py() for entry in splits},
        "source_bytes": "not listed" if sizes is None else sizes,
        "classes": len(draft.manifest.classes),
        "taken_out": len(draft.taken_out),
        "missing_in_source": draft.vanished.count,
        "missing_in_source_examples": list(draft.vanished.examples),
        "exclude_unmatched": draft.exclude_unmatched,
        "rejected": dict(Counter(draft.manifest.rejected["reason"].to_pylist())),
        "skipped_files": sum(draft.manifest.skipped.values()),
        "files_skipped": draft.manifest.skipped,
    }


def _plan_path(output: str, version: int) -> str:
    return join(output, "_prepare", f"v{version:04d}", "plan.json")


class _Draft(NamedTuple):
    """A plan before it is written."""

    manifest: Manifest
    rows: pa.Table
    """The manifest's rows that are new or changed."""
    excluded: set[str]
    exclude_unmatched: list[str]
    """URIs of ``excluded`` that neither the manifest nor an earlier version knows."""
    taken_out: list[str]
    """URIs whose clips of the parent version go."""
    vanished: Vanished
    """Videos of the set that the source no longer holds; their clips stay."""
    version: int


def _draft(
    source: str, output: str, settings: PrepareSettings, newest: Mapping[str, Any] | None, exclude: Sequence[str]
) -> _Draft:
    known = current_videos(output, newest["version"]) if newest else VIDEO_SCHEMA.empty_table()
    splits = known.filter(pc.is_valid(known["split"])).select(["uri", "split"])
    manifest = read_manifest(source, settings.manifest, seed=settings.seed, known_splits=splits)
    if newest is None:  # an empty first version would only hold the output against the corrected command
        _refuse_nothing_to_prepare(source, manifest, settings.manifest.media)
    excluded_before = set(newest["excluded"] if newest else ())
    excluded = excluded_before.union(uri_of_path(source, uri) for uri in exclude)
    again = _to_try_again(output, newest["version"], known) if newest else []
    rows, changed, missing = _new_or_changed(manifest.rows, known, excluded, again)
    present = _among(known["uri"], excluded)
    unmatched = sorted(excluded.difference(present, _among(manifest.rows["uri"], excluded)))
    taken_out = sorted({*changed, *present} - excluded_before)
    vanished = _vanished(manifest, known.filter(pc.greater(known["clips"], 0))["uri"], excluded, missing)
    version = 1 if newest is None else newest["version"] + 1
    return _Draft(manifest, rows, excluded, unmatched, taken_out, vanished, version)


def _refuse_nothing_to_prepare(source: str, manifest: Manifest, media: Media) -> None:
    if len(manifest.rows):
        return
    if not len(manifest.rejected):
        if others := of_the_other_kind(manifest.skipped, media):
            other = "image" if media == "video" else "video"
            raise ManifestError(f"source={source}: holds no {media}, but {others} {other}s; set media={other}")
        raise ManifestError(
            f"source={source}: holds no {media}; give a folder or prefix of {media}s, or a list of them"
        )
    reasons = Counter(manifest.rejected["reason"].to_pylist())
    counted = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    raise ManifestError(
        f"source={source}: none of {len(manifest.rejected)} videos can be used ({counted}; the first: "
        f"{manifest.rejected['message'][0].as_py()}); correct annotations= and classes=, or the list"
    )


def _vanished(manifest: Manifest, stored: pa.ChunkedArray, excluded: set[str], missing: Sequence[str]) -> Vanished:
    """The stored videos that the source no longer holds.

    Args:
        missing: videos that the manifest lists, while their file is missing.
    """
    held = stored.filter(pc.invert(pc.is_in(stored, pa.array(sorted(excluded), stored.type))))
    present = pa.chunked_array([pc.cast(manifest.rows["uri"], held.type).combine_chunks()])
    present = present.filter(pc.invert(pc.is_in(present, pa.array(missing, held.type))))
    rejected = manifest.rejected.filter(pc.not_equal(manifest.rejected["reason"], "missing"))
    named = pa.chunked_array([*present.chunks, *rejected["uri"].chunks], held.type).combine_chunks()
    absent = held.filter(pc.invert(pc.is_in(held, named)))
    return Vanished(len(absent), absent.slice(0, EXAMPLES).to_pylist(), len(held), len(present) == 0)


def _write_plan(
    output: str, settings: PrepareSettings, draft: _Draft, newest: Mapping[str, Any] | None
) -> dict[str, Any]:
    manifest, rows = draft.manifest, draft.rows
    chunks = ChunkSettings(output, draft.version, len(rows), settings)
    order = shuffled_order(rows, settings.seed)
    step = chunks.plan_rows_a_file
    for number, start in enumerate(range(0, len(rows), step)):
        write_table(chunks.plan_file(number), rows.take(pa.array(order[start : start + step])))
    excluded = sorted(draft.excluded)
    taken_out = [{"uri": uri, "reason": "excluded", "message": "taken out by exclude="} for uri in excluded]
    rejected = pa.concat_tables([manifest.rejected, pa.Table.from_pylist(taken_out, schema=REJECTED_SCHEMA)])
    rejected_file = f"rejected/{chunks.name}-plan.parquet"
    if len(rejected):
        write_table(join(output, rejected_file), rejected)
    earlier = list(newest["classes"]) if newest else []
    plan = {
        "version": draft.version,
        "parent": None if newest is None else newest["digest"],
        "videos": len(rows),
        "chunks": -(-len(rows) // chunks.videos_per_chunk),
        "convention": manifest.convention,
        "skipped_files": sum(manifest.skipped.values()),
        "files_skipped": manifest.skipped,
        # Indices of earlier versions stay: new classes come behind.
        "classes": [*earlier, *(name for name in manifest.classes if name not in set(earlier))],
        "class_names": dict(manifest.names),
        "excluded": excluded,
        "exclude_unmatched": draft.exclude_unmatched,
        "taken_out": draft.taken_out,
        "missing_in_source": draft.vanished.count,
        "rejected": [rejected_file] if len(rejected) else [],
    }
    path = _plan_path(output, draft.version)
    # The first plan holds: chunks of it may be done, and their numbers mean nothing under another plan.
    if not write_if_absent(path, json.dumps(plan).encode()):
        return read_json(path)
    return plan


def _new_or_changed(
    rows: pa.Table, known: pa.Table, excluded: set[str], again: Sequence[str]
) -> tuple[pa.Table, list[str], list[str]]:
    """The manifest's rows to prepare, the URIs among them that an earlier version holds differently, and the missing.

    Missing are those that an earlier version holds and the manifest lists, while their local file cannot be read.
    """
    if excluded:
        rows = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(sorted(excluded), pa.large_string()))))
    if len(known) == 0:
        return rows, [], []
    index = pc.index_in(rows["uri"], pc.cast(known["uri"], pa.large_string()).combine_chunks())
    versions = _versions_now(rows, index)
    unread = pc.and_(pc.is_null(versions), pc.and_(pc.is_valid(index), pc.invert(pc.starts_with(rows["uri"], "s3://"))))
    missing = rows["uri"].filter(unread).to_pylist()
    rows = rows.set_column(rows.column_names.index("content_version"), "content_version", versions)
    same = pc.and_not(pc.is_valid(index), pc.is_in(rows["uri"], pa.array(again, pa.large_string())))
    for name in ("content_version", "label"):
        mine, theirs = pc.cast(rows[name], pa.large_string()), pc.cast(pc.take(known[name], index), pa.large_string())
        equal = pc.fill_null(pc.equal(mine, theirs), False)
        # A version that is not known on one side cannot say that a file changed.
        either = pc.or_ if name == "content_version" else pc.and_
        same = pc.and_(same, pc.or_(equal, either(pc.is_null(mine), pc.is_null(theirs))))
    fresh = pc.invert(same)
    changed = rows.filter(pc.and_(fresh, pc.is_valid(index)))["uri"].to_pylist()
    return rows.filter(fresh), changed, missing


def _versions_now(rows: pa.Table, index: pa.ChunkedArray) -> pa.Array:
    """The rows' content versions; those of known local files are looked up where the manifest lists none."""
    versions = rows["content_version"].combine_chunks()
    unlisted = pc.and_(pc.is_null(versions), pc.is_valid(index).combine_chunks())
    uris = rows["uri"].filter(unlisted).to_pylist()
    found = pa.array([None if uri.startswith("s3://") else _version_now(uri) for uri in uris], versions.type)
    return pc.replace_with_mask(versions, unlisted, found)


def _to_try_again(output: str, version: int, known: pa.Table) -> list[str]:
    """Videos that were rejected for what may lie outside their bytes: readable by now, or not tried often enough."""
    away = [uri for uri, _ in contents_with_status(known, OUT_OF_REACH)]
    ended = contents_with_status(known, DECODERS_END)
    found = in_threads(READERS, _version_now, away)
    back = [uri for uri, content in zip(away, found, strict=True) if content is not None]
    times = times_rejected(output, version, DECODERS_END) if ended else Counter()
    return [*back, *(content[0] for content in ended if times[content] < VERSIONS_TRIED)]


def _version_now(uri: str) -> str | None:
    """The content version of a video that can be read; None where it cannot."""
    uri = container_of(uri)
    try:
        if (path := local_path(uri)) is not None:
            size_of_file(uri, path)  # opening what is no file may hang
            with path.open("rb") as file:
                file.read(1)
        return content_version(uri)
    except (StorageError, OSError, ValueError):  # ValueError: a zero byte in the path
        return None


def _among(uris: pa.ChunkedArray, wanted: set[str]) -> list[str]:
    found: list[str] = uris.filter(pc.is_in(uris, pa.array(sorted(wanted), uris.type))).to_pylist()
    return found
