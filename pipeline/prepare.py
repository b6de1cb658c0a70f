"""From a manifest to a prepared set: plan, chunks in Ray Data, commit. Sets grow by versions.

Under ``output``: ``shards/`` and ``rejected/`` (`schema.CLIP_SCHEMA`, `schema.REJECTED_SCHEMA`), ``classes.json``,
``dataset.json`` (the newest version), ``versions/N.json`` (every version; its conditional write is the commit), and
``_prepare/vN/`` with the plan and the record of every video that was looked at.

The global shuffle costs nothing: the plan is shuffled, and chunks of it are written in order. A chunk is done when its
record is there, so the same call goes on after a kill.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipeline.conventions import ManifestConfig
from pipeline.decode_config import DecodeConfig
from pipeline.manifest import Manifest, plain_uri, read_manifest, shuffled_order
from pipeline.patience import patiently
from pipeline.prepare_chunk import VIDEO_SCHEMA, ChunkSettings, PrepareChunk
from pipeline.prepare_versions import (
    current_videos,
    kept_rejected,
    publish,
    read_versions,
    recorded_chunks,
    rejected_by_reason,
    rejected_files,
    shards_of,
    version_counts,
    version_digest,
    version_videos,
)
from pipeline.schema import CLIP_SCHEMA, REJECTED_SCHEMA
from pipeline.shard_writer import StoreConfig, table_bytes, write_shard
from pipeline.shards import read_shard
from pipeline.storage import (
    StorageError,
    absolute,
    exists,
    join,
    read_bytes,
    write_bytes,
    write_if_absent,
)
from pipeline.transcode_config import TranscodeConfig

Progress = Callable[[int, int], None]
"""Called with the videos that are done and their total."""

BLOCKS_AT_MOST = 1000


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What a prepared set is made of; equal settings and sources give equal shards."""

    manifest: ManifestConfig
    transcode: TranscodeConfig
    decode: DecodeConfig
    store: StoreConfig
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call of `prepare` did."""

    version: Mapping[str, Any]
    """The newest version's record, as in ``dataset.json``."""
    is_new: bool
    """False when there was nothing to add or to take out."""


def prepare(
    source: str,
    output: str,
    settings: PrepareSettings,
    *,
    exclude: Sequence[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Bring ``output`` up to date with ``source``: everything at first, later what is new or changed.

    Needs a running Ray, unless ``workers`` is 0.

    Args:
        exclude: URIs (or paths below the source) to take out, now and in all later versions.
        workers: transcoding processes; default: the cluster's CPUs but one; 0: this process alone, without Ray.

    Raises:
        ManifestError: annotations that do not follow their convention.
        StorageError: a place that cannot be read or written, or another writer committed first.
    """
    output = absolute(output)
    versions = patiently(lambda: read_versions(output))
    newest = versions[-1] if versions else None
    if newest is not None:
        patiently(lambda: publish(output, newest))
    plan = patiently(lambda: _next_plan(source, output, settings, newest, exclude))
    if plan is None:
        assert newest is not None
        return Outcome(newest, is_new=False)
    chunks = _chunk_settings(output, settings, plan["version"], plan["videos"])
    _run_chunks(chunks, plan, workers, progress or (lambda _done, _total: None))
    committed = _commit(output, plan, newest, settings)
    return Outcome(committed, is_new=True)


def _next_plan(
    source: str, output: str, settings: PrepareSettings, newest: Mapping[str, Any] | None, exclude: Sequence[str]
) -> dict[str, Any] | None:
    """The plan that an earlier call left unfinished, else a new one; None when there is nothing to do."""
    version = 1 if newest is None else newest["version"] + 1
    place = join(output, "_prepare", f"v{version:04d}", "plan.json")
    if exists(place):
        plan: dict[str, Any] = json.loads(read_bytes(place))
        return plan
    return _plan(source, output, settings, newest, exclude)


def _plan(
    source: str, output: str, settings: PrepareSettings, newest: Mapping[str, Any] | None, exclude: Sequence[str]
) -> dict[str, Any] | None:
    """Write the plan of the next version; None when there is nothing to do."""
    known = current_videos(output, newest["version"]) if newest else VIDEO_SCHEMA.empty_table()
    splits = known.filter(pc.is_valid(known["split"]))
    known_splits = dict(zip(splits["uri"].to_pylist(), splits["split"].to_pylist(), strict=True))
    manifest = read_manifest(source, settings.manifest, seed=settings.seed, known_splits=known_splits)
    excluded = {*(newest["excluded"] if newest else ()), *(_placed(source, uri) for uri in exclude)}
    rows, changed = _new_or_changed(manifest.rows, known, excluded)
    present = pc.is_in(known["uri"], pa.array(sorted(excluded), pa.string()))
    taken_out = sorted({*changed, *known.filter(present)["uri"].to_pylist()} - set(_removed_before(newest)))
    if newest is not None and len(rows) == 0 and not taken_out:
        return None
    version = 1 if newest is None else newest["version"] + 1
    return _write_plan(output, settings, manifest, rows, excluded, taken_out, version, newest)


def _chunk_settings(output: str, settings: PrepareSettings, version: int, videos: int) -> ChunkSettings:
    return ChunkSettings(
        output,
        version,
        settings.seed,
        settings.store.chunk_videos(videos),
        settings.transcode,
        settings.decode,
        settings.store,
    )


def _write_plan(
    output: str,
    settings: PrepareSettings,
    manifest: Manifest,
    rows: pa.Table,
    excluded: set[str],
    taken_out: list[str],
    version: int,
    newest: Mapping[str, Any] | None,
) -> dict[str, Any]:
    chunks = _chunk_settings(output, settings, version, len(rows))
    order = shuffled_order(rows, settings.seed)
    step = chunks.plan_rows_a_file
    for number, start in enumerate(range(0, len(rows), step)):
        some = rows.take(pa.array(order[start : start + step]))
        write_bytes(chunks.plan_file(number), table_bytes(some))
    rejected = pa.concat_tables([manifest.rejected, _excluded_rows(excluded)])
    rejected_file = f"rejected/{chunks.name}-plan.parquet"
    if len(rejected):
        write_bytes(join(output, rejected_file), table_bytes(rejected))
    earlier = list(newest["classes"]) if newest else []
    plan = {
        "version": version,
        "parent": None if newest is None else newest["digest"],
        "videos": len(rows),
        "chunks": -(-len(rows) // chunks.videos_per_chunk),
        "convention": manifest.convention,
        "skipped_files": manifest.skipped_files,
        # Indices of earlier versions stay: new classes come behind.
        "classes": [*earlier, *(name for name in manifest.classes if name not in set(earlier))],
        "excluded": sorted(excluded),
        "taken_out": taken_out,
        "rejected": [rejected_file] if len(rejected) else [],
    }
    place = join(output, "_prepare", chunks.name, "plan.json")
    if not write_if_absent(place, json.dumps(plan).encode()):
        plan = json.loads(read_bytes(place))
    return plan


def _new_or_changed(rows: pa.Table, known: pa.Table, excluded: set[str]) -> tuple[pa.Table, list[str]]:
    """The manifest's rows to prepare, and the URIs among them that an earlier version holds differently."""
    if excluded:
        rows = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(sorted(excluded), pa.large_string()))))
    if len(known) == 0:
        return rows, []
    place = pc.index_in(rows["uri"], pc.cast(known["uri"], pa.large_string()).combine_chunks())
    same = pc.is_valid(place)
    for name in ("content_version", "label"):
        mine, theirs = pc.cast(rows[name], pa.large_string()), pc.cast(pc.take(known[name], place), pa.large_string())
        equal = pc.fill_null(pc.equal(mine, theirs), False)
        both_absent = pc.and_(pc.is_null(mine), pc.is_null(theirs))
        # A manifest that lists no versions cannot say that a file changed.
        unknown = pc.is_null(mine) if name == "content_version" else both_absent
        same = pc.and_(same, pc.or_(equal, unknown))
    fresh = pc.invert(same)
    changed = rows.filter(pc.and_(fresh, pc.is_valid(place)))["uri"].to_pylist()
    return rows.filter(fresh), changed


def _placed(source: str, uri: str) -> str:
    return plain_uri(uri if "://" in uri or uri.startswith("/") else join(absolute(source), uri))


def _removed_before(newest: Mapping[str, Any] | None) -> Iterable[str]:
    return newest["excluded"] if newest else ()


def _excluded_rows(excluded: set[str]) -> pa.Table:
    rows = [{"uri": uri, "reason": "excluded", "message": "taken out by exclude="} for uri in sorted(excluded)]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def _run_chunks(settings: ChunkSettings, plan: Mapping[str, Any], workers: int | None, progress: Progress) -> None:
    """Do every chunk that has no record yet."""
    done = recorded_chunks(settings.output, plan["version"])
    todo = [chunk for chunk in range(plan["chunks"]) if chunk not in done]
    videos = min(len(done) * settings.videos_per_chunk, plan["videos"])
    progress(videos, plan["videos"])
    for summary in _chunks_done(settings, todo, workers):
        videos += int(summary["videos"])
        progress(min(videos, plan["videos"]), plan["videos"])


def _chunks_done(settings: ChunkSettings, todo: list[int], workers: int | None) -> Iterator[Mapping[str, Any]]:
    """A summary of each chunk as it is done, in any order."""
    if workers == 0 or not todo:
        stage = PrepareChunk(settings)
        yield from ({"chunk": chunk, "videos": stage.prepare(chunk)} for chunk in todo)
        stage.close()
        return
    size = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
    dataset = ray.data.from_items([{"id": chunk} for chunk in todo], override_num_blocks=min(len(todo), BLOCKS_AT_MOST))
    dataset.context.enable_progress_bars = False
    summaries = dataset.map_batches(
        PrepareChunk,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(size, len(todo))),
        num_cpus=1,
        # Ray Data would restart a crashing worker without limit.
        max_restarts=3,
        max_task_retries=2,
    )
    yield from summaries.iter_rows()


def _commit(
    output: str, plan: Mapping[str, Any], newest: Mapping[str, Any] | None, settings: PrepareSettings
) -> dict[str, Any]:
    """Write the version's record; of two writers one succeeds."""
    version = patiently(lambda: _version(output, plan, newest, settings))
    place = join(output, "versions", f"{plan['version']:04d}.json")
    if not patiently(lambda: write_if_absent(place, json.dumps(version, indent=1).encode())):
        theirs: dict[str, Any] = json.loads(patiently(lambda: read_bytes(place)))
        if theirs["digest"] != version["digest"]:
            raise StorageError(place, "another writer committed this version first", "run again to add to it")
        version = theirs
    patiently(lambda: publish(output, version))
    return version


def _version(
    output: str, plan: Mapping[str, Any], newest: Mapping[str, Any] | None, settings: PrepareSettings
) -> dict[str, Any]:
    """The record of a version whose chunks are all done."""
    kept = _without(output, plan, newest["shards"] if newest else [])
    shards = [*kept, *shards_of(output, plan["version"])]
    videos = current_videos(output, plan["version"])
    videos = videos.filter(pc.invert(pc.is_in(videos["uri"], pa.array(plan["excluded"], pa.string()))))
    rejected = [*_earlier_rejected(output, plan, newest), *plan["rejected"], *rejected_files(output, plan["version"])]
    counts = version_counts(videos, rejected_by_reason(output, rejected), shards)
    return {
        "version": plan["version"],
        "parent": plan["parent"],
        "digest": version_digest(shards, plan["classes"]),
        "counts": counts | {"skipped_files": plan["skipped_files"]},
        "classes": plan["classes"],
        "settings": {**dataclasses.asdict(settings), "convention": plan["convention"]},
        "excluded": plan["excluded"],
        "shards": shards,
        "rejected": rejected,
    }


def _earlier_rejected(output: str, plan: Mapping[str, Any], newest: Mapping[str, Any] | None) -> list[str]:
    """What the parent version rejected, but for what its own plan said and for videos that this version looked at."""
    if newest is None:
        return []
    looked_at = [record["uri"] for record in version_videos(output, plan["version"])]
    gone = pa.concat_arrays(
        [pa.array(plan["excluded"], pa.string()), *(chunk for uri in looked_at for chunk in uri.chunks)]
    )
    files = [file for file in newest["rejected"] if not file.endswith("-plan.parquet")]
    return kept_rejected(output, plan["version"], files, gone)


def _without(output: str, plan: Mapping[str, Any], shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shards of the parent version; those with clips that were taken out or replaced are written anew without."""
    if not plan["taken_out"]:
        return shards
    gone = pa.array(plan["taken_out"], pa.string())
    kept = []
    for number, shard in enumerate(shards):
        place = join(output, shard["file"])
        stays = pc.invert(pc.is_in(read_shard(place, ["uri"])["uri"], gone))
        if pc.all(stays).as_py():
            kept.append(shard)
        elif pc.any(stays).as_py():
            name = f"v{plan['version']:04d}-kept-{number:06d}.parquet"
            kept.append(
                write_shard(output, name, read_shard(place).filter(stays).cast(CLIP_SCHEMA), _group_bytes(shard))
            )
    return kept


def _group_bytes(shard: Mapping[str, Any]) -> int:
    return max(1, int(shard["bytes"]) // len(shard["row_groups"]))
