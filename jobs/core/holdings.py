"""What a path holds, for messages about a path that a command cannot use, and which names are no paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.storage.files import exists, join, local_path, read_bytes
from pipeline.storage.records import parse_json

CLAIM = "run.json"
PREPARED_SET = "dataset.json"
REGISTRY = "models:/"


def is_registered(init: str) -> bool:
    """Whether ``init`` names a model of the MLflow registry."""
    return init.startswith(REGISTRY)


def command_of(claim: Mapping[str, Any]) -> str:
    """The command that wrote a claim; empty where the claim does not name it."""
    return str(claim.get("command") or claim.get("pins", {}).get("command") or "")


def with_article(name: str) -> str:
    """`a finetune`, `an evaluate`."""
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def holding(path: str) -> str:
    """As the end of a sentence that the path begins: `holds a tag run`, `does not exist`, `is a file`.

    Raises:
        StorageError: it cannot be reached or is not permitted.
    """
    if exists(join(path, PREPARED_SET)):
        return "holds a prepared set"
    if exists(join(path, CLAIM)):
        command = _command_at(path)
        return f"holds {with_article(command)} run" if command else "holds a run"
    if not exists(path):
        return "does not exist"
    local = local_path(path)
    return "is a file" if local and local.is_file() else "holds neither a run nor a prepared set"


def _command_at(path: str) -> str:
    """Empty for a damaged claim: this only words a message about another mistake."""
    try:
        claim = parse_json(read_bytes(join(path, CLAIM)))
    except ValueError:
        return ""
    return command_of(claim) if isinstance(claim, dict) and isinstance(claim.get("pins", {}), dict) else ""
