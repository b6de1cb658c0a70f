"""The table of series, and that showing them costs little and never the run."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import ray

from pipeline import series
from pipeline.series import TABLE, add, observe, record_steps, record_windows

LINE = {"step": 2, "position": 16, "clips_per_second": 4.0, "data_wait_seconds": 0.5, "loss": 1.0}


class Recorder:
    """Stands in for a class of Ray's: keeps what it is told."""

    told: list[tuple[str, str, float, dict[str, str]]]

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = (), **_: Any) -> None:
        self.name, self.tag_keys = name, tag_keys

    def _tell(self, verb: str, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        Recorder.told.append((self.name, verb, value, tags))

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        self._tell("inc", value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._tell("set", value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self._tell("observe", value, tags)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float, dict[str, str]]]:
    Recorder.told = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray.util.metrics, kind, Recorder)
    monkeypatch.setattr(series, "_made", {})
    monkeypatch.setattr(series, "_warned", set())
    return Recorder.told


def test_names_are_unique_and_say_their_unit() -> None:
    names = [found.name for found in TABLE]
    assert len(set(names)) == len(names) <= 16
    assert all(name.startswith("hiera_") and not name.endswith("_total") for name in names)
    assert all(found.meaning.endswith(".") for found in TABLE)
    assert {label for found in TABLE for label in found.labels} == {"program", "outcome"}


def test_a_step_is_shown(told: list[Any]) -> None:
    failures = [{"reason": "damaged"}, {"reason": "damaged"}]
    record_steps("pretrain", [LINE | {"failures": failures, "model_flop_utilisation": 0.3}], backlog=7)
    said = {(name, *sorted(tags.values())): value for name, _, value, tags in told}
    assert said["hiera_views", "ok", "pretrain"] == 6
    assert [value for name, _, value, tags in told if tags.get("outcome") == "damaged"] == [1, 1]
    assert said["hiera_step_seconds", "pretrain"] == 2.0
    assert said["hiera_data_wait_seconds", "pretrain"] == 0.5
    assert said["hiera_model_flop_utilisation", "pretrain"] == 0.3
    assert said["hiera_loss_is_finite", "pretrain"] == 1
    assert said["hiera_mlflow_backlog", "pretrain"] == 7
    assert abs(said["hiera_last_step_timestamp_seconds", "pretrain"] - time.time()) < 60


@pytest.mark.parametrize(("loss", "finite"), [(0.0, 1), (float("nan"), 0), (float("inf"), 0), (float("-inf"), 0)])
def test_a_loss_that_is_not_a_number(told: list[Any], loss: float, finite: int) -> None:
    record_steps("pretrain", [LINE | {"loss": loss}], backlog=0)
    assert [value for name, _, value, _ in told if name == "hiera_loss_is_finite"] == [finite]


def test_windows_are_counted_by_outcome(told: list[Any]) -> None:
    record_windows({"ok": 2, "timeout": 1}, 12)
    assert ("hiera_windows", "inc", 2, {"outcome": "ok"}) in told
    assert ("hiera_windows", "inc", 1, {"outcome": "timeout"}) in told
    assert ("hiera_videos_waiting", "set", 12, {}) in told


def test_what_storage_warns_of_is_counted(told: list[Any]) -> None:
    logging.getLogger("pipeline.storage.retry").warning("object storage answered %s", 503)
    logging.getLogger("pipeline.storage.retry").info("nothing")
    assert told == [("hiera_storage_failures", "inc", 1, {})]


def test_a_broken_exporter_costs_its_series_and_one_warning(
    told: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no exporter")

    monkeypatch.setattr(Recorder, "set", broken)
    for _ in range(3):
        observe(series.LAST_STEP, 1.0, program="pretrain")
    add(series.VIEWS, 1, program="pretrain", outcome="ok")
    assert [record.getMessage() for record in caplog.records] == [
        "hiera_last_step_timestamp_seconds is not exported any more: no exporter"
    ]
    assert [name for name, *_ in told] == ["hiera_views"]


def test_without_ray_nothing_happens() -> None:
    observe(series.LAST_STEP, 1.0, program="pretrain")
    assert series.LAST_STEP.name not in series._made


EXPORTER = """
import re, sys, time, urllib.request, ray
port = int(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
from pipeline import series
line = {"step": 2, "position": 16, "clips_per_second": 4.0, "data_wait_seconds": 0.5, "loss": 1.0,
        "model_flop_utilisation": 0.3, "failures": [{"reason": "damaged"}]}
series.record_steps("pretrain", [line], 3)
series.record_windows({"ok": 2, "timeout": 1}, 5)
series.stamp(series.LAST_CHECKPOINT)
series.stamp(series.LAST_COMMIT, program="tag")
series.add(series.STORAGE_FAILURES)
names, deadline = set(), time.monotonic() + 120
while not names and time.monotonic() < deadline:
    time.sleep(2)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    names = set(re.findall(r"^(ray_hiera_\\w+)", text, re.MULTILINE))
print(" ".join(sorted(names)))
"""


@pytest.mark.ray
def test_ray_exports_the_names_of_the_table_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    finished = subprocess.run(
        [sys.executable, "-c", EXPORTER, str(port)], capture_output=True, text=True, timeout=280, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert set(finished.stdout.split()) == {name for found in TABLE for name in found.exported}


def test_decoding_children_do_not_import_ray() -> None:
    code = "import sys, pipeline.storage.retry, pipeline.decode.child; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
