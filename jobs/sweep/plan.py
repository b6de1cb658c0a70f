"""From `JOB [RECIPE] key=[a,b,c] ...` to one command per combination of values. Starts nothing."""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import yaml

from jobs import evaluate, finetune, pretrain, tag
from jobs.core.cli import Command, replace
from jobs.core.config import field_type, load_config
from jobs.core.errors import UserError
from jobs.prepare import command as prepare
from pipeline.storage.files import absolute, join

_SWEPT: Sequence[Command[Any]] = (prepare.main, pretrain.main, finetune.main, evaluate.main, tag.main)
COMMANDS: Mapping[str, type] = {command.name: command.config_class for command in _SWEPT}
USAGE = "JOB [RECIPE] key=[a,b,c] ... output=URI"
OWN_KEYS = ("output", "parallel")
LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A command and the values to try."""

    job: str
    """The command, first on the command line: prepare, pretrain, finetune, evaluate or tag."""
    recipe: str | None = None
    """Its recipe, second on the command line."""
    keys: dict[str, Any] = field(default_factory=dict)
    """All other keys: the command's own. `key=[a,b,c]` tries each value, several such keys every combination; a key
    that takes a list itself tries the lists in a list: `view.crop_scale=[[0.5,1],[0.8,1]]`."""
    output: str
    """Folder of the sweep: a folder per child, and `children.csv` with their outcomes."""
    parallel: int | None = None
    """Children that run at the same time. Default: as many as this machine, or the cluster, has CPUs and GPUs for."""

    def __post_init__(self) -> None:
        if self.job not in COMMANDS:
            raise ValueError(f"job={self.job}: must be one of {', '.join(COMMANDS)}; give it as the first argument")
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"parallel={self.parallel}: must be at least 1; leave it out for as many as fit")


@dataclass(frozen=True)
class Child:
    """One run of the command."""

    name: str
    """Its folder under the sweep's output."""
    values: Mapping[str, str]
    """Its own values of the keys that the sweep varies."""
    arguments: tuple[str, ...]
    """As on the command line."""
    config: Any
    """The configuration that they give."""


def read_arguments(words: Sequence[str]) -> SweepConfig:
    """``JOB [RECIPE] key=value ...`` as a configuration.

    Raises:
        UserError: no command, an unknown one, or a word after the recipe that is no ``key=value``.
    """
    named = list(itertools.takewhile(lambda word: "=" not in word, words))
    pairs = [word.partition("=")[::2] for word in words[len(named) :]]
    if not 1 <= len(named) <= 2 or not all("=" in word for word in words[len(named) :]):
        raise UserError(
            f"{' '.join(words) or 'no arguments'}: must be {USAGE}, JOB being one of {', '.join(COMMANDS)}; write "
            "`python -m jobs.sweep pretrain demo seed=[0,1] data=... output=...`"
        )
    recipe = [f"recipe={named[1]}"] if len(named) == 2 else []
    own = [f"{key}={value}" for key, value in pairs if key in OWN_KEYS]
    config = load_config(SweepConfig, "sweep", [f"job={named[0]}", *recipe, *own])
    return replace(config, keys={key: value for key, value in pairs if key not in OWN_KEYS})


def plan_children(config: SweepConfig) -> list[Child]:
    """Every combination of the listed values, the last key varying fastest; each checked as its command would.

    Raises:
        UserError: nothing is listed, a list holds nothing or the same twice, or the command refuses a combination.
    """
    listed = {key: values for key, raw in config.keys.items() if (values := _listed(config.job, key, raw)) is not None}
    for key, values in listed.items():
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}={config.keys[key]}: must list different values; write {key}=[a,b]")
    if not listed:
        raise UserError(
            f"keys={list(config.keys)}: at least one must list values; write key=[a,b], or run `python -m "
            f"jobs.{config.job}`"
        )
    combinations = itertools.product(*listed.values())
    return [_child(config, dict(zip(listed, values, strict=True))) for values in combinations]


def _listed(job: str, key: str, raw: str) -> list[str] | None:
    """The texts between the brackets, unchanged; None for a value that is not a list of values to try."""
    if not raw.startswith("["):
        return None
    try:
        node = yaml.compose(raw, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={raw}: is not valid YAML; quote the values") from error
    if not isinstance(node, yaml.SequenceNode):
        return None
    takes_a_list = typing.get_origin(field_type(COMMANDS[job], key)) in (tuple, list)
    if takes_a_list and not all(isinstance(item, yaml.SequenceNode) for item in node.value):
        return None
    return [
        item.value if isinstance(item, yaml.ScalarNode) else raw[item.start_mark.index : item.end_mark.index]
        for item in node.value
    ]


def _child(config: SweepConfig, values: Mapping[str, str]) -> Child:
    name = folder_name(values)
    output = f"output={join(absolute(config.output), name)}"
    keys = [f"{key}={raw}" for key, raw in {**config.keys, **values}.items()]
    arguments = (*([config.recipe] if config.recipe else []), *keys, output)
    try:
        return Child(name, values, arguments, load_config(COMMANDS[config.job], config.job, arguments))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def folder_name(values: Mapping[str, str]) -> str:
    """Readable where the values allow it; with a digest where they had to be changed or cut."""
    exact = ",".join(f"{key}={value}" for key, value in values.items())
    plain = re.sub(r"[^\w.,=+-]", "_", exact)[:LONGEST_NAME]
    return plain if plain == exact else f"{plain}-{blake2b(exact.encode(), digest_size=4).hexdigest()}"
