"""Loss and probe of pretraining, loss and accuracy of both ways of fine-tuning: one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.reports.plots import Panel, curve_panels

JOURNAL = "metrics.jsonl"
WAYS = {"from scratch": "finetune_scratch", "pretrained": "finetune"}
"""Name of a way → the folder of its fine-tuning."""

Points = tuple[list[int], list[float]]
Line = Mapping[str, Any]


def curves_picture(output: Path) -> bytes | None:
    """A PNG of what the journals below the demo's output hold; None where there are none.

    Args:
        output: the demo's output; its folders are those of `jobs.demo.stages`.
    """
    pretraining = _journal(output / "pretrain")
    tuning = {way: lines for way, folder in WAYS.items() if (lines := _journal(output / folder))}
    panels = [
        _panel(
            "pretraining: loss", {"training": _points(pretraining, "loss"), "held out": _measured(pretraining, "loss")}
        ),
        _panel("pretraining: nearest-neighbour probe, top-1", {"probe": _measured(pretraining, "knn_top1")}),
        _panel("fine-tuning: loss", {way: _points(lines, "loss") for way, lines in tuning.items()}),
        _panel(
            "fine-tuning: top-1 on held-out clips", {way: _measured(lines, "top1") for way, lines in tuning.items()}
        ),
    ]
    drawn = [panel for panel in panels if panel.lines]
    whole = [drawn[:2], drawn[2:]] if len(drawn) == len(panels) else [drawn]
    return curve_panels(whole) if drawn else None


def _journal(folder: Path) -> list[Line]:
    """The lines of a run; none where it has not ended."""
    file = folder / JOURNAL
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _points(lines: Sequence[Line], key: str) -> Points:
    return [line["step"] for line in lines], [line[key] for line in lines]


def _measured(lines: Sequence[Line], key: str) -> Points:
    """A figure of validation, at the steps that have it."""
    measured = [line for line in lines if key in line.get("validation", {})]
    return [line["step"] for line in measured], [line["validation"][key] for line in measured]


def _panel(title: str, lines: Mapping[str, Points]) -> Panel:
    return Panel(title, "step", {name: points for name, points in lines.items() if points[0]})
