"""Training on a cluster that changes: a host lost and another won, pre-emption notices, `ray job stop`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

from jobs.checkpoints.store import complete_steps, latest_checkpoint
from pipeline.shards.reader import open_prepared
from tests.support.runs import (
    command,
    journal,
    losses,
    prepare_small_set,
    pretrain_keys,
    run,
    samples,
    wait_for_checkpoint,
    wait_for_generation,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

RAY = str(Path(sys.executable).with_name("ray"))
DASHBOARD = 18265


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_set(tmp_path_factory.mktemp("cluster"))


COMMON = ["steps=60", "global_batch=12", "decode_actors=1"]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of one worker that nothing happens to."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run("jobs.pretrain", *pretrain_keys(data, output, *COMMON, "workers=1")).check_returncode()
    return output


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with capacity for one worker and decoding, or two workers."""
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": DASHBOARD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


def start(cluster: Cluster, *keys: str, seconds_per_micro_batch: float) -> subprocess.Popen[str]:
    environment = {"RAY_ADDRESS": cluster.address, "SECONDS_PER_MICRO_BATCH": str(seconds_per_micro_batch)}
    return subprocess.Popen(
        command("tests.support.mishaps", *keys), stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def test_elastic_workers_follow_the_hosts(undisturbed: Path, cluster: Cluster, data: Path, tmp_path: Path) -> None:
    elastic = tmp_path / "elastic"
    second_host = cluster.add_node(num_cpus=2)
    keys = pretrain_keys(data, elastic, *COMMON, "workers=[1,5]")  # of these 1, 2 and 3 divide the 6 micro-batches
    process = start(cluster, *keys, seconds_per_micro_batch=0.2)
    wait_for_checkpoint(elastic, 6, process)
    cluster.remove_node(second_host, allow_graceful=False)
    wait_for_generation(elastic, 2, process)
    cluster.add_node(num_cpus=1)  # for another worker
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert workers_of_groups(told) == [3, 1, 2], told
    assert_same_training(elastic, undisturbed)


def workers_of_groups(told: str) -> list[int]:
    return [int(line.split(": ")[1].split()[0]) for line in told.splitlines() if line.startswith("generation ")]


def assert_same_training(output: Path, undisturbed: Path) -> None:
    """The same samples in every step, and losses that differ by the order of their sums."""
    assert samples(output) == samples(undisturbed)
    assert losses(output)[:50] == pytest.approx(losses(undisturbed)[:50], rel=1e-5)
    assert losses(output) == pytest.approx(losses(undisturbed), rel=1e-4)


def drain(cluster: Cluster, node_id: str) -> None:
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    host = ["--node-id", node_id, "--deadline-remaining-seconds", "300"]
    subprocess.run([RAY, "drain-node", "--address", cluster.address, *host, *notice], check=True)


@pytest.mark.parametrize("most", [2, 3], ids=["stream", "workers"])
def test_an_announced_host_is_left_and_another_taken(
    most: int, undisturbed: Path, cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """None may be lost: `max_failures` is 0. Ray packs two workers onto the head: only their stream is on the other."""
    output, second_host = tmp_path / "preempted", cluster.add_node(num_cpus=most - 1)
    keys = pretrain_keys(data, output, *COMMON, f"workers=[1,{most}]", "max_failures=0")
    process = start(cluster, *keys, seconds_per_micro_batch=0.2)
    wait_for_checkpoint(output, 6, process)
    drain(cluster, second_host.node_id)
    wait_for_generation(output, 2, process)
    cluster.remove_node(second_host, allow_graceful=False)  # its time is over
    cluster.add_node(num_cpus=most - 1)
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert f"hosts are about to be taken away ({'data stream' if most == 2 else 'ranks '}" in told, told
    assert "workers died" not in told, told
    assert workers_of_groups(told) == [most, 1, most], told
    assert_same_training(output, undisturbed)


def wait_until_jobs_are_taken(address: str) -> None:
    """The head answers before the agent runs that starts jobs."""
    client, deadline = JobSubmissionClient(address), time.monotonic() + 120
    while True:
        try:
            client.submit_job(entrypoint="true")
            return
        except RuntimeError:
            assert time.monotonic() < deadline
            time.sleep(1)


def test_a_stopped_job_leaves_the_last_checkpoint_intact_and_goes_on(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """`ray job stop` sends SIGTERM and, three seconds later, SIGKILL."""
    output, steps = tmp_path / "stopped", 200  # more than can be taken while the command that stops it starts
    keys = pretrain_keys(data, output, f"steps={steps}", "decode_actors=1", "workers=1")
    server = ["--address", f"http://127.0.0.1:{DASHBOARD}"]
    wait_until_jobs_are_taken(server[1])
    repository = ["--working-dir", str(Path(__file__).resolve().parents[3])]
    submit = [RAY, "job", "submit", *server, *repository]
    entry = ["--", sys.executable, "-m", "jobs.pretrain", *keys]
    submitted = subprocess.Popen([*submit, "--submission-id", "first", *entry], stdout=subprocess.DEVNULL)
    wait_for_checkpoint(output, 4, submitted)
    subprocess.run([RAY, "job", "stop", *server, "first"], check=True)
    submitted.wait(60)
    left = latest_checkpoint(str(output))
    assert left is not None
    assert left.step == complete_steps(str(output))[-1] < steps
    subprocess.run([*submit, *entry], check=True, timeout=300)
    assert [line["step"] for line in journal(output)] == list(range(1, steps + 1))
    views = [view for step in samples(output) for view in step]
    per_epoch = open_prepared(str(data)).num_clips("train") * 2  # view.repeats
    for first in range(0, len(views), per_epoch):
        epoch = views[first : first + per_epoch]
        assert len(set(epoch)) == len(epoch)
