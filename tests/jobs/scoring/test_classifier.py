"""Which classifiers the scoring commands take, and in which arithmetic. No Ray."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import HieraConfig as HuggingFaceConfig
from transformers import HieraForImageClassification

from hiera_video.models.presets import create_model, model_config
from hiera_video.weights.checkpoint_files import official_state_dict, save_model
from jobs import export
from jobs.core.errors import UserError
from jobs.scoring.classifier import Classifier, PublicWeightsConfig, find_classifier
from jobs.weights.model_config import view_config
from pipeline.datasets.evaluation import DecodeEvaluationViews, ViewProtocol
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.shards.reader import open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import TranscodeConfig
from tests.support.huggingface import huggingface_state_dict
from tests.support.image_parity import loop
from tests.support.official import official_logits, official_model, randomize, relative_difference
from tests.support.pictures import photograph
from tests.support.prepared import prepare


def official(path: Path, classes: int = 400) -> Path:
    torch.manual_seed(0)
    model = create_model("hiera_test_8x64", num_classes=classes, head_init_scale=10.0)
    torch.save({"model_state": official_state_dict(model)}, path)
    return path


def test_official_weights_of_400_classes_are_kinetics(tmp_path: Path) -> None:
    found = find_classifier(str(official(tmp_path / "hiera.pth")))
    assert (found.input_size, len(found.classes)) == ((8, 64, 64), 400)
    assert (found.classes[0], found.classes[399]) == ("abseiling", "zumba")
    assert found.model_config == model_config("hiera_test_8x64", num_classes=400)


def test_scores_are_those_of_the_model_that_was_saved(tmp_path: Path) -> None:
    path = official(tmp_path / "hiera.pth")
    model_config = find_classifier(str(path)).model_config
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 64, 64, 3), np.uint8)
    exact = Classifier(str(path), "fp32", False, model_config).score(video)[0]
    assert exact.max() > 0.01  # not flat, so that a difference shows
    np.testing.assert_allclose(exact.sum(1), 1, rtol=1e-5)
    for precision in ("bf16", "fp16"):
        scores = Classifier(str(path), precision, False, model_config).score(video)[0]  # type: ignore[arg-type]
        assert 0 < np.abs(scores - exact).max() < 0.05 * exact.max()
        assert (scores.argmax(1) == exact.argmax(1)).all()


def test_weights_on_a_hub_carry_official_names_in_safetensors(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64", num_classes=3)
    save_file(official_state_dict(model), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c"]))
    public = PublicWeightsConfig(classes=str(tmp_path / "names.json"))
    assert find_classifier(str(tmp_path), public).classes == ("a", "b", "c")
    with pytest.raises(UserError, match=r"classes=kinetics400: names 400 classes, .* has 3"):
        find_classifier(str(tmp_path), PublicWeightsConfig(classes="kinetics400"))


def test_weights_of_an_untracked_run_are_no_other_runs(tmp_path: Path) -> None:
    """Their own run has no id: the one that they were fine-tuned from must not take credit for them."""
    facts = {"command": "finetune", "run_id": "", "finetune_run_id": "former", "pretrain_run_id": "p"}
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64", num_classes=2), facts)
    assert find_classifier(str(tmp_path)).links == {"pretrain_run_id": "p"}


def test_a_classifier_of_images_is_found(tmp_path: Path) -> None:
    images = create_model("hiera_tiny_224", num_classes=4)
    save_file(huggingface_state_dict(images), tmp_path / "images.safetensors", metadata={"format": "pt"})
    save_model(tmp_path / "own.safetensors", images, {"classes": json.dumps(["a", "b", "c", "d"])})
    for name in ("images", "own"):
        found = find_classifier(str(tmp_path / f"{name}.safetensors"))
        assert (found.media, found.input_size, len(found.classes)) == ("image", (1, 224, 224), 4)
        assert found.encoder.pixel_mean == (0.485, 0.456, 0.406)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    torch.save(official_state_dict(create_model("mae_hiera_test_8x64")), tmp_path / "mae.pth")
    with pytest.raises(UserError, match="holds no classification head"):
        find_classifier(str(tmp_path / "mae.pth"))
    with pytest.raises(UserError, match="hiera_base_16x224 with these options does not have the shapes"):
        find_classifier(str(official(tmp_path / "w.pth")), PublicWeightsConfig(model="hiera_base_16x224"))
    save_model(tmp_path / "pretrained.safetensors", create_model("mae_hiera_test_8x64"))
    with pytest.raises(UserError, match="holds a masked autoencoder, as `pretrain` makes it, not a classifier"):
        find_classifier(str(tmp_path / "pretrained.safetensors"))
    save_model(tmp_path / "own.safetensors", create_model("hiera_test_8x64"))
    with pytest.raises(UserError, match=r"^classes=kinetics400: only for public weights"):
        find_classifier(str(tmp_path / "own.safetensors"), PublicWeightsConfig(classes="kinetics400"))
    with pytest.raises(UserError, match=r"^model=hiera_test_8x64: only for public weights, which init="):
        find_classifier(str(tmp_path / "own.safetensors"), PublicWeightsConfig(model="hiera_test_8x64"))


def test_an_export_without_its_head_is_refused(tmp_path: Path) -> None:
    classes = {"classes": json.dumps(["a"] * 8)}
    save_model(tmp_path / "classifier.safetensors", create_model("hiera_test_8x64"), classes)
    exported = export.ExportConfig(
        init=str(tmp_path / "classifier.safetensors"), output=str(tmp_path / "encoder.safetensors")
    )
    export.run(exported)
    with safe_open(exported.output, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"encoder"}  # noqa: SIM118
    with pytest.raises(UserError, match="contains the encoder of a classifier without its head; fine-tune from it"):
        find_classifier(exported.output)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"input_size": "abc"}, "model_overrides.input_size=abc: "), ({"stages": 5}, "model_overrides.stages=5: "),
     ({"embed_dim": "x"}, "model_overrides.embed_dim=x: "), ({"input_size": [8, 32, 128]}, "views are square")],
)  # fmt: skip
def test_how_public_weights_differ_is_checked(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = official(tmp_path / "w.pth")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        find_classifier(str(file), PublicWeightsConfig(model="hiera_test_8x64", model_overrides=overrides))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"model_state": Harmful()}))
    with pytest.raises(UserError, match="weights cannot be read"):
        find_classifier(str(tmp_path / "w.pth"))
    assert not (tmp_path / "harm").exists()


def ours(weights: Path, paths: list[Path], tmp_path: Path) -> torch.Tensor:
    """Logits by the commands' own way: a prepared set, the evaluation's stage, the classifier. [N, classes]"""
    lines = "".join(f"{path},val\n" for path in paths)
    (tmp_path / "list.csv").write_text(f"path,split\n{lines}")
    settings = PrepareSettings(ManifestConfig(media="image"), TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    prepare(str(tmp_path / "list.csv"), str(tmp_path / "set"), settings, workers=0)
    found = find_classifier(str(weights))
    prepared = open_prepared(str(tmp_path / "set"))
    stage = DecodeEvaluationViews(
        prepared.selection("val"), (), view_config(found.encoder), ViewProtocol(1, 1), DecodeConfig()
    )
    classifier = Classifier(found.file, "fp32", False, found.model_config)
    logits = {}
    for table in stage({"group": np.flatnonzero(prepared.selection("val").clips_per_group)}):
        assert table["status"].to_pylist() == ["ok"]
        _, features = classifier.score(table["video"].combine_chunks().to_numpy())
        logits[table["uri"][0].as_py()] = classifier.model.head(torch.from_numpy(features))[0].detach()
    return torch.stack([logits[str(path)] for path in paths])


def photographs(tmp_path: Path) -> list[Path]:
    """Two photographs, as they are, and one of them smaller, higher than wide and as a PNG."""
    smaller = tmp_path / "smaller.png"
    with Image.open(photograph("flower.jpg")) as picture:
        picture.rotate(90, expand=True).resize((150, 200)).save(smaller)
    return [photograph("china.jpg"), photograph("flower.jpg"), smaller]


def test_image_logits_are_those_of_a_loop_over_the_public_package(tmp_path: Path) -> None:
    theirs = official_model("hiera_tiny_224", num_classes=7).eval()
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "public.pth")
    paths = photographs(tmp_path)
    expected = loop(lambda pixels: official_logits(theirs, pixels), paths)
    found = ours(tmp_path / "public.pth", paths, tmp_path)
    assert relative_difference(found, expected) < 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_image_logits_are_those_of_a_loop_over_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = HieraForImageClassification(HuggingFaceConfig(depths=[1, 2, 7, 2], num_labels=7, image_size=[224, 224]))
    randomize(theirs)
    theirs.eval()
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "hub.safetensors", metadata={"format": "pt"})
    paths = photographs(tmp_path)
    expected = loop(lambda pixels: theirs(pixel_values=pixels).logits, paths)
    found = ours(tmp_path / "hub.safetensors", paths, tmp_path)
    assert relative_difference(found, expected) < 1e-4
    assert torch.equal(found.argmax(1), expected.argmax(1))
