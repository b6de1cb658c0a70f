"""From a manifest to a prepared set: plan, chunks in Ray Data, commit. Sets grow by versions.

Under ``output``: ``shards/`` and ``rejected/`` (`schema.CLIP_SCHEMA`, `schema.REJECTED_SCHEMA`), ``index/`` (of every
version, see `pipeline.shards.index`), ``classes.json``,
``dataset.json`` (the newest version), ``versions/N.json`` (every version; its conditional write is the commit), and
``_prepare/vN/`` with the plan and the record of every video that was looked at.

The global shuffle costs nothing: the plan is shuffled, and chunks of it are written in order. A chunk is done when its
record exists, so the same call resumes after a kill.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipeline.prepare.chunk import ChunkSettings, PrepareChunk, PrepareSettings
from pipeline.prepare.plan import Outcome, PlannedSet, plan_set, preview_set
from pipeline.prepare.versions import (
    clips_of_shards,
    current_videos,
    kept_rejected,
    publish,
    read_rejected,
    recorded_chunks,
    rejected_files,
    shards_of,
    version_counts,
)
from pipeline.schema import CLIP_SCHEMA
from pipeline.shards.digests import version_digest
from pipeline.shards.index import write_index
from pipeline.shards.reader import read_shard, read_whole_shard
from pipeline.shards.writer import write_shard
from pipeline.storage.files import StorageError, join, read_json, write_if_absent

__all__ = ["Outcome", "PlannedSet", "PrepareSettings", "finish_set", "plan_set", "preview_set"]

Progress = Callable[[int, int], None]
"""Called with the videos that are done and their total."""

BLOCKS_AT_MOST = 1000


def finish_set(planned: PlannedSet, workers: int | None, progress: Progress) -> Outcome:
    """Do the chunks that have no record yet, and commit. Needs a running Ray, unless ``workers`` is 0.

    Another version follows when the plan is an earlier call's and lacks something of what is to be taken out.

    Args:
        workers: transcoding processes; default: the cluster's CPUs but one; 0: this process alone, without Ray.

    Raises:
        StorageError: a path that cannot be read or written, or another writer committed first.
    """
    chunks = ChunkSettings(planned.output, planned.plan["version"], planned.plan["videos"], planned.settings)
    _run_chunks(chunks, planned.plan["chunks"], workers, progress)
    outcome = Outcome(_commit(planned), is_new=True, missing_in_source=planned.plan.get("missing_in_source", 0))
    if not planned.forgets_exclude:
        return outcome
    following = plan_set(planned.source, planned.output, planned.settings, planned.exclude, planned.max_deleted_share)
    return outcome if isinstance(following, Outcome) else finish_set(following, workers, progress)


def _run_chunks(settings: ChunkSettings, chunks: int, workers: int | None, progress: Progress) -> None:
    """Do every chunk that has no record yet."""
    done = recorded_chunks(settings.output, settings.version)
    todo = [chunk for chunk in range(chunks) if chunk not in done]
    videos = min(len(done) * settings.videos_per_chunk, settings.videos)
    progress(videos, settings.videos)
    for summary in _chunks_done(settings, todo, workers):
        if summary.get("failure"):
            raise StorageError(*json.loads(summary["failure"]))
        videos += int(summary["videos"])
        progress(min(videos, settings.videos), settings.videos)


def _chunks_done(settings: ChunkSettings, todo: list[int], workers: int | None) -> Iterator[Mapping[str, Any]]:
    """A summary of each chunk as it is done, in any order."""
    if workers == 0 or not todo:
        stage = PrepareChunk(settings)
        yield from ({"chunk": chunk, "videos": stage.prepare(chunk)} for chunk in todo)
        stage.transcoder.close()
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
        # Ray Data would restart a crashing worker without limit. A video may take two workers with it before it is left
        # out, so ten deaths admit five such videos in a chunk. No retry of storage: a failing chunk returns a row.
        max_restarts=10,
        max_task_retries=10,
    )
    yield from summaries.iter_rows()


def _commit(planned: PlannedSet) -> dict[str, Any]:
    """Write the version's record; of two writers one succeeds.

    Until this single conditional write readers see the parent version; everything before it may be repeated.
    """
    output, plan = planned.output, planned.plan
    version = _version(output, plan, planned.parent, planned.settings)
    path = join(output, "versions", f"{plan['version']:04d}.json")
    # Equal plans give equal shards: a twin that committed the same digest did this work already, and is no conflict.
    if not write_if_absent(path, json.dumps(version, indent=1).encode()):
        theirs = read_json(path)
        if theirs["digest"] != version["digest"]:
            raise StorageError(path, "another writer committed this version first", "run again to add to it")
        version = theirs
    # Last, as it may be repeated: after a kill here the next call publishes the committed version (`plan_set`).
    publish(output, version)
    return version


def _version(
    output: str, plan: Mapping[str, Any], newest: Mapping[str, Any] | None, settings: PrepareSettings
) -> dict[str, Any]:
    """The record of a version whose chunks are all done."""
    kept = _without(output, plan, newest["shards"] if newest else [])
    shards = [*kept, *shards_of(output, plan["version"])]
    videos = current_videos(output, plan["version"])
    videos = videos.filter(pc.invert(pc.is_in(videos["uri"], pa.array(plan["excluded"], pa.string()))))
    earlier = kept_rejected(output, plan, newest["rejected"]) if newest else []
    rejected = [*earlier, *plan["rejected"], *rejected_files(output, plan["version"])]
    digest = version_digest(shards, plan["classes"])
    index_name = f"{plan['version']:04d}-{digest[:16]}"  # a twin that commits other shards has other names
    index = write_index(output, index_name, shards, plan["classes"], clips_of_shards(output, plan["version"]))
    counts = version_counts(videos, read_rejected(output, rejected), shards, plan["classes"], settings.manifest.media)
    return {
        "version": plan["version"],
        "parent": plan["parent"],
        "digest": digest,
        "counts": counts | {"skipped_files": plan["skipped_files"], "files_skipped": plan.get("files_skipped", {})},
        "classes": plan["classes"],
        "class_names": {**(newest or {}).get("class_names", {}), **plan.get("class_names", {})},
        "settings": {**dataclasses.asdict(settings), "convention": plan["convention"]},
        "excluded": plan["excluded"],
        "exclude_unmatched": plan.get("exclude_unmatched", []),
        "index": index,
        "shards": shards,
        "rejected": rejected,
    }


def _without(output: str, plan: Mapping[str, Any], shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shards of the parent version; those with clips that were taken out or replaced are rewritten without them."""
    if not plan["taken_out"]:
        return shards
    taken_out = pa.array(plan["taken_out"], pa.string())
    kept = []
    for number, shard in enumerate(shards):
        path = join(output, shard["file"])
        stays = pc.invert(pc.is_in(read_shard(path, ["uri"])["uri"], taken_out))
        if pc.all(stays).as_py():
            kept.append(shard)
        elif pc.any(stays).as_py():
            name = f"v{plan['version']:04d}-kept-{number:06d}.parquet"
            clips = read_whole_shard(output, shard).filter(stays).cast(CLIP_SCHEMA)
            kept.append(write_shard(output, name, clips, max(1, shard["bytes"] // len(shard["row_groups"]))))
    return kept
