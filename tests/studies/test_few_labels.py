"""A study in small: it runs, continues where it was cut off, and reports what it measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from tests.studies import experiment, few_labels, learning
from tests.studies.clips import Cut
from tests.studies.experiment import Run, StudyPaths, compared_runs, tuned
from tests.studies.learning import FinetuneSetting, PretrainSetting
from tests.studies.report import compared, comparison_table, mean_and_interval
from tests.studies.settings import STUDIES, Study
from tests.studies.test_learning import CLASSIFIER, MAE

_FEW = FinetuneSetting(steps=2, batch=4)
TINY = Study(
    name="tiny",
    about="# Tiny",
    labelled="labelled.csv",
    labelled_cut=Cut(frames=10, box=0, side=66),
    unlabelled="labelled.csv",
    unlabelled_cut=Cut(frames=10, box=0, side=66),
    centres=None,
    classifier=CLASSIFIER,
    pretraining=PretrainSetting(MAE, steps=3, batch=4, kept_at=(0,)),
    variants={"no flips": PretrainSetting(MAE, steps=2, batch=4, horizontal_flip=0.0)},
    scratch=(_FEW, FinetuneSetting(steps=3, batch=4)),
    pretrained=(_FEW, FinetuneSetting(steps=2, batch=4, layer_decay=0.75)),
)


def test_the_interval_is_students() -> None:
    mean, half = mean_and_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert mean_and_interval([1.0]) == (1.0, math.inf)


def test_the_gain_is_of_seeds_that_both_sides_have() -> None:
    scores = {
        ("scratch", 0): 0.5,
        ("pretrained", 0): 0.7,
        ("scratch", 1): 0.6,
        ("pretrained", 1): 0.7,
        ("scratch", 2): 0,
    }
    runs = [{"arm": arm, "seed": seed, "per_class": 10, "test": score} for (arm, seed), score in scores.items()]
    (row,) = compared(runs)
    assert row["seeds"] == [0, 1]
    assert row["gain"][0] == pytest.approx(15)
    assert row["scratch"][0] == pytest.approx(55)
    assert "| 10 | 55.0 ± 63.5 | 70.0 ± 0.0 | 15.0 ± 63.5 | 2 |" in comparison_table([row])


def test_each_side_takes_its_best_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = StudyPaths(TINY, tmp_path, tmp_path)
    monkeypatch.setattr(experiment, "finetuned", _scored)
    for arm in experiment.ARMS:
        assert tuned(paths, arm)[0] == experiment.candidates(TINY, arm)[1]
    assert {run.setting for run in compared_runs(paths)} == {TINY.scratch[1], TINY.pretrained[1]}


def _scored(paths: StudyPaths, run: Run) -> dict[str, Any]:
    return {"tuning": 0.5 + 0.1 * (run.setting != _FEW), "test": 1.0 - 0.1 * (run.setting != _FEW)}


def test_as_many_candidates_are_tried_for_each_side() -> None:
    for study in STUDIES.values():
        assert len(study.scratch) == len(study.pretrained)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_runs_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _lay_out(tmp_path / "data")
    monkeypatch.setattr(few_labels, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(experiment, "SEEDS", (0, 1))
    monkeypatch.setattr(experiment, "LABELS_PER_CLASS", (1, 0))
    monkeypatch.setattr(experiment, "TUNED_LABELS", 1)
    paths = StudyPaths(TINY, tmp_path / "data", tmp_path / "work")
    for part in few_labels.PARTS:
        few_labels.do(part, paths, 1, tmp_path / "docs")
    report = json.loads((tmp_path / "docs" / "tiny.json").read_text())
    assert [row["per_class"] for row in report["comparison"]] == [1, 0]
    assert [row["step"] for row in report["pretraining"]["probes"]] == [0, 3]
    assert "no flips" in (tmp_path / "docs" / "tiny.md").read_text()
    assert (tmp_path / "docs" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    kept = {path: path.read_bytes() for path in (tmp_path / "work").rglob("*.json")}
    monkeypatch.setattr(learning, "model_input", None)  # nothing is learned or scored again
    for part in few_labels.PARTS:
        few_labels.do(part, paths, 1, tmp_path / "docs")
    assert {path: path.read_bytes() for path in (tmp_path / "work").rglob("*.json")} == kept
    assert json.loads((tmp_path / "docs" / "tiny.json").read_text())["comparison"] == report["comparison"]


def _lay_out(folder: Path) -> None:
    """Three videos of each class: two for training, the third for validation or test."""
    videos = render_motion_videos(folder, 3 * len(MOTION_CLASSES), seed=0, size=66, num_frames=10)
    rows = ["path,label,split,source_video"]
    for number, video in enumerate(videos):
        split = "train" if number < 2 * len(MOTION_CLASSES) else ("val", "test")[number % 2]
        rows.append(f"{Path(video.path).relative_to(folder)},{video.label},{split},{number}")
    (folder / "labelled.csv").write_text("\n".join(rows) + "\n")


class _Done:
    def __init__(self, value: Any) -> None:
        self.result = lambda: value


class _InThisProcess:
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def submit(self, call: Any, *arguments: Any) -> _Done:
        return _Done(call(*arguments))
