"""Fixtures that every room shares: one Ray for the whole test session, rendered videos, the real clips."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import ray

from pipeline.storage.s3 import s3_client
from tests.support.ceph_gateway import Gateway, ceph_gateway, missing_for_gateway

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


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A real S3 server."""
    if missing := missing_for_gateway():
        # Whoever asks for this suite must not take nothing for green.
        pytest.fail(f"no {missing}; on Debian: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd")
    with ceph_gateway(tmp_path_factory.mktemp("ceph")) as running:
        yield running


@pytest.fixture
def bucket(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and this process set up to use it."""
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{time.time_ns()}"
    s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"
