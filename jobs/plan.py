"""What a command would take on so many GPUs: hours, cores, rates, memory, checkpoints, bytes, money. Nothing is run.

Usage: ``python -m jobs.plan COMMAND [RECIPE] gpus=64 gpu=h100 [clips=N] [measured=FILE] [prices=FILE] [key=value ...]``
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from jobs.core.cli import Command, print_tables, replace, write
from jobs.core.errors import UserError
from jobs.core.events import is_json
from jobs.planning.cluster import Cluster, find_gpu
from jobs.planning.commands import Plan, plan_of_evaluation, plan_of_tagging, plan_of_training
from jobs.planning.figures import Figure, as_json, as_table
from jobs.planning.measured import measured_costs
from jobs.planning.preparing import PreparingPlan
from jobs.planning.prices import read_prices
from jobs.planning.request import TRAINING, USAGE, PlanRequest, job_config, read_arguments
from jobs.planning.unit_costs import ASSUMED, Collection, UnitCosts
from jobs.prepare.config import PrepareConfig
from jobs.scoring.config import EvaluateConfig
from jobs.tagging.config import TagConfig
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import absolute

DESCRIPTION = "Plan a command: what it takes on so many GPUs, each figure measured (where, when) or assumed."
CONFIGURATIONS: Mapping[str, type] = {
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "tag": TagConfig,
}
ASSUMED_CLIPS = 1_000_000


def run(request: PlanRequest) -> dict[str, Any]:
    """Print the plan.

    Raises:
        UserError: an unknown GPU or recipe, keys that the command refuses, prices or measurements that are none.
    """
    plan, figures = planned(request)
    title = f"{request.job} {request.recipe or ''} on {request.gpus} {request.gpu}".replace("  ", " ")
    if request.json and not is_json():
        write(as_json(title, figures))
        sys.exit(0)
    print_tables(as_table(title, figures))
    return {"plan": title, "hours": plan.hours}


def planned(request: PlanRequest) -> tuple[Plan, list[Figure]]:
    """The plan of a command, and all of its lines; the money last."""
    gpu = find_gpu(request.gpu)
    prices = read_prices(request.prices, gpu.name) if request.prices else None
    costs = measured_costs(request.measured, gpu, UnitCosts()) if request.measured else UnitCosts()
    config: Any = job_config(request, CONFIGURATIONS[request.job])
    collection = collection_of(request, config, costs)
    plan = plan_of(request.job, config, collection, Cluster(request.gpus, gpu, request.host), costs)
    figures = list(plan.figures())
    return plan, [*figures, *(prices.bill(figures) if prices else [])]


def plan_of(job: str, config: Any, collection: Collection, cluster: Cluster, costs: UnitCosts) -> Plan:
    """By command."""
    if job in TRAINING:
        return plan_of_training(config, collection, cluster, costs)
    if job == "evaluate":
        return plan_of_evaluation(config, collection, cluster, costs)
    if job == "tag":
        return plan_of_tagging(config, collection, cluster, costs)
    return PreparingPlan(collection, config.media, config.transcode.mode, cluster, costs)


def collection_of(request: PlanRequest, config: Any, costs: UnitCosts) -> Collection:
    """The clips that were given, else those of the set, else a million.

    Raises:
        UserError: the set has none.
    """
    given = request.clips or ASSUMED_CLIPS
    found = Collection(given, request.clip_seconds, costs.source_rate, "given" if request.clips else ASSUMED)
    if "data" not in request.keys:
        return found
    prepared, split = open_prepared(absolute(config.data)), getattr(config, "split", "train")
    found = replace(found, classes=len(prepared.classes))
    if request.clips is not None:
        return found
    clips = prepared.num_clips(split, labelled_only=request.job == "finetune")
    if clips == 0:
        raise UserError(f"data={config.data}: holds no such clip (split {split}); give clips=N, or another set")
    return replace(found, clips=clips, basis=f"split {split} of data")


main = Command("plan", PlanRequest, run, description=DESCRIPTION, keep_report=False, load=read_arguments, usage=USAGE)


if __name__ == "__main__":
    main()
