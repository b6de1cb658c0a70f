"""What the room refuses, each with what came, what is due, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hiera_video.analysis.reconstruct import reconstruct
from hiera_video.augmentation.basic import AugmentConfig, normalize_video
from hiera_video.models.presets import create_backbone, create_model
from hiera_video.models.random_draws import random_keep_mask, validate_keep_mask
from hiera_video.optimization import OptimizerConfig, ScheduleConfig
from hiera_video.weights.checkpoint_files import (
    load_into_classifier,
    load_model,
    load_official,
    load_weights,
    official_state_dict,
    read_metadata,
    save_model,
)

CLIP = (2, 3, 8, 64, 64)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return create_model("hiera_test_8x64")


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    return create_model("mae_hiera_test_8x64")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 8, 64, 64), r"shape \[3, 8, 64, 64\]: must be \[B, 3, T, H, W\].*add or remove an axis"),
        (torch.zeros(2, 8, 3, 64, 64), r"8 channels on axis 1.*\['B', 3, 8, 64, 64\]; put channels before frames"),
        (torch.zeros(CLIP, dtype=torch.uint8), "uint8: must be .*floats.*normalize_video"),
        (torch.zeros(CLIP, dtype=torch.int64), "int64: must be"),
        (
            torch.zeros(2, 3, 8, 64, 96),
            r"size \(8, 64, 96\).*built for \(8, 64, 64\); resize.*input_size=\(8, 64, 96\)",
        ),
    ],
)
@pytest.mark.parametrize("entry", ["forward", "features", "embed", "autoencoder", "backbone"])
def test_wrong_input(classifier: Any, autoencoder: Any, entry: str, pixels: torch.Tensor, message: str) -> None:
    call: dict[str, Callable[[torch.Tensor], Any]] = {
        "forward": classifier,
        "features": classifier.features,
        "embed": classifier.embed,
        "autoencoder": autoencoder,
        "backbone": classifier.encoder,
    }
    with pytest.raises(ValueError, match=message):
        call[entry](pixels)


@pytest.mark.parametrize(
    ("keep_mask", "message"),
    [
        (torch.ones(2, 9, dtype=torch.bool), r"shape \[2, 9\]: must be \[2, 16\].*random_keep_mask makes one"),
        (torch.ones(3, 16, dtype=torch.bool), r"shape \[3, 16\]: must be \[2, 16\]"),
        (torch.ones(2, 16), r"float32: must be torch.bool, True = visible; use mask.bool\(\)"),
        (torch.eye(2, 16, dtype=torch.bool), "keeps 1 of 16 units: at least 3"),
        (torch.arange(32).view(2, 16) < 20, "between 4 and 16 units: every sample.*same number"),
    ],
)
def test_wrong_mask(classifier: Any, autoencoder: Any, keep_mask: torch.Tensor, message: str) -> None:
    for call in (autoencoder, classifier.features):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(CLIP), keep_mask=keep_mask)
    with pytest.raises(ValueError, match=message):
        validate_keep_mask(keep_mask, 16, batch=2)


def test_mask_and_ratio_that_disagree(autoencoder: Any) -> None:
    keep_mask = random_keep_mask(2, 16, 0.5)
    with pytest.raises(ValueError, match=r"keeps 8 units, mask_ratio=0.75 keeps 4 of 16.*must agree"):
        autoencoder(torch.zeros(CLIP), mask_ratio=0.75, keep_mask=keep_mask)
    assert autoencoder(torch.zeros(CLIP), keep_mask=keep_mask).loss.isfinite()


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.9, r"mask_ratio=0.9: keeps 1 of 16 mask units, at least 3 must stay visible; use at most 0.812"),
        (1.0, r"mask_ratio=1.0: must lie in \[0, 1\)"),
        (-0.1, r"mask_ratio=-0.1: must lie in \[0, 1\)"),
    ],
)
def test_wrong_ratio(autoencoder: Any, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(torch.zeros(CLIP), mask_ratio=ratio)
    with pytest.raises(ValueError, match=message):
        create_model("mae_hiera_test_8x64", mask_ratio=ratio)


@pytest.mark.parametrize("decoder", ["full", "subset", "cross"])
def test_a_mask_that_hides_nothing_leaves_no_loss(decoder: str) -> None:
    message = "hides none of 16 mask units.*at least one must be hidden; use a mask_ratio of at least 0.0625"
    mae, everything = create_model("mae_hiera_test_8x64", decoder=decoder), torch.ones(2, 16, dtype=torch.bool)
    calls: list[Callable[[], Any]] = [
        lambda: mae(torch.zeros(CLIP), mask_ratio=0.0),
        lambda: mae(torch.zeros(CLIP), keep_mask=everything),
        lambda: mae(torch.zeros(CLIP), mask_ratio=0.0, keep_mask=everything),
        lambda: create_model("mae_hiera_test_8x64", mask_ratio=0.0),
        lambda: validate_keep_mask(everything, 16, some_hidden=True),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert mae(torch.randn(CLIP), mask_ratio=0.0625).loss.isfinite()


def test_a_mask_on_another_device_is_refused_by_its_ratio_unread() -> None:
    mae = create_model("mae_hiera_test_8x64").to("meta")
    pixels, everything = torch.zeros(CLIP, device="meta"), torch.ones(2, 16, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match=r"mask_ratio=0\.0: hides none of 16"):
        mae(pixels, mask_ratio=0.0, keep_mask=everything)
    assert mae(pixels, mask_ratio=0.5, keep_mask=everything).loss.shape == ()


def test_features_may_see_everything(classifier: Any) -> None:
    everything = torch.ones(2, 16, dtype=torch.bool)
    assert classifier.features(torch.zeros(CLIP), everything)[-1].shape[1] == 16


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"model=hiera_bse_16x224.*did you mean hiera_base_16x224.*model_names"):
        create_model("hiera_bse_16x224")
    with pytest.raises(ValueError, match="no such preset"):
        create_backbone("resnet50")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": 1}, "colour: HieraConfig has no such key; known: .*embed_dim"),
        (
            {"input_size": (16, 100, 96)},
            r"multiple of the mask unit, \(2, 32, 32\).*\(16, 96, 96\) and \(16, 128, 96\)",
        ),
        ({"input_size": (7, 64, 64)}, r"nearest sizes are \(6, 64, 64\) and \(8, 64, 64\)"),
        ({"input_size": (64,)}, r"must name \(height, width\) or \(frames, height, width\)"),
        ({"input_size": (64, 64)}, r"q_stride=\(1, 2, 2\): must have 2 numbers"),
        ({"mask_unit_size": (1, 4, 4)}, r"must be q_stride to the power 3; use \(1, 8, 8\)"),
        ({"q_pool": 4}, r"q_pool=4: must lie in \[0, 3\]"),
        ({"mask_unit_attn": (True, True)}, "one value for each of 4 stages"),
        ({"num_heads": 3}, "8 channels cannot be divided among 3 heads"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0: must lie in \[0, 1\)"),
        ({"head_dropout": 1.0}, r"head_dropout=1.0: must lie in \[0, 1\)"),
        ({"num_classes": 0}, "num_classes=0: must be positive"),
        ({"num_heads": 0}, "num_heads=0: must be positive; use at least 1"),
        ({"embed_dim": 0}, "embed_dim=0: must be positive"),
        ({"in_chans": 0}, "in_chans=0: must be positive"),
        ({"stages": (1, 1, 0, 1)}, r"stages=\(1, 1, 0, 1\): must be positive"),
        ({"stages": ()}, r"stages=\(\): must be positive"),
        ({"patch_stride": (2, 0, 4)}, r"patch_stride=\(2, 0, 4\): must be positive"),
        ({"head_mul": 0.5}, "head_mul=0.5: leaves a stage without heads"),
        ({"dim_mul": 0.1}, "dim_mul=0.1: leaves a stage without channels"),
    ],
)
def test_wrong_override(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("hiera_test_8x64", **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target": "edges"}, "target=edges: must be one of"),
        ({"decoder": "half"}, "decoder=half: must be one of"),
        ({"decoder_share": 0.0}, r"decoder_share=0.0: must lie in \(0, 1\]"),
        ({"decoder_num_heads": 0}, "decoder_num_heads=0: must be positive; use at least 1"),
        ({"decoder_depth": 0}, "decoder_depth=0: must be positive; use at least 1"),
        ({"target": "hog", "q_pool": 0}, "q_pool=0: a prediction covers 4 pixels, with target=hog.*use q_pool=2"),
        ({"decoder_num_heads": 3}, "must be divisible by decoder_num_heads=3"),
        ({"q_stride": (2, 2, 2), "mask_unit_size": (8, 8, 8), "input_size": (16, 64, 64)}, "must not pool time"),
    ],
)
def test_wrong_autoencoder_override(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("mae_hiera_test_8x64", **overrides)


def test_weights_of_another_preset(tmp_path: Path) -> None:
    other = create_model("hiera_test_8x64", embed_dim=16)
    save_model(tmp_path / "other.safetensors", other)
    torch.save({"model_state": official_state_dict(other)}, tmp_path / "other.pth")
    model = create_model("hiera_test_8x64")
    for path in (tmp_path / "other.safetensors", tmp_path / "other.pth"):
        for load in (load_weights, load_into_classifier):
            with pytest.raises(ValueError, match=r"weights of another model: .*due is .*more; create the preset"):
                load(model, path)
    with pytest.raises(ValueError, match="due is"):
        load_official(model, official_state_dict(other))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ({"num_heads": 2}, r"num_heads=2 in the file, num_heads=1 in the model; create the preset"),
        ({"mask_unit_attn": (False, False, False, False)}, r"mask_unit_attn=\(False.* in the file"),
        ({"stages": (1, 1, 2, 2)}, r"encoder\.blocks\.\d.* has no place"),
    ],
)
def test_weights_of_an_architecture_with_equal_shapes(override: dict[str, Any], told: str, tmp_path: Path) -> None:
    """They would load, and compute something else."""
    own = create_model("hiera_test_8x64").config
    for prefix, loads in (("mae_", [load_into_classifier]), ("", [load_into_classifier, load_weights])):
        save_model(tmp_path / "other.safetensors", create_model(f"{prefix}hiera_test_8x64", **override))
        for load in loads:
            with pytest.raises(ValueError, match=told):
                load(create_model("hiera_test_8x64"), tmp_path / "other.safetensors")
    assert all(getattr(own, name) != value for name, value in override.items())


@pytest.mark.parametrize(
    ("name", "override"), [("mae_hiera_test_8x64", "decoder_num_heads"), ("hiera_test_8x64", "q_pool")]
)
def test_weights_of_the_same_kind_with_equal_shapes(name: str, override: str, tmp_path: Path) -> None:
    own = create_model(name)
    value = getattr(own.config, override) * 2 if override == "decoder_num_heads" else own.config.q_pool - 1
    save_model(tmp_path / "other.safetensors", create_model(name, **{override: value}))
    with pytest.raises(ValueError, match=f"{override}={value} in the file"):
        load_weights(own, tmp_path / "other.safetensors")


def test_weights_of_another_depth_or_kind(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    shallow = official_state_dict(create_model("hiera_test_8x64", stages=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match="due is"):
        load_official(model, shallow)
    deep = official_state_dict(create_model("hiera_test_8x64", stages=(1, 1, 3, 1)))
    with pytest.raises(ValueError, match=r"has no place|due is"):
        load_official(model, deep)
    with pytest.raises(ValueError, match="is missing"):
        load_official(model, official_state_dict(create_model("mae_hiera_test_8x64")))


class Attack:
    """What a hostile `.pth` may hold."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("owned"),)


def test_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": Attack()}, "attack.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(create_model("hiera_test_8x64"), "attack.pth")
    assert not Path("owned").exists()


def test_damaged_missing_and_foreign_files(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    save_model(tmp_path / "whole.safetensors", model)
    torch.save({"model_state": official_state_dict(model)}, tmp_path / "whole.pth")
    for name in ("whole.safetensors", "whole.pth"):
        content = (tmp_path / name).read_bytes()
        cut = tmp_path / f"cut.{name.rpartition('.')[2]}"
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"cut\..*cannot be read .*give a complete"):
            load_weights(model, cut)
        with pytest.raises(ValueError, match="cannot be read"):
            load_weights(model, tmp_path / f"absent.{name.rpartition('.')[2]}")
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"its names \(fc.weight ...\) are neither"):
        load_weights(model, tmp_path / "foreign.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        load_weights(model, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_metadata(tmp_path / "absent.safetensors")


def test_files_without_a_sound_configuration(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    torch.save(official_state_dict(model), tmp_path / "official.pth")
    with pytest.raises(ValueError, match="carries no configuration"):
        load_model(tmp_path / "official.pth")
    with pytest.raises(ValueError, match="Linear cannot be saved"):
        save_model(tmp_path / "linear.safetensors", torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "line 1 column 2"),
        ("[1, 2]", r"config=\[1, 2\]: must be a JSON object"),
        ("7", "must be a JSON object"),
        ('{"colour": 1}', "colour: HieraConfig has no such key"),
        ('{"num_heads": 0}', "num_heads=0: must be positive"),
        ('{"embed_dim": "wide"}', "'str'"),
        ('{"input_size": 64}', "'int'"),
        ('{"dim_mul": Infinity}', "infinity"),
    ],
)
def test_a_damaged_configuration_names_its_file(config: str, reason: str, tmp_path: Path) -> None:
    metadata = {"format": "hiera_video", "config_class": "HieraConfig", "config": config}
    save_file({"head.bias": torch.zeros(8)}, tmp_path / "damaged.safetensors", metadata=metadata)
    with pytest.raises(
        ValueError, match=rf"damaged\.safetensors: its configuration is damaged \(.*{reason}.*save it again"
    ):
        load_model(tmp_path / "damaged.safetensors")


def test_frames_that_are_no_frames() -> None:
    for frames in (
        torch.zeros(2, 8, 64, 64, 3),
        torch.zeros(2, 3, 8, 64, 64, dtype=torch.uint8),
        torch.zeros(3).byte(),
    ):
        with pytest.raises(ValueError, match=r"must be uint8 \[B, T, H, W, 3\]"):
            normalize_video(frames)


def test_pictures_of_what_has_none() -> None:
    pixels = torch.randn(CLIP)
    for overrides in ({"target": "hog"}, {"decoder": "cross"}):
        mae = create_model("mae_hiera_test_8x64", **overrides)
        with pytest.raises(ValueError, match=r"only pixel targets of the full decoder.*use target"):
            reconstruct(mae, pixels, mae(pixels))


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate=0.0: must be positive"),
        (OptimizerConfig, {"layer_decay": 1.5}, r"layer_decay=1.5: must lie in \(0, 1\]"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"),
        (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay=-1.0: must not be negative"),
        (OptimizerConfig, {"clip_gradient_norm": -1.0}, "clip_gradient_norm=-1.0"),
        (ScheduleConfig, {"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        (ScheduleConfig, {"final_learning_rate": -1.0}, "final_learning_rate=-1.0"),
        (AugmentConfig, {"horizontal_flip": 2.0}, "horizontal_flip=2.0"),
    ],
)
def test_wrong_settings(config: type, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**arguments)
