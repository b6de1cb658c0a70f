"""Whatever is found in the place of a file that the product wrote: one message, or it is left out; never a traceback.

Anyone who may write to an output, or hands over a set, weights or a recipe, decides what these files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hiera_video.weights.checkpoint_files import load_model, read_weights
from jobs import evaluate, export, inspect
from jobs.checkpoints.recorded_run import read_claim_of_any, read_config, read_journal_text, read_report
from jobs.checkpoints.store import (
    complete_steps,
    journal_entries,
    latest_checkpoint,
    measured_steps,
    newest_cursor,
    read_journal,
)
from jobs.checkpoints.stored_weights import stored_weights
from jobs.core.config import load_config
from jobs.core.errors import UserError, WorkStoppedError
from jobs.core.holdings import holding
from jobs.core.init_source import initial_metadata
from jobs.demo.command import DemoConfig, clear_if_changed
from jobs.finding.query import settings_of_run
from jobs.planning.cluster import find_gpu
from jobs.planning.measured import measured_costs
from jobs.planning.prices import read_prices
from jobs.planning.unit_costs import UnitCosts
from jobs.runs.claim import read_claim
from jobs.runs.fencing import FencingToken, acquire_token, generation_numbers, records
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import find_classifier
from jobs.sweep.children import Outcome
from jobs.sweep.plan import Child
from jobs.sweep.results import result_row, summary_table
from jobs.tagging.job_log import State
from jobs.training.start import classes_of
from pipeline.decode.crash_budget import Attempts
from pipeline.manifest.formats import read_class_list
from pipeline.manifest.image_readers import read_inaturalist
from pipeline.manifest.packed import read_webdataset
from pipeline.manifest.readers import read_something
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.text_columns import ManifestError
from pipeline.prepare.chunk import VIDEO_SCHEMA as CHUNK_SCHEMA
from pipeline.prepare.versions import (
    clips_of_shards,
    current_videos,
    publish,
    read_versions,
    rejections,
    shards_of,
    version_videos,
)
from pipeline.shards.reader import open_prepared
from pipeline.shards.row_groups import VIDEO_DIGESTS, VIDEO_SPANS, OpenShard
from pipeline.storage.delta import Change, create_table, open_table
from pipeline.storage.files import StorageError
from pipeline.storage.parquet import write_table
from pipeline.tagging.old_layout import converted, old_settings
from pipeline.tagging.reader import KnownVideos, read_tags
from pipeline.tagging.schema import VIDEO_SCHEMA, tag_schema
from pipeline.tagging.tables import NUMBER, OF_VIDEOS, create_tables, open_tables
from tests.support.packed import write_tar
from tests.support.pages import REPOSITORY
from tests.support.run_output import SmallConfig

ONE_MESSAGE = (UserError, StorageError, WorkStoppedError, ManifestError)

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
DEEP = b"[" * 50_000 + b"]" * 50_000
LAUGHS = b"\n".join(b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9) if n else b"x") for n in range(9))
SAFETENSORS = safetensors.torch.save({"head.weight": torch.zeros(2, 2)}, {"format": "hiera_video"})
KNOWN_KEYS = (
    "run_key", "config", "pins", "command", "tags", "version", "digest", "classes", "shards", "counts", "rejected",
    "excluded", "generation", "holder", "process", "pid", "created", "machine", "sealed", "step", "metric", "sha256",
    "position", "extra", "loss", "validation", "tracking", "uri", "model", "model_overrides", "top1", "fileSchema",
    "adds", "removes", "add", "remove", "commitInfo", "metaData", "protocol", "txn", "settings", "videos", "path",
    "stats", "size", "files", "destinationBucket", "fileFormat", "video", "confusion",
)  # fmt: skip
KNOWN = st.dictionaries(st.sampled_from(KNOWN_KEYS), TREES, max_size=8)


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode(errors="replace")


CONTENT = st.binary(max_size=60) | TREES.map(_json) | KNOWN.map(_json)


class Reader(NamedTuple):
    """A file that is read back, below an output or a set, and what reads it."""

    file: str
    read: Callable[[Path], object]
    module: str
    """Where the reading is written."""
    errors: tuple[type[Exception], ...] = ONE_MESSAGE


def _attempts(folder: Path) -> None:
    attempts = Attempts(str(folder / "attempts.json"))
    attempts.left("a")
    with attempts.at("b"):
        pass


def _footer(folder: Path) -> None:
    """A shard whose footer says this of its videos; the rest of it is sound."""
    text = (folder / "spans.json").read_bytes()
    rows = pa.table({"video": pa.array([b"abc"], pa.large_binary())})
    with pq.ParquetWriter(folder / "shard.parquet", rows.schema) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({VIDEO_SPANS: text, VIDEO_DIGESTS: text})
    OpenShard(str(folder / "shard.parquet")).read(0, np.array([0]), "0" * 64)


def _fencing(folder: Path) -> None:
    FencingToken(str(folder), 1).superseded_by()
    list(records(str(folder)))
    before = max(generation_numbers(str(folder)))
    assert acquire_token(str(folder)).generation == before + 1


def _row(folder: Path) -> None:
    child = Child("a=1", {"a": "1"}, (), DemoConfig(output=str(folder)))
    rows = [result_row(child, Outcome("done")), {"a": "2", "state": "done", "child": "b", "top1": 0.5}]
    summary_table("pretrain", ["a"], rows)


def _checkpoints(folder: Path) -> None:
    output = str(folder)
    assert latest_checkpoint(output) is None
    assert newest_cursor(output).step >= 0
    measured_steps(output), complete_steps(output)


def _with_marker(name: str) -> Callable[[Path], None]:
    """The file is forged together with a marker that has its digest."""

    def read(folder: Path) -> None:
        step = folder / "checkpoints/step-00000003"
        digest = hashlib.sha256((step / name).read_bytes()).hexdigest()
        (step / "complete.json").write_text(json.dumps({"step": 3, "metric": None, "sha256": {name: digest}}))
        _checkpoints(folder) if "state" not in name else newest_cursor(str(folder))
        latest_checkpoint(str(folder))

    return read


def _journal(folder: Path) -> None:
    for entry in journal_entries(read_journal(str(folder), 10)):
        assert entry["step"] >= 0


def _inventory(folder: Path) -> None:
    for _ in inventory_parts(str(folder / "manifest.json")):
        pass


def _label_in_tar(folder: Path) -> None:
    content = (folder / "label.json").read_bytes()
    tar = write_tar(folder / "a.tar", [{"jpg": b"x", "json": content}])
    for _ in read_webdataset(str(tar), "image").batches:
        pass


def _chunk(folder: Path) -> None:
    """A chunk's record with this as its list of shards and of their clips; its videos are sound."""
    text, output = (folder / "shards.json").read_bytes(), str(folder)
    video = {"uri": "a", "status": "ok", "clips": 1, "stored_bytes": 1}
    record = pa.Table.from_pylist([video], CHUNK_SCHEMA)
    sound = json.dumps([{"file": "shards/a.parquet", "rows": 1, "bytes": 1, "row_groups": [1]}]).encode()
    for metadata in ({b"shards": text}, {b"shards": sound, b"clips": text}, {}):
        path = f"{output}/_prepare/v0001/videos/000000.parquet"
        write_table(path, record.replace_schema_metadata(metadata))
        assert len(current_videos(output, 1)) == 1
        for read in (shards_of, clips_of_shards):
            with contextlib.suppress(StorageError):
                read(output, 1)


def _videos_of_chunk(folder: Path) -> None:
    for read in (current_videos, version_videos, shards_of, clips_of_shards):
        with contextlib.suppress(StorageError):
            read(str(folder), 1)


def _published(folder: Path) -> None:
    publish(str(folder), {"version": 1, "classes": ["a"]})


def _decided(folder: Path) -> None:
    """A commit to `tags` whose entry for `videos` is this; the job died before the second commit."""
    text = (folder / "videos.json").read_text(errors="replace")
    tables = create_tables(str(folder), {"weights_digest": "a"})
    tables.tags.commit(Change(), {NUMBER: "1", OF_VIDEOS: text}, 1)
    with contextlib.suppress(StorageError):
        Change.from_json(text, "tags")
    create_tables(str(folder), {"weights_digest": "a"})


def _log(folder: Path) -> None:
    """A table whose log goes on with this."""
    create_tables(str(folder), {"weights_digest": "a"})
    log = folder / "tags/_delta_log"
    (log / f"{1:020d}.json").write_bytes((folder / "log.json").read_bytes())
    _open_all(folder)


def _open_all(folder: Path) -> None:
    table = open_table(str(folder / "tags"))
    assert table is not None
    uses: list[Callable[[], object]] = [
        table.files, table.sizes, table.num_rows, lambda: list(table.commits()), lambda: table.column_names,
        lambda: table.paths_between(pa.chunked_array([["a"]])), lambda: table.description, lambda: table.transaction,
        lambda: KnownVideos(str(folder)), lambda: read_tags(str(folder)), lambda: open_tables(str(folder)),
    ]  # fmt: skip
    for use in uses:
        with contextlib.suppress(StorageError):
            use()


def _settings(folder: Path) -> None:
    text = (folder / "settings.json").read_text(errors="replace")
    create_table(str(folder / "tags"), tag_schema(), text)
    create_table(str(folder / "videos"), VIDEO_SCHEMA, text)
    tables = open_tables(str(folder))
    assert tables is not None
    assert isinstance(tables.settings, dict)


def _old_layout(folder: Path) -> None:
    with contextlib.suppress(StorageError):
        old_settings(str(folder))
    converted(str(folder))


def _demo(folder: Path) -> None:
    clear_if_changed(DemoConfig(output=str(folder)))


def _searched(folder: Path) -> None:
    run = settings_of_run(str(folder))
    assert all(isinstance(run.get(key), str | None) for key in ("init", "model", "classes"))


STEP = "checkpoints/step-00000003"
RECORDED_RUN = "jobs/checkpoints/recorded_run.py"
READERS = {
    "claim": Reader("run.json", lambda folder: read_claim(str(folder), SmallConfig("/set")), "jobs/runs/claim.py"),
    "claim, searched": Reader("run.json", _searched, "jobs/finding/query.py"),
    "claim, described": Reader("run.json", lambda folder: holding(str(folder)), "jobs/core/holdings.py"),
    "claim, sent": Reader("run.json", lambda folder: read_claim_of_any(str(folder)), RECORDED_RUN),
    "generation": Reader("generations/00000002.json", _fencing, "jobs/runs/fencing.py"),
    "state of a tagging job": Reader(
        "state.json", lambda folder: State.from_json((folder / "state.json").read_text(errors="replace"), "jobs"),
        "jobs/tagging/job_log.py",
    ),
    "footer of a shard": Reader("spans.json", _footer, "pipeline/shards/row_groups.py"),
    "marker": Reader(f"{STEP}/complete.json", _checkpoints, "jobs/checkpoints/store.py"),
    "state": Reader(f"{STEP}/state.json", _with_marker("state.json"), "jobs/checkpoints/store.py"),
    "tensors": Reader(f"{STEP}/a-model-0.safetensors", _with_marker("a-model-0.safetensors"),
                      "jobs/checkpoints/store.py"),
    "journal": Reader("journal/step-00000003-generation-0001.jsonl", _journal, "jobs/checkpoints/store.py"),
    "metrics": Reader("metrics.jsonl", lambda folder: journal_entries(read_journal_text(str(folder))), RECORDED_RUN),
    "report": Reader("report.json", lambda folder: read_report(str(folder)), RECORDED_RUN),
    "report of a child": Reader("report.json", _row, "jobs/sweep/results.py"),
    "configuration": Reader("config.yaml", lambda folder: read_config(str(folder)), RECORDED_RUN),
    "configuration of weights": Reader(
        "config.yaml", lambda folder: stored_weights(str(folder), "last", TrackingConfig("none")),
        "jobs/checkpoints/stored_weights.py",
    ),
    "benchmarks": Reader(
        "bench.json", lambda folder: measured_costs(f"{folder}/bench.json", find_gpu("h100"), UnitCosts()),
        "jobs/planning/measured.py",
    ),
    "prices": Reader(
        "prices.yaml", lambda folder: read_prices(f"{folder}/prices.yaml", "h100"), "jobs/planning/prices.py"
    ),
    "recipe": Reader(
        "recipe.yaml", lambda folder: load_config(DemoConfig, "demo", [str(folder / "recipe.yaml")]),
        "jobs/core/config.py",
    ),
    "demo": Reader("demo.yaml", _demo, "jobs/demo/command.py"),
    "scores": Reader("figures.json", lambda folder: evaluate._finished_figures(str(folder)), "jobs/evaluate.py"),
    "attempts": Reader("attempts.json", _attempts, "pipeline/decode/crash_budget.py"),
    "prepared set": Reader("dataset.json", lambda folder: open_prepared(str(folder)), "pipeline/shards/reader.py"),
    "prepared set, shown": Reader("dataset.json", lambda folder: inspect.read_version(str(folder), None),
                                  "jobs/inspect.py"),
    "version": Reader("versions/0001.json", lambda folder: read_versions(str(folder)),
                      "pipeline/prepare/versions.py"),
    "version, its rejections": Reader("versions/0001.json", lambda folder: rejections(str(folder), 1, "val"),
                                      "pipeline/prepare/versions.py"),
    "record of a set, published": Reader("dataset.json", _published, "pipeline/prepare/versions.py"),
    "class list, published": Reader("classes.json", _published, "pipeline/prepare/versions.py"),
    "shards of a chunk": Reader("shards.json", _chunk, "pipeline/prepare/versions.py"),
    "videos of a chunk": Reader("_prepare/v0001/videos/000000.parquet", _videos_of_chunk,
                                "pipeline/prepare/versions.py"),
    "transaction over two tables": Reader("videos.json", _decided, "pipeline/storage/delta.py"),
    "log of a table": Reader("log.json", _log, "pipeline/storage/delta.py"),
    "settings of tables": Reader("settings.json", _settings, "pipeline/tagging/tables.py"),
    "commit of an older release": Reader("_commits/7.json", _old_layout, "pipeline/tagging/old_layout.py"),
    "class list": Reader("classes.json", lambda folder: read_class_list(str(folder / "classes.json")),
                         "pipeline/manifest/class_names.py"),
    "annotations": Reader("labels.json", lambda folder: read_something(str(folder)), "pipeline/manifest/readers.py"),
    "annotations of images": Reader("train.json", lambda folder: read_inaturalist(str(folder)),
                                    "pipeline/manifest/image_readers.py"),
    "label in a tar file": Reader("label.json", _label_in_tar, "pipeline/manifest/packed.py"),
    "inventory": Reader("manifest.json", _inventory, "pipeline/manifest/s3_inventory.py"),
    "weights": Reader("w.safetensors", lambda folder: load_model(folder / "w.safetensors"),
                      "hiera_video/weights/checkpoint_files.py", (ValueError,)),
    "weights of others": Reader("w.pth", lambda folder: read_weights(folder / "w.pth"),
                                "hiera_video/weights/checkpoint_files.py", (ValueError,)),
    "metadata of weights": Reader("w.safetensors", lambda folder: initial_metadata(str(folder / "w.safetensors")),
                                  "jobs/core/init_source.py"),
    "classifier": Reader("w.safetensors", lambda folder: find_classifier(str(folder / "w.safetensors")),
                         "jobs/scoring/classifier.py"),
    "weights to export": Reader(
        "w.safetensors",
        lambda folder: export.run(
            export.ExportConfig(init=f"{folder}/w.safetensors", output=f"{folder}/hub", format="hub")
        ),
        "jobs/export.py",
    ),
    "classes": Reader("w.safetensors", lambda folder: classes_of(str(folder / "w.safetensors")),
                      "jobs/training/start.py"),
}  # fmt: skip


def check(reader: Reader, content: bytes, folder: Path) -> None:
    for found in sorted(folder.rglob("*"), reverse=True):
        found.unlink() if found.is_file() else found.rmdir()
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with contextlib.suppress(*reader.errors):
        reader.read(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_message(name: str, tmp_path: Path) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(b"")
    @example(DEEP)
    @example(LAUGHS)
    @example(b"a: !!python/object/apply:os.system ['true']")
    @example(b"1" * 5_000)
    @example(b"\xff\xfe\x00")
    @example(SAFETENSORS)
    @example(SAFETENSORS[:20])
    @given(CONTENT)
    def damaged(content: bytes) -> None:
        check(READERS[name], content, tmp_path)

    damaged()


OLD = {"settings": {"weights_digest": "a"}, "videos": [], "tags": []}
ADD = {"path": "a.parquet", "size": 1, "stats": '{"numRecords": 1}', "partitionValues": {}, "modificationTime": 0,
       "dataChange": True}  # fmt: skip
NEARLY_SOUND: dict[str, list[Any]] = {
    "commit of an older release": [
        OLD, {}, {**OLD, "videos": ["../x.parquet"]}, {**OLD, "videos": [1]}, {**OLD, "settings": {}},
        {**OLD, "tags": ["missing.parquet"]},
    ],
    "transaction over two tables": [
        {"adds": [], "removes": []}, {"adds": [1], "removes": []}, {"adds": [{"path": "a"}], "removes": []},
        {"adds": [{**ADD, "stats": "x"}], "removes": []}, {"adds": [{**ADD, "size": -1}], "removes": []},
        {"adds": [], "removes": [None]}, {"adds": [ADD], "removes": []}, {"adds": [{**ADD, "extra": 1}], "removes": []},
        {"adds": [{**ADD, "stats": '{"numRecords": 1, "minValues": 5, "nullCount": []}'}], "removes": []},
    ],
    "log of a table": [
        {"add": ADD}, {"add": {**ADD, "path": "../x"}}, {"add": {**ADD, "stats": "x"}}, {"add": {**ADD, "size": -1}},
        {"add": {**ADD, "stats": '{"numRecords": "x", "minValues": {"uri": 5}}'}}, {"commitInfo": []},
        {"commitInfo": {"state": 5, "commit_id": []}}, {"txn": {"appId": "hiera-video", "version": 1}},
        {"txn": {"appId": "hiera-video", "version": -5}}, {"txn": {"appId": "hiera-video", "version": 2**63 - 1}},
        {"metaData": {"schemaString": "{}"}}, {"protocol": {"minReaderVersion": 99, "minWriterVersion": 99}},
        {"remove": {"path": "../x"}}, {"txn": []}, {"txn": 5}, {"add": []}, {"metaData": []}, {"protocol": 5},
    ],
    "shards of a chunk": [
        [1], [{}], [{"file": "../x", "rows": 1, "bytes": 1, "row_groups": [1]}], [{"label": 1, "split": 2}],
        [{"label": {"names": ["a"], "codes": [7]}, "split": {"names": [], "codes": [-1]}}],
        [{"label": {"names": [1], "codes": []}, "split": {}}],
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEARLY_SOUND)
def test_what_is_nearly_sound_is_one_message(name: str, tmp_path: Path) -> None:
    for tree in NEARLY_SOUND[name]:
        check(READERS[name], _json(tree), tmp_path)


@pytest.mark.parametrize("name", ["x", "1", "-00001", "000000 (1)", "\u0663\u0663\u0663\u0663\u0663\u0663"])
def test_files_of_foreign_names_are_left_out(name: str, tmp_path: Path) -> None:
    for file in (f"_prepare/v0001/videos/{name}.parquet", f"_commits/{name}.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert version_videos(str(tmp_path), 1) == []
    if name != "1":
        assert old_settings(str(tmp_path)) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("column", ["uri", "status", "clips", "content_version"])
def test_other_types_in_a_chunks_record_are_one_message(column: str, tmp_path: Path) -> None:
    video = {"uri": "a", "status": "ok", "clips": 1, "stored_bytes": 1}
    sound = pa.Table.from_pylist([video], CHUNK_SCHEMA)
    for values in (pa.array([[1]]), pa.array(["x"]), pa.array([None], pa.string()), pa.array([{"a": 1}])):
        table = sound.set_column(sound.column_names.index(column), column, values)
        write_table(f"{tmp_path}/_prepare/v0001/videos/000000.parquet", table)
        _videos_of_chunk(tmp_path)
    write_table(f"{tmp_path}/_prepare/v0001/videos/000000.parquet", sound.drop_columns([column]))
    _videos_of_chunk(tmp_path)


METADATA = {
    "config": [b"[" * 50_000, b"{}", b'{"input_size": 5}', b'{"stages": ["x"]}', b'{"embed_dim": 1e400}', b"null"],
    "classes": [b"[" * 50_000, b"{}", b"[1, 2]", b"null", b'["a"]'],
    "sampling_of_frames": [b"[]", b"[" * 50_000],
    "config_class": [b"", b"Other", b"MaskedAutoencoderConfig"],
}


@pytest.mark.parametrize("key", METADATA)
@pytest.mark.parametrize("reader", ["weights", "classifier", "classes"])
def test_damaged_metadata_of_weights_is_one_message(reader: str, key: str, tmp_path: Path) -> None:
    sound = {"format": "hiera_video", "config_class": "HieraConfig", "config": '{"input_size": [16, 224, 224]}'}
    for value in METADATA[key]:
        content = safetensors.torch.save({"head.weight": torch.zeros(2, 2)}, {**sound, key: value.decode()})
        check(READERS[reader], content, tmp_path)


def test_every_reading_of_records_is_in_the_list() -> None:
    """A module that parses what it finds in storage is read back above; the exceptions parse what cannot be damaged."""
    exempt = {
        "jobs/submit/ray_jobs.py": "the environment that Ray gives",
        "jobs/prepare/report.py": "the record just written",
        "pipeline/shards/index.py": "an index whose digest the record names",
        "jobs/core/yaml_text.py": "is what parses", "pipeline/storage/records.py": "is what parses",
        "pipeline/storage/files.py": "is what reads", "pipeline/prepare/plan.py": "plans, by `read_json`",
        "pipeline/prepare/run.py": "plans, by `read_json`", "pipeline/tagging/reader.py": "commits, by `read_json`",
        "jobs/tagging/stage.py": "what a task sends",
        "pipeline/confinement/messages.py": "what a child sends: tests/pipeline/confinement/test_messages.py",
        "jobs/tagging/job.py": "settings, by `as_record`", "jobs/core/events.py": "lines of child commands",
        "jobs/training/driver.py": "the journal just written",
        "jobs/planning/dry_run.py": "the journal, entries by `read_journal`",
        "jobs/demo/report_page.py": "reports just written", "jobs/demo/curves.py": "journals just written",
        "jobs/weights/pyfunc_model.py": "weights that registering has read",
    }  # fmt: skip
    parses = re.compile(r"\b(json\.loads|read_json|parse_json|as_record|parse_yaml|json_entry|class_names)\(")
    found = {
        str(path.relative_to(REPOSITORY))
        for package in ("hiera_video", "pipeline", "jobs")
        for path in (REPOSITORY / package).rglob("*.py")
        if parses.search(path.read_text())
    }
    assert found <= {reader.module for reader in READERS.values()} | exempt.keys()
