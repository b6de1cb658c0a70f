"""How many decoders a run takes, and who shares a stream; the streams themselves are tested by runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private import state
from ray.cluster_utils import Cluster

from jobs import pretrain
from jobs.checkpoints.store import complete_steps
from jobs.core.config import load_config
from jobs.supervision.capacity import WorkerCapacity
from jobs.training import stream
from jobs.training.job import TrainingJob
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from jobs.training.stream import Streams, decoders_possible, decoders_wanted, views_per_gpu_second, with_decoders
from pipeline.shards.reader import PreparedSet
from tests.support.golden_losses import GOLDEN, pretrain_config, write_tiny_set


def job(*keys: str) -> TrainingJob:
    keys = ("data=d", "output=o", "steps=4", "epochs=null", "workers=2", *keys)
    config = load_config(PretrainConfig, "pretrain", ["k400_base", *keys])
    return TrainingJob("pretrain", "k", config, PretrainPhase(config), PreparedSet("d", 1, "d", (), (), {}), 4, 0, 1)


def test_auto_follows_from_what_the_gpus_want(monkeypatch: pytest.MonkeyPatch) -> None:
    host = {"CPU": 64.0, "GPU": 2.0}
    monkeypatch.setattr(stream, "offered_by_host", lambda: {"host": host})
    assert job().config.decode_actors == "auto"
    step = SimpleNamespace(multiply_adds=lambda: 209_391_058_944)  # of k400_base; building it takes seconds
    rate = views_per_gpu_second(step.multiply_adds())
    assert 100 < rate < 400  # one A100 at 35 % utilisation
    monkeypatch.setattr(PretrainPhase, "build_step", lambda *_, **__: step)
    wanted = decoders_wanted(2, step.multiply_adds())
    assert wanted - 1 < 2 * rate * stream.DECODE_SECONDS_PER_VIEW <= wanted
    assert with_decoders(job(), gpus=True).config.decode_actors == wanted > 2
    assert with_decoders(job(), gpus=False).config.decode_actors == 2
    assert with_decoders(job("decode_actors=5"), gpus=True).config.decode_actors == 5
    host["CPU"] = 2.5  # a reader takes a quarter of one, a decoder three quarters
    assert with_decoders(job(), gpus=True).config.decode_actors == 3
    host |= {"CPU": 12.0, "GPU": 8.0}  # so that four such runs may be beside each other
    assert with_decoders(job(), gpus=True).config.decode_actors == 3
    host["CPU"] = 3.0
    assert with_decoders(job(), gpus=False).config.decode_actors == 1


@pytest.mark.parametrize(
    ("cpus", "decoders"),
    [
        ((96, 96), 30),  # as many as wanted
        ((8, 8), 20),  # ten a host; one reader less would leave CPUs for 21, anywhere
        ((96, 8), 20),  # the ranks wait for each other, so the slowest host decides
        ((8, 8, 90), 20),  # four times what feeds a single stream
        ((2, 2, 90), 30),  # two a host would not feed one: better anywhere, in one stream for all
    ],
)
def test_decoders_are_beside_their_workers_where_that_is_enough(cpus: tuple[int, ...], decoders: int) -> None:
    hosts = {str(number): {"CPU": float(count), "GPU": 8.0 * (number < 2)} for number, count in enumerate(cpus)}
    config = job("workers=16").config
    assert decoders_possible(config, 30, hosts, gpus=True) == decoders


def test_ranks_of_a_host_share_a_stream() -> None:
    hosts = ["a", "a", "b", "b", "b", "a"]
    assert [Streams(True).ranks(rank, hosts) for rank in (0, 3, 5)] == [(0, 1, 5), (2, 3, 4), (0, 1, 5)]
    assert Streams(False).ranks(3, hosts) == (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[None]:
    """Each has CPUs for one worker and a stream of its own."""
    ray.shutdown()  # what other modules share
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    cluster.shutdown()


def trained(data: str, output: Path, *keys: str) -> list[tuple[float, list[str]]]:
    """Loss and sample ids of every step."""
    # Pictures are drawn from a short stream of the driver, which would count as another.
    pretrain.run(pretrain_config(data, output, "tracking.uri=none", "picture_clips=0", *keys))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["sample_ids"]) for line in lines]


def actors() -> Counter[tuple[str, str]]:
    """How many of this job's actors of each kind were ever on each host."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    kinds = {"SplitCoordinator": "coordinator", "ReadMicroBatches": "reader", "DecodeMicroBatches": "decoder"}
    found: Counter[tuple[str, str]] = Counter()
    for actor in state.state.actor_table(None, job, None).values():
        found.update((kinds[kind], actor["Address"]["NodeID"]) for kind in kinds if kind in actor["ActorClassName"])
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_stream_on_each_host_trains_as_one_stream(
    two_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples and, of as many workers, the same losses to the last bit; also when one resumes the other."""
    data = write_tiny_set(tmp_path)
    before = actors()
    each = trained(data, tmp_path / "each")
    hosts = {node["NodeID"] for node in ray.nodes()}
    assert len(hosts) == 2
    assert actors() - before == {(kind, host): 1 for kind in ("coordinator", "reader", "decoder") for host in hosts}
    assert [loss for loss, _ in each] == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)

    before = actors()
    monkeypatch.setattr(WorkerCapacity, "hosts_for", lambda *_: None)
    cut_off = cut_off_in_mid_epoch(tmp_path / "each", tmp_path / "resumed")
    assert trained(data, tmp_path / "one") == each
    assert sum((actors() - before).values()) == 3
    assert trained(data, cut_off) == each


def cut_off_in_mid_epoch(output: Path, copy: Path) -> Path:
    """The state of a run that died after step 4 of 6.5 in an epoch."""
    shutil.copytree(output, copy)
    for later in (step for step in complete_steps(str(copy)) if step > 4):
        shutil.rmtree(copy / "checkpoints" / f"step-{later:08d}")
    for done in ("metrics.jsonl", "model.safetensors"):
        (copy / done).unlink()
    return copy
