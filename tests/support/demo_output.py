"""What a demo leaves behind, made up: reports, journals and pictures of its stages, without running any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.reports.plots import Panel, curve_panels

REPORT: dict[str, Any] = {
    "prepare seconds": 30.0, "prepare clips": 640, "pretrain seconds": 110.5, "pretrain final_loss": 0.3141,
    "finetune seconds": 120.0, "evaluate seconds": 40.0, "finetune from scratch seconds": 119.0,
    "evaluate from scratch seconds": 39.0, "tag seconds": 60.0, "compare seconds": 2.0, "everything under": "/demo",
    "minutes": 9.25, "labelled training clips": 160,
}  # fmt: skip
LOSSES = (2.1, 1.7, 1.2, 0.8)


def write_demo(output: Path, scratch: float | None = 0.75, pretrained: float | None = 0.5, held_out: int = 128) -> None:
    """The files of a demo whose ways reached this top-1; None: that one did not run."""
    _write_run(output / "pretrain", {"loss": 0.4, "knn_top1": 0.3})
    (output / "pretrain" / "reconstructions.png").write_bytes(_picture())
    for folder, top1 in (("finetune_scratch", scratch), ("finetune", pretrained)):
        if top1 is not None:
            _write_run(output / folder, {"loss": 1.0, "top1": top1})
            score = {"command": "evaluate", "top1": top1, "top5": 0.95, "videos_scored": held_out}
            evaluation = output / folder.replace("finetune", "evaluate")
            _write(evaluation / "report.json", json.dumps(score))
            (evaluation / "confusion.png").write_bytes(_picture())
    _write(output / "tag" / "report.html", "tags")


def _write_run(folder: Path, measured: dict[str, float]) -> None:
    lines: list[dict[str, Any]] = [{"step": step, "loss": loss} for step, loss in enumerate(LOSSES, 1)]
    for line in lines[1::2]:
        line["validation"] = {**measured, "seconds": 1.0}
    _write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    _write(folder / "report.json", json.dumps({"steps": len(LOSSES), "final_loss": LOSSES[-1]}))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _picture() -> bytes:
    return curve_panels([[Panel("made up", "x", {"a": ([1, 2], [1, 2])})]])
