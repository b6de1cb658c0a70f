"""Unit costs from journals and benchmarks; a plan from a run's journal is within a quarter of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiera_video.analysis.flops import complexity
from jobs.core.errors import UserError
from jobs.planning.cluster import find_gpu
from jobs.planning.measured import measured_costs
from jobs.planning.unit_costs import UnitCosts
from tests.support.pages import REPOSITORY
from tests.support.planned_runs import planned_and_taken, planned_seconds, write_run

WITHIN = 0.25
# docs/tried.md, 2026-11-22: seconds of 1,500 steps of the demo's model on two cores, by mask ratio.
TRIED = {0.9: 158.0, 0.75: 302.0, 0.5: 503.0}
STEPS, BATCH = 1500, 16
BENCH = {
    "pipeline": {
        "figures": {"transcode, auto, 4 views a clip": {"ms a view": 9.0}, "blocks/s of one stream": 120.0},
        "machine": {"processor": "EPYC 9004"},
        "date": "2026-12-01T08:00:00+00:00",
    },
    "prepare": {"figures": {"transcode": {"CPU s a minute": 2.5, "bytes": 0.7}}, "machine": 5, "date": "2026-11-30"},
    "tag": {"figures": {"tag, fp32": {"bare decode/s": 100.0}}},
}


def line(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "clips_per_second": BATCH / seconds, "unix_seconds": 1.8e9 + step * seconds, **more}


def recorded(folder: Path) -> Path:
    """A journal whose steps vary, with start-up, validation and a slow end, on a clock of its own."""
    draw, clock, lines = np.random.default_rng(0), 1.8e9, []
    for step in range(1, 61):
        seconds = 0.1 * float(draw.lognormal(0, 0.1)) + (3.0 if step == 1 else 0.0) + (0.1 if step > 50 else 0.0)
        validated = {"validation": {"seconds": 2.0}} if step % 20 == 0 else {}
        clock += seconds + (2.0 if validated else 0.0)
        lines.append({**line(step, seconds), "unix_seconds": clock, **validated})
    return write_run(folder / "run", lines)


DEMO = [REPOSITORY / "build" / "demo" / name / "metrics.jsonl" for name in ("pretrain", "finetune")]


@pytest.mark.parametrize("journal", [None, *(path for path in DEMO if path.exists())], ids=str)
def test_a_plan_from_a_journal_is_within_a_quarter_of_the_run(journal: Path | None, tmp_path: Path) -> None:
    """Of the demo's own runs, too, where `make demo` has left them."""
    plan, taken = planned_and_taken(journal.parent if journal else recorded(tmp_path), tmp_path)
    assert plan == pytest.approx(taken, rel=WITHIN)


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_another_configuration_follows_from_a_measured_one(ratio: float, tmp_path: Path) -> None:
    """Figures that were measured: 503 s are met by 1 %, 158 s by 19 %."""
    run = write_run(tmp_path / "run", [line(1, TRIED[0.75] / STEPS)], "mask_ratio=0.75")
    plan = planned_seconds("pretrain", "demo", "gpus=2", f"steps={STEPS}", f"mask_ratio={ratio}", f"measured={run}")
    assert plan == pytest.approx(TRIED[ratio], rel=WITHIN)


def test_flops_of_a_worker_by_hand(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [line(1, 0.5)])
    costs = measured_costs(str(run), find_gpu("cpu"), UnitCosts())
    work = BATCH * 6 * complexity("mae_hiera_demo_16x96").multiply_adds
    assert costs.flops is not None
    assert costs.flops.value == pytest.approx(work / 0.5 / 2)
    assert costs.flops.basis == f"measured ({run}, 2027-01-15)"


def test_of_another_gpu_the_utilisation_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [line(1, 0.5, model_flop_utilisation=0.42)])
    costs = measured_costs(str(run), find_gpu("h100"), UnitCosts())
    assert costs.flops is None
    assert costs.utilisation.value == 0.42
    assert "on a device of" in costs.utilisation.where


def test_benchmarks_take_the_place_of_what_is_assumed(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH))
    costs = measured_costs(str(path), find_gpu("h100"), UnitCosts())
    assert costs.decode_seconds.value == pytest.approx(0.009)
    assert costs.decode_seconds.basis == "measured (EPYC 9004, 2026-12-01)"
    assert (costs.micro_batches_a_second.value, costs.stored_share.value) == (120, 0.7)
    assert costs.transcode_seconds.basis == "measured (unknown machine, 2026-11-30)"
    assert costs.window_seconds.value == pytest.approx(2 / 100)
    assert costs.validate_seconds == UnitCosts().validate_seconds


@pytest.mark.parametrize(
    ("content", "rule"),
    [("{}", "has no result that a plan uses"), ("[1]", "damaged"), (None, "give build/bench.json or the output")],
)
def test_what_measures_nothing_is_refused(content: str | None, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rule) as refused:
        measured_costs(str(path), find_gpu("h100"), UnitCosts())
    assert str(refused.value).startswith(f"measured={path}: ")


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    with pytest.raises(UserError, match="has no journal of steps"):
        measured_costs(str(run), find_gpu("h100"), UnitCosts())
