"""`make audit`: its verdicts, with tools that say what real ones say."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.audit import FOUND, NOT_REACHED, OK, is_plain_manifest, shell_scripts

NO_HOST = (
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='db.example', port=443): Max retries exceeded: "
    "/pypi/torch/2.13.0/json (Caused by NameResolutionError)"
)
FAULTY = "Found 1 known vulnerability in 1 package\nName Version ID Fix Versions\nVulnerability torch 2.0 PYSEC-1 2.1"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(audit, "TOOLS", folder)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(folder: Path, name: str, code: int, stdout: str = "", stderr: str = "") -> None:
    """A tool that says this and ends so."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {stdout!r}\necho {stderr!r} >&2\nexit {code}\n".replace('"', "'"))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("code", "stderr", "outcome"),
    [(0, "No known vulnerabilities found", OK), (1, NO_HOST, NOT_REACHED), (1, FAULTY, FOUND), (2, "usage", FOUND)],
)
def test_a_database_that_does_not_answer_is_no_verdict(code: int, stderr: str, outcome: str, tools: Path) -> None:
    tool(tools, "pip-audit", code, stderr=stderr.replace("'", ""))
    assert audit.known_faults().outcome == outcome


def test_what_is_not_installed_is_named(tools: Path) -> None:
    findings = [check() for check in (audit.known_faults, audit.bill_of_materials, audit.image)]
    assert [finding.outcome for finding in findings] == [NOT_REACHED] * 3
    assert "pip-audit is not installed" in findings[0].detail


def test_what_a_linter_finds_is_printed(tools: Path) -> None:
    tool(tools, "hadolint", 1, stdout="DL3008 pin versions")
    assert audit.image() == audit.Finding("image (hadolint)", FOUND, "DL3008 pin versions")


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 1)])
def test_what_was_not_reached_counts_when_asked_for(
    arguments: list[str], code: int, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["audit", *arguments])
    monkeypatch.setattr(audit, "CHECKS", (audit.known_faults,))
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == code
    assert capsys.readouterr().out.startswith("not reached  known faults")


def test_scripts_and_manifests_are_found() -> None:
    assert [path.name for path in shell_scripts()] == ["ray.sbatch"]
    kubernetes = audit.REPOSITORY / "infra" / "kubernetes"
    plain = {str(path.relative_to(kubernetes)) for path in kubernetes.rglob("*.yaml") if is_plain_manifest(path)}
    assert {"platform/network.yaml", "platform/nightly-tag.yaml", "platform/mlflow.yaml"} <= plain
    assert not {"cluster/raycluster.yaml", "jobs/tag.yaml"} & plain
