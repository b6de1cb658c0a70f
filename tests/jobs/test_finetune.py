"""What fine-tuning starts from: classes without clips, another class list, another preset. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import official_state_dict, read_metadata, save_model
from jobs.checkpoints.store import Checkpoint, write_checkpoint
from jobs.core.cli import replace
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.finetune import FinetuneConfig, _phase, classes_of, run, warn_empty_classes
from jobs.runs.claim import claim_output
from jobs.training.driver import _check_weights, claimed_set, initial_links
from pipeline.manifest.formats import read_class_list
from pipeline.shards.reader import PreparedSet
from tests.support.small_set import CLASSES, small_prepared_set

SMALL = ["model=hiera_test_8x64", "global_batch=4", "micro_batch=4",
         "precision=fp32", "tracking.uri=none"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return small_prepared_set(tmp_path_factory.mktemp("start"))


def config(prepared: PreparedSet, init: Path, *more: str) -> FinetuneConfig:
    keys = ["k400_base", f"data={prepared.uri}", f"init={init}", f"output={init.parent / 'out'}", *SMALL, *more]
    return load_config(FinetuneConfig, "finetune", keys)


def weights(path: Path, classes: tuple[str, ...]) -> Path:
    """A classifier that was fine-tuned on some classes."""
    torch.manual_seed(7)
    save_model(path, create_model("hiera_test_8x64", num_classes=len(classes)), {"classes": json.dumps(classes)})
    return path


def test_an_empty_class_is_told_and_counted(prepared: PreparedSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_empty_classes(prepared) == []
    assert "warning" not in capsys.readouterr().err
    longer = PreparedSet(**{**prepared.__dict__, "classes": (*CLASSES, "down", "still")})
    assert warn_empty_classes(longer) == ["down", "still"]
    assert "2 of 5 classes" in capsys.readouterr().err
    assert prepared.classes_without_clips("val") == ["left"]


@pytest.mark.parametrize(
    ("classes", "kept"), [(CLASSES, True), (tuple(reversed(CLASSES)), False), (("a", "b", "c"), False)]
)
def test_a_head_for_other_classes_starts_anew(
    classes: tuple[str, ...], kept: bool, prepared: PreparedSet, tmp_path: Path
) -> None:
    """As many classes, but others, or in another order: their logits would mean the wrong thing."""
    init = weights(tmp_path / "w.safetensors", classes)
    assert json.loads(read_metadata(init)["classes"]) == list(classes)
    torch.manual_seed(1)
    phase = _phase(config(prepared, init))
    assert phase.new_head is not kept
    model = phase.build_step(load_init=True).model
    torch.manual_seed(7)
    former = create_model("hiera_test_8x64", num_classes=3).state_dict()
    assert torch.equal(model.state_dict()["head.weight"], former["head.weight"]) is kept
    encoder = [name for name in former if name.startswith("encoder.")]
    assert all(torch.equal(model.state_dict()[name], former[name]) for name in encoder)


def test_a_run_that_goes_on_does_not_need_its_initial_weights(prepared: PreparedSet, tmp_path: Path) -> None:
    init = weights(tmp_path / "w.safetensors", CLASSES)
    asked = config(prepared, init)
    pins = {"data_version": 1, "new_head": False, "tags": {"pretrain_run_id": "a", "data": "set"}}
    claim_output(asked.output, asked, pins=pins)
    init.unlink()
    assert initial_links(asked.output, asked.init) == {"pretrain_run_id": "a"}
    assert not _phase(asked).new_head
    with pytest.raises(UserError, match=r"w\.safetensors"):
        _check_weights(asked, _phase(asked))
    write_checkpoint(asked.output, Checkpoint(1, 4, {}, {}))
    _check_weights(asked, _phase(asked))


def test_a_head_that_started_new_starts_new_again(prepared: PreparedSet, tmp_path: Path) -> None:
    """Also where the only checkpoint is torn, and the run begins once more."""
    asked = config(prepared, weights(tmp_path / "w.safetensors", tuple(reversed(CLASSES))))
    claim_output(asked.output, asked, pins={"data_version": 1, "new_head": _phase(asked).new_head})
    weights(tmp_path / "w.safetensors", CLASSES)  # as if the file had been trained on in place meanwhile
    assert _phase(asked).new_head
    assert not _phase(replace(asked, output=str(tmp_path / "another"))).new_head


def test_a_public_head_counts_as_kinetics(tmp_path: Path) -> None:
    kinetics = create_model("hiera_test_8x64", num_classes=400)
    torch.save({"model_state": official_state_dict(kinetics)}, tmp_path / "kinetics.pth")
    assert classes_of(str(tmp_path / "kinetics.pth")) == read_class_list("kinetics400")
    other = create_model("hiera_test_8x64", num_classes=len(CLASSES))
    torch.save({"model_state": official_state_dict(other)}, tmp_path / "other.pth")
    assert classes_of(str(tmp_path / "other.pth")) is None  # as many classes as the set has, but nobody knows which
    torch.save({"model_state": official_state_dict(create_model("mae_hiera_test_8x64"))}, tmp_path / "mae.pth")
    assert classes_of(str(tmp_path / "mae.pth")) is None
    assert classes_of(None) is None


def test_weights_of_another_preset_are_a_mistake(prepared: PreparedSet, tmp_path: Path) -> None:
    save_model(tmp_path / "demo.safetensors", create_model("mae_hiera_demo_16x96"))
    with pytest.raises(UserError, match=r"^init=.*demo\.safetensors: .*shape"):
        run(config(prepared, tmp_path / "demo.safetensors"))


def test_a_set_without_classes_is_a_mistake(prepared: PreparedSet, tmp_path: Path) -> None:
    record = json.loads((Path(prepared.uri) / "dataset.json").read_text())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "dataset.json").write_text(json.dumps({**record, "classes": []}))
    bare = PreparedSet(**{**prepared.__dict__, "uri": str(tmp_path / "none")})
    with pytest.raises(UserError, match="has no classes; prepare it with"):
        run(config(bare, weights(tmp_path / "w.safetensors", CLASSES)))


def test_a_resumed_run_keeps_the_classes_of_its_own_version(tmp_path: Path) -> None:
    prepared = small_prepared_set(tmp_path)
    first = tmp_path / "set" / "dataset.json"
    asked = config(prepared, tmp_path / "none")
    claim_output(asked.output, asked, pins={"data_version": 1})
    grown = json.loads(first.read_text()) | {"version": 2, "classes": [*CLASSES, "down"]}
    first.write_text(json.dumps(grown))
    assert claimed_set(asked).classes == CLASSES
    assert claimed_set(replace(asked, output=str(tmp_path / "new"))).version == 2
    assert _phase(replace(asked, init=None)).num_classes == len(CLASSES)
