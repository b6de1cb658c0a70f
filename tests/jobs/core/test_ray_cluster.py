"""Where a local Ray keeps its sockets, whose paths have at most 107 bytes."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.runtime_env.runtime_env import RuntimeEnv, _merge_runtime_env

from jobs.core import ray_cluster
from jobs.core.errors import UserError
from jobs.core.ray_cluster import session_folder, temporary_folder

LONG = "/scratch/slurm/partition-long-name/job_123456789/step_0"


@pytest.mark.parametrize("temporary", ["/tmp", "/var/tmp", "/local/job.1234567"])
def test_short_temporary_folders_are_left_to_ray(temporary: str) -> None:
    assert session_folder("TMPDIR", temporary) is None


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("temporary", [LONG, "/local/" + "é" * 20])
def test_a_long_one_is_replaced_by_a_short_folder_of_the_user(
    temporary: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, temporary)
    assert temporary_folder() == (variable, temporary)
    folder = session_folder(variable, temporary, short=str(tmp_path))
    message = (
        f"warning: {variable}={temporary}: is too long for the sockets of Ray, whose paths have at most 107 bytes; "
    )
    message += f"Ray uses {folder}; set RAY_TMPDIR to a folder of 35 bytes or less\n"
    assert capsys.readouterr().err == message
    mine = tmp_path / f"hiera-ray-{os.getuid()}"
    assert folder == str(mine / "s")
    assert mine.stat().st_mode & 0o777 == 0o700
    assert session_folder(variable, temporary, short=str(tmp_path)) == folder


def test_without_a_short_folder_the_message_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / f"hiera-ray-{os.getuid()}").write_text("a file")
    with pytest.raises(UserError, match=rf"TMPDIR={LONG}: is too long .*set RAY_TMPDIR"):
        session_folder("TMPDIR", LONG, short=str(tmp_path))


def test_a_link_that_another_user_has_planted_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / f"hiera-ray-{os.getuid()}").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="can be written by another user"):
        session_folder("TMPDIR", LONG, short=str(tmp_path))


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"hiera-ray-{os.getuid()}").mkdir()
    (tmp_path / f"hiera-ray-{os.getuid()}").chmod(0o777)
    with pytest.raises(UserError, match="can be written by another user"):
        session_folder("TMPDIR", LONG, short=str(tmp_path))


@pytest.mark.slow
@pytest.mark.ray
def test_ray_starts_under_a_long_tmpdir(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    code = "import ray\nfrom jobs.core.ray_cluster import connect\nconnect()\nprint(ray.get(ray.put(7)))"
    environment = {**os.environ, "TMPDIR": str(long)}
    environment = {key: value for key, value in environment.items() if key not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.stdout.strip() == "7", answer.stderr[-2000:]
    assert answer.stderr.count(f"warning: TMPDIR={long}: is too long") == 1


@pytest.mark.ray
def test_a_local_ray_listens_on_the_loopback_alone() -> None:
    code = """
import time, psutil, ray
from jobs.core.ray_cluster import connect
connect()

@ray.remote
def port_of_metrics():
    return ray.nodes()[0]["MetricsExportPort"]

port, me = ray.get(port_of_metrics.remote()), psutil.Process()
ends_at = time.monotonic() + 60
listening = set()
while port not in {number for _, number in listening} and time.monotonic() < ends_at:
    family = [me, *me.children(recursive=True)]
    found = [entry for member in family for entry in member.net_connections("inet")]
    listening = {(entry.laddr.ip, entry.laddr.port) for entry in found if entry.status == psutil.CONN_LISTEN}
    time.sleep(0.5)
print(port, *sorted(f"{address}#{number}" for address, number in listening))
"""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    port, *listening = done.stdout.split()
    addresses = {ipaddress.ip_address(entry.partition("#")[0]) for entry in listening}
    assert port in {entry.partition("#")[2] for entry in listening}
    assert len(listening) >= 5  # the GCS, the raylet, the agents, the driver
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses), listening


@pytest.mark.ray
def test_local_workers_get_no_mlflow_password() -> None:
    """What they inherit is emptied before Ray starts; the driver keeps it."""
    code = """
import os
import ray
from jobs.core.ray_cluster import connect
connect()
seen = ray.get(ray.remote(lambda: [name for name in os.environ if name.startswith("MLFLOW_")]).remote())
print(seen, os.environ["MLFLOW_TRACKING_PASSWORD"])
"""
    environment = {**os.environ, "MLFLOW_TRACKING_PASSWORD": "secret", "MLFLOW_TRACKING_URI": "http://server"}
    environment.pop("RAY_ADDRESS", None)
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.stdout.strip() == "[] secret", answer.stderr[-2000:]


def test_workers_of_a_cluster_get_no_mlflow_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where `ray job submit` has set it for the job: what it would inherit is overridden."""
    inherited = {"env_vars": {"MLFLOW_TRACKING_PASSWORD": "secret", "MLFLOW_CUSTOM_KEY": "secret", "OTHER": "kept"}}
    for name, value in inherited["env_vars"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    ray_cluster._start("ray://head")
    override = os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"
    merged = _merge_runtime_env(RuntimeEnv(**inherited), RuntimeEnv(**given["runtime_env"]), override=override)
    assert {name: value for name, value in merged["env_vars"].items() if name.startswith("MLFLOW")} == {
        "MLFLOW_TRACKING_USERNAME": "",
        "MLFLOW_TRACKING_PASSWORD": "",
        "MLFLOW_TRACKING_TOKEN": "",
        "MLFLOW_CUSTOM_KEY": "",
    }
    assert merged["env_vars"]["OTHER"] == "kept"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
