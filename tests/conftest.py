"""Fixtures that every room shares: one Ray for the whole test session, rendered videos, the real clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import ray

# No deadline and no complaint about slowness: machines stall. The same examples every time: a failure is one of the
# change that is tested.
hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_tracking_uri() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes it into the environment, from where the programs of another test, or of a
    module's fixtures (set up before this one), would take it: it goes before a test and after it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="module")
def ray_cluster() -> None:
    """A local Ray with four logical CPUs: two train workers leave room for data tasks. It stays until the session ends
    or a module shuts it down for a cluster of its own."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real, troublesome videos, which is no part of the project."""
    clips = Path(os.environ.get("CLIPS", REPOSITORY.parent / "shared" / "clips"))
    if not (clips / "manifest.csv").exists():
        pytest.fail(f"no real clips at {clips}; set CLIPS to a folder that holds them, or leave out the mark `clips`")
    return clips
