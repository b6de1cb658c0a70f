"""The index of a prepared set: what prepare writes is what the shards hold, and a machine reads it once."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.shards.index import ClipIndex, ShardClips, read_shard_clips, write_index
from pipeline.shards.reader import PreparedSet, clip_index, open_prepared
from pipeline.storage.files import StorageError, join, list_files, read_bytes, read_json, write_bytes
from pipeline.storage.s3 import s3_client
from tests.support.faulty_proxy import faulty_proxy
from tests.support.s3_server import set_s3_environment

ARRAYS = ("label", "split", "group_start", "shard_start", "counts")
GETS_AT_MOST = 10
PROCESSES = 3

START = """
import sys
from pipeline.shards.reader import open_prepared
prepared = open_prepared(sys.argv[1])
figures = [prepared.num_clips("train"), prepared.num_clips("train", labelled_only=True), prepared.num_clips("val")]
selections = [prepared.selection("train"), prepared.selection("val"), prepared.selection("train", True, True)]
print(figures, [selection.clips_per_group.tolist() for selection in selections])
print(prepared.classes_without_clips("train"))
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has read no set before."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def with_index(prepared: PreparedSet, folder: str) -> str:
    """A copy of the set whose record names an index, as a record of this release does."""
    for uri in list_files(prepared.uri)["uri"].to_pylist():
        write_bytes(join(folder, uri.removeprefix(prepared.uri)), read_bytes(uri))
    record = read_json(join(folder, "dataset.json"))
    entry = write_index(folder, "0001-abc", record["shards"], record["classes"], {})
    write_bytes(join(folder, "dataset.json"), json.dumps(record | {"index": entry}).encode())
    return folder


def arrays(index: ClipIndex) -> dict[str, Any]:
    return {name: getattr(index, name).tolist() for name in ARRAYS} | {"splits": index.splits}


def test_what_is_stored_is_what_the_shards_hold(prepared: PreparedSet, tmp_path: Path) -> None:
    stored = open_prepared(with_index(prepared, str(tmp_path / "set")))
    assert not stored.shards
    index = clip_index(stored)
    assert arrays(index) == arrays(clip_index(prepared))
    assert index.label.tolist() == [number % 3 if number % 4 else -1 for number in range(12)]
    assert index.splits == ("train", "val")
    assert index.split.tolist() == [0] * 10 + [1] * 2
    assert index.counts.sum() == len(index.label) == index.group_start[-1] == 12
    for group in range(index.groups):
        (uri, number), (theirs, same) = (some.location(s.uri, group) for some, s in
                                         ((index, stored), (clip_index(prepared), prepared)))  # fmt: skip
        assert (uri.removeprefix(stored.uri), number) == (theirs.removeprefix(prepared.uri), same)
    assert {index.label.dtype.itemsize, index.split.dtype.itemsize} == {1, 2}


def test_what_chunks_record_is_what_the_shards_hold(prepared: PreparedSet, tmp_path: Path) -> None:
    for shard in prepared.shards:
        clips = read_shard_clips(shard.uri)
        assert ShardClips.from_json(json.loads(json.dumps(dataclasses.asdict(clips))), shard.uri) == clips
    table = pa.table({"label": ["b", None, "a"], "split": pa.array([None] * 3, pa.string())})
    clips = ShardClips.of(table)
    assert clips.label.numbers({"a": 0, "b": 1}).tolist() == [1, -1, 0]
    assert clips.label.numbers({"a": 5}).tolist() == [-1, -1, 5]
    assert clips.split.numbers({}).tolist() == [-1] * 3


def test_a_set_without_any_clip(tmp_path: Path) -> None:
    entry = write_index(str(tmp_path), "0001-e", [], ["a"], {})
    record = {"version": 1, "digest": "e", "classes": ["a"], "shards": [], "counts": {}, "index": entry}
    write_bytes(join(str(tmp_path), "dataset.json"), json.dumps(record).encode())
    empty = open_prepared(str(tmp_path))
    assert (empty.num_clips("all"), empty.splits(), empty.classes_without_clips("train")) == (0, {}, ["a"])
    assert len(empty.selection("train", balance_classes=True).clips_per_group) == 0


@pytest.mark.parametrize("file", ["clips", "shards"])
def test_an_index_that_is_not_the_record_s_is_refused(file: str, prepared: PreparedSet, tmp_path: Path) -> None:
    stored = open_prepared(with_index(prepared, str(tmp_path / "set")))
    assert stored.index is not None
    damaged = Path(getattr(stored.index, file))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match="not the index that this version's record names"):
        stored.num_clips("train")


def test_a_worker_gets_an_index_by_its_name(prepared: PreparedSet, tmp_path: Path) -> None:
    """As small whatever the set holds; Ray pickles jobs and stages with it."""
    stored = open_prepared(with_index(prepared, str(tmp_path / "set")))
    rebuild, arguments = clip_index(stored).__reduce__()
    assert rebuild(*arguments) is clip_index(stored)
    assert rebuild.args == (stored.index, stored.classes, stored.digest)
    assert isinstance(clip_index(stored).label, np.memmap)
    assert len(pickle.dumps(stored.selection("train"))) < 2_000


@pytest.mark.ray  # not Ray, but a server
@pytest.mark.parametrize("written_by", ["this release", "an earlier one"])
def test_a_start_costs_few_requests_per_machine(
    written_by: str, prepared: PreparedSet, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the store, of three processes that start at once; without an index the shards are read once."""
    set_s3_environment(monkeypatch, s3_server)
    bucket = f"bucket-{os.urandom(6).hex()}"
    s3_client().create_bucket(Bucket=bucket)
    uri = with_index(prepared, f"s3://{bucket}/set")
    if written_by == "an earlier one":
        record = read_json(join(uri, "dataset.json"))
        del record["index"]
        write_bytes(join(uri, "dataset.json"), json.dumps(record).encode())
    with faulty_proxy(s3_server, share=0.0, stall_seconds=0) as (url, counts):
        environment = {**os.environ, "AWS_ENDPOINT_URL": url}
        command = [sys.executable, "-c", START, uri]
        first = [_started(command, environment) for _ in range(PROCESSES)]
        texts = {process.communicate(timeout=120)[0] for process in first}
        requests = counts["passed"]
        again = _started(command, environment)
        texts.add(again.communicate(timeout=120)[0])
        later = counts["passed"] - requests
    assert len(texts) == 1
    assert texts.pop().startswith("[10, ")
    if written_by == "this release":
        assert requests - PROCESSES == 2  # each process reads the record, one of them the two files
        assert requests + later <= GETS_AT_MOST
    assert later == 1  # the record


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
