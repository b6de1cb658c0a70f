"""Fixtures of the data plane's tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.shards.reader import PreparedSet
from pipeline.storage.s3 import s3_client
from tests.support.s3_server import light_s3_server, set_s3_environment
from tests.support.small_set import small_prepared_set


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Twelve clips that say who they are; one is broken."""
    return small_prepared_set(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a light S3 server."""
    with light_s3_server() as url:
        yield url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.ray)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder or bucket."""
    if request.param == "local":
        return str(tmp_path)
    set_s3_environment(monkeypatch, request.getfixturevalue("s3_server"))
    bucket = f"bucket-{os.getpid()}-{time.time_ns()}"
    s3_client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"
