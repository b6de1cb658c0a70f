"""One `output`, one run: the same command again resumes, another configuration is refused.

The claim is the file ``run.json``, created by one conditional write and never changed: the run's key, the settings that
decide what is computed, and the facts that its first start pinned.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.config import config_dict, flatten
from jobs.core.errors import UserError
from jobs.core.events import bind
from jobs.core.holdings import CLAIM, command_of, with_article
from jobs.runs.fencing import generation_numbers
from jobs.runs.source_tree import source_tags
from pipeline.storage.files import StorageError, delete, join, read_json, write_if_absent

# May differ between the runs that share an output: where, by how many and how verbosely; never what is computed.
FREE_KEYS = ("output", "workers", "decode_actors", "tracking", "max_failures",
             "decode.max_cpu_seconds", "decode.max_repeated_frames", "picture_clips")  # fmt: skip
CLAIM_ENTRIES = {"run_key": str, "config": dict, "pins": dict}
ANOTHER_RUN = "holds a run with another configuration"
RESUME_OR_MOVE = "give the existing values to resume that run, or choose another output"


@dataclass(frozen=True)
class Claim:
    """What ``run.json`` holds: the run's own key, and what its first start pinned."""

    run_key: str
    resumed: bool
    """Whether the output was claimed before this start."""
    pins: Mapping[str, Any]
    """Facts that every later start takes as they are here, as the version of the data."""


def claim_output(
    output: str, config: Any, *, free_keys: Collection[str] = FREE_KEYS, pins: Mapping[str, Any] | None = None
) -> Claim:
    """Make ``output`` this run's own, or resume the run that it belongs to.

    Args:
        pins: facts to fix for every later start, as the version of the data; under `tags` those for MLflow.

    Raises:
        UserError: the output belongs to a run with another configuration, or cannot be written.
    """
    return read_claim(output, config, free_keys=free_keys) or new_claim(output, config, pins or {}, free_keys=free_keys)


def read_claim(output: str, config: Any, *, free_keys: Collection[str] = FREE_KEYS) -> Claim | None:
    """The claim of an earlier start of the same run; None before the first.

    Raises:
        UserError: the output belongs to a run with another configuration.
    """
    try:
        existing = read_json(join(output, CLAIM), CLAIM_ENTRIES)
    except StorageError as error:
        if not error.missing:
            raise
        return None
    _refuse_other_command(output, command_of(existing), _command(config))
    refuse_difference(output, existing["config"], _settings(config, free_keys))
    bind(run_key=existing["run_key"])
    return Claim(existing["run_key"], resumed=True, pins=existing["pins"])


def new_claim(output: str, config: Any, pins: Mapping[str, Any], *, free_keys: Collection[str] = FREE_KEYS) -> Claim:
    """Claim an output that had no claim when the caller looked; where another start was faster, that one's claim.

    Raises:
        UserError: the faster start has another configuration, or the output cannot be written.
    """
    # Pinned, because `jobs.sync` sends them to MLflow later, perhaps from another checkout.
    pinned = {**pins, "tags": source_tags() | pins.get("tags", {})}
    claim = {
        "command": _command(config),
        "run_key": uuid.uuid4().hex,
        "config": _settings(config, free_keys),
        "pins": pinned,
    }
    try:
        created = write_if_absent(join(output, CLAIM), json.dumps(claim, indent=2).encode())
    except StorageError as error:
        raise UserError(f"output={output}: cannot be written ({error}); give a path or URI that can be") from error
    if created:
        bind(run_key=str(claim["run_key"]))
        return Claim(str(claim["run_key"]), resumed=False, pins=pinned)
    # A conditional write decides the race: of two commands started at once one creates the claim, the other one reads
    # it. If it was released in between, the claim is free again.
    return claim_output(output, config, free_keys=free_keys, pins=pins)


def release_output(output: str, claim: Claim, generation: int = 0) -> None:
    """Delete a new claim when a mistake was found before any work began, so that the corrected command can claim."""
    # A higher generation belongs to another start of the same command, which relies on this claim by now.
    if not claim.resumed and max(generation_numbers(output), default=0) <= generation:
        delete(join(output, CLAIM))


def refuse_difference(
    output: str,
    existing: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    holds: str = ANOTHER_RUN,
    remedy: str = RESUME_OR_MOVE,
) -> None:
    """Refuse to continue in an output that was made with other settings by key.

    Raises:
        UserError: they differ; the message lists every key with both values.
    """
    differences = [
        f"{key}: existing {existing.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(existing.keys() | now.keys())
        if existing.get(key) != now.get(key)
    ]
    if differences:
        raise UserError(f"output={output}: {holds} ({'; '.join(differences)}); {remedy}")


def _refuse_other_command(output: str, existing: str, now: str) -> None:
    """Of two commands nearly every key differs, which would bury the mistake."""
    if existing and existing != now:
        raise UserError(f"output={output}: holds {with_article(existing)} run; choose another output")


def _command(config: Any) -> str:
    """The command that a configuration is of: `finetune` of `FinetuneConfig`."""
    return type(config).__name__.removesuffix("Config").removesuffix("Claim").lower()


def is_free(key: str, free_keys: Collection[str] = FREE_KEYS) -> bool:
    """Whether a dotted key, or a slice that holds it, may differ between the runs of one output."""
    return any(key == free or key.startswith(f"{free}.") for free in free_keys)


def _settings(config: Any, free_keys: Collection[str]) -> dict[str, Any]:
    """What two runs of one output have in common, as JSON has it."""
    settings = {key: value for key, value in flatten(config_dict(config)).items() if not is_free(key, free_keys)}
    return dict(json.loads(json.dumps(settings, default=str)))
