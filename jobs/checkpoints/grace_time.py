"""Whether a checkpoint can be written between the announcement of a host's end and the end itself."""

from __future__ import annotations

import hashlib
import logging
import os
import time

import safetensors.torch
import torch

from pipeline.storage.files import delete, join, write_bytes

logger = logging.getLogger(__name__)

GRACE_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DEFAULT_SECONDS = 30.0  # what Ray leaves a host at SIGTERM, and some clouds their spot instances
TRIAL = "trial"  # one name for all generations: what a worker that died has left is deleted by the next
TRIAL_BYTES = 2**26  # enough for the speed of a connection, and written within seconds
SMALL_BYTES = 2**24  # fits everywhere


class GraceTime:
    """Warns once, as soon as it is known that a checkpoint takes longer than a host is left."""

    def __init__(self) -> None:
        self.seconds = float(os.environ.get(GRACE_VARIABLE, DEFAULT_SECONDS))
        self._warned = False

    def expect(self, output: str, size: int) -> None:
        """Estimate how long a checkpoint of ``size`` bytes will take, by a file that is written and deleted again."""
        if size < SMALL_BYTES:
            return
        trial = min(size, TRIAL_BYTES)
        seconds = _seconds_of_trial(join(output, "checkpoints", TRIAL), trial) * size / trial
        gib, rate = size / 2**30, size / seconds / 1e6
        self.report(seconds, f"will take about {seconds:.0f} s to write ({gib:.2f} GiB at {rate:.0f} MB/s)")

    def report(self, seconds: float, fact: str) -> None:
        """Warn when so many seconds are too long."""
        if seconds > self.seconds and not self._warned:
            self._warned = True
            logger.warning(
                "a checkpoint %s, more than the %.0f s that Ray leaves a host at SIGTERM: an announced pre-emption may "
                "cost the steps since the checkpoint before, like a crash; lower checkpoint.every_steps, or raise "
                "%s where `ray start` runs",
                fact,
                self.seconds,
                GRACE_VARIABLE,
            )


def _seconds_of_trial(uri: str, size: int) -> float:
    """Serialised, digested and written as the files of a checkpoint are; random, since storage may compress."""
    tensor = torch.rand(size // 4, generator=torch.Generator().manual_seed(0))
    began = time.monotonic()
    content = safetensors.torch.save({"trial": tensor})
    hashlib.sha256(content)
    write_bytes(uri, content)
    seconds = time.monotonic() - began
    delete(uri)
    return seconds
