"""Does pretraining pay on real video with few labels? `python -m tests.studies.few_labels FOLDER`.

Pretrains on videos without labels, tunes fine-tuning from pretrained weights and from scratch with as many candidates
each, then compares both on the same labelled clips, crops and seeds. FOLDER holds the data that the study's `about` in
`tests/studies/settings.py` describes; nothing is downloaded. Every run is kept: the same command continues where
it was cut off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.studies.experiment import Run, StudyPaths, compared_runs, finetuned, pretrained, tuning_runs
from tests.studies.report import write_report
from tests.studies.settings import STUDIES

REPOSITORY = Path(__file__).parents[2]
PARTS = ("pretrain", "variants", "tune", "compare", "report")


def main() -> None:
    """Do what is not done yet, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.few_labels", description=__doc__)
    parser.add_argument("data", type=Path, help="the folder of the study's data")
    parser.add_argument("--study", choices=STUDIES, default="grid-digits")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "studies", help="where runs are kept")
    parser.add_argument("--into", type=Path, default=REPOSITORY / "docs" / "studies", help="where the report goes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES[arguments.study]
    paths = StudyPaths(study, arguments.data, arguments.work / study.name)
    for part in arguments.parts:
        do(part, paths, arguments.processes, arguments.into)


def do(part: str, paths: StudyPaths, processes: int, into: Path) -> None:
    """One part of the study."""
    if part == "pretrain":
        pretrained(paths, paths.study.pretraining)
    elif part == "variants":
        for setting in paths.study.variants.values():
            pretrained(paths, setting)
    elif part == "tune":
        run_all(paths, tuning_runs(paths.study), processes)
    elif part == "compare":
        run_all(paths, compared_runs(paths), processes)
    else:
        write_report(paths, into)


def run_all(paths: StudyPaths, runs: Iterable[Run], processes: int) -> None:
    """Do the runs that are not kept yet."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(_alone, paths, run) for run in runs]:
            figures = future.result()
            print(json.dumps({key: figures[key] for key in ("arm", "per_class", "seed", "tuning", "test")}), flush=True)


def _alone(paths: StudyPaths, run: Run) -> dict[str, Any]:
    torch.set_num_threads(1)
    return finetuned(paths, run)


if __name__ == "__main__":
    main()
