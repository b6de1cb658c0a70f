"""infra/slurm/ray.sbatch on a real Slurm of two hosts: a run over both, requeue, mistakes, a dead head."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import Host, missing_for_hosts, two_hosts, wait_for
from tests.deploy.slurm import REPOSITORY, Slurm, slurm
from tests.support.debian import need
from tests.support.runs import prepare_small_set, pretrain_keys

SCRIPT = REPOSITORY / "infra" / "slurm" / "ray.sbatch"
STEPS = 200


def test_shellcheck_finds_nothing() -> None:
    finished = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert finished.stdout == ""
    assert finished.returncode == 0


def test_the_signal_comes_before_ray_gives_up() -> None:
    text = SCRIPT.read_text()
    assert "#SBATCH --signal=B:TERM@330" in text
    assert "RAY_JOB_STOP_WAIT_TIME_S:-300" in text


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    need("slurmctld slurmd sbatch munged", "slurmctld slurmd slurm-client munge")
    if missing := missing_for_hosts():
        pytest.fail(f"this machine lacks {missing}")
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
                   "HIERA_ENVIRONMENT": str(Path(sys.executable).parents[1])}  # fmt: skip
    with two_hosts(environment) as pair:
        yield pair


@pytest.fixture(scope="module")
def queue(hosts: tuple[Host, Host]) -> Iterator[Slurm]:
    with slurm(hosts) as running:
        yield running


@pytest.fixture(scope="module")
def data(queue: Slurm) -> Path:
    """A prepared set that both hosts see."""
    folder: Path = prepare_small_set(queue.folder)
    return folder


RAY = """#!/bin/bash
# Stands in for `ray start --block`: listens where the dashboard would.
while [ $# -gt 0 ]; do
    case $1 in --dashboard-host) host=$2 ;; --dashboard-port) port=$2 ;; esac
    shift
done
[ -z "${port:-}" ] && exec sleep 1000
exec PYTHON -m http.server --bind "$host" "$port"
"""
PROGRAM = """#!/bin/bash
# Stands in for Python: `python -` waits for nodes, `python -m jobs.submit ... exit=N` ends so, and with 3 on SIGTERM.
[ "$1" = - ] && exit 0
trap 'echo stopping; exit 3' TERM
echo "submitted $RAY_ADDRESS ${RAY_AUTH_TOKEN:+with a token} $*"
last=${!#}
case $last in exit=*) exit "${last#exit=}" ;; esac
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
sleep 1000 &
wait $!
"""


@pytest.fixture
def stand_ins(queue: Slurm) -> str:
    """An environment whose `ray` and `python` only wait and end: what is tested is the script, on a real Slurm."""
    folder = queue.folder / "stand-ins" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"ray": RAY.replace("PYTHON", sys.executable), "python": PROGRAM}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder.parent)


@pytest.mark.deploy
@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (1, "FAILED"), (2, "FAILED")])
def test_the_exit_code_is_the_commands_and_none_of_these_requeues(
    queue: Slurm, stand_ins: str, code: int, state: str
) -> None:
    job = queue.submit("pretrain", f"exit={code}", HIERA_ENVIRONMENT=stand_ins)
    facts = queue.wait(job, 60, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == (state, f"{code}:0", "0"), queue.log(job)
    assert f"submitted http://10.77.0.1:8265 with a token -m jobs.submit id=slurm-{job}-0 pretrain" in queue.log(job)


@pytest.mark.deploy
def test_sigterm_stops_the_command_and_requeues(queue: Slurm, stand_ins: str) -> None:
    job = queue.submit("pretrain", HIERA_ENVIRONMENT=stand_ins)
    wait_for(lambda: "submitted" in queue.log(job), 60, "the command")
    queue.command("scancel", "--batch", "--signal=TERM", job)
    wait_for(lambda: "stopping" in queue.log(job), 30, "the stop")
    wait_for(lambda: queue.facts(job)["Restarts"] == "1", 60, "the requeue")
    # Slurm waits two minutes before a requeued job begins again.
    queue.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    facts = queue.wait(job, 200, "COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED"
    assert f"id=slurm-{job}-1" in queue.log(job)


@pytest.mark.deploy
@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_node_whose_part_dies_ends_the_job(queue: Slurm, stand_ins: str, hosts: tuple[Host, Host], lost: str) -> None:
    job = queue.submit("pretrain", HIERA_ENVIRONMENT=stand_ins)
    wait_for(lambda: "submitted" in queue.log(job), 60, "the command")
    part = {"a": ["--bind", "10.77.0.1", "8265"], "b": ["sleep", "1000"]}[lost]
    host = hosts["ab".index(lost)]

    def killed() -> bool:
        found = [process for process in on_host(host) if process.cmdline()[-len(part) :] == part]
        for process in found:
            process.kill()
        return bool(found)

    wait_for(killed, 30, "the part")
    started = time.monotonic()
    facts = queue.wait(job, 60, "COMPLETED", "FAILED")
    assert time.monotonic() - started < 30
    assert (facts["ExitCode"], facts["Restarts"]) == ("1:0", "0")
    assert "a node of the cluster died" in queue.log(job)


def on_host(host: Host) -> list[psutil.Process]:
    """The processes of a host."""
    namespace = os.readlink(f"/proc/{host.keeper.pid}/ns/net")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.readlink(f"/proc/{process.pid}/ns/net") == namespace:
                found.append(process)
    return found


@pytest.mark.deploy
@pytest.mark.timeout(1200)
def test_a_run_over_both_hosts_is_stopped_requeued_and_finished(queue: Slurm, data: Path) -> None:
    output = queue.folder / "run"
    keys = [*pretrain_keys(data, output), "workers=2", f"steps={STEPS}", "trace_samples=true", "tracking.uri=none"]
    job = queue.submit("pretrain", *keys)
    wait_for(lambda: list(output.glob("checkpoints/step-*")), 400, "the first steps")
    queue.command("scancel", "--batch", "--signal=TERM", job)
    wait_for(lambda: queue.facts(job)["Restarts"] == "1", 200, "the requeue")
    queue.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    facts = queue.wait(job, 500, "COMPLETED", "FAILED")
    assert facts["ExitCode"] == "0:0", queue.log(job)
    assert "ended with 3" in queue.log(job)
    assert "2 nodes after" in queue.log(job)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    ids = [sample for line in lines for sample in line["sample_ids"]]
    assert len(ids) == lines[-1]["position"]


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_a_mistake_ends_once(queue: Slurm, data: Path) -> None:
    job = queue.submit("pretrain", *pretrain_keys(data, queue.folder / "never"), "steppes=1")
    facts = queue.wait(job, 400, "COMPLETED", "FAILED")
    assert facts["ExitCode"] == "2:0", queue.log(job)
    assert facts["Restarts"] == "0"
    assert "no such key" in queue.log(job)


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_a_dead_head_ends_the_job(queue: Slurm, hosts: tuple[Host, Host], data: Path) -> None:
    keys = [*pretrain_keys(data, queue.folder / "dead"), "workers=2", "steps=100000", "tracking.uri=none"]
    job = queue.submit("pretrain", *keys)
    wait_for(lambda: "2 nodes after" in queue.log(job), 300, "the cluster")
    for process in on_host(hosts[0]):
        if process.name() == "gcs_server":
            process.kill()
    started = time.monotonic()
    facts = queue.wait(job, 60, "FAILED", "COMPLETED")
    assert time.monotonic() - started < 30
    assert facts["ExitCode"] == "1:0"
    assert facts["Restarts"] == "0"
