"""The commit of a tagging job and the right to make it are one decision. No Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.runs import exclusive_lock as module
from jobs.runs.exclusive_lock import exclusive_lock
from jobs.runs.fencing import SupersededError
from jobs.tagging.job import publish_sealed_commit
from pipeline.tagging import writer as tag_output
from pipeline.tagging.reader import last_commit, read_videos
from pipeline.tagging.rows import tag_rows
from pipeline.tagging.windows import PROBED_SCHEMA, WindowGrid, plan_units
from pipeline.tagging.writer import PlannedVersion, write_plan

GRID = WindowGrid(1.0, 1.0)


class DiedError(Exception):
    """Stands for a SIGKILL."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A version that only has to be committed; both of its videos have failed."""
    video = {"content_version": "1", "status": "damaged", "message": "no frames"}
    rows = [{"video_id": number, "uri": f"{number}.mp4", **video} for number in range(2)]
    units = plan_units(pa.Table.from_pylist(rows, schema=PROBED_SCHEMA), GRID, 4)
    write_plan(str(tmp_path), 0, units, {"weights_digest": "abc"})
    planned = PlannedVersion(str(tmp_path), 0, generation=1)
    planned.write_chunk(0, tag_rows(planned.chunk(0), {}, GRID, 0, "key"))
    return str(tmp_path)


def test_what_was_decided_is_shown_by_whoever_comes_next(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(tag_output, "publish", die)
        with pytest.raises(DiedError), exclusive_lock(output) as writer:
            PlannedVersion(output, 0, writer.generation).commit({"run_id": "first"}, seal=writer.seal)
    assert last_commit(output) is None
    with exclusive_lock(output):
        publish_sealed_commit(output)
    commit = last_commit(output)
    assert commit is not None
    assert commit["run_id"] == "first"
    publish_sealed_commit(output)
    assert len(read_videos(output)) == 2


def test_a_job_that_was_cut_off_cannot_commit(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.3)
    with exclusive_lock(output) as cut_off:
        cut_off._ended.set()
        cut_off._thread.join()
        monkeypatch.setattr(module, "_machine", lambda: "another machine")
        with exclusive_lock(output) as follower:
            with pytest.raises(SupersededError, match="a later start has taken over"):
                PlannedVersion(output, 0, cut_off.generation).commit({"run_id": "cut off"}, seal=cut_off.seal)
            assert last_commit(output) is None
            PlannedVersion(output, 0, follower.generation).commit({"run_id": "follower"}, seal=follower.seal)
    commit = last_commit(output)
    assert commit is not None
    assert commit["run_id"] == "follower"
    assert commit["videos"] == ["videos/000000-00000002.parquet"]
