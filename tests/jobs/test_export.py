"""Exported files: complete, loadable, and honest about where they come from. No training: checkpoints are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hiera_video.augmentation.basic import model_input, normalize_video
from hiera_video.inference import Probabilities
from hiera_video.models.presets import create_model
from hiera_video.weights.backbone import load_backbone
from hiera_video.weights.checkpoint_files import load_into_classifier, load_model, read_metadata, save_model
from jobs.checkpoints.store import Checkpoint, write_checkpoint
from jobs.core.config import config_yaml, load_config
from jobs.core.errors import UserError
from jobs.export import ExportConfig, run
from jobs.runs.claim import claim_output
from jobs.training.steps.pretrain import PretrainConfig
from jobs.weights.torch_export import export_program

KEYS = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "steps=3", "data=/d",
        "global_batch=8", "model_overrides.drop_path_rate=0.2", "tracking.uri=http://h"]  # fmt: skip


@pytest.fixture
def unfinished(tmp_path: Path) -> tuple[Path, dict[int, dict[str, torch.Tensor]]]:
    """A run with two measured checkpoints, the first the better one, and their weights by step."""
    output = tmp_path / "run"
    config = load_config(PretrainConfig, "pretrain", [*KEYS, f"output={output}"])
    claim_output(str(output), config, pins={"command": "pretrain"})
    # As an older release kept it.
    (output / "config.yaml").write_text(config_yaml(config).replace("http://h", "http://me:hunter2@h"))
    weights = {}
    for step, metric in ((1, 0.5), (2, 0.9)):
        torch.manual_seed(step)
        weights[step] = dict(create_model("mae_hiera_test_8x64", drop_path_rate=0.2).state_dict())
        extra = {"mlflow_run_id": "a run"}
        write_checkpoint(str(output), Checkpoint(step, 8 * step, weights[step], {}, extra, metric))
    return output, weights


def same(path: Path, weights: dict[str, torch.Tensor]) -> bool:
    written = load_file(path)
    return all(torch.equal(written[name], weights[name]) for name in written)


@pytest.mark.parametrize(("keys", "step"), [({}, 2), ({"weights": "best"}, 1), ({"init": "checkpoints/step-1"}, 1)])
def test_the_whole_autoencoder_of_an_unfinished_run(
    unfinished: tuple[Path, dict[int, dict[str, torch.Tensor]]], keys: dict[str, str], step: int, tmp_path: Path
) -> None:
    output, weights = unfinished
    init = str(output / keys.pop("init", ""))
    target = tmp_path / "whole.safetensors"
    report = run(ExportConfig(init=init, output=str(target), part="model", **keys))  # type: ignore[arg-type]
    assert report["step"] == str(step)
    assert load_file(target).keys() == weights[step].keys()
    assert same(target, weights[step])
    assert load_model(target).config.drop_path_rate == 0.2
    metadata = read_metadata(target)
    assert (metadata["command"], metadata["run_id"], metadata["part"]) == ("pretrain", "a run", "model")
    assert "hunter2" not in str(metadata)
    recipe = yaml.safe_load(metadata["recipe"])
    assert (recipe["model"], recipe["mask_ratio"]) == ("mae_hiera_test_8x64", 0.75)


def test_the_encoder_serves_as_init_and_as_backbone(
    unfinished: tuple[Path, dict[int, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    output, weights = unfinished
    target = tmp_path / "encoder.safetensors"
    run(ExportConfig(init=str(output), output=str(target)))
    assert all(name.startswith("encoder.") for name in load_file(target))
    assert same(target, weights[2])
    classifier = create_model("hiera_test_8x64")
    taken = load_into_classifier(classifier, target).taken  # type: ignore[arg-type]
    assert set(taken) == {name for name in classifier.state_dict() if name.startswith("encoder.")}
    maps = load_backbone(target)(torch.zeros(1, 3, 8, 64, 64))
    expected = classifier.encoder.eval()(torch.zeros(1, 3, 8, 64, 64))
    assert [tuple(one.shape) for one in maps] == [
        (1, 4, 16, 16, 8),
        (1, 4, 8, 8, 16),
        (1, 4, 4, 4, 32),
        (1, 4, 2, 2, 64),
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))


def test_a_finished_runs_file_is_taken_with_its_facts(
    unfinished: tuple[Path, dict[int, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    output, _ = unfinished
    model = create_model("mae_hiera_test_8x64")
    save_model(output / "model.safetensors", model, {"command": "pretrain", "run_id": "done"})
    run(ExportConfig(init=str(output), output=str(tmp_path / "m.safetensors"), part="model"))
    assert same(tmp_path / "m.safetensors", model.state_dict())
    assert read_metadata(tmp_path / "m.safetensors")["run_id"] == "done"


def test_what_is_not_there_is_told(unfinished: tuple[Path, dict[int, dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    output, _ = unfinished
    target = str(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"step-7: must be a complete checkpoint; .* has those of steps 1, 2"):
        run(ExportConfig(init=f"{output}/checkpoints/step-7", output=target))
    with pytest.raises(UserError, match="nothing: must hold weights or a complete checkpoint; give"):
        run(ExportConfig(init=str(tmp_path / "nothing"), output=target))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="broken"):
        run(ExportConfig(init=str(tmp_path / "broken.safetensors"), output=target))
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        ExportConfig(init=str(output), output=str(tmp_path))


def test_a_classifier_becomes_a_program_without_its_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("hiera_test_8x64", num_classes=3, head_init_scale=10.0).eval()
    save_model(tmp_path / "model.safetensors", model, {"classes": '["a", "b", "c"]', "run_id": "r"})
    report = run(
        ExportConfig(init=str(tmp_path / "model.safetensors"), output=str(tmp_path / "out" / "classifier.pt2"))
    )
    assert report["largest difference from the model"] <= 1e-5
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "out" / "classifier.pt2", extra_files=extra).module()
    assert '["a", "b", "c"]' in json.loads(extra["metadata.json"])["classes"]
    frames = torch.randint(256, (5, 8, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(normalize_video(frames)).softmax(1)
        torch.testing.assert_close(program(frames), expected)
    assert expected.max() > 0.4
    save_model(tmp_path / "mae.safetensors", create_model("mae_hiera_test_8x64"))
    with pytest.raises(UserError, match="must be a classifier"):
        run(ExportConfig(init=str(tmp_path / "mae.safetensors"), output=str(tmp_path / "x.pt2")))


def test_a_classifier_of_images_becomes_a_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("hiera_test_96", num_classes=3, head_init_scale=10.0).eval()
    save_model(tmp_path / "model.safetensors", model, {"classes": '["a", "b", "c"]'})
    run(ExportConfig(init=str(tmp_path / "model.safetensors"), output=str(tmp_path / "classifier.pt2")))
    program = torch.export.load(tmp_path / "classifier.pt2").module()
    images = torch.randint(256, (5, 96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(model_input(images, model.config)).softmax(1))


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.export.export(
        Probabilities(create_model("hiera_test_8x64")).eval(), (torch.zeros(2, 8, 64, 64, 3, dtype=torch.uint8),)
    )
    monkeypatch.setattr("jobs.weights.torch_export.CHECKED_BATCHES", (2,))
    monkeypatch.setattr(torch.export, "load", lambda *_: other)
    with pytest.raises(RuntimeError, match="differs from the model"):
        export_program(create_model("hiera_test_8x64", head_init_scale=10.0), tmp_path / "x.pt2", {})
