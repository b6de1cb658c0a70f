"""Every fine-tuning recipe against the paper's tables, and the evaluation recipes against the test protocol."""

from __future__ import annotations

import pytest

from hiera_video.augmentation.mixup import CUTMIX_SHARE
from hiera_video.augmentation.rand_augment import RandAugment, parse_rand_augment
from hiera_video.optimization import scaled_learning_rate
from jobs.core.config import RECIPES, load_config, recipe_names
from jobs.core.errors import UserError
from jobs.evaluate import EvaluateConfig
from jobs.training.finetune_step import FinetuneConfig

SIZES = ("base", "base_plus", "large", "huge")
CHAINS = tuple(f"k400_to_ssv2_{size}" for size in SIZES)
# Paper Tab. 11b: epochs, learning rate at a batch of 256, drop path, head dropout, layer decay (3200 epochs).
KINETICS = {
    "base": (150, 8e-4, 0.2, 0.3, 0.8),
    "base_plus": (150, 8e-4, 0.2, 0.3, 0.8),
    "large": (100, 8e-4, 0.2, 0.5, 0.875),
    "huge": (100, 4e-4, 0.3, 0.5, 0.875),
}


def load(recipe: str, *more: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, "finetune", [recipe, "data=d", "output=o", "init=i", *more])


def rate(config: FinetuneConfig) -> float:
    return scaled_learning_rate(config.optimizer, config.global_batch)


def check_what_all_share(config: FinetuneConfig) -> None:
    assert parse_rand_augment(config.augment.rand_augment) == RandAugment(7.0, 0.5, 2, 0.5)
    assert config.augment.random_erasing == 0.25
    assert config.view.crop_scale == (0.08, 1.0)
    assert config.view.crop_aspect == pytest.approx((3 / 4, 4 / 3), abs=1e-4)
    assert (config.views.frame_stride, config.views.size) == (4, 224)
    assert (config.steps, config.new_blocks, config.learn, config.precision) == (None, 0, "all", "bf16")
    assert config.optimizer.clip_gradient_norm == 5.0
    assert config.mix.on is False or config.micro_batch >= 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dataset", ["k400", "k600", "k700"])
def test_kinetics_is_table_11b(dataset: str, size: str) -> None:
    config = load(f"{dataset}_{size}")
    check_what_all_share(config)
    epochs, learning_rate, drop_path, head_dropout, layer_decay = KINETICS[size]
    assert (config.model, config.epochs, config.global_batch) == (f"hiera_{size}_16x224", epochs, 256)
    assert rate(config) == pytest.approx(learning_rate)
    assert config.model_overrides == {"drop_path_rate": drop_path, "head_dropout": head_dropout}
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", (0.9, 0.999), 0.05)
    assert (optimizer.layer_decay, config.schedule.warmup_epochs) == (layer_decay, 10)
    assert (config.mix.mixup, config.mix.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    assert (config.mix.probability, CUTMIX_SHARE) == (1.0, 0.5)
    assert (config.augment.horizontal_flip, config.view.sampling, config.view.repeats) == (0.5, "uniform", 2)


@pytest.mark.parametrize("recipe", [*(f"ssv2_{size}" for size in SIZES), *CHAINS, "ssv2_large_32frames"])
def test_something_is_table_12b(recipe: str) -> None:
    config = load(recipe)
    check_what_all_share(config)
    long = recipe.endswith("32frames")
    assert (config.global_batch, config.epochs, config.schedule.warmup_epochs) == (128 if long else 256, 40, 3)
    assert rate(config) == pytest.approx(0.08 if long else 0.16)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert optimizer.layer_decay == 0.875
    assert config.model_overrides["drop_path_rate"] == (0.2 if long else 0.1)
    assert config.model_overrides["head_dropout"] == 0.5
    mixing = (config.mix.mixup, config.mix.cutmix, config.label_smoothing)
    assert mixing == ((0.0, 0.0, 0.0) if long else (0.8, 1.0, 0.1))
    assert (config.view.sampling, config.view.repeats, config.views.num_frames) == ("segments", 1, 32 if long else 16)


@pytest.mark.parametrize("recipe", [name for name in recipe_names("finetune") if "ssv2" in name])
def test_left_and_right_are_never_swapped_where_they_are_labels(recipe: str) -> None:
    assert load(recipe).augment.horizontal_flip == 0.0


@pytest.mark.parametrize("recipe", CHAINS)
def test_a_chain_asks_for_the_run_that_it_goes_on_from(recipe: str) -> None:
    with pytest.raises(UserError, match="init: is required"):
        load_config(FinetuneConfig, "finetune", [recipe, "data=d", "output=o"])


def test_every_value_has_a_source() -> None:
    for path in (RECIPES / "finetune").glob("*.yaml"):
        if path.stem == "demo":
            continue
        for line in path.read_text().splitlines():
            _, _, value = line.partition(": ")
            if not line.strip().startswith(("#", "base:", "names:", "model:", "init:")) and value:
                sources = ("HP", "SF", "ours", "not confirmed")
                assert any(source in line.partition("#")[2] for source in sources), f"{path.name}: {line}"


def test_unconfirmed_values_are_marked() -> None:
    text = (RECIPES / "finetune" / "kinetics.yaml").read_text()
    keys = {line.partition(":")[0].strip() for line in text.splitlines() if "# not confirmed" in line}
    expected = {"precision", "crop_scale", "crop_aspect", "horizontal_flip", "random_erasing", "probability"}
    assert keys == expected | {"final_learning_rate"}


@pytest.mark.parametrize(
    ("recipe", "views", "sampling"),
    [(name, (5, 3), "uniform") for name in ("k400", "k600", "k700")]
    + [("ssv2", (1, 3), "segments"), ("ssv2_two_clips", (2, 3), "segments")],
)
def test_the_test_protocol(recipe: str, views: tuple[int, int], sampling: str) -> None:
    config = load_config(EvaluateConfig, "evaluate", [recipe, "data=d", "output=o", "init=i"])
    assert (config.views.clips, config.views.crops) == views
    assert (config.sampling, config.frame_stride) == (sampling, 4)
