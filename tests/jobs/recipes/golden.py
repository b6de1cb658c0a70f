"""`python -m tests.jobs.recipes.golden`: what every recipe resolves to, kept beside this file.

Run it only when a recipe is meant to change, and say why in the commit; the difference shows what changed in which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.core.config import config_dict, flatten, load_config, recipe_names
from jobs.sweep.plan import COMMANDS

GOLDEN = Path(__file__).with_name("golden.json")
REQUIRED = ("source=s", "data=d", "init=i", "output=o")


def resolved() -> dict[str, dict[str, dict[str, Any]]]:
    """By command and recipe: the keys that differ from the defaults, which stand under ``(defaults)``."""
    return {command: recipes_of(command) for command in COMMANDS}


def recipes_of(command: str) -> dict[str, dict[str, Any]]:
    """Of one command."""
    defaults = _flat(command, *(["steps=1"] if command in ("pretrain", "finetune") else []))
    recipes = {name: _flat(command, name) for name in recipe_names(command)}
    return {"(defaults)": defaults} | {
        name: {key: value for key, value in keys.items() if key not in defaults or defaults[key] != value}
        for name, keys in recipes.items()
    }


def _flat(command: str, *arguments: str) -> dict[str, Any]:
    known = COMMANDS[command].__dataclass_fields__
    required = [word for word in REQUIRED if word.partition("=")[0] in known]
    flat = flatten(config_dict(load_config(COMMANDS[command], command, [*arguments, *required])))
    return dict(json.loads(json.dumps(flat, default=str)))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(resolved(), indent=1, sort_keys=True) + "\n")
