"""The demo's memory watcher: step time of pretraining in two processes with and without it, turn about.

The watcher runs in the parent, as in the demo, and reads the memory of the workers that train. With 15 s between its
looks a single step hardly ever meets one, so it is also run without a pause, which bounds what any pause can cost.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection

import torch

from hiera_video.models.presets import create_model
from jobs.demo.process_memory import SECONDS_BETWEEN_SAMPLES, process_tree_bytes, watch_memory

WORKERS = 2
WITHOUT_PAUSE = 0.001


def run(quick: bool) -> dict[str, float]:
    """Mean seconds of a step with each watcher, the ratios, and the CPU time of one look."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(WORKERS)]
    workers = [context.Process(target=_train, args=(theirs,), daemon=True) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    try:
        ours = [pipe for pipe, _ in pipes]
        _steps(ours, seconds=5, watcher=nullcontext())
        return _compare(ours, rounds=3 if quick else 8, seconds=8 if quick else 20)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _compare(workers: list[Connection], rounds: int, seconds: float) -> dict[str, float]:
    pauses = {"no watcher": None, "a look every 15 s": SECONDS_BETWEEN_SAMPLES, "looks without a pause": WITHOUT_PAUSE}
    times: dict[str, list[float]] = {name: [] for name in pauses}
    for _ in range(rounds):
        for name, pause in pauses.items():
            times[name] += _steps(workers, seconds, watch_memory(pause) if pause else nullcontext())
    means = {name: statistics.mean(found) for name, found in times.items()}
    steps = {f"step with {name}, s": mean for name, mean in means.items()}
    ratios = {f"{name} ÷ no watcher": mean / means["no watcher"] for name, mean in list(means.items())[1:]}
    return steps | ratios | {"CPU of one look, ms": _look_ms()}


def _steps(workers: list[Connection], seconds: float, watcher: AbstractContextManager[object]) -> list[float]:
    """Step times of all workers, who train for `seconds` at the same time."""
    with watcher:
        for worker in workers:
            worker.send(seconds)
        return [step for worker in workers for step in worker.recv()]


def _train(parent: Connection) -> None:
    """Train the demo's model on noise for as long as each message asks; answer with the step times."""
    torch.set_num_threads(1)
    model = create_model("mae_hiera_demo_16x96")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    clips = torch.rand(2, 3, 16, 96, 96)
    while True:
        until = time.perf_counter() + parent.recv()
        times = []
        while (started := time.perf_counter()) < until:
            optimizer.zero_grad()
            model(clips).loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
        parent.send(times)


def _look_ms() -> float:
    started = time.process_time()
    for _ in range(20):
        process_tree_bytes()
    return (time.process_time() - started) / 20 * 1e3
