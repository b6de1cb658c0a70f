"""The processes of a sweep: side by side, their output passed on, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from jobs.core.cli import print_line
from jobs.core.errors import StopRequestedError
from jobs.core.events import is_json, relay
from jobs.core.ray_cluster import LOCAL_CPUS, connect
from jobs.core.signals import stopping_on_sigterm
from jobs.core.text import shown
from jobs.sweep.plan import Child
from jobs.training.config import TrainConfig
from pipeline.datasets.train import stream_cpus
from pipeline.storage.files import exists, join

# By exit code. A child that is still starting has no handler yet: SIGTERM kills it.
STATES = {0: "done", 2: "refused", 3: "stopped", -signal.SIGTERM: "stopped"}
FINISHED = ("done", "done before")


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    state: str
    """`done`, `done before`, `refused` (its arguments), `stopped`, `failed`, `not started`."""
    last_line: str = ""
    """The last line that it printed."""


@dataclass
class Children:
    """The processes of a sweep, which are asked to stop together."""

    command: str
    environment: Mapping[str, str]
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: list[subprocess.Popen[str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run_all(self, children: Sequence[Child], parallel: int) -> list[Outcome]:
        """Run all children, at most ``parallel`` at a time; on SIGTERM ask all to stop, and wait for them."""
        with ThreadPoolExecutor(min(parallel, len(children))) as pool:
            pending = [pool.submit(self.run, child) for child in children]
            try:
                with stopping_on_sigterm("children save their work; run the same command to resume"):
                    while not all(future.done() for future in pending):
                        time.sleep(0.1)
            except (StopRequestedError, KeyboardInterrupt):
                self.stop()
        return [future.result() for future in pending]

    def run(self, child: Child) -> Outcome:
        """Run one child to its end, passing its output on."""
        if exists(join(child.config.output, "report.json")):
            return Outcome("done before")
        process = self._start(child.arguments)
        if process is None:
            return Outcome("not started")
        last_line = ""
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                last_line = passed_on(child.name, line.rstrip()) or last_line  # an event may have no message
        code = process.wait()
        if code < 0:  # killed, so its last line is not the reason
            last_line = f"by {signal.Signals(-code).name}"
        return Outcome(STATES.get(code, "failed"), last_line)

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[str] | None:
        with self._lock:  # `stop` sees every process, or none starts after it
            if self.stopping.is_set():
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{self.command}", *arguments],
                env=dict(self.environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.append(process)
            return process

    def stop(self) -> None:
        """Start no more, and ask the running ones to save and stop."""
        with self._lock:
            self.stopping.set()
            for process in self._running:
                process.terminate()  # does nothing to one that has ended


def passed_on(child: str, line: str) -> str:
    """Print a child's line; what the line says."""
    if is_json():
        return relay(line, {"child": child})
    print_line((shown(child), "dim"), " ", shown(line))
    return line


def parallel_runs(config: Any) -> int:
    """How many such runs this machine, or the cluster, has CPUs and GPUs for. Scoring uses all there are."""
    if not isinstance(config, TrainConfig):
        return 1
    offered = _resources()
    workers, beside = config.worker_numbers[-1], stream_cpus(config.decoders)
    if offered.get("GPU", 0):
        return max(1, int(min(offered["GPU"] // workers, offered["CPU"] // beside)))
    return max(1, int(offered["CPU"] // (workers + beside)))


def _resources() -> Mapping[str, float]:
    if "RAY_ADDRESS" not in os.environ:
        return {"CPU": LOCAL_CPUS, "GPU": torch.cuda.device_count()}
    connect()
    offered: Mapping[str, float] = ray.cluster_resources()
    ray.shutdown()
    return offered
