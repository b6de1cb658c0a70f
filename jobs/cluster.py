"""Joining the Ray cluster that a job was submitted to, or starting one on this machine."""

from __future__ import annotations

import logging
import os

import ray
from ray.data import DataContext

from jobs.errors import UserError

# Two train workers must leave CPUs to the data tasks, also on a two-core machine (logical CPUs only).
LOCAL_CPUS = max(4, os.cpu_count() or 1)


def connect() -> None:
    """Join the cluster of ``RAY_ADDRESS`` (set inside a submitted job), else start a local Ray.

    Raises:
        UserError: ``RAY_ADDRESS`` names a cluster that does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        _start(address)
    DataContext.get_current().enable_progress_bars = True


def _start(address: str | None) -> None:
    if address is None:
        ray.init(num_cpus=LOCAL_CPUS, include_dashboard=False, logging_level=logging.WARNING)
        return
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there; start one with `ray start --head` "
            "or unset RAY_ADDRESS to run on this machine"
        ) from error


def has_gpus() -> bool:
    """Whether the cluster offers GPUs."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)
