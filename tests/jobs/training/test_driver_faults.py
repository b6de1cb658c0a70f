"""Training that is killed, stopped, left by workers and servers, and started again with another number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from jobs.checkpoints.store import complete_steps, latest_checkpoint
from jobs.runs.tracking import tracking_client
from jobs.runs.tracking_config import TrackingConfig
from tests.support.runs import (
    command,
    journal,
    kill_family,
    losses,
    prepare_small_set,
    pretrain_keys,
    run,
    samples,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_set(tmp_path_factory.mktemp("faults"))


def keys(data: Path, output: Path, *more: str, steps: int = STEPS) -> list[str]:
    return pretrain_keys(data, output, f"steps={steps}", *more)


def start(data: Path, output: Path, *more: str, steps: int = STEPS) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("jobs.pretrain", *keys(data, output, *more, steps=steps)), start_new_session=True)


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> Path:
    output = data.parent / "uninterrupted"
    run("jobs.pretrain", *keys(data, output)).check_returncode()
    return output


def test_killed_three_times_the_run_is_the_same_to_the_last_bit(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    for step in (2, 4, 6):
        process = start(data, output)
        wait_for_checkpoint(output, step, process)
        kill_family(process)
    done = run("jobs.pretrain", *keys(data, output))
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(uninterrupted)
    assert samples(output) == samples(uninterrupted)
    assert tracked(output) == ("FINISHED", list(enumerate(losses(output), start=1)))


def tracked(output: Path) -> tuple[str, list[tuple[int, float]]]:
    """How the one run in MLflow ended, and every loss that it has."""
    client = tracking_client(TrackingConfig(), str(output))
    (found,) = client.search_runs([client.get_experiment_by_name("hiera-video").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    return found.info.status, sorted((entry.step, entry.value) for entry in history)


def test_sigterm_leaves_a_checkpoint_and_exit_code_3(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    process = start(data, output, steps=2000)
    wait_for_checkpoint(output, 2, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=200) == 3
    stopped_at = complete_steps(str(output))[-1]
    checkpoint = latest_checkpoint(str(output))
    assert checkpoint is not None
    assert checkpoint.step == stopped_at > 2


def test_two_workers_then_one_then_two(data: Path, tmp_path: Path) -> None:
    """The same samples, and losses within 1e-5, over 50 steps; `test_optimizer_state` has all stages and optimizers."""
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    run("jobs.pretrain", *keys(data, whole, steps=50)).check_returncode()
    for step, workers in ((16, 2), (32, 1)):
        process = start(data, changing, f"workers={workers}", steps=50)
        wait_for_checkpoint(changing, step, process)
        kill_family(process)
    run("jobs.pretrain", *keys(data, changing, "workers=2", steps=50)).check_returncode()
    assert samples(changing) == samples(whole)
    assert losses(changing) == pytest.approx(losses(whole), rel=1e-5)


def run_with_mishap(mishap: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A training in which a ``kind:rank:step`` of `mishaps` happens, once."""
    flag = folder / f"{mishap.split(':')[0]}.flag"
    done = run("tests.support.mishaps", *arguments, environment={"MISHAP": f"{mishap}:{flag}"})
    assert flag.exists(), done.stderr
    return done


def test_dead_and_hanging_workers_are_replaced(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """One worker dies, one falls asleep: the run ends by itself, with the same losses.

    `test_stacks` has processes that are stopped, or hold the interpreter's lock.
    """
    for kind in ("die", "hang"):
        output = tmp_path / kind
        done = run_with_mishap(f"{kind}:1:3", keys(data, output, "hang_minutes=0.4"), tmp_path)
        assert done.returncode == 0, done.stderr
        assert losses(output) == losses(uninterrupted)
        if kind == "die":
            assert "warning: workers died (" in done.stderr
            assert "rank 1: " in done.stderr
            continue
        assert "warning: a hang: no step for 0.4 minutes; slow: rank 1 on " in done.stderr
        (written,) = (output / "hangs").iterdir()
        assert "in fall_asleep" in written.read_text()
        assert "all_reduce" in written.read_text()  # where the other rank waits


def test_workers_are_not_replaced_for_ever(data: Path, tmp_path: Path) -> None:
    done = run_with_mishap("die:0:1", keys(data, tmp_path / "run", "max_failures=0"), tmp_path)
    assert done.returncode == 1
    assert "pretrain stopped: workers died (rank 0" in done.stderr


def test_a_finite_loss_with_a_gradient_that_is_no_number_is_not_saved(data: Path, tmp_path: Path) -> None:
    """In the last step: no later loss would show it."""
    done = run_with_mishap("gradient:1:3", keys(data, tmp_path / "run", steps=4), tmp_path)
    assert done.returncode == 1
    assert "step 4: the loss or its gradient is not finite; samples of this batch: " in done.stderr
    assert complete_steps(str(tmp_path / "run")) == [2]


def test_a_second_start_takes_over_and_the_first_stops(data: Path, tmp_path: Path) -> None:
    """A forgotten job: it loses, reports that and stops; the later one continues to the end."""
    output = tmp_path / "shared"
    arguments = keys(data, output, steps=60)
    first = subprocess.Popen(
        command("tests.support.mishaps", *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SECONDS_PER_MICRO_BATCH": "1.5"},
    )
    wait_for_checkpoint(output, 2, first)
    second = run("jobs.pretrain", *arguments)
    _, told = first.communicate(timeout=120)
    assert second.returncode == 0, second.stderr
    assert first.returncode == 1
    assert "a later start has taken over (generation 2" in told
    assert [line["step"] for line in journal(output)] == list(range(1, 61))
    assert tracked(output) == ("FINISHED", list(enumerate(losses(output), start=1)))


def test_compiled_training_takes_the_same_steps(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "compiled"
    done = run("jobs.pretrain", *keys(data, output, "compile=true", "activation_checkpointing=false"))
    assert done.returncode == 0, done.stderr
    assert losses(output) == pytest.approx(losses(uninterrupted), rel=1e-4)
    recomputed = tmp_path / "recomputed"
    run("jobs.pretrain", *keys(data, recomputed, "activation_checkpointing=true")).check_returncode()
    assert losses(recomputed) == pytest.approx(losses(uninterrupted), rel=1e-6)


def test_a_dead_tracking_server_changes_nothing_and_sync_sends_it_later(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "untracked"
    done = run("jobs.pretrain", *keys(data, output, "tracking.uri=http://127.0.0.1:9"))
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(uninterrupted)
    store = f"sqlite:///{tmp_path / 'later.db'}"
    synced = run("jobs.sync", f"output={output}", f"tracking.uri={store}")
    assert synced.returncode == 0, synced.stderr
    assert str(STEPS) in synced.stdout
