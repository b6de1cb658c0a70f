"""A start on a made-up set: what it holds grows with row groups, and finds the index again."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.bench_index import CLIPS_PER_GROUP, started, write_made_up_set

CLIPS = 128_000


def test_a_start_holds_bytes_per_row_group_and_not_per_clip(tmp_path: Path) -> None:
    write_made_up_set(str(tmp_path), CLIPS)
    first, second = (started(str(tmp_path)) for _ in range(2))
    assert first["groups"] == CLIPS / CLIPS_PER_GROUP
    assert first["clips"] == second["clips"] > 0.9 * CLIPS
    assert second["index s"] < first["index s"]
    # Texts of labels and splits alone would be 20 bytes a clip; the interpreter and its libraries take 200 MiB.
    assert second["anonymous MiB"] < 300
