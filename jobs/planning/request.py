"""What was asked: a command with its keys, and what it would run on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hiera_video.rules import Checked, Rules
from jobs.core.cli import replace
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.planning.cluster import HostConfig

ConfigT = TypeVar("ConfigT")

# The command's paths that need not be given, since nothing is read or written there.
PATHS = {
    "prepare": ("source", "output"),
    "pretrain": ("data", "output"),
    "finetune": ("data", "init", "output"),
    "evaluate": ("data", "init", "output"),
    "tag": ("source", "init", "output"),
}
TRAINING = ("pretrain", "finetune")
USAGE = "COMMAND [RECIPE] gpus=N gpu=NAME [key=value ...]"
OWN_KEYS = ("gpus", "gpu", "clips", "clip_seconds", "measured", "prices", "json")


@dataclass(frozen=True, kw_only=True)
class PlanRequest(Checked):
    """Which command, how much of it, and on what."""

    job: str
    """The command, first on the command line: prepare, pretrain, finetune, evaluate or tag."""
    recipe: str | None = None
    """Its recipe, second on the command line."""
    keys: dict[str, Any] = field(default_factory=dict)
    """All other keys: the command's own, as `epochs=800`. Paths may be left out; the clips of `data=` are counted."""
    gpus: int = 8
    """GPUs, one for each training worker or scoring actor; with `gpu=cpu` cores."""
    gpu: str = "h100"
    """h100, h200, b200, a100, a100-40gb, l40s, l4, a10g, v100, t4; or cpu: one core."""
    clips: int | None = None
    """Clips, videos or images. Default: those of `data`, else a million."""
    clip_seconds: float = 10.0
    """Length of each."""
    measured: str | None = None
    """Where unit costs are from: `build/bench.json` of `make bench`, or the output of a training run. Default: what the
    project has measured; the rest is assumed."""
    prices: str | None = None
    """YAML file: `currency`, `gpu_hour` (one, or one for each name of a GPU), `core_hour`, `gib_month`."""
    json: bool = False
    """Print JSON instead of a table."""
    host: HostConfig = field(default_factory=HostConfig)
    """The hosts that hold the GPUs, and what all of them share."""

    def rules(self) -> Rules:
        yield "job", self.job in PATHS, f"must be one of {', '.join(PATHS)}; give it as the first argument"
        for key in ("gpus", "clip_seconds"):
            yield key, getattr(self, key) > 0, "must be positive; give a larger number"
        yield "clips", self.clips is None or self.clips > 0, "must be positive; leave it out for those of data"

    @property
    def arguments(self) -> list[str]:
        """The command's own, as on its command line."""
        paths = dict.fromkeys(PATHS[self.job], "planned")
        workers = {"workers": self.gpus} if self.job in TRAINING else {}
        recipe = [self.recipe] if self.recipe else []
        return [*recipe, *(f"{key}={value}" for key, value in {**paths, **self.keys, **workers}.items())]


def job_config(request: PlanRequest, config_class: type[ConfigT]) -> ConfigT:
    """The command's configuration; training has a worker on every GPU.

    Raises:
        UserError: as the command itself would; of so many workers as a rule of `gpus`.
    """
    try:
        return load_config(config_class, request.job, request.arguments)
    except UserError as error:
        workers = f"workers={request.gpus}: "
        if not str(error).startswith(workers):
            raise
        raise UserError(f"gpus={request.gpus}: {str(error).removeprefix(workers)}, or another batch") from error


def read_arguments(words: Sequence[str]) -> PlanRequest:
    """``COMMAND [RECIPE] key=value ...`` as a request.

    Raises:
        UserError: no command, an unknown one, a word after the recipe that is no ``key=value``, a value against a rule.
    """
    named = list(itertools.takewhile(lambda word: "=" not in word, words))
    rest = words[len(named) :]
    if not 1 <= len(named) <= 2 or not all("=" in word for word in rest):
        raise UserError(
            f"{' '.join(words) or 'no arguments'}: must be {USAGE}, COMMAND being one of {', '.join(PATHS)}; write "
            "`python -m jobs.plan pretrain k400_large gpus=64 gpu=h100`"
        )
    pairs = [word.partition("=")[::2] for word in rest]
    own = [f"{key}={value}" for key, value in pairs if key in OWN_KEYS or key.startswith("host.")]
    recipe = [f"recipe={named[1]}"] if len(named) == 2 else []
    request = load_config(PlanRequest, "plan", [f"job={named[0]}", *recipe, *own])
    keys = {key: value for key, value in pairs if key not in OWN_KEYS and not key.startswith("host.")}
    if request.job in TRAINING and "workers" in keys:
        raise UserError(f"workers={keys['workers']}: is what gpus says; use gpus={keys['workers']}")
    return replace(request, keys=keys)
