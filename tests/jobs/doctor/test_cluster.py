"""Comparisons between hosts, and the whole on a local Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.core.cli import versions
from jobs.doctor.cluster import (
    clock_finding,
    cluster_findings,
    rate_finding,
    session_folder,
    token_finding,
    version_findings,
)


def test_another_version_is_named_with_both() -> None:
    same, other = version_findings([("a", versions()), ("b", versions() | {"torch": "1.0"})])
    assert same.ok
    assert not other.ok
    assert other.host == "b"
    assert other.detail == f"torch 1.0, driver {versions()['torch']}"


@pytest.mark.parametrize(
    ("ahead", "error", "ok"), [(0.5, 0.01, True), (-30, 0.1, False), (30, 0.1, False), (3, 2, True)]
)
def test_a_clock_counts_as_off_only_where_that_is_certain(ahead: float, error: float, ok: bool) -> None:
    finding = clock_finding("a", ahead, error)
    assert finding.ok == ok
    assert ("chrony" in finding.remedy) != ok


def test_no_token_and_a_slow_network() -> None:
    assert token_finding("a", True).ok
    assert "RAY_AUTH_MODE=token" in token_finding("a", False).remedy
    assert rate_finding("a", 900).ok
    assert not rate_finding("a", 1).ok


def test_the_session_is_two_folders_above_the_socket() -> None:
    assert session_folder({"ObjectStoreSocketName": "/tmp/ray/session_1/sockets/plasma_store"}) == "/tmp/ray/session_1"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_local_cluster_is_examined(tmp_path: Path) -> None:
    findings = {finding.check: finding for finding in cluster_findings(str(tmp_path))}
    assert set(findings) == {"decoder", "disk of Ray's session", "shared memory", "open files", "GPUs", "versions",
                             "object storage", "conditional writes", "clock", "token"}  # fmt: skip
    wrong = {check for check, finding in findings.items() if not finding.ok}
    assert wrong <= {"token", "open files", "shared memory", "disk of Ray's session"}  # of this machine
