"""prepare, whole: everything accounted for, repeatable, resumable, growing by versions, clear about mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

import pipeline.prepare.run as preparing
from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.prepare import command as prepare
from jobs.prepare.command import PrepareConfig
from jobs.runs.tracking_config import TrackingConfig
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from pipeline.decode.config import DecodeConfig, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.manifest.errors import ManifestError
from pipeline.prepare.chunk import ChunkSettings, PrepareChunk
from pipeline.prepare.plan import PlannedSet, plan_set
from pipeline.prepare.versions import current_videos, publish
from pipeline.schema import CLIP_SCHEMA, REJECTED_SCHEMA
from pipeline.shards.writer import StoreConfig
from pipeline.storage.files import StorageError
from pipeline.transcode.config import TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.frame_numbers import read_frame_number

VIDEOS = 24
UNTRACKED = TrackingConfig(uri="none")
SMALL = StoreConfig(videos_per_chunk=5, row_group_bytes=8_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of good videos, with bad ones among them."""
    folder = tmp_path_factory.mktemp("source")
    good = render_motion_videos(folder, VIDEOS, 0, size=96, num_frames=20)
    (folder / "grows" / "empty.mp4").touch()
    (folder / "grows" / "text.mp4").write_text("no video")
    (folder / "shrinks" / "cut.mp4").write_bytes(good[-1].path.with_suffix(good[-1].path.suffix).read_bytes()[:300])
    (folder / "shrinks" / "notes.txt").write_text("not counted as a video")
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "set"
    run(source, output)
    return output


def run(source: Path | str, output: Path | str, **changes: Any) -> dict[str, Any]:
    return prepare.run(
        PrepareConfig(
            source=str(source), output=str(output), **({"store": SMALL, "workers": 0, "tracking": UNTRACKED} | changes)
        )
    )


def clips(output: Path) -> pa.Table:
    version = json.loads((output / "dataset.json").read_text())
    return pa.concat_tables([pq.read_table(output / shard["file"]) for shard in version["shards"]])


def rejected(output: Path) -> dict[str, str]:
    version = json.loads((output / "dataset.json").read_text())
    tables = [pq.read_table(output / file) for file in version["rejected"]]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["uri"] for row in rows}) == len(rows)
    return {Path(row["uri"]).name: row["reason"] for row in rows}


def test_every_file_is_in_the_shards_or_rejected(prepared: Path, source: Path) -> None:
    stored = [Path(uri) for uri in clips(prepared)["uri"].to_pylist()]
    bad = rejected(prepared)
    assert bad == {"empty.mp4": "empty", "text.mp4": "not_a_video", "cut.mp4": bad["cut.mp4"]}
    assert bad["cut.mp4"] in ("not_a_video", "damaged")
    everything = sorted(path.name for path in source.rglob("*") if path.suffix in (".mp4", ".webm"))
    assert sorted([path.name for path in stored] + list(bad)) == everything


def test_rows_are_what_the_contract_says(prepared: Path) -> None:
    table = clips(prepared)
    assert table.schema.equals(CLIP_SCHEMA)
    assert pq.read_schema(next((prepared / "rejected").iterdir())).equals(REJECTED_SCHEMA)
    rows = table.to_pylist()
    assert len({row["clip_id"] for row in rows}) == VIDEOS
    assert all(row["label"] == Path(row["uri"]).parent.name for row in rows)
    assert json.loads((prepared / "classes.json").read_text()) == sorted(MOTION_CLASSES)
    # One video of each class is held out, unless the one that was drawn is broken.
    for label in set(MOTION_CLASSES) - {"grows", "shrinks"}:
        assert sorted(row["split"] for row in rows if row["label"] == label) == ["train", "train", "val"]


def test_rows_are_shuffled_and_row_groups_small(prepared: Path) -> None:
    version = json.loads((prepared / "dataset.json").read_text())
    labels = clips(prepared)["label"].to_pylist()
    changes = sum(before != after for before, after in itertools.pairwise(labels))
    assert changes > VIDEOS // 2
    for shard in version["shards"]:
        metadata = pq.read_metadata(prepared / shard["file"])
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == shard["row_groups"]
        assert shard["bytes"] == (prepared / shard["file"]).stat().st_size
    assert max(len(shard["row_groups"]) for shard in version["shards"]) > 1


def test_stored_videos_hold_the_sources_frames(prepared: Path) -> None:
    with IsolatedDecoder() as decoder:
        for row in clips(prepared).slice(0, 4).to_pylist():
            view = FrameView(np.arange(row["num_frames"]), None, (row["height"], row["width"]))
            frames = decoder.decode(row["video"], [view])[0]
            assert [read_frame_number(frame) for frame in frames] == list(range(20))


def test_the_same_command_again_says_so(prepared: Path, source: Path) -> None:
    before = (prepared / "dataset.json").read_bytes()
    assert run(source, prepared)["status"] == "already up to date"
    assert (prepared / "dataset.json").read_bytes() == before


def test_other_settings_are_refused_with_the_difference(prepared: Path, source: Path) -> None:
    with pytest.raises(UserError, match=r"transcode.crf: existing 22, now 30"):
        run(source, prepared, transcode=TranscodeConfig(crf=30))


def test_equal_sources_give_equal_sets(prepared: Path, source: Path, tmp_path: Path) -> None:
    """Also when half of the chunks were done by an earlier, killed run: those are not done again."""
    output = tmp_path / "set"
    settings = PrepareConfig(source=str(source), output=str(output), store=SMALL)
    chunks = unfinished(settings)
    PrepareChunk(chunks).prepare(1)
    PrepareChunk(chunks).prepare(3)
    done = {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}
    report = run(source, output)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert report["digest"] == json.loads((prepared / "dataset.json").read_text())["digest"]


def unfinished(config: PrepareConfig) -> Any:
    """The state that a killed run leaves: a plan, no commit."""
    planned = plan_set(config.source, config.output, config.settings)
    assert isinstance(planned, PlannedSet)
    return ChunkSettings(planned.output, planned.plan["version"], planned.plan["videos"], planned.settings)


def test_a_second_writer_cannot_commit_something_else(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    (output / "versions").mkdir(parents=True)
    unfinished(PrepareConfig(source=str(source), output=str(output), store=SMALL))
    theirs = {"version": 1, "digest": "another", "classes": [], "shards": [], "rejected": [], "excluded": []}
    original = preparing._run_chunks

    def finished_meanwhile(*arguments: Any) -> None:
        original(*arguments)
        (output / "versions" / "0001.json").write_text(json.dumps(theirs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.prepare.run._run_chunks", finished_meanwhile)
        with pytest.raises(WorkStoppedError, match="another writer committed"):
            run(source, output)
    assert json.loads((output / "versions" / "0001.json").read_text())["digest"] == "another"


def test_sets_grow_and_shrink_by_versions(source: Path, tmp_path: Path) -> None:
    """New, changed and taken out videos; labels keep their indices; old versions stay readable."""
    folder, output = tmp_path / "source", tmp_path / "set"
    shutil.copytree(source, folder)
    first = run(folder, output)
    before = {row["uri"]: row for row in clips(output).to_pylist()}
    new = render_motion_videos(tmp_path / "more", 2, 5, size=96, num_frames=12)
    changed, gone = sorted(before)[3], sorted(before)[7]
    shutil.copy(new[0].path, changed)
    (folder / "anew").mkdir()
    shutil.copy(new[1].path, folder / "anew" / "new.mp4")
    (tmp_path / "take_out.txt").write_text(f"{gone}\n")
    second = run(folder, output, exclude=str(tmp_path / "take_out.txt"))
    after = {row["uri"]: row for row in clips(output).to_pylist()}
    assert second["version"] == 2
    assert set(after) == {*before, str(folder / "anew" / "new.mp4")} - {gone}
    assert after[changed]["num_frames"] == 12
    assert after[changed]["clip_id"] != before[changed]["clip_id"]
    assert all(after[uri] == before[uri] for uri in after if uri in before and uri != changed)
    assert rejected(output)[Path(gone).name] == "excluded"
    assert json.loads((output / "classes.json").read_text()) == [*sorted(MOTION_CLASSES), "anew"]
    record = json.loads((output / "dataset.json").read_text())
    assert record["parent"] == first["digest"]
    pinned = json.loads((output / "versions" / "0001.json").read_text())
    assert sum(pq.read_metadata(output / shard["file"]).num_rows for shard in pinned["shards"]) == VIDEOS
    assert run(folder, output)["status"] == "already up to date"
    assert gone not in clips(output)["uri"].to_pylist()
    assert len(current_videos(str(output), 2)) == VIDEOS + 3 + 1


def test_what_is_taken_out_stays_out_though_an_unfinished_plan_holds_it(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    unfinished(PrepareConfig(source=str(source / "grows"), output=str(output), store=SMALL))
    gone = sorted((source / "grows").glob("*_0*"))[0]
    report = run(source / "grows", output, exclude=gone.name)
    assert (report["version"], report["clips"], report["rejected"]["excluded"]) == (2, 2, 1)
    assert str(gone) not in clips(output)["uri"].to_pylist()
    assert report["exclude_unmatched"] == []
    assert run(source / "grows", output, exclude=gone.name)["status"] == "already up to date"


def test_a_video_is_taken_out_before_it_comes(source: Path, tmp_path: Path) -> None:
    """A name that nothing has yet is told, and kept; the video never enters."""
    folder, output = tmp_path / "source", tmp_path / "set"
    shutil.copytree(source / "grows", folder)
    run(folder, output)
    report = run(folder, output, exclude="later.mp4")
    assert (report["status"], report["version"], report["clips"]) == ("prepared", 2, 3)
    assert report["exclude_unmatched"] == [str(folder / "later.mp4")]
    shutil.copy(sorted(folder.glob("*_0*"))[0], folder / "later.mp4")
    assert run(folder, output)["status"] == "already up to date"
    assert "later.mp4" not in [Path(uri).name for uri in clips(output)["uri"].to_pylist()]


def test_a_mended_video_is_rejected_no_more(source: Path, tmp_path: Path) -> None:
    """What an earlier version rejected and this one stores; the others stay rejected, each once."""
    folder, output = tmp_path / "source", tmp_path / "set"
    shutil.copytree(source, folder)
    run(folder, output)
    before = rejected(output)
    shutil.copy(next((folder / "grows").glob("*_0*")), folder / "grows" / "text.mp4")
    report = run(folder, output)
    assert rejected(output) == {name: reason for name, reason in before.items() if name != "text.mp4"}
    assert sum(report["rejected"].values()) == 2
    assert str(folder / "grows" / "text.mp4") in clips(output)["uri"].to_pylist()
    (folder / "shrinks" / "cut.mp4").write_text("still no video")
    run(folder, output)
    assert rejected(output) == {"empty.mp4": "empty", "cut.mp4": "not_a_video"}


def test_a_writer_that_was_overtaken_takes_nothing_back(prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    shutil.copytree(prepared, output)
    record = json.loads((output / "dataset.json").read_text())
    newer = record | {"version": 2, "classes": [*record["classes"], "anew"]}
    publish(str(output), newer)
    assert json.loads((output / "dataset.json").read_text()) == newer
    publish(str(output), record)
    assert json.loads((output / "dataset.json").read_text()) == newer
    assert json.loads((output / "classes.json").read_text())[-1] == "anew"


@pytest.mark.parametrize("mode", ["passthrough", "reference"])
def test_modes_that_keep_the_original(mode: Any, source: Path, tmp_path: Path) -> None:
    run(source / "grows", tmp_path / "set", transcode=TranscodeConfig(mode=mode))
    rows = clips(tmp_path / "set").to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert row["video"] == (Path(row["uri"]).read_bytes() if mode == "passthrough" else None)
        assert (row["width"], row["height"], row["num_frames"]) == (96, 96, 20)


def test_footage_is_cut_into_clips_of_one_split(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "set", transcode=TranscodeConfig(clip_seconds=0.2))
    rows = clips(tmp_path / "set").to_pylist()
    assert len({row["clip_id"] for row in rows}) == len(rows) == 3 * VIDEOS
    for uri in {row["uri"] for row in rows}:
        of_video = sorted((row["start_seconds"], row["end_seconds"], row["split"]) for row in rows if row["uri"] == uri)
        assert len({split for _, _, split in of_video}) == 1
        assert [start for start, _, _ in of_video] == pytest.approx([0, 0.2, 0.4])


def test_annotations_with_every_kind_of_mistake(source: Path, tmp_path: Path) -> None:
    names = [f"{label}/{path.name}" for label in MOTION_CLASSES for path in sorted((source / label).glob("*_000*"))]
    lines = [
        "path,label",
        f"{names[0]},seen",
        f"{names[1]},unheard of",
        "gone.mp4,seen",
        f"{names[0]},seen",
        "/proc,seen",
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "classes.txt").write_text("seen\nunseen\n")
    report = run(
        source, tmp_path / "set", annotations=str(tmp_path / "list.csv"), classes=str(tmp_path / "classes.txt")
    )
    assert report["clips"] == 1
    assert report["classes"] == 2
    assert report["clips_by_split"] in ({"train": 1}, {"val": 1})
    in_training = "train" in report["clips_by_split"]
    assert report["classes_without_training_clips"] == (["unseen"] if in_training else ["seen", "unseen"])
    assert rejected_reasons(tmp_path / "set") == ["duplicate", "missing", "not_a_file", "unknown_label"]


def rejected_reasons(output: Path) -> list[str]:
    version = json.loads((output / "dataset.json").read_text())
    tables = [pq.read_table(output / file) for file in version["rejected"]]
    return sorted(reason for table in tables for reason in table["reason"].to_pylist())


def test_mistakes_are_one_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^transcode\.crf=9: is for videos, .*; leave it out$"):
        PrepareConfig(source="s", output="o", media="image", transcode=TranscodeConfig(crf=9))
    with pytest.raises(StorageError, match="nowhere"):
        run(tmp_path / "nowhere", tmp_path / "a")
    with pytest.raises((UserError, StorageError), match="/dev/null"):
        run(source, "/dev/null/set")
    (tmp_path / "list.csv").write_text("name,label\na,b\n")
    with pytest.raises(ManifestError, match="has no column"):
        run(source, tmp_path / "b", annotations=str(tmp_path / "list.csv"), convention="csv")
    assert not (tmp_path / "b" / "run.json").exists()  # the mended command may use the output
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-value",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.storage.retry.BUDGET_SECONDS", 0.5)
    with pytest.raises(StorageError, match="s3://bucket/videos") as caught:
        run("s3://bucket/videos", tmp_path / "c")
    assert "secret-value" not in str(caught.value)


def test_a_source_of_which_every_video_is_rejected_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the table of the rejected; it succeeds once a video is added."""
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (bad / name).write_text("no video")
    (bad / "c.mp4").touch()
    words = [f"source={bad}", f"output={tmp_path / 'set'}", "workers=0", "tracking.uri=none"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["prepare", *words])
        monkeypatch.setattr("sys.excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as ended:
            prepare.main()
        assert ended.value.code == 1
        message = capsys.readouterr().err
        assert f"source={bad}: none of its 3 videos can be used (empty: 1, not_a_video: 2; the first: {bad}" in message
        assert "Traceback" not in message
    assert rejected(tmp_path / "set") == {"a.mp4": "not_a_video", "b.mp4": "not_a_video", "c.mp4": "empty"}
    shutil.copy(max(source.rglob("*.mp4"), key=lambda path: path.stat().st_size), bad / "d.mp4")
    assert run(bad, tmp_path / "set", store=StoreConfig())["clips"] == 1


def test_a_dry_run_tells_and_writes_nothing(source: Path, prepared: Path, tmp_path: Path) -> None:
    config = PrepareConfig(source=str(source), output=str(tmp_path / "set"))
    told = prepare.dry_run(config)
    assert (told["version"], told["videos"], told["classes"]) == (1, VIDEOS + 3, len(MOTION_CLASSES))
    assert sum(told["videos_by_split"].values()) == VIDEOS + 3
    assert told["source_bytes"] == sum(path.stat().st_size for path in source.rglob("*.*") if path.suffix != ".txt")
    assert not (tmp_path / "set").exists()
    again = prepare.dry_run(dataclasses.replace(config, output=str(prepared), exclude="grows/empty.mp4"))
    assert (again["version"], again["videos"], again["taken_out"]) == (2, 0, 1)
    (tmp_path / "list.csv").write_text("name,label\na,b\n")
    with pytest.raises(ManifestError, match="has no column"):
        prepare.dry_run(dataclasses.replace(config, annotations=str(tmp_path / "list.csv"), convention="csv"))


def test_sigterm_stops_and_the_same_command_goes_on(
    prepared: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "set"
    original = IsolatedTranscoder.process
    calls = itertools.count()

    def asked_to_stop(self: IsolatedTranscoder, path: Path) -> Iterator[Any]:
        if next(calls) in (7, 9, 11):  # more often than a video may kill its worker
            os.kill(os.getpid(), signal.SIGTERM)
        yield from original(self, path)

    monkeypatch.setattr(IsolatedTranscoder, "process", asked_to_stop)
    handler = signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        with pytest.raises(StopRequestedError, match="the same command resumes"):
            run(source, output)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert run(source, output)["digest"] == json.loads((prepared / "dataset.json").read_text())["digest"]


def test_storage_that_fails_on_the_way_is_no_mistake_of_the_user(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise StorageError("s3://bucket/shard", "object storage answered 503", "check the network")

    monkeypatch.setattr(PrepareChunk, "prepare", failing)
    with pytest.raises(WorkStoppedError, match=r"answered 503.*resumes"):
        run(source, tmp_path / "set")
    monkeypatch.setattr("sys.argv", ["prepare", f"source={source}", f"output={tmp_path / 'set'}", "workers=0"])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    assert ended.value.code == 2  # store.videos_per_chunk differs: that is one
    monkeypatch.setattr("sys.argv", [*sys.argv[:2], f"output={tmp_path / 'b'}", "workers=0", "tracking.uri=none"])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    assert ended.value.code == 1


@pytest.mark.ray
def test_the_run_is_recorded(source: Path, tmp_path: Path) -> None:
    report = run(source / "grows", tmp_path / "set", tracking=TrackingConfig())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    recorded_run = client.get_run(report["mlflow_run_id"])
    assert recorded_run.info.status == "FINISHED"
    assert recorded_run.data.metrics["clips"] == 3
    assert recorded_run.data.tags["data_digest"] == report["digest"]
    assert recorded_run.data.params["transcode.crf"] == "22"


def test_limits_reject_with_the_limits_name(source: Path, tmp_path: Path) -> None:
    run(source / "grows", tmp_path / "set", decode=DecodeConfig(max_frames=10))
    assert sorted(rejected(tmp_path / "set").values()) == ["empty", *["max_frames"] * 3, "not_a_video"]


@pytest.mark.ray
def test_ray_workers_write_the_same_set(prepared: Path, source: Path, tmp_path: Path, ray_cluster: None) -> None:
    report = run(source, tmp_path / "set", workers=2)
    assert report["digest"] == json.loads((prepared / "dataset.json").read_text())["digest"]


def test_a_worker_tells_of_failing_storage_in_its_row(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise StorageError("s3://bucket/shard", "object storage answered 503", "check the network")

    chunks = unfinished(PrepareConfig(source=str(source), output=str(tmp_path / "set"), store=SMALL))
    monkeypatch.setattr(PrepareChunk, "prepare", failing)
    row = PrepareChunk(chunks)({"id": np.array([2])})
    monkeypatch.setattr("pipeline.prepare.run._chunks_done", lambda *_: [{name: row[name][0] for name in row}])
    with pytest.raises(WorkStoppedError, match=r"^s3://bucket/shard: object storage answered 503; check the network"):
        run(source, tmp_path / "set")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.clips
def test_all_real_clips_are_accounted_for(real_clips: Path, tmp_path: Path, ray_cluster: None) -> None:
    """On Ray, with the actors of a real run."""
    report = prepare.run(PrepareConfig(source=str(real_clips), output=str(tmp_path / "set"), tracking=UNTRACKED))
    assert report["videos"] + sum(report["rejected"].values()) == 134
