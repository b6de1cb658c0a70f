"""Rules, alerts, dashboard and runbook agree with the table of series; the real Prometheus (mark `deploy`) has them.

Real: a pretraining on a Ray head of this test's own, scraped by Prometheus through the file that Ray writes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.core.pushgateway import PUSHED
from pipeline.series import PREFIX, TABLE
from tests.infra.test_job_submit import Head, free_ports, running_head
from tests.support.debian import need, program
from tests.support.runs import prepare_small_set, pretrain_keys

REPOSITORY = Path(__file__).resolve().parents[2]
PROMETHEUS = REPOSITORY / "infra" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((PROMETHEUS / "alerts-test.yml").read_text())["tests"]
DASHBOARD = json.loads((REPOSITORY / "infra" / "grafana" / "dashboard.json").read_text())
RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()
NAME = re.compile(r"\b(?:ray_)?hiera[:_][a-z_:]+")
EXPORTED = {name for series in TABLE for name in series.exported} | set(PUSHED)
RECORDED = {rule["record"] for rule in RULES}


def expressions() -> dict[str, str]:
    """Every expression of rules, alerts and dashboard, by where it stands."""
    found = {f"rule {rule['record']}": rule["expr"] for rule in RULES}
    found |= {f"alert {rule['alert']}": rule["expr"] for rule in ALERTS}
    for panel in DASHBOARD["panels"]:
        for number, target in enumerate(panel.get("targets", [])):
            found[f"panel {panel['title']} {number}"] = target["expr"]
    return found


@pytest.mark.parametrize("where", expressions())
def test_expressions_name_series_that_exist(where: str) -> None:
    unknown = set(NAME.findall(expressions()[where])) - EXPORTED - RECORDED
    assert not unknown


def test_every_series_is_used_and_none_is_missing_in_the_runbook() -> None:
    used = {name for expression in expressions().values() for name in NAME.findall(expression)}
    assert {series.name for series in TABLE if not used & set(series.exported)} == set()
    assert used >= RECORDED - {"hiera:windows:rate"}
    for series in TABLE:
        assert f"| `{series.name}` | {series.kind} |" in RUNBOOK
        assert series.meaning in RUNBOOK
    for name, meaning in PUSHED.items():
        assert f"| `{name}` | pushed | `program` | {meaning} |" in RUNBOOK
    rows = re.findall(r"^\| `(hiera_\w+)` \|", RUNBOOK, re.MULTILINE)
    assert set(rows) == {series.name for series in TABLE} | set(PUSHED)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_test_and_a_section_in_the_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert f"\n## {name}\n" in RUNBOOK
    assert alert["labels"]["severity"] in ("page", "ticket")
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)


def test_the_dashboard_has_four_rows_and_panels_that_do_not_overlap() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Health", "Training", "Data", "Nodes"]
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.deploy
def test_promtool_accepts_the_configuration_and_the_alerts_fire_as_tested() -> None:
    need("promtool prometheus", "prometheus")
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts-test.yml"]):
        finished = subprocess.run(
            [program("promtool"), *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr


def ask(port: int, path: str, **query: str) -> Any:
    """The `data` of an answer of Prometheus."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


@pytest.fixture(scope="module")
def prometheus(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Prometheus that scrapes the head's nodes every second."""
    need("promtool prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    (port,) = free_ports(1)
    text = (PROMETHEUS / "prometheus.yml").read_text().replace("15s", "1s")
    discovery = head.folder / "r" / "prom_metrics_service_discovery.json"
    text = text.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovery))
    (folder / "prometheus.yml").write_text(text)
    for name in ("rules.yml", "alerts.yml"):
        (folder / name).write_text((PROMETHEUS / name).read_text())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.deploy
@pytest.mark.timeout(900)
def test_a_run_shows_the_series_of_the_table_and_no_others(head: Head, prometheus: int, tmp_path: Path) -> None:
    data, output = prepare_small_set(tmp_path), tmp_path / "run"
    keys = [*pretrain_keys(data, output), "steps=100000", "tracking.uri=none"]
    address = head.environment["RAY_API_SERVER_ADDRESS"]
    environment = head.environment | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address}
    command = [sys.executable, "-m", "jobs.submit", "pretrain", *keys]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    of_training = {
        name for series in TABLE for name in series.exported if not re.search("windows|commit|storage", series.name)
    }
    try:
        deadline, found = time.monotonic() + 500, set[str]()
        while not of_training <= found and time.monotonic() < deadline and job.poll() is None:
            time.sleep(2)
            found = {name for name in ask(prometheus, "label/__name__/values") if name.startswith(f"{PREFIX}hiera")}
        assert of_training - found == set()
        assert found <= EXPORTED
        shown = ask(prometheus, "query", query='{__name__=~"ray_hiera.*"}')["result"]
        values = {value for series in shown for key, value in series["metric"].items() if key in ("program", "outcome")}
        assert values <= {"pretrain", "ok"}
        for where, expression in expressions().items():
            assert ask(prometheus, "query", query=expression)["resultType"] == "vector", where
        for name in ("ray_node_disk_utilization_percentage", "ray_object_store_memory", "ray_resources"):
            assert ask(prometheus, "query", query=name)["result"], name
    finally:
        job.terminate()
        job.wait(200)
