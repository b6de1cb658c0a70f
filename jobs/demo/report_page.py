"""`report.html` of the demo, the page to open first: what was done, the numbers, the pictures, what to try next.

It is made of the files that the stages left, so that it can be made again, and a stage that was left out costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jobs.demo.config import DemoConfig
from jobs.demo.curves import WAYS, curves_picture
from jobs.demo.next_steps import next_steps
from jobs.demo.stages import STAGES, command_line, stage_arguments
from jobs.reports.html import duration, render

PAGE, CURVES = "report.html", "curves.png"
EVALUATIONS = {"from scratch": "evaluate_scratch", "pretrained": "evaluate"}
LABELLED = "labelled training clips"
NORMAL_95 = 1.96
Figures = Mapping[str, Any]


class DoneStage(NamedTuple):
    """A stage as the page shows it."""

    name: str
    command: str
    seconds: float | None
    """None: it was left out."""
    folder: str
    """Where its output lies; empty where it has none."""


class Picture(NamedTuple):
    """A PNG of the page, and where it lies."""

    title: str
    text: str
    path: str
    content: bytes


class Way(NamedTuple):
    """One way to a classifier: its accuracy, and how it was trained."""

    name: str
    tuning: Figures
    score: Figures

    @property
    def held_out(self) -> int:
        """Videos or images that it was scored on."""
        return int(self.score.get("videos_scored", self.score.get("images_scored", 0)))


def write_page(config: DemoConfig, output: Path, source: str, report: Figures) -> dict[str, str]:
    """Write the page and the curves below the demo's output; where both lie.

    Args:
        report: the figures of `jobs.demo.command.run`.
    """
    if curves := curves_picture(output):
        (output / CURVES).write_bytes(curves)
    stages = list(_stages(config, output, source, report))
    (output / PAGE).write_bytes(page(config, output, source, report, stages))
    return {**({"curves": str(output / CURVES)} if curves else {}), "open this first": str(output / PAGE)}


def page(config: DemoConfig, output: Path, source: str, report: Figures, stages: Sequence[DoneStage]) -> bytes:
    """The page, of what lies below the output."""
    ways = list(compared_ways(output))
    return render(
        "demo.html",
        title="From videos to tags" if config.media == "video" else "From images to tags",
        facts={"source": source, "output": str(output)},
        cards=_cards(ways, report),
        ways=[way.name for way in ways],
        comparison=comparison(ways, report),
        verdict=verdict(ways),
        pictures=list(_pictures(output)),
        stages=stages,
        numbers={key: _shown(value) for key, value in report.items() if not str(value).startswith("/")},
        next_steps=next_steps(config, output),
    )


def compared_ways(output: Path) -> Iterator[Way]:
    """The ways that were evaluated; the one from scratch first."""
    for name, folder in WAYS.items():
        score = _report(output / EVALUATIONS[name])
        if "top1" in score:
            yield Way(name, _report(output / folder), score)


def comparison(ways: list[Way], report: Figures) -> dict[str, list[str]]:
    """Rows of the table: name → a cell for each way."""
    rows = {
        "top-1 on held-out clips": [f"{way.score['top1']:.1%}" for way in ways],
        "top-5": [f"{way.score['top5']:.1%}" if "top5" in way.score else "" for way in ways],
        "held-out clips": [f"{way.held_out:,}" for way in ways],
        LABELLED: [_shown(report.get(LABELLED, "")) for _ in ways],
        "steps of fine-tuning": [_shown(way.tuning.get("steps", "")) for way in ways],
        "loss at the end": [_shown(way.tuning.get("final_loss", "")) for way in ways],
    }
    return {name: cells for name, cells in rows.items() if any(cells)}


def verdict(ways: list[Way]) -> list[str]:
    """What the comparison says, whichever way it came out; nothing where there is only one way."""
    if len(ways) < 2:
        return []
    scratch, pretrained = ways
    points, margin = difference(scratch, pretrained)
    within = " That is within what chance explains." if abs(points) <= margin else ""
    return [
        f"Pretrained minus from scratch: {points:+.1f} ± {margin:.1f} points (95 % of what other held-out clips would "
        f"give; another seed may come out otherwise).{within}",
        "The project has shown no gain from so short a pretraining of so small a model: docs/tried.md has all figures. "
        "The demo shows how to find out with your own videos.",
    ]


def difference(first: Way, second: Way) -> tuple[float, float]:
    """Points of top-1 that the second has more, and half the width of their 95 % interval.

    Both counts of right answers are taken as binomial and independent, so it is a little too wide.
    """
    shares = [float(way.score["top1"]) for way in (first, second)]
    variance = sum(
        share * (1 - share) / max(1, way.held_out) for share, way in zip(shares, (first, second), strict=True)
    )
    return 100 * (shares[1] - shares[0]), 100 * NORMAL_95 * math.sqrt(variance)


def _cards(ways: list[Way], report: Figures) -> dict[str, str]:
    return {
        **{f"top-1 {way.name}": f"{way.score['top1']:.1%}" for way in ways},
        **({LABELLED: _shown(report[LABELLED])} if LABELLED in report else {}),
        "all of it": duration(60 * float(report.get("minutes", 0))),
    }


def _pictures(output: Path) -> Iterator[Picture]:
    """Those that there are."""
    for name, title, text in (
        (CURVES, "Curves", "Loss and probe of pretraining; loss and accuracy of fine-tuning, both ways."),
        ("pretrain/reconstructions.png", "What the autoencoder sees, and what it makes of it",
         "Originals, what is left of them, reconstructions."),
        ("evaluate/confusion.png", "Confusion, pretrained", "Held-out clips: the true class, and the predicted one."),
        ("evaluate_scratch/confusion.png", "Confusion, from scratch", "The same clips."),
    ):  # fmt: skip
        if (output / name).exists():
            yield Picture(title, text, str(output / name), (output / name).read_bytes())


def _stages(config: DemoConfig, output: Path, source: str, report: Figures) -> Iterator[DoneStage]:
    for stage in STAGES:
        if stage.scratch and not config.compares:
            continue
        arguments = stage_arguments(stage, str(output), source, config.seed, config.media)
        folder = next((word.removeprefix("output=") for word in arguments if word.startswith("output=")), "")
        seconds = report.get(f"{stage.name} seconds")
        yield DoneStage(stage.name, command_line(stage.command, arguments), seconds, "" if seconds is None else folder)


def _report(folder: Path) -> Figures:
    """What a command reported; nothing where it did not run."""
    file = folder / "report.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
