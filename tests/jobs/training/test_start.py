"""What a start reads, and how often; what later starts of the run find unchanged; what frees the output. No Ray."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import official_state_dict, read_metadata, save_model
from jobs import finetune, pretrain
from jobs.checkpoints.store import Checkpoint, write_checkpoint
from jobs.core.config import load_config
from jobs.core.errors import StopRequestedError, UserError
from jobs.finetune import dry_run
from jobs.planning.dry_run import PlanConfig
from jobs.runs.claim import read_claim
from jobs.runs.fencing import acquire_token
from jobs.runs.tracking_config import TrackingConfig
from jobs.training import driver
from jobs.training.start import Start, begin, classes_of, preview
from jobs.training.steps.finetune import FinetuneConfig, FinetunePhase
from jobs.training.steps.pretrain import PretrainConfig
from pipeline.manifest.formats import read_class_list
from pipeline.shards.digests import version_digest
from pipeline.shards.reader import PreparedSet
from pipeline.storage import files
from tests.support.registry import NAME, motion_registry, stored
from tests.support.small_set import CLASSES, small_prepared_set
from tests.support.without_workers import without_workers

SMALL = ["global_batch=4", "micro_batch=4", "precision=fp32", "tracking.uri=none"]
STEPS = 2


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return small_prepared_set(tmp_path)


def config(prepared: PreparedSet, init: Path | None, *more: str) -> FinetuneConfig:
    output = Path(prepared.uri).parent / "out"
    keys = ["k400_base", "model=hiera_test_8x64", f"data={prepared.uri}", f"output={output}", *SMALL, *more]
    return load_config(FinetuneConfig, "finetune", [*keys, f"init={init or 'null'}"])


def begun(config: FinetuneConfig) -> Start[FinetuneConfig]:
    with begin("finetune", config, labelled=True) as start:
        return start


def weights(path: Path, classes: tuple[str, ...]) -> Path:
    """A classifier that was fine-tuned on some classes."""
    torch.manual_seed(7)
    facts = {"classes": json.dumps(classes), "command": "finetune", "pretrain_run_id": "a"}
    save_model(path, create_model("hiera_test_8x64", num_classes=len(classes)), facts)
    return path


def grow(prepared: PreparedSet, *classes: str) -> None:
    """Commit a version 2 of the set."""
    rewrite(prepared, version=2, classes=[*CLASSES, *classes])


def rewrite(prepared: PreparedSet, **entries: Any) -> None:
    """Change the set's record, with the digest that belongs to it."""
    path = Path(prepared.uri) / "dataset.json"
    record = json.loads(path.read_text()) | entries
    path.write_text(json.dumps(record | {"digest": version_digest(record["shards"], record["classes"])}))


# Each input is read once.


class Reads(Counter[str]):
    """Reads of whole objects by the last two parts of their path, whether they exist or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        real = files.read_bytes

        def read_bytes(uri: str) -> bytes:
            self["/".join(uri.split("/")[-2:])] += 1
            return real(uri)

        for module in [module for name, module in sys.modules.items() if name.startswith(("jobs.", "pipeline."))]:
            if getattr(module, "read_bytes", None) is real:
                monkeypatch.setattr(module, "read_bytes", read_bytes)

    def of_the_set(self) -> int:
        return sum(count for path, count in self.items() if path.startswith(("set/", "versions/")))


def test_a_start_reads_claim_and_record_once(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command to the report, the first time and when it resumes; the claim's first reading finds nothing."""
    without_workers(monkeypatch, lambda job: job.phase.build_step(load_init=False).model.state_dict())
    asked = config(prepared, weights(tmp_path / "w.safetensors", CLASSES), f"steps={STEPS}", "epochs=null")
    for _ in range(2):
        reads = Reads(monkeypatch)
        assert finetune.run(asked)["classes"] == len(CLASSES)
        assert (reads["out/run.json"], reads.of_the_set()) == (1, 1)
    keys = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "picture_clips=0", f"steps={STEPS}", *SMALL]
    places = [f"data={prepared.uri}", f"output={tmp_path / 'pretrained'}"]
    reads = Reads(monkeypatch)
    pretrain.run(load_config(PretrainConfig, "pretrain", [*keys, *places]))
    assert (reads["pretrained/run.json"], reads.of_the_set()) == (1, 1)


def test_a_dry_run_reads_them_once_and_claims_nothing(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(prepared, weights(tmp_path / "w.safetensors", CLASSES))
    reads = Reads(monkeypatch)
    assert finetune.dry_run(asked, PlanConfig())["classes"] == len(CLASSES)
    assert (reads["out/run.json"], reads.of_the_set()) == (1, 1)
    assert not (tmp_path / "out").exists()


# What the first start pins.


@pytest.mark.parametrize(
    ("classes", "kept"), [(CLASSES, True), (tuple(reversed(CLASSES)), False), (("a", "b", "c"), False)]
)
def test_a_head_for_other_classes_starts_new(
    classes: tuple[str, ...], kept: bool, prepared: PreparedSet, tmp_path: Path
) -> None:
    """As many classes, but others, or in another order: their logits would mean the wrong thing."""
    init = weights(tmp_path / "w.safetensors", classes)
    assert json.loads(read_metadata(init)["classes"]) == list(classes)
    torch.manual_seed(1)
    start = preview("finetune", config(prepared, init), labelled=True)
    assert start.new_head is not kept
    model = FinetunePhase.of(start).build_step(load_init=True).model
    torch.manual_seed(7)
    former = create_model("hiera_test_8x64", num_classes=3).state_dict()
    assert torch.equal(model.state_dict()["head.weight"], former["head.weight"]) is kept
    encoder = [name for name in former if name.startswith("encoder.")]
    assert all(torch.equal(model.state_dict()[name], former[name]) for name in encoder)


def test_a_run_that_resumes_does_not_need_its_initial_weights(prepared: PreparedSet, tmp_path: Path) -> None:
    init = weights(tmp_path / "w.safetensors", CLASSES)
    asked = config(prepared, init)
    begun(asked)
    init.unlink()
    again = begun(asked)
    assert again.links == {"pretrain_run_id": "a"}
    assert not again.new_head
    with pytest.raises(UserError, match=r"w\.safetensors"):
        driver._check_weights(again, FinetunePhase.of(again))  # nothing is saved yet, so they are needed
    write_checkpoint(asked.output, Checkpoint(1, 4, {}, {}))
    saved = begun(asked)
    assert (saved.cursor.step, saved.cursor.position) == (1, 4)
    driver._check_weights(saved, FinetunePhase.of(saved))


@pytest.mark.parametrize(("pinned", "said"), [(None, "older"), (1, "older"), (99, "newer")])
def test_a_run_under_other_rules_is_refused(pinned: int | None, said: str, prepared: PreparedSet) -> None:
    """Its order of samples and its draws would change in the middle. Such a claim, and its output, stay as they are."""
    asked = config(prepared, None)
    begun(asked)
    file = Path(asked.output) / "run.json"
    claim = json.loads(file.read_text())
    del claim["pins"]["arithmetic"]
    claim["pins"] |= {} if pinned is None else {"arithmetic": pinned}
    file.write_text(json.dumps(claim))
    before = file.read_text()
    for start in (begun, partial(preview, "finetune", labelled=True)):
        with pytest.raises(UserError, match=f"output={asked.output}: holds a run that an {said} release started"):
            start(asked)
    assert file.read_text() == before


def test_a_head_that_started_new_starts_new_again(prepared: PreparedSet, tmp_path: Path) -> None:
    """Also where the only checkpoint is torn, and the run begins once more."""
    asked = config(prepared, weights(tmp_path / "w.safetensors", tuple(reversed(CLASSES))))
    assert begun(asked).new_head
    weights(tmp_path / "w.safetensors", CLASSES)  # as if the file had been trained on in place meanwhile
    assert begun(asked).new_head
    assert not begun(replace(asked, output=str(tmp_path / "another"))).new_head


def test_a_resumed_run_keeps_the_classes_of_its_own_version(prepared: PreparedSet, tmp_path: Path) -> None:
    asked = config(prepared, None)
    assert begun(asked).prepared.version == 1
    grow(prepared, "down")
    again = begun(asked)
    assert (again.prepared.version, again.prepared.classes) == (1, CLASSES)
    assert FinetunePhase.of(again).classes == CLASSES
    assert begun(replace(asked, output=str(tmp_path / "new"))).prepared.version == 2


def test_a_public_head_counts_as_kinetics(tmp_path: Path) -> None:
    kinetics = create_model("hiera_test_8x64", num_classes=400)
    torch.save({"model_state": official_state_dict(kinetics)}, tmp_path / "kinetics.pth")
    assert classes_of(str(tmp_path / "kinetics.pth")) == read_class_list("kinetics400")
    other = create_model("hiera_test_8x64", num_classes=len(CLASSES))
    torch.save({"model_state": official_state_dict(other)}, tmp_path / "other.pth")
    assert classes_of(str(tmp_path / "other.pth")) is None  # as many classes as the set has, but unknown ones
    torch.save({"model_state": official_state_dict(create_model("mae_hiera_test_8x64"))}, tmp_path / "mae.pth")
    assert classes_of(str(tmp_path / "mae.pth")) is None
    assert classes_of(None) is None


# Two starts at once.


def test_two_racing_starts_agree_on_one_claim(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the output free and the set in different versions; the one that loses goes by the other's claim."""
    asked = config(prepared, None)
    monkeypatch.setattr("jobs.training.start.read_claim", lambda *_: None)
    first = begun(asked)
    grow(prepared, "down")
    second = begun(asked)
    assert second.claim is not None
    assert first.claim is not None
    assert (second.claim.run_key, second.claim.resumed) == (first.claim.run_key, True)
    assert second.prepared.version == first.prepared.version == 1


def test_many_racing_starts_agree(prepared: PreparedSet) -> None:
    asked = config(prepared, None)
    with ThreadPoolExecutor(6) as pool:
        starts = list(pool.map(lambda _: begun(asked), range(6)))
    assert len({start.claim.run_key for start in starts if start.claim}) == 1


# Mistakes before any work.


def test_a_set_without_classes_is_a_mistake(prepared: PreparedSet) -> None:
    rewrite(prepared, classes=[])
    asked = config(prepared, None)
    with pytest.raises(UserError, match="has no classes; prepare it with"):
        begun(asked)
    assert read_claim(asked.output, asked) is None


def fail_after(config: FinetuneConfig, error: Exception, work: Callable[[], object] = lambda: None) -> None:
    """A start that claims, does some work, and fails."""
    with begin("finetune", config):
        assert read_claim(config.output, config) is not None
        work()
        raise error


@pytest.mark.parametrize("worked_on", [False, True])
def test_a_mistake_leaves_the_output_free_unless_it_is_worked_on(worked_on: bool, prepared: PreparedSet) -> None:
    asked = config(prepared, None)
    another_start = partial(acquire_token, asked.output) if worked_on else lambda: None
    with pytest.raises(UserError, match="too few"):
        fail_after(asked, UserError("too few"), another_start)
    assert (Path(asked.output) / "run.json").exists() is worked_on


def test_the_claim_of_an_earlier_start_stays(prepared: PreparedSet) -> None:
    asked = config(prepared, None)
    with pytest.raises(StopRequestedError):
        fail_after(asked, StopRequestedError("saved"))
    with pytest.raises(UserError, match="too few"):
        fail_after(asked, UserError("too few"))
    assert (Path(asked.output) / "run.json").exists()


# A start from `init=models:/NAME@ALIAS`: the run keeps the copy that it began with. No Ray.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return motion_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def asked(registry: MlflowClient, prepared: PreparedSet, tmp_path: Path) -> FinetuneConfig:
    registry.set_registered_model_alias("motion", "best", "1")
    keys = [
        f"init={NAME}@best",
        f"data={prepared.uri}",
        f"output={tmp_path / 'run'}",
        "model=hiera_test_8x64",
        "steps=3",
    ]
    return load_config(FinetuneConfig, "finetune", [*keys, f"tracking.uri={registry.tracking_uri}"])


def content(start: Start[Any]) -> bytes:
    assert start.init is not None
    return Path(start.init).read_bytes()


def test_a_run_keeps_its_copy_when_the_alias_moves(
    registry: MlflowClient, asked: FinetuneConfig, tmp_path: Path
) -> None:
    first = begun(asked)
    assert first.config.init == f"{NAME}@best"
    assert first.worker_config.init == first.init
    assert str(first.init).startswith(str(tmp_path / "run" / "initial"))
    assert content(first) == stored(registry.tracking_uri, 1)
    assert first.links == {"pretrain_run_id": "p1", "finetune_run_id": "f1"}
    registry.set_registered_model_alias("motion", "best", "2")
    dead = replace(asked, tracking=TrackingConfig("http://127.0.0.1:9"))
    again = begun(dead)
    assert (again.init, again.links, again.new_head) == (first.init, first.links, first.new_head)
    assert content(begun(replace(asked, output=str(tmp_path / "new")))) == stored(registry.tracking_uri, 2)
    with pytest.raises(UserError, match="another configuration"):
        begun(replace(asked, seed=1))
    assert len(list((tmp_path / "run" / "initial").iterdir())) == 1


def test_a_run_whose_output_was_moved_finds_its_copy(
    registry: MlflowClient, asked: FinetuneConfig, tmp_path: Path
) -> None:
    begun(asked)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = begun(replace(asked, output=str(tmp_path / "moved")))
    assert content(moved) == stored(registry.tracking_uri, 1)


def test_a_first_start_that_loses_the_race_takes_the_winners_weights(
    registry: MlflowClient, asked: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias moves between two starts that have both found the output free."""
    winner = begun(asked)
    registry.set_registered_model_alias("motion", "best", "2")
    monkeypatch.setattr("jobs.training.start.read_claim", lambda *_: None)
    loser = begun(asked)
    assert loser.claim is not None
    assert winner.claim is not None
    assert loser.claim.run_key == winner.claim.run_key
    assert loser.init == winner.init


def test_a_dry_run_reads_it_and_writes_nothing(asked: FinetuneConfig, tmp_path: Path) -> None:
    assert dry_run(asked, PlanConfig())["steps"] == 3
    assert not (tmp_path / "run").exists()
