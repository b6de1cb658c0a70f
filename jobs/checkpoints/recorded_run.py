"""What a run has written under its `output`, whichever command it was of: claim, configuration, journal, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.checkpoints.store import complete_steps, journal_entries, read_journal
from jobs.core.errors import UserError
from jobs.core.holdings import CLAIM
from jobs.core.yaml_text import parse_yaml
from jobs.runs.claim import CLAIM_ENTRIES
from pipeline.storage.errors import first_line
from pipeline.storage.files import StorageError, exists, join, read_bytes, read_json

JOURNAL, REPORT, CONFIG = "metrics.jsonl", "report.json", "config.yaml"


@dataclass(frozen=True)
class RecordedRun:
    """A run as its output has it."""

    run_key: str
    settings: Mapping[str, Any]
    """The part of the configuration that the claim has, by dotted key."""
    pins: Mapping[str, Any]
    """Facts of the first start; `tags` name its revision."""
    config: Mapping[str, Any]
    """The resolved configuration; empty where it was not written yet."""
    lines: Sequence[Mapping[str, Any]]
    """The journal of a training run, one entry a step."""
    report: Mapping[str, Any]
    """Empty where the run has not ended."""
    ended: bool

    @property
    def command(self) -> str:
        """The command that the run is of."""
        return str(self.report.get("command") or self.pins.get("command", "training"))

    @property
    def tags(self) -> Mapping[str, Any]:
        """Of the first start."""
        return dict(self.pins.get("tags") or {})


def read_run(output: str) -> RecordedRun:
    """Everything that a run's output says about it.

    Raises:
        UserError: ``output`` holds no run, or its configuration is damaged.
    """
    claim, report = read_claim_of_any(output), read_report(output)
    return RecordedRun(
        run_key=claim["run_key"],
        settings=claim["config"],
        pins=claim["pins"],
        config=read_config(output),
        lines=journal_entries(read_journal_text(output)),
        report=report,
        ended=bool(report) or exists(join(output, JOURNAL)),
    )


def read_claim_of_any(output: str) -> dict[str, Any]:
    """The claim of a run of any command and configuration.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return read_json(join(output, CLAIM), CLAIM_ENTRIES)
    except StorageError as error:
        raise UserError(f"output={output}: {error}; give the output of a run") from error


def read_journal_text(output: str) -> str:
    """The journal's lines: of a run that ended the whole, else those of the newest checkpoint."""
    if exists(join(output, JOURNAL)):
        return read_bytes(join(output, JOURNAL)).decode(errors="replace")
    steps = complete_steps(output)
    return read_journal(output, steps[-1]) if steps else ""


def read_report(output: str) -> dict[str, Any]:
    """The report of a run that has ended; empty of one that has not."""
    path = join(output, REPORT)
    return read_json(path) if exists(path) else {}


def read_config(output: str) -> dict[str, Any]:
    """The run's resolved configuration; empty where it was not written yet.

    Raises:
        UserError: it is damaged.
    """
    path = join(output, CONFIG)
    try:
        config = parse_yaml(read_bytes(path)) if exists(path) else {}
        if not isinstance(config, dict) or not isinstance(config.get("tracking", {}), dict):
            raise yaml.YAMLError("must be a configuration")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"output={output}: its config.yaml is damaged ({first_line(error)}); restore it") from error
    return config
