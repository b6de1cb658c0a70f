"""Fixtures of the data plane's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import PreparedSet
from tests.pipeline.s3_server import light_s3_server
from tests.pipeline.small_set import small_prepared_set


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Twelve clips that say who they are; one is broken."""
    return small_prepared_set(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a light S3 server."""
    with light_s3_server() as url:
        yield url
