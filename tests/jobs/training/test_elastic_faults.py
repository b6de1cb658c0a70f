"""Training on a cluster that changes: a host lost and another won, a pre-emption notice, `ray job stop`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

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
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

RAY = str(Path(sys.executable).with_name("ray"))
DASHBOARD = 18265


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_set(tmp_path_factory.mktemp("cluster"))


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


def test_elastic_workers_follow_the_hosts(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    steps, fixed, elastic = 60, tmp_path / "fixed", tmp_path / "elastic"
    common = [f"steps={steps}", "global_batch=12", "decode_actors=1"]
    second_host = cluster.add_node(num_cpus=2)
    keys = pretrain_keys(data, elastic, *common, "workers=[1,3]")
    process = start(cluster, *keys, seconds_per_micro_batch=0.2)
    wait_for_checkpoint(elastic, 6, process)
    cluster.remove_node(second_host, allow_graceful=False)
    wait_for_checkpoint(elastic, complete_steps(str(elastic))[-1] + 8, process)
    cluster.add_node(num_cpus=1)  # for another worker
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    groups = [line.split(": ")[1] for line in told.splitlines() if line.startswith("generation ")]
    assert [group.split()[0] for group in groups] == ["3", "1", "2"], told
    run("jobs.pretrain", *pretrain_keys(data, fixed, *common, "workers=1")).check_returncode()
    assert samples(elastic) == samples(fixed)
    assert losses(elastic)[:50] == pytest.approx(losses(fixed)[:50], rel=1e-5)
    assert losses(elastic) == pytest.approx(losses(fixed), rel=1e-4)


def test_a_preemption_notice_ends_with_a_checkpoint_and_exit_code_3(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    output, second_host = tmp_path / "preempted", cluster.add_node(num_cpus=2)
    three = ["global_batch=12", "workers=3"]  # no host has capacity for all of them
    keys = pretrain_keys(data, output, "steps=1000", "decode_actors=1", *three, "checkpoint.every_steps=10")
    process = start(cluster, *keys, seconds_per_micro_batch=0.1)
    wait_for_checkpoint(output, 10, process)
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    host = ["--node-id", second_host.node_id, "--deadline-remaining-seconds", "120"]
    subprocess.run([RAY, "drain-node", "--address", cluster.address, *host, *notice], check=True)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 3, told
    assert "a host is about to be pre-empted" in told
    checkpoint = latest_checkpoint(str(output))
    assert checkpoint is not None
    assert f"saved at step {checkpoint.step} of 1000" in told


def test_a_stopped_job_leaves_the_last_checkpoint_intact_and_goes_on(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """`ray job stop` sends SIGTERM and, three seconds later, SIGKILL."""
    output, steps = tmp_path / "stopped", 200  # more than can be taken while the command that stops it starts
    keys = pretrain_keys(data, output, f"steps={steps}", "decode_actors=1", "workers=1")
    server = ["--address", f"http://127.0.0.1:{DASHBOARD}"]
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
