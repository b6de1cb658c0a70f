"""A folder for a model hub: the same model for every command, and text from data on its card is text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import load_into_classifier, official_state_dict, read_metadata, save_model
from jobs.core.errors import UserError
from jobs.core.init_source import LICENSE, initial_metadata, links_of, local_weights
from jobs.export import ExportConfig, run
from jobs.scoring.classifier import Classifier, find_classifier
from jobs.training.start import classes_of

CLASSES = ("a", "b", "c")
FACTS = {
    "classes": json.dumps(CLASSES),
    "sampling_of_frames": '{"sampling": "dense", "frame_stride": 4}',
    "command": "finetune",
    "run_id": "r1",
    "pretrain_run_id": "p1",
    "recipe": "data: s3://internal/videos",
}


def exported(folder: Path, preset: str = "hiera_test_8x64", **facts: str) -> tuple[Hiera, Path]:
    torch.manual_seed(0)
    model = create_model(preset, num_classes=3, head_init_scale=10.0).eval()
    assert isinstance(model, Hiera)
    folder.mkdir(exist_ok=True)
    save_model(folder / "model.safetensors", model, FACTS | facts)
    init = folder if (folder / "config.yaml").exists() else folder / "model.safetensors"  # a run, or its file
    run(ExportConfig(init=str(init), output=str(folder / "hub"), format="hub"))
    return model, folder / "hub"


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("preset", ["hiera_test_8x64", "hiera_test_96"])
def test_every_command_reads_the_model_that_was_written(preset: str, tmp_path: Path) -> None:
    model, hub = exported(tmp_path, preset)
    found = find_classifier(str(hub))
    assert (found.classes, found.encoder, found.links) == (
        CLASSES, model.config, {"finetune_run_id": "r1", "pretrain_run_id": "p1"},
    )  # fmt: skip
    before = Classifier(str(tmp_path / "model.safetensors"), "fp32", False)
    after = Classifier(str(hub), "fp32", False)
    frames = np.random.default_rng(0).integers(0, 256, (2, *found.input_size, 3), np.uint8)
    for one, other in zip(before.score(frames), after.score(frames), strict=True):
        np.testing.assert_array_equal(one, other)
    # As `finetune` does: its classes are those of the weights, so the head is taken too.
    assert classes_of(str(hub)) == CLASSES
    tuned = create_model(preset, num_classes=3)
    assert isinstance(tuned, Hiera)
    with local_weights(str(hub)) as path:
        assert not load_into_classifier(tuned, path).new
    assert all(torch.equal(value, tuned.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_folder_is_exported_again_without_a_change(tmp_path: Path) -> None:
    _, hub = exported(tmp_path)
    run(ExportConfig(init=str(hub), output=str(tmp_path / "again"), format="hub"))
    assert read_metadata(tmp_path / "again" / "model.safetensors") == read_metadata(hub / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (hub / name).read_bytes()
    run(ExportConfig(init=str(hub), output=str(tmp_path / "m.safetensors"), part="model"))
    one, other = load_file(hub / "model.safetensors"), load_file(tmp_path / "m.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_files_for_other_programs(tmp_path: Path) -> None:
    model, hub = exported(tmp_path)
    config = read(hub / "config.json")
    assert (config["model_type"], config["input_size"]) == ("hiera_video", [8, 64, 64])
    assert (config["id2label"], config["label2id"]["c"]) == ({"0": "a", "1": "b", "2": "c"}, 2)
    assert {name: config[name] for name in ("stages", "embed_dim", "num_classes")} == {
        "stages": [*model.config.stages], "embed_dim": 8, "num_classes": 3,
    }  # fmt: skip
    processor = read(hub / "preprocessor_config.json")
    assert (processor["num_frames"], processor["frame_stride"]) == (8, 4)
    assert (processor["size"], processor["image_mean"]) == ({"shortest_edge": 64}, [0.45, 0.45, 0.45])
    assert "internal" not in "".join(path.read_bytes().decode(errors="replace") for path in hub.iterdir())
    _, images = exported(tmp_path / "images", "hiera_test_96")
    processor = read(images / "preprocessor_config.json")
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 109}, {"height": 96, "width": 96})
    assert (processor["resample"], "num_frames" in processor) == (3, False)


def card(hub: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (hub / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_whose_weights_they_derive_from(tmp_path: Path) -> None:
    front, text = card(exported(tmp_path / "own")[1])
    assert "license" not in front
    assert "No license is recorded." in text
    _, hub = exported(tmp_path / "derived", **{LICENSE: "CC-BY-NC-4.0"})
    front, text = card(hub)
    assert front["license"] == "cc-by-nc-4.0"
    assert "no commercial use" in text
    assert read_metadata(hub / "model.safetensors")[LICENSE] == "CC-BY-NC-4.0"


def test_the_license_of_public_weights_is_handed_on(tmp_path: Path) -> None:
    torch.save(official_state_dict(create_model("hiera_test_8x64")), tmp_path / "public.pth")
    from_public = links_of(initial_metadata(str(tmp_path / "public.pth")))
    assert from_public == {LICENSE: "CC-BY-NC-4.0"}
    save_model(tmp_path / "tuned.safetensors", create_model("hiera_test_8x64"), {"command": "finetune", **from_public})
    assert links_of(initial_metadata(str(tmp_path / "tuned.safetensors")))[LICENSE] == "CC-BY-NC-4.0"
    save_model(tmp_path / "own.safetensors", create_model("hiera_test_8x64"), {"command": "finetune"})
    assert LICENSE not in links_of(initial_metadata(str(tmp_path / "own.safetensors")))


def test_the_card_has_the_figures_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: hiera_test_8x64\nmodel_overrides: {}\n")
    (tmp_path / "report.json").write_text('{"validation_top1": 0.8125, "final_loss": "<b>", "output": "s3://internal"}')
    _, text = card(exported(tmp_path)[1])
    assert "| validation\\_top1 | 0.8125 |" in text
    assert "final" not in text


def test_names_on_the_card_are_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "[x](javascript:alert(1))", "a|b\n# c\n---\nlicense: mit", "![i](http://h/p)"]
    save_model(
        tmp_path / "model.safetensors", create_model("hiera_test_8x64", num_classes=4), {"classes": json.dumps(names)}
    )
    run(ExportConfig(init=str(tmp_path / "model.safetensors"), output=str(tmp_path / "hub"), format="hub"))
    front, text = card(tmp_path / "hub")
    assert "license" not in front
    assert "<script" not in text
    rows = text.partition("| 0 | ")[2].splitlines()
    assert len(rows) == 4
    assert not re.search(r"(?<!\\)[\[\]()!`*_]", "".join(rows))
    assert read(tmp_path / "hub" / "config.json")["id2label"]["3"] == names[3]


def test_a_run_is_not_overwritten_and_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64", num_classes=3), FACTS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"pins": {"command": "finetune"}}')
    init = str(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds a finetune run, whose files would be replaced; choose another folder"):
        run(ExportConfig(init=init, output=str(tmp_path / "run"), format="hub"))
    save_model(tmp_path / "mae.safetensors", create_model("mae_hiera_test_8x64"))
    with pytest.raises(UserError, match="must be a classifier"):
        run(ExportConfig(init=str(tmp_path / "mae.safetensors"), output=str(tmp_path / "x"), format="hub"))
    with pytest.raises(ValueError, match="must be a folder with format=hub"):
        ExportConfig(init=init, output="x.onnx", format="hub")


def test_no_file_that_a_folder_names_is_opened(tmp_path: Path) -> None:
    """An index of shards may name any file; the reader knows one name."""
    save_model(tmp_path / "outside.safetensors", create_model("hiera_test_8x64"), FACTS)
    (tmp_path / "hub").mkdir()
    index = {"weight_map": dict.fromkeys(create_model("hiera_test_8x64").state_dict(), "../outside.safetensors")}
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"_name_or_path": "/etc/passwd", "auto_map": {"x": "y"}}))
    with pytest.raises(UserError, match=r"init=.*no model\.safetensors|holds neither"):
        find_classifier(str(tmp_path / "hub"))
