"""A study's results as JSON, a page with tables, and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jobs.core.cli import versions
from jobs.reports.plots import png
from tests.benchmarks.__main__ import machine
from tests.studies.experiment import (
    ARMS,
    TUNED_LABELS,
    Arm,
    StudyPaths,
    candidates,
    compared_runs,
    floors,
    pretrained,
    tuned,
    write_json,
)

# Student's t at 97.5 % by degrees of freedom: intervals of few seeds.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLOURS = {"pretrained": "tab:blue", "scratch": "tab:orange"}


def write_report(paths: StudyPaths, into: Path) -> None:
    """JSON, page and picture of what is done, named after the study."""
    results = gathered(paths)
    write_json(into / f"{paths.study.name}.json", results)
    (into / f"{paths.study.name}.md").write_text(page(results))
    figures = (results["comparison"], results["floors"], TUNED_LABELS, results["pretraining"])
    (into / f"{paths.study.name}.png").write_bytes(picture(*figures))


def gathered(paths: StudyPaths) -> dict[str, Any]:
    """Everything that the page shows, and the circumstances it was measured in."""
    study = paths.study
    kept = [paths.kept_run(run) for run in compared_runs(paths)]
    return {
        "study": study.name,
        "about": study.about,
        "command": f"python -m tests.studies.few_labels FOLDER --study {study.name}",
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": dataclasses.asdict(study),
        "floors": floors(paths),
        "pretraining": pretrained(paths, study.pretraining),
        "variants": {name: pretrained(paths, setting) for name, setting in study.variants.items()},
        "tuning": {arm: _tried(paths, arm) for arm in ARMS},
        "comparison": compared([json.loads(path.read_text()) for path in kept if path.exists()]),
    }


def _tried(paths: StudyPaths, arm: Arm) -> list[dict[str, Any]]:
    best, scores = tuned(paths, arm)
    return [
        {"setting": dataclasses.asdict(setting), "tuning": score, "taken": setting == best}
        for setting, score in zip(candidates(paths.study, arm), scores, strict=True)
    ]


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], check=True, capture_output=True, text=True)
    return head + (" with changes" if changed.stdout.strip() else "")


def page(results: Mapping[str, Any]) -> str:
    """The study's page in Markdown."""
    pretraining, name = results["pretraining"], results["study"]
    machine_of = results["machine"]
    variants = [f"### {variant}\n\n{probe_table(found['probes'])}" for variant, found in results["variants"].items()]
    return "\n\n".join([
        results["about"].strip(),
        f"![Scores, losses and probes]({name}.png)",
        "## Pretrained against from scratch",
        comparison_table(results["comparison"]),
        COMPARED,
        floor_table(results["floors"]),
        "## Pretraining",
        f"{pretraining['probes'][-1]['step']:,} steps took {pretraining['seconds'] / 60:.0f} minutes of one core. "
        + PRETRAINED,
        probe_table(pretraining["probes"]),
        *(["## Other ways to pretrain", *variants] if variants else []),
        "## What was tried for fine-tuning",
        TRIED,
        candidate_table(results["tuning"]),
        "## How to run it",
        f"```shell\n{results['command']}\n```",
        f"{results['date']}, commit `{results['commit'][:12]}`{results['commit'][40:]}, {machine_of['processor']}, "
        f"{machine_of['cores']} cores; all settings and every score: [{name}.json]({name}.json).",
    ]) + "\n"  # fmt: skip


COMPARED = f"""\
Top-1 on the test clips, mean ± half of the 95 % interval over the seeds (Student's t). A seed draws the labelled
clips, their order, crops and flips, and the weights of what is new; both sides share it, and the gain is the mean of
the paired differences. Each side has the fine-tuning that was best for it at {TUNED_LABELS} labels a class, on clips
that are neither labelled nor tested. All seeds share one pretraining run."""
PRETRAINED = """\
The loss is that of held-out videos. The mean frame's loss is that of the clip's own mean over time: nothing that
stands still predicts the frames better, so a lower loss has learned motion. Probes are ridge regression, and nearest
neighbours with all labels, on frozen features of the last stage (pooled over the picture but not over time, or all its
tokens), scored on validation and test clips. The best of five ridges is shown, which flatters all rows alike."""
TRIED = """\
Top-1 on the training and validation clips without a label in the run, one seed a candidate; equally many for each
side."""


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.inf
    return float(np.mean(values)), T_95[len(values) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def compared(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number of labels: both sides in percent of the test clips, and the paired difference."""
    rows = []
    for count in sorted({run["per_class"] for run in runs}, key=lambda count: count or math.inf):
        scores = {(run["arm"], run["seed"]): 100 * run["test"] for run in runs if run["per_class"] == count}
        seeds = sorted({seed for arm, seed in scores if {("scratch", seed), ("pretrained", seed)} <= scores.keys()})
        if seeds:
            sides = {arm: [scores[arm, seed] for seed in seeds] for arm in ("scratch", "pretrained")}
            gains = [after - before for before, after in zip(sides["scratch"], sides["pretrained"], strict=True)]
            values = {**sides, "gain": gains}
            rows.append({"per_class": count, "seeds": seeds, "values": values,
                         **{name: mean_and_interval(numbers) for name, numbers in values.items()}})  # fmt: skip
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compared` in Markdown."""
    lines = ["| labels a class | from scratch | pretrained | gain | seeds |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [_shown(*row[name]) for name in ("scratch", "pretrained", "gain")]
        lines.append(f"| {row['per_class'] or 'all'} | {' | '.join(cells)} | {len(row['seeds'])} |")
    return "\n".join(lines)


def probe_table(probes: Sequence[Mapping[str, float]]) -> str:
    """Loss and probes over the steps of pretraining, in Markdown."""
    lines = [
        "| steps | loss | mean frame's | few labels, pooled | few, tokens | all, pooled | all, tokens | neighbours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("ridge_few", "ridge_few_everywhere", "ridge_all", "ridge_all_everywhere", "nearest")
    for row in probes:
        shares = " | ".join(f"{100 * row[name]:.1f}" for name in names)
        lines.append(f"| {row['step']:,} | {row['loss']:.4f} | {row['mean_frame']:.4f} | {shares} |")
    return "\n".join(lines)


def floor_table(floors: Mapping[str, Mapping[str, float]]) -> str:
    """Ridge regression on pixels, in Markdown."""
    lines = ["| ridge regression on grey pixels | few labels | all labels |", "|---|---|---|"]
    for name, row in floors.items():
        lines.append(f"| {name} | {100 * row['ridge_few']:.1f} | {100 * row['ridge_all']:.1f} |")
    return "\n".join(lines)


def candidate_table(tuning: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What was tried for each side, in Markdown."""
    lines = [
        "| | steps | rate | layer decay | mixup, cutmix | clips to tune by | taken |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, tried in tuning.items():
        for candidate in tried:
            setting = candidate["setting"]
            mix = f"{setting['mix']['mixup']:g}, {setting['mix']['cutmix']:g}" if setting["mix"]["mixup"] else "none"
            lines.append(
                f"| {arm} | {setting['steps']} | {setting['learning_rate']:g} | {setting['layer_decay']:g} | {mix} "
                f"| {100 * candidate['tuning']:.1f} | {'yes' if candidate['taken'] else ''} |"
            )
    return "\n".join(lines)


def picture(
    rows: Sequence[Mapping[str, Any]],
    floors: Mapping[str, Mapping[str, float]],
    few: int,
    pretraining: Mapping[str, Any],
) -> bytes:
    """Top-1 by labels, the loss of pretraining beside that of the mean frame, probes by steps."""

    def draw(figure: Figure) -> None:
        left, middle, right = figure.subplots(1, 3)
        _draw_scores(left, rows, floors, few)
        _draw_losses(middle, pretraining)
        probes = pretraining["probes"]
        lines = {"ridge_few": f"{few} labels a class, pooled", "ridge_few_everywhere": f"{few} a class, tokens",
                 "ridge_all_everywhere": "all labels, tokens"}  # fmt: skip
        for name, label in lines.items():
            right.plot([row["step"] for row in probes], [100 * row[name] for row in probes], marker=".", label=label)
        right.set(title="Ridge regression on frozen features, top-1 %", xlabel="steps of pretraining")
        right.legend()

    return png(15, 4, draw)


def _draw_scores(axes: Any, rows: Sequence[Mapping[str, Any]], floors: Mapping[str, Any], few: int) -> None:
    places = range(len(rows))
    for arm, colour in COLOURS.items():
        means, halves = zip(*[row[arm] for row in rows], strict=True)
        axes.errorbar(places, means, [half if math.isfinite(half) else 0.0 for half in halves],
                      capsize=4, marker="o", color=colour, label=arm)  # fmt: skip
    for name, row in floors.items():
        axes.axhline(100 * row["ridge_few"], linestyle=":", color="grey")
        axes.annotate(f"ridge, {name}, {few} a class", (0, 100 * row["ridge_few"]), fontsize=7)
    axes.set_xticks(list(places), [str(row["per_class"] or "all") for row in rows])
    axes.set(title="Test top-1 %, 95 % intervals", xlabel="labelled clips a class")
    axes.legend()


def _draw_losses(axes: Any, pretraining: Mapping[str, Any]) -> None:
    losses = np.array(pretraining["losses"])
    width = max(1, len(losses) // 100)
    smooth = losses[: len(losses) // width * width].reshape(-1, width).mean(1)
    axes.semilogy(np.arange(len(smooth)) * width + width / 2, smooth, label="loss in training")
    probes = pretraining["probes"][1:]
    axes.semilogy([row["step"] for row in probes], [row["loss"] for row in probes], marker=".", label="held-out loss")
    axes.axhline(pretraining["probes"][-1]["mean_frame"], color="grey", linestyle="--", label="mean frame, held-out")
    axes.set(title="Masked pretraining", xlabel="steps")
    axes.legend()


def _shown(mean: float, half: float) -> str:
    return f"{mean:.1f} ± {half:.1f}" if math.isfinite(half) else f"{mean:.1f}"
