"""The tables of docs/planning.md, and its picture: `python -m tests.support.planning_page` writes both."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from jobs.plan import CONFIGURATIONS, collection_of, plan_of
from jobs.planning.cluster import Cluster, HostConfig, find_gpu
from jobs.planning.figures import Figure
from jobs.planning.request import job_config, read_arguments
from jobs.planning.simulation import share_that_counts, simulated_step
from jobs.planning.training import TrainingPlan
from jobs.planning.unit_costs import UnitCost, UnitCosts
from jobs.reports.plots import png

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE, PICTURE = REPOSITORY / "docs" / "planning.md", REPOSITORY / "docs" / "planning.png"
SIZES = (1, 8, 64, 256, 1024)
RECIPE = "pretrain k400_large gpu=h100 clips=240258"
BATCH = 2048  # views of a step
FAST_STREAMS = replace(UnitCosts(), micro_batches_a_second=UnitCost(1e4))
MANY_REQUESTS = 1e5
# What is in the way is taken away, one after the other: unit costs, and requests a second of the storage.
STAGES: dict[str, tuple[UnitCosts, float]] = {
    "as it is": (UnitCosts(), HostConfig.storage_requests),
    "streams no limit": (FAST_STREAMS, HostConfig.storage_requests),
    "and many prefixes": (FAST_STREAMS, MANY_REQUESTS),
}
BILLION = "clips=1000000000"
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


@functools.cache
def plan(line: str) -> Any:
    """The plan of a command line."""
    request = read_arguments(line.split())
    config: Any = job_config(request, CONFIGURATIONS[request.job])
    cluster = Cluster(request.gpus, find_gpu(request.gpu), request.host)
    return plan_of(request.job, config, collection_of(request, config, UnitCosts()), cluster, UnitCosts())


@functools.cache
def config_of(gpus: int, micro_batch: int) -> Any:
    """The page's training run on so many GPUs."""
    return replace(plan(f"{RECIPE} gpus=8").work.config, workers=gpus, micro_batch=micro_batch)


def at(gpus: int, costs: UnitCosts, requests: float, micro_batch: int = 8) -> TrainingPlan:
    """Its plan; above 256 GPUs the recipe's micro-batches of 8 views are too few."""
    planned: TrainingPlan = plan(f"{RECIPE} gpus=8")
    host = replace(planned.cluster.host, storage_requests=requests)
    work = replace(planned.work, config=config_of(gpus, min(micro_batch, BATCH // gpus)))
    return TrainingPlan(work, Cluster(gpus, planned.cluster.gpu, host), planned.collection, costs)


def scaling() -> Iterator[Sequence[object]]:
    """From 1 to 1,024 GPUs: what saturates first, and what comes next."""
    yield "GPUs", "`micro_batch`", *(f"{name}: views/s, limit" for name in STAGES), "days at best"
    for gpus in SIZES:
        plans = [at(gpus, *stage) for stage in STAGES.values()]
        rates = [f"{BATCH / planned.step.seconds:,.0f}, {planned.step.limit}" for planned in plans]
        yield f"{gpus:,}", plans[0].work.config.micro_batch, *rates, f"{plans[-1].hours / 24:.3g}"


def needs() -> Iterator[Sequence[object]]:
    """What the fastest of them asks of hosts, storage and network."""
    names = {
        "cores that decode": "cores that decode",
        "cores there are for it": "there are",
        "read from storage": "MB/s",
        "requests to storage": "requests/s",
        "network, waited for in a step": "network, s a step",
        "seconds a step": "s a step",
    }
    yield "GPUs", *names.values()
    for gpus in SIZES:
        values = {line.name: line.shown for line in at(gpus, FAST_STREAMS, MANY_REQUESTS).figures()}
        yield f"{gpus:,}", *(values[name] for name in names)


def wanted_streams() -> Iterator[Sequence[object]]:
    """What a host of 8 H100 wants of its stream, by micro-batch, where nothing but the GPUs limits."""
    yield "`micro_batch`", "micro-batches/s that 8 GPUs take", "most workers", "memory of a worker, GiB"
    for size in (8, 16, 32, 64):
        planned = at(8, FAST_STREAMS, MANY_REQUESTS, size)
        memory = next(line.shown for line in planned.figures() if "(chosen)" in line.name)
        yield size, f"{BATCH / planned.step.seconds / size:,.0f}", BATCH // size, memory


def lost_hosts() -> Iterator[Sequence[object]]:
    """A host lost every hour, on average; streams that are no limit."""
    yield ("GPUs", "hosts", "simulated views/s", "share of the slowest part", "a step and writing a checkpoint, s",
           "reading it, s", "counts, elastic", "counts, waiting for a new host",
           "counts, announced and saved")  # fmt: skip
    for gpus in SIZES:
        planned = at(gpus, FAST_STREAMS, MANY_REQUESTS)
        hosts, step = planned.cluster.hosts, planned.step
        simulated, recovery = simulated_step(step, hosts), planned.recovery
        shares = [recovery, replace(recovery, speed_without=0.0), replace(recovery, announced=True)]
        yield (f"{gpus:,}", hosts, f"{BATCH / simulated:,.0f}",
               f"{step.seconds / simulated:.2f}", shown(planned.checkpoint_seconds + step.seconds),
               shown(planned.read_seconds),
               *(f"{share_that_counts(share):.2f}" for share in shares))  # fmt: skip


def billion() -> Iterator[Sequence[object]]:
    """A billion clips of 10 s."""
    yield "command", "on", "days", "GPU-hours", "core-hours", "saturates first", "MB/s", "requests/s", "kept, TiB"
    for line in (
        f"prepare gpu=cpu gpus=1024 host.gpus=192 host.cores=192 {BILLION}",
        f"pretrain k400_large epochs=4 gpu=h100 gpus=64 {BILLION}",
        f"pretrain k400_large epochs=4 gpu=h100 gpus=1024 micro_batch=2 {BILLION}",
        f"tag gpu=l4 gpus=64 host.gpus=8 precision=bf16 {BILLION}",
        f"tag gpu=l4 gpus=1024 host.gpus=8 precision=bf16 {BILLION}",
    ):
        planned = plan(line)
        values = {figure.name: figure for figure in planned.figures()}
        kept = sum(float(found.value) for name, found in values.items() if name.startswith("bytes kept"))
        cores = f"{planned.cluster.cores:,} cores"
        on = cores if line.startswith("prepare") else f"{planned.cluster.gpus:,} {planned.cluster.gpu.name}"
        yield (f"`{line.split()[0]}`", on, f"{planned.hours / 24:.3g}", values["GPU-hours"].shown,
               values["core-hours"].shown, values["what saturates first"].value, values["read from storage"].shown,
               values["requests to storage"].shown, f"{kept / 1024:.3g}")  # fmt: skip


def index() -> Iterator[Sequence[object]]:
    """What a host holds for the index of a billion clips."""
    yield "clips", "index, mapped, GiB", "while an epoch is drawn, GiB", "record of the set, GiB"
    for clips in (10**6, 10**8, 10**9):
        planned = at(64, *STAGES["as it is"])
        planned = replace(planned, collection=replace(planned.collection, clips=clips))
        yield f"{clips:,}", *(line.shown for line in planned.figures() if "index" in line.name or "record" in line.name)


TABLES: dict[str, Callable[[], Iterator[Sequence[object]]]] = {
    "scaling": scaling,
    "needs": needs,
    "wanted": wanted_streams,
    "lost": lost_hosts,
    "billion": billion,
    "index": index,
}


def shown(value: float) -> str:
    """As a plan has it."""
    return Figure("", value).shown


def table(name: str) -> str:
    """A table of the page in Markdown."""
    head, *rows = TABLES[name]()
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def page() -> str:
    """The page with its tables as they are now."""
    return MARKED.sub(lambda found: found[1] + "\n" + table(found["name"]) + "\n", PAGE.read_text())


def picture() -> bytes:
    """Throughput from 1 to 1,024 GPUs, and the share of the time that counts with a host lost every hour."""
    sizes = [2**power for power in range(11)]
    plans = {name: [at(gpus, *stage) for gpus in sizes] for name, stage in STAGES.items()}
    variants: dict[str, dict[str, Any]] = {
        "elastic": {}, "waits for a new host": {"speed_without": 0.0}, "announced, saved before": {"announced": True}
    }  # fmt: skip

    def draw(drawing: Drawing) -> None:
        left, right = drawing.subplots(1, 2)
        left.plot(sizes, [gpus * BATCH / plans["streams no limit"][0].step.seconds for gpus in sizes], "k--",
                  label="linear")  # fmt: skip
        for name, of_name in plans.items():
            rates = [BATCH / simulated_step(planned.step, planned.cluster.hosts) for planned in of_name]
            left.plot(sizes, rates, "o-", label=name)
        for name, changes in variants.items():
            recoveries = [replace(planned.recovery, **changes) for planned in plans["and many prefixes"]]
            right.plot(sizes, [share_that_counts(recovery) for recovery in recoveries], "o-", label=name)
        left.set(yscale="log", ylabel="views/s", title="k400_large on H100, simulated")
        right.set(ylim=(0, 1), title="share that counts, a host lost every hour")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="GPUs")
            axes.set_xticks(sizes[::2], [f"{size:,}" for size in sizes[::2]])
            axes.minorticks_off()
            axes.legend(loc="lower right")
        left.yaxis.set_major_formatter("{x:,.0f}")

    return png(9.5, 3.8, draw)


if __name__ == "__main__":
    PAGE.write_text(page())
    PICTURE.write_bytes(picture())
