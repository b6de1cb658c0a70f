"""System metrics of every node in MLflow: one sampling actor a node, polled every few seconds by the driver."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # it loads MLflow, which the sampling actors do not need
    from jobs.runs.mlflow_sender import Run

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAMPLES = 15.0
ANSWER_SECONDS = 5.0
GIB = 2**30
GPU_QUERY = ("index", "utilization.gpu", "memory.used", "power.draw")


class NodeSampler:
    """Reads the figures of the machine that it runs on."""

    def __init__(self) -> None:
        self._bytes_before, self._at = self._network_bytes(), time.monotonic()
        psutil.cpu_percent()  # percentages count from the call before

    def sample(self) -> tuple[str, dict[str, float]]:
        """Host name, and the figures by name with their unit, since the last call."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        sent_and_received, now = self._network_bytes(), time.monotonic()
        rate = (sent_and_received - self._bytes_before) / max(now - self._at, 1e-3)
        self._bytes_before, self._at = sent_and_received, now
        figures = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gib": (memory.total - memory.available) / GIB,
            "memory_percent": memory.percent,
            "disk_free_gib": disk.free / GIB,
            "network_mib_per_second": rate / 2**20,
        }
        return socket.gethostname(), figures | _gpu_figures()

    @staticmethod
    def _network_bytes() -> int:
        counters = psutil.net_io_counters()
        return int(counters.bytes_sent + counters.bytes_recv) if counters else 0


@contextmanager
def node_metrics(run: Run, every_seconds: float = SECONDS_BETWEEN_SAMPLES) -> Iterator[None]:
    """Record ``system/HOST/...`` of every node while the context lasts; nodes may come and go."""
    ended = threading.Event()
    samplers: dict[str, Any] = {}

    def poll() -> None:
        waiting = True
        while waiting:
            try:
                run.log_sample(_sample_all(samplers), step=int(time.time()))
            except RayError as error:
                logger.info("no system metrics this time: %s", error)
            waiting = not ended.wait(every_seconds)

    poller = threading.Thread(target=poll, name="node-metrics", daemon=True)
    poller.start()
    try:
        yield
    finally:
        ended.set()
        poller.join(2 * ANSWER_SECONDS)
        for sampler in samplers.values():
            with suppress(RayError):
                ray.kill(sampler)


def _sample_all(samplers: dict[str, Any]) -> dict[str, float]:
    """The figures of all nodes that answer in time; ``samplers`` by node id is brought up to date."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for lost in samplers.keys() - alive:
        del samplers[lost]
    for new in alive - samplers.keys():
        on_node = NodeAffinitySchedulingStrategy(new, soft=False)
        samplers[new] = ray.remote(num_cpus=0)(NodeSampler).options(scheduling_strategy=on_node).remote()
    answers = [sampler.sample.remote() for sampler in samplers.values()]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
    figures: dict[str, float] = {}
    for answer in ready:
        try:
            host, sampled = ray.get(answer)
        except RayError:  # the node was lost meanwhile
            continue
        figures |= {f"system/{host}/{name}": value for name, value in sampled.items()}
    return figures


def _gpu_figures() -> dict[str, float]:
    """Load, memory and power of the machine's NVIDIA GPUs, as their driver's own tool reports them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return gpu_figures(answer.stdout)


def gpu_figures(text: str) -> dict[str, float]:
    """The figures in the tool's answer, one line a GPU; what a GPU does not report (``[N/A]``) is left out."""
    figures = {}
    for line in text.splitlines():
        index, *values = (cell.strip() for cell in line.split(","))
        for name, value in zip(("percent", "memory_mib", "watts"), values, strict=False):
            if value.replace(".", "", 1).isdigit():
                figures[f"gpu{index}_{name}"] = float(value)
    return figures
