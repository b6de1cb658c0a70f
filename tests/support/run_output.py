"""The output of a training run as `sync` finds it, written without training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.core.config import config_yaml
from jobs.runs.claim import claim_output
from jobs.runs.tracking_config import TrackingConfig


@dataclass(frozen=True)
class SmallConfig:
    """A configuration with all that tracking looks at."""

    data: str
    """A prepared set."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where the run is recorded."""


def journal_lines(steps: int) -> list[dict[str, Any]]:
    """Lines of a journal, one a step."""
    return [
        {
            "step": step,
            "epoch": 0,
            "position": 4 * step,
            "loss": 1.0 / step,
            "learning_rate": 0.1,
            "clips_per_second": 8.0,
            "data_wait_seconds": 0.0,
            "unix_seconds": time.time(),
            **({"validation": {"loss": 2.0 / step, "knn_top1": 0.5}} if step % 10 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]


def write_output(output: Path, tracking_uri: str, lines: Sequence[dict[str, Any]]) -> str:
    """Claim ``output`` and write what a finished training run leaves there; returns its run key."""
    config = SmallConfig("/data/set", TrackingConfig(tracking_uri))
    tags = {
        "mlflow.source.git.commit": "0" * 40,
        "data": "/data/set",
        "data_digest": "0123456789abcdef",
        "data_version": "3",
    }
    pins = {"data_version": 3, "command": "pretrain", "tags": tags}
    claim = claim_output(str(output), config, pins=pins)
    (output / "config.yaml").write_text(config_yaml(config))
    (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = {"command": "pretrain", "final_loss": lines[-1]["loss"]}
    (output / "report.json").write_text(json.dumps(report))
    (output / "curves.png").write_bytes(b"\x89PNG a picture")
    return claim.run_key
