"""One `output`, one run: the same command again resumes, another configuration is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.config import config_dict, flatten
from jobs.core.errors import UserError
from jobs.runs.fencing import generation_numbers
from jobs.runs.tracking import source_tags
from pipeline.storage.files import StorageError, delete, exists, join, read_bytes, write_if_absent

# May differ between the runs that share an output: where, by how many and how verbosely; never what is computed.
FREE_KEYS = ("output", "workers", "decode_actors", "tracking", "log_every_steps", "max_failures",
             "picture_clips")  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What `claim_output` found: the run's own key, and whether the output existed before."""

    run_key: str
    resumed: bool
    pins: Mapping[str, Any]
    """Facts that the first claim fixed, as the version of the data."""


def claim_output(
    output: str, config: Any, *, free_keys: Collection[str] = FREE_KEYS, pins: Mapping[str, Any] | None = None
) -> Claim:
    """Make ``output`` this run's own, or go on with the run that it belongs to.

    The claim is one conditional write of ``run.json``: of two commands started at once, one creates it and the
    other finds it.

    Args:
        free_keys: keys that may differ between the runs of one output.
        pins: facts to fix for every later run, as the version of the data; under `tags` what MLflow is told.

    Raises:
        UserError: the output belongs to a run with another configuration; the message lists the difference.
    """
    place = join(output, "run.json")
    settings = _settings(config, free_keys)
    fixed = dict(pins or {})
    fixed["tags"] = source_tags() | fixed.get("tags", {})  # for `jobs.sync`, which may run elsewhere
    claim = {"run_key": uuid.uuid4().hex, "config": settings, "pins": fixed}
    try:
        fresh = not exists(place) and write_if_absent(place, json.dumps(claim, indent=2).encode())
    except StorageError as error:
        raise UserError(f"output={output}: cannot be written ({error}); give a place that can be") from error
    if fresh:
        return Claim(str(claim["run_key"]), resumed=False, pins=fixed)
    return _earlier(output, settings)


def pins_of(output: str) -> dict[str, Any]:
    """What the run that ``output`` holds was pinned to at its first start; empty where there is none."""
    place = join(output, "run.json")
    return dict(json.loads(read_bytes(place))["pins"]) if exists(place) else {}


def earlier_claim(output: str, config: Any) -> Claim | None:
    """What a former start of the same run pinned; None before its first.

    Raises:
        UserError: as `claim_output`, of another configuration.
    """
    return _earlier(output, _settings(config, FREE_KEYS)) if exists(join(output, "run.json")) else None


def _settings(config: Any, free_keys: Collection[str]) -> dict[str, Any]:
    """What two runs of one output have in common, as JSON has it."""
    settings = {key: value for key, value in flatten(config_dict(config)).items() if not is_free(key, free_keys)}
    return dict(json.loads(json.dumps(settings, default=str)))


def _earlier(output: str, settings: Mapping[str, Any]) -> Claim:
    earlier = json.loads(read_bytes(join(output, "run.json")))
    difference = [
        f"{key}: {earlier['config'].get(key)!r} there, {settings.get(key)!r} now"
        for key in sorted(settings.keys() | earlier["config"].keys())
        if earlier["config"].get(key) != settings.get(key)
    ]
    if difference:
        raise UserError(
            f"output={output}: holds a run with another configuration ({'; '.join(difference)}); "
            "choose another output, or give the same values to go on with that run"
        )
    return Claim(earlier["run_key"], resumed=True, pins=earlier["pins"])


def release_output(output: str, claim: Claim, generation: int = 0) -> None:
    """Give a fresh claim back, when a mistake was found before anything was made.

    Not where another start of the same command has begun meanwhile: the claim is that one's by then.

    Args:
        generation: the caller's own, where it holds one.
    """
    if not claim.resumed and max(generation_numbers(output), default=0) <= generation:
        delete(join(output, "run.json"))


def is_free(key: str, free_keys: Collection[str] = FREE_KEYS) -> bool:
    """Whether a dotted key, or a slice that holds it, may differ between the runs of one output."""
    return any(key == free or key.startswith(f"{free}.") for free in free_keys)
