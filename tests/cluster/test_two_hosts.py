"""Training over two hosts with a token and a real S3 server, while one of them is cut off or dies."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from jobs.checkpoints.store import complete_steps
from pipeline.shards.reader import open_prepared
from pipeline.storage.files import exists, read_bytes
from tests.cluster.hosts import GATEWAY, RAY, Host, missing_for_hosts, start_ray, two_hosts, wait_for
from tests.support.ceph_gateway import Gateway, ceph_gateway, missing_for_gateway
from tests.support.runs import prepare_small_set, pretrain_keys, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

REPOSITORY = str(Path(__file__).resolve().parents[2])
TOKEN = "0123456789abcdef0123456789abcdef"
STEPS = 100
KEYS = (f"steps={STEPS}", "global_batch=12", "decode_actors=1", "tracking.uri=none")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """Two hosts whose environment knows the storage and the token."""
    missing = missing_for_hosts() or missing_for_gateway()
    if missing:
        pytest.fail(f"this machine lacks {missing}")  # whoever asks for this suite must not take nothing for green
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONDONTWRITEBYTECODE": "1"}
    with two_hosts(environment) as pair:
        yield pair


@pytest.fixture(scope="module")
def storage(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ceph_gateway(tmp_path_factory.mktemp("s3"), GATEWAY) as gateway, pytest.MonkeyPatch.context() as patch:
        for name, value in gateway.environment.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=gateway.endpoint).create_bucket(Bucket="training")
        for host in hosts:
            host.environment.update(gateway.environment)
        yield gateway


@pytest.fixture(scope="module")
def data(storage: Gateway, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared set in the bucket."""
    videos = prepare_small_set(tmp_path_factory.mktemp("videos")).parent / "videos"
    run("jobs.prepare", f"source={videos}", "output=s3://training/set", "workers=0").check_returncode()
    return "s3://training/set"


@pytest.fixture
def cluster(hosts: tuple[Host, Host], storage: Gateway) -> Iterator[tuple[Host, Host]]:
    """One Ray cluster over both, with capacity for three workers and decoding: no host holds all of them."""
    head, other = hosts
    start_ray(head, None, cpus=2)
    start_ray(other, head, cpus=2)
    yield hosts
    other.plug_in()
    for host in hosts:
        host.end_processes()


class Job:
    """A training submitted to the cluster."""

    def __init__(self, head: Host, name: str, *keys: str) -> None:
        self.head, self.name, self.output = head, name, f"s3://training/{name}"
        self.server = ["--address", f"http://{head.address}:8265"]
        entry = [sys.executable, "-m", "jobs.pretrain", *keys]
        options = ["--working-dir", REPOSITORY, "--submission-id", name, "--no-wait"]
        submitted = head.run(RAY, "job", "submit", *self.server, *options, "--", *entry)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    def status(self) -> str:
        return str(self._ask("")["status"])

    def log(self) -> str:
        return str(self._ask("/logs")["logs"])

    def _ask(self, what: str) -> dict[str, Any]:
        place = f"http://{self.head.address}:8265/api/jobs/{self.name}{what}"
        request = urllib.request.Request(place, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            assert self.status() != "FAILED", self.log()
            return max(complete_steps(self.output), default=0) >= step

        wait_for(reached, 180, f"step {step} of {self.name}")

    def wait_for_success(self) -> None:
        def ended() -> bool:
            status = self.status()
            assert status != "FAILED", self.log()
            return status == "SUCCEEDED"

        wait_for(ended, 400, f"the end of {self.name}")


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(f"{output}/metrics.jsonl").decode().splitlines()]


def every_view_once_per_epoch(lines: list[Mapping[str, Any]], data: str) -> bool:
    samples = [sample for line in lines for sample in line["sample_ids"]]
    per_epoch = open_prepared(data).num_clips("train") * 2  # the demo recipe's repeats
    epochs = [samples[first : first + per_epoch] for first in range(0, len(samples), per_epoch)]
    return all(len(set(epoch)) == len(epoch) for epoch in epochs)


def test_a_wrong_token_is_refused(cluster: tuple[Host, Host]) -> None:
    head, other = cluster
    address = f"http://{head.address}:8265"
    refused = other.run("env", "RAY_AUTH_TOKEN=" + "f" * 32, RAY, "job", "list", "--address", address)
    assert refused.returncode != 0
    assert other.run(RAY, "job", "list", "--address", address).returncode == 0


@pytest.mark.parametrize("fault", ["cable", "death"])
def test_a_host_lost_in_mid_epoch(cluster: tuple[Host, Host], data: str, tmp_path: Path, fault: str) -> None:
    head, other = cluster
    job = Job(head, fault, *pretrain_keys(data, f"s3://training/{fault}", *KEYS, "workers=[1,3]"))
    job.wait_for_step(6)
    assert not exists(f"{job.output}/metrics.jsonl")
    if fault == "cable":
        other.cut_off()
    else:
        other.end_processes()
    job.wait_for_success()
    lines = lines_of(job.output)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert every_view_once_per_epoch(lines, data)
    told = job.log()
    assert "generation 1: 3 workers from step 0 on" in told
    assert "1 worker from step" in told
    assert TOKEN not in told
    alone = tmp_path / "alone"
    run("jobs.pretrain", *pretrain_keys(data, alone, *KEYS, "workers=1")).check_returncode()
    expected = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert [line["sample_ids"] for line in lines] == [line["sample_ids"] for line in expected]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
