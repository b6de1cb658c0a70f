"""The commands of docs/cluster.md, "One machine, as a cluster", as a stranger would type them.

Other Rays may run on this machine: this one has ports, folders and a home of its own, and is stopped by process id.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from jobs.synthetic.motion_videos import render_motion_videos

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
START_SECONDS = 500
STEPS = 2
# The smallest model, so that the command takes seconds; everything else is what the recipe says.
TINY = "model=mae_hiera_test_8x64 mask_ratio=0.75 view.frame_stride=1 view.repeats=1"
TINY += f" global_batch=4 micro_batch=2 steps={STEPS} picture_clips=1"


def documented_commands() -> list[str]:
    """The lines of the first shell block of the section."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    section = text.partition("## One machine, as a cluster")[2]
    return section.partition("```shell\n")[2].partition("```")[0].splitlines()


def documented(beginning: str) -> list[str]:
    """The words of the documented command that begins like this."""
    (line,) = (line for line in documented_commands() if line.startswith(beginning))
    return shlex.split(line)


@dataclass
class Head:
    """A running head with a token."""

    environment: dict[str, str]
    folder: Path

    def submit(self, *entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The documented `ray job submit` with another entrypoint behind its `--`."""
        words = documented("ray job submit")
        return subprocess.run(
            [*words[: words.index("--") + 1], *entrypoint],
            cwd=REPOSITORY,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=560,
            check=False,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


@contextmanager
def running_head() -> Iterator[Head]:
    """A head with ports, a home and a token of its own; stopped at the end."""
    # Ray puts Unix sockets there, whose paths are limited to 107 characters: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    gcs, dashboard, agent, client = free_ports(4)
    environment = clean_environment(folder) | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    subprocess.run(
        documented("ray get-auth-token")[:3], env=environment, check=True, capture_output=True, timeout=START_SECONDS
    )
    places = f"--port {gcs} --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}"
    places += f" --ray-client-server-port {client} --min-worker-port 0 --max-worker-port 0 --temp-dir {folder / 'r'}"
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*documented("ray start --head"), "--block", *places.split()],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_listening(dashboard, process, folder / "head.log")
        yield Head(environment, folder)
    finally:
        stop(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


def clean_environment(home: Path) -> dict[str, str]:
    """This environment with a home of its own, without any other Ray's settings, programs of this Python first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))}
    return kept | {
        "HOME": str(home),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and "Ray runtime started" in log.read_text():
                return
        time.sleep(0.2)
    pytest.fail(f"`ray start --head` does not answer on port {port}:\n{log.read_text()}")


def stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill this head and what it started; `ray stop` would take every other Ray with it."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    named = [other for other in psutil.process_iter() if _mentions(other, str(folder))]
    for survivor in {*started, *named}:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(started, timeout=20)


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in word for word in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.fixture(scope="module")
def refused(head: Head) -> subprocess.CompletedProcess[str]:
    """A submission that the program itself refuses at once."""
    return head.submit("python", "-m", "jobs.pretrain", "demo", "data=/nowhere", "output=build/lost")


def test_the_documented_commands_are_the_ones_run_here() -> None:
    programs = [" ".join(line.split()[:3]) for line in documented_commands()]
    assert programs == [
        "export RAY_AUTH_MODE=token",
        "ray get-auth-token --generate",
        "ray start --head",
        "ray job submit",
        "ray stop",
    ]


def test_a_relative_output_is_refused_inside_a_submitted_job(refused: subprocess.CompletedProcess[str]) -> None:
    message = " ".join(refused.stdout.split())
    assert "output=build/lost: must not be relative inside a submitted job" in message
    assert "failed with exit code 2" in message
    assert refused.returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two programs, each in a fresh interpreter
def test_the_documented_job_pretrains_on_a_prepared_set(head: Head, tmp_path: Path) -> None:
    videos, prepared, output = tmp_path / "videos", tmp_path / "set", tmp_path / "pretrain"
    render_motion_videos(videos, 16, seed=0, size=64, num_frames=16, workers=1)
    submitted = head.submit("python", "-m", "jobs.prepare", f"source={videos}", f"output={prepared}")
    assert submitted.returncode == 0, submitted.stdout

    words = documented("ray job submit")
    command = [word for word in words[words.index("--") + 1 :] if not word.startswith(("data=", "output="))]
    submitted = head.submit(*command, f"data={prepared}", f"output={output}", *TINY.split())
    assert submitted.returncode == 0, submitted.stdout
    report = json.loads((output / "report.json").read_text())
    journal = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert report["command"] == "pretrain"
    assert [line["step"] for line in journal] == [1, 2]
    assert (output / "model.safetensors").exists()
    assert (tmp_path / "mlflow.db").exists()


@pytest.mark.usefixtures("refused")
def test_programs_and_recipes_are_sent_and_nothing_else(head: Head) -> None:
    packages = head.folder.glob("r/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    package = max(packages, key=lambda path: path.stat().st_mtime_ns)
    # Jobs that ran in the package before have left compiled files there.
    files = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    sent = {path for path in files if "__pycache__" not in path.parts}
    assert {Path("jobs/pretrain.py"), Path("jobs/recipes/pretrain/demo.yaml"), Path("pipeline/__init__.py")} <= sent
    assert {path.parts[0] for path in sent} == {
        *("hiera_video", "jobs", "pipeline", "pyproject.toml", "SECURITY.md", ".gitignore", ".rayignore")
    }


def test_a_wrong_token_is_refused(head: Head) -> None:
    submitted = head.submit("python", "-c", "print('ran')", RAY_AUTH_TOKEN="0" * 32)
    assert submitted.returncode != 0
    assert "Invalid authentication token" in submitted.stdout


def test_no_token_is_refused(head: Head, tmp_path: Path) -> None:
    submitted = head.submit("python", "-c", "print('ran')", HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert submitted.returncode != 0
    assert "submitted successfully" not in submitted.stdout


@pytest.mark.slow
def test_a_mistake_ends_a_launched_job_as_stopped_before_it_asks_for_gpus(head: Head) -> None:
    """STOPPED is what KubeRay does not retry; `gpus=1` would wait an hour here."""
    words = "python -m jobs.launch stop_on_mistake=true gpus=1 pretrain demo data=/nowhere output=/tmp/never"
    submitted = head.submit(*words.split())
    output = " ".join(submitted.stdout.split())
    assert "data=/nowhere" in output
    assert "this job is stopped, so that it is not retried" in output
    assert "was stopped" in output
    assert submitted.returncode == 0


@pytest.mark.slow
def test_gpus_that_do_not_join_end_the_job_with_the_remedy(head: Head, tmp_path: Path) -> None:
    render_motion_videos(tmp_path / "videos", 4, seed=0, size=64, num_frames=8, workers=1)
    words = f"python -m jobs.launch gpus=1 gpu_minutes=0.05 prepare source={tmp_path}/videos output={tmp_path}/set"
    submitted = head.submit(*words.split())
    assert "gpus=1: 0 joined the cluster in 0.05 minutes; ask for fewer" in " ".join(submitted.stdout.split())
    assert "failed with exit code 1" in submitted.stdout
    assert not (tmp_path / "set").exists()


def test_submit_ends_as_the_command_ends(head: Head) -> None:
    finished = submit_program(head, "id=night", "prepare", "source=/nowhere", "output=/tmp/never")
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "source=/nowhere" in finished.stdout


def test_submit_again_follows_what_runs_and_sigterm_stops_it(head: Head, tmp_path: Path) -> None:
    videos, prepared = tmp_path / "videos", tmp_path / "set"
    render_motion_videos(videos, 2000, seed=0, size=64, num_frames=16, workers=2)
    words = ["id=long", "prepare", f"source={videos}", f"output={prepared}", "workers=1"]
    first = subprocess.Popen(submit_command(*words), env=submit_environment(head), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not (prepared / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    second = subprocess.Popen(submit_command(*words), env=submit_environment(head), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert second.stdout is not None
    assert "long is running already; following it" in second.stdout.readline()
    second.terminate()
    printed, _ = second.communicate(timeout=300)
    assert "stopping long" in printed
    first.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (3, 3)
    assert not (prepared / "dataset.json").exists()


def submit_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobs.submit", *words]


def submit_environment(head: Head) -> dict[str, str]:
    address = head.environment["RAY_API_SERVER_ADDRESS"]
    return head.environment | {"RAY_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)}


def submit_program(head: Head, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        submit_command(*words), env=submit_environment(head), capture_output=True, text=True, timeout=560, check=False
    )
