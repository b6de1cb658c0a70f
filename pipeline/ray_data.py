"""How Ray Data's scheduler runs the project's dataset graphs."""

from __future__ import annotations

import time

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback  # `DataContext` takes it, `ray` hides it
from ray.data._internal.execution.streaming_executor import StreamingExecutor

STEP_SECONDS = 0.02


class SteadySteps(ExecutionCallback):  # type: ignore[misc]
    """Rests between the scheduler's steps, so that there are at most fifty a second.

    Ray's scheduler waits until *all* running tasks have something to read. While a consumer is slower than its stream,
    what they have may not be read yet, and the scheduler turns without waiting: half a core, seen in training.
    """

    def __init__(self) -> None:
        self._ended = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Rest for what is left of the step."""
        time.sleep(max(0.0, self._ended + STEP_SECONDS - time.monotonic()))
        self._ended = time.monotonic()


class KeptBudget(ExecutionCallback):  # type: ignore[misc]
    """A dataset graph keeps the largest budget that it was ever granted.

    While a host is drained, Ray's coordinator may grant Ray Data nothing. The graph's actors, whose number is fixed,
    keep their CPUs, but their output is not read: training would wait until the host has left.
    """

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Let the scheduler see the maximum of all budgets so far instead of the current one."""
        manager = executor._resource_manager
        current, most = manager._get_total_resources, ray.data.ExecutionResources.zero()

        def most_so_far() -> ray.data.ExecutionResources:
            nonlocal most
            most = most.max(current())
            return most

        manager._get_total_resources = most_so_far


def configure_execution(
    dataset: ray.data.Dataset, *, block_bytes: int, options: ray.data.ExecutionOptions | None = None
) -> None:
    """Settings of this dataset alone; the process's defaults stay as they are.

    Args:
        block_bytes: a block ends with the row that reaches it; 1 for one row a block.
    """
    context = dataset.context
    context.execution_options = options or context.execution_options
    context.target_max_block_size = block_bytes
    context.enable_fallback_to_arrow_object_ext_type = False
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [SteadySteps, KeptBudget]
