"""DeepSpeed's engine around a training step: its settings, and why."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME
from torch import nn

from hiera_video.flat_optimizer import FlatOptimizer
from hiera_video.optimization import build_optimizer
from jobs.checkpoints.optimizer_state import scatter_optimizer_state, spans_of_rates
from jobs.checkpoints.store import Checkpoint
from jobs.supervision.process_group import limit_collectives
from jobs.training.config import TrainConfig
from jobs.training.job import TrainingJob
from jobs.training.sharding.costs import BUCKET_ELEMENTS, LIVE_ELEMENTS, weights_of_products, wire_type
from jobs.training.steps.step import TrainStep
from pipeline.seeds import derive_seed


def build_engine(job: TrainingJob, checkpoint: Checkpoint | None) -> Any:
    """The engine of a run, with the checkpoint's weights and optimizer state."""
    config = job.config
    torch.manual_seed(derive_seed(config.seed, "init"))
    step = job.phase.build_step(load_init=checkpoint is None)
    if checkpoint:
        step.model.load_state_dict(checkpoint.weights)
    if config.compile:
        step.model.compile(dynamic=False)
    workers = dist.get_world_size()
    settings = deepspeed_settings(config, workers, job.micro_batches // workers)
    if config.zero_stage == 3 and settings["communication_data_type"] == "bf16":
        gather_as_bf16(step.model)
    engine = start_engine(step, build_optimizer(step.model, config.optimizer), settings, own_clip_norm(config))
    limit_collectives(config.collective_seconds)  # of the groups that DeepSpeed has made, too
    if checkpoint:
        scatter_optimizer_state(engine, checkpoint.optimizer)
    return engine


def deepspeed_settings(config: TrainConfig, workers: int, micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's settings.

    Args:
        micro_batches: of an optimizer step on one worker.
    """
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0 if own_clip_norm(config) else config.optimizer.clip_gradient_norm,
        "communication_data_type": wire_type(config, workers),
        "zero_optimization": zero_settings(config.zero_stage, overlap=workers > 1),
        "zero_allow_untested_optimizer": True,  # our own, tested here
        "steps_per_print": 2**31,
        # It waits for the device twice a micro-batch, for a rate that the journal has anyway.
        "timers": {"throughput": {"enabled": False}},
    }


def zero_settings(stage: int, *, overlap: bool) -> dict[str, Any]:
    """DeepSpeed's section of that name.

    Args:
        overlap: reduce gradients beside the backward pass; only with several workers, since it costs a second buffer
            and a wait for the device.
    """
    settings: dict[str, Any] = {"stage": stage, "overlap_comm": overlap, "reduce_bucket_size": BUCKET_ELEMENTS}
    if stage in (1, 2):
        # Reduced whole in one operation and without copies; by slices it is an all-reduce, too, of a copy that is taken
        # apart again. Norms are not needed, since the optimizer clips; each would be read on the host.
        return settings | {"reduce_scatter": False, "compute_grad_norm": False}
    if stage == 3:
        keys = ("stage3_max_live_parameters", "stage3_max_reuse_distance")
        # One sub-group, however large the model: the optimizer takes its step at once.
        return settings | dict.fromkeys(keys, LIVE_ELEMENTS) | {"sub_group_size": 2**40}
    return settings


def gather_as_bf16(model: nn.Module) -> None:
    """Let ZeRO 3 send weights of matrix products as bfloat16, to which autocast rounds them anyway."""
    for parameter in weights_of_products(model):
        setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)


def own_clip_norm(config: TrainConfig) -> float:
    """The norm to which the optimizer clips: with ZeRO 1 and 2. Elsewhere DeepSpeed does it; 0: nobody or DeepSpeed."""
    return config.optimizer.clip_gradient_norm if config.zero_stage in (1, 2) else 0.0


def start_engine(
    step: TrainStep[Any], optimizer: FlatOptimizer, settings: dict[str, Any], clip_norm: float = 0.0
) -> Any:
    """DeepSpeed's engine around a step, in an initialised process group.

    Without DeepSpeed's own compiled operations: on a CPU every worker would build shared-memory sums, which only
    inference uses. That takes half a minute, and a worker killed meanwhile leaves a lock file behind, for which every
    later worker on that host waits without end (`torch.utils.file_baton`).

    Args:
        clip_norm: to which the optimizer clips gradients, see `own_clip_norm`.
    """
    deepspeed.ops.__compatible_ops__ = {}
    engine = deepspeed.initialize(model=step, optimizer=optimizer, config=settings, dist_init_required=False)[0]
    optimizer.lay_out(spans_of_rates(engine, optimizer.rates), clip_norm)
    return engine
