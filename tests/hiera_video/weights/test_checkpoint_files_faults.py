"""Files and weights that are refused: of another model, damaged, foreign, hostile."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from hiera_video.models.presets import create_model, model_config
from hiera_video.weights.backbone import load_backbone
from hiera_video.weights.checkpoint_files import (
    load_into_classifier,
    load_model,
    load_official,
    load_weights,
    official_state_dict,
    read_metadata,
    save_model,
)


def test_weights_of_another_preset(tmp_path: Path) -> None:
    other = create_model("hiera_test_8x64", embed_dim=16)
    save_model(tmp_path / "other.safetensors", other)
    torch.save({"model_state": official_state_dict(other)}, tmp_path / "other.pth")
    model = create_model("hiera_test_8x64")
    for path in (tmp_path / "other.safetensors", tmp_path / "other.pth"):
        for load in (load_weights, load_into_classifier):
            with pytest.raises(ValueError, match=r"weights of another model: .*expected .*more; create the preset"):
                load(model, path)
    with pytest.raises(ValueError, match=r"has shape .*, expected \["):
        load_official(model, official_state_dict(other))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_heads": 2}, r"num_heads=2 in the file, num_heads=1 in the model; create the preset"),
        ({"mask_unit_attn": (False, False, False, False)}, r"mask_unit_attn=\(False.* in the file"),
        ({"stages": (1, 1, 2, 2)}, r"encoder\.blocks\.\d.* is unexpected"),
    ],
)
def test_weights_of_an_architecture_with_equal_shapes(override: dict[str, Any], message: str, tmp_path: Path) -> None:
    """They would load, and compute something else."""
    own = create_model("hiera_test_8x64").config
    for prefix, loads in (("mae_", [load_into_classifier]), ("", [load_into_classifier, load_weights])):
        save_model(tmp_path / "other.safetensors", create_model(f"{prefix}hiera_test_8x64", **override))
        for load in loads:
            with pytest.raises(ValueError, match=message):
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
    with pytest.raises(ValueError, match=r"has shape .*, expected \["):
        load_official(model, shallow)
    deep = official_state_dict(create_model("hiera_test_8x64", stages=(1, 1, 3, 1)))
    with pytest.raises(ValueError, match=r"is unexpected|expected"):
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
    with pytest.raises(ValueError, match=r"parameter names \(fc.weight ...\) must be"):
        load_weights(model, tmp_path / "foreign.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must contain tensors by name"):
        load_weights(model, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_metadata(tmp_path / "absent.safetensors")


def test_files_without_a_model_config(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    torch.save(official_state_dict(model), tmp_path / "official.pth")
    with pytest.raises(ValueError, match="contains no model config"):
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
        ('{"embed_dim": "wide"}', "must be like 96"),
        ('{"input_size": 64}', "must be like"),
        ('{"dim_mul": Infinity}', "infinity"),
    ],
)
def test_a_damaged_model_config_names_its_file(config: str, reason: str, tmp_path: Path) -> None:
    metadata = {"format": "hiera_video", "config_class": "HieraConfig", "config": config}
    save_file({"head.bias": torch.zeros(8)}, tmp_path / "damaged.safetensors", metadata=metadata)
    with pytest.raises(
        ValueError, match=rf"damaged\.safetensors: its model config is damaged \(.*{reason}.*save the model again"
    ):
        load_model(tmp_path / "damaged.safetensors")


HUGE = dataclasses.asdict(model_config("hiera_huge_16x224"))
TABLES = {
    "encoder.pos_embed.spatial": torch.zeros(1, 56 * 56, 1),
    "encoder.pos_embed.temporal": torch.zeros(1, 8, 1),
    **{f"encoder.blocks.{number}.norm1.weight": torch.zeros(1) for number in range(60)},
}


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(1)}, TABLES], ids=["180 bytes", "tables alone"])
@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"stages": [10**9, 1, 1, 1]},
        {"input_size": [16, 2**40, 2**40]},
        {"embed_dim": 2**40, "num_heads": 1},
        {"embed_dim": 10**30},
        {"dim_mul": 1e300},
        {"mlp_ratio": 1e18},
        {"num_classes": 10**15},
        {"embed_dim": "96"},
        {"stages": []},
        {"num_heads": True},
        {"patch_stride": [0, 0, 0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("load", [load_model, load_backbone])
def test_a_small_file_takes_no_memory(
    load: Callable[[Path], object], claims: dict[str, Any], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """2 GiB of address space beyond what is used now: a Hiera-Huge would need 2.7 GB, the claims far more."""
    metadata = {"format": "hiera_video", "config_class": "HieraConfig", "config": json.dumps({**HUGE, **claims})}
    save_file(tensors, tmp_path / "bomb.safetensors", metadata=metadata)
    used = psutil.Process().memory_info().vms
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    try:
        with pytest.raises(ValueError, match=r"bomb\.safetensors"):
            load(tmp_path / "bomb.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_tensors_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    metadata = {"format": "hiera_video", "config_class": "HieraConfig", "config": json.dumps(
        dataclasses.asdict(model_config("hiera_test_8x64")))}  # fmt: skip
    whole = {name: tensor.to(torch.int64) for name, tensor in model.state_dict().items()}
    save_file(whole, tmp_path / "whole.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="of another model than its model config"):
        load_model(tmp_path / "whole.safetensors")
