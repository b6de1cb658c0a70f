"""The command line of a command that starts another one: its own keys, then the job with its arguments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from jobs.core.cli import replace
from jobs.core.config import load_config
from jobs.core.errors import UserError

# By name: importing them takes seconds, which every retry on the head of a cluster would pay twice.
JOBS = ("prepare", "pretrain", "finetune", "evaluate", "tag")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A command, and the GPUs that it waits for."""

    job: tuple[str, ...] = ()
    """The command (prepare, pretrain, finetune, evaluate or tag) and its arguments, last on the command line."""
    gpus: int = 0
    """GPUs that must have joined the cluster before the command begins; it looks for them when it starts."""

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f"gpus={self.gpus}: must not be negative; use 0 for none")


JobConfigT = TypeVar("JobConfigT", bound=JobConfig)


def read_job(config_class: type[JobConfigT], command: str, words: Sequence[str]) -> JobConfigT:
    """``[key=value ...] JOB [RECIPE] [key=value ...]`` as the configuration of ``command``.

    Raises:
        UserError: no job, an unknown one, or a key of ``command`` outside its rule.
    """
    own = list(itertools.takewhile(lambda word: "=" in word, words))
    job = tuple(words[len(own) :])
    if not job or job[0] not in JOBS:
        raise UserError(
            f"{' '.join(job[:1]) or 'no job'}: must be one of {', '.join(JOBS)}; write "
            f"`python -m jobs.{command} gpus=1 pretrain demo data=... output=...`"
        )
    return replace(load_config(config_class, command, own), job=job)
