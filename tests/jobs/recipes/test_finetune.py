"""Every fine-tuning recipe against the paper's tables, and the evaluation recipes against the test protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.augmentation.mixup import CUTMIX_SHARE, draw_mix
from hiera_video.augmentation.rand_augment import RandAugment, parse_rand_augment
from hiera_video.optimization import SGD_MOMENTUM
from jobs.core.config import RECIPES, load_config, recipe_names
from jobs.core.errors import UserError
from jobs.evaluate import EvaluateConfig
from jobs.training.steps.finetune import FinetuneConfig
from pipeline.datasets.order import StreamOrder

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
    assert (config.model, config.epochs, config.global_batch) == (f"hiera_{size}_16x224", epochs, 256 * 2)
    assert config.peak_learning_rate == pytest.approx(learning_rate)
    assert config.model_overrides == {"drop_path_rate": drop_path, "head_dropout": head_dropout}
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", (0.9, 0.999), 0.05)
    assert (optimizer.layer_decay, config.schedule.warmup_epochs) == (layer_decay, 10)
    assert (config.mix.mixup, config.mix.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    assert CUTMIX_SHARE == 0.5
    assert (config.augment.horizontal_flip, config.view.sampling, config.view.repeats) == (0.5, "uniform", 2)


@pytest.mark.parametrize("recipe", [*(f"ssv2_{size}" for size in SIZES), *CHAINS, "ssv2_large_32frames"])
def test_something_is_table_12b(recipe: str) -> None:
    config = load(recipe)
    check_what_all_share(config)
    long = recipe.endswith("32frames")
    assert (config.global_batch, config.epochs, config.schedule.warmup_epochs) == (128 if long else 256, 40, 3)
    assert config.peak_learning_rate == pytest.approx(0.08 if long else 0.16)
    optimizer = config.optimizer
    assert (optimizer.name, SGD_MOMENTUM, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
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


MIXING = [name for name in recipe_names("finetune") if load(name).mix.on]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(MIXING),
    st.one_of(st.none(), st.integers(2, 9)),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(9, 40),
    st.integers(0, 99),
)
def test_mixing_partners_are_other_videos(
    recipe: str, micro_batch: int | None, repeats: int | None, clips: int, seed: int
) -> None:
    """As the recipe has it, and with any micro-batch and repeats; every micro-batch within an epoch is mixed."""
    config = load(recipe)
    micro_batch, repeats = micro_batch or config.micro_batch, repeats or config.view.repeats
    config = load(recipe, f"micro_batch={micro_batch}", f"global_batch={4 * micro_batch}", f"view.repeats={repeats}")
    order = StreamOrder(
        np.array([clips // 2, clips - clips // 2]),
        seed=seed,
        digest="d",
        repeats=repeats,
        window_groups=1,
        clips_side_by_side=config.views.clips_side_by_side,
    )
    for start in range(0, 2 * order.views_per_epoch, micro_batch):
        runs = list(order.runs(start, start + micro_batch))
        shown = [str(run.clip) for run in runs for _ in range(run.views)]
        mix = draw_mix(config.mix, shown, 8, 8, torch.Generator().manual_seed(seed + start))
        if mix is None:  # the same clip ends an epoch and begins the next
            assert len({run.epoch for run in runs}) == 2
        else:
            assert all(shown[partner] != own for partner, own in zip(mix.partners.tolist(), shown, strict=True))


def test_repeats_come_from_one_decode_where_that_leaves_partners() -> None:
    apart = {name for name in recipe_names("finetune") if load(name).views.clips_side_by_side > 1}
    assert apart == {f"{dataset}_huge" for dataset in ("k400", "k600", "k700")}
    assert load("k400_huge", "mix.mixup=0", "mix.cutmix=0").views.clips_side_by_side == 1
    assert load("k400_base", "view.repeats=16", "micro_batch=8").views.clips_side_by_side == 8


def test_every_value_has_a_source() -> None:
    for path in (RECIPES / "finetune").glob("*.yaml"):
        if path.stem.startswith("demo"):
            continue
        for line in path.read_text().splitlines():
            _, _, value = line.partition(": ")
            if not line.strip().startswith(("#", "base:", "names:", "model:", "init:")) and value:
                sources = ("HP", "SF", "MAE", "MV", "ours", "not confirmed")
                assert any(source in line.partition("#")[2] for source in sources), f"{path.name}: {line}"


def test_unconfirmed_values_are_marked() -> None:
    text = (RECIPES / "finetune" / "kinetics.yaml").read_text()
    keys = {line.partition(":")[0].strip() for line in text.splitlines() if "# not confirmed" in line}
    expected = {"precision", "crop_scale", "crop_aspect", "horizontal_flip", "random_erasing"}
    assert keys == expected | {"final_learning_rate", "batch_counts"}


def test_the_other_reading_of_the_batch_is_two_keys() -> None:
    """Views instead of videos: half the batch at the same rate."""
    config = load("k400_large", "optimizer.batch_counts=views", "global_batch=256")
    assert config.peak_learning_rate == load("k400_large").peak_learning_rate == pytest.approx(8e-4)


@pytest.mark.parametrize(
    ("recipe", "views", "sampling"),
    [(name, (5, 3), "uniform") for name in ("k400", "k600", "k700")]
    + [("ssv2", (1, 3), "segments"), ("ssv2_two_clips", (2, 3), "segments")],
)
def test_the_test_protocol(recipe: str, views: tuple[int, int], sampling: str) -> None:
    config = load_config(EvaluateConfig, "evaluate", [recipe, "data=d", "output=o", "init=i"])
    assert (config.views.clips, config.views.crops) == views
    assert (config.sampling, config.frame_stride) == (sampling, 4)


# Paper Tab. 14b: epochs, learning rate at a batch of 1024, drop path, layer decay (1600 epochs of pretraining).
IMAGENET = {
    "tiny": (300, 2e-3, 0.1, 0.65),
    "small": (200, 2e-3, 0.1, 0.65),
    "base": (100, 2e-3, 0.1, 0.7),
    "base_plus": (100, 1e-3, 0.1, 0.7),
    "large": (50, 1e-3, 0.1, 0.85),
    "huge": (50, 1e-3, 0.3, 0.85),
}


def check_what_images_share(config: FinetuneConfig, operations: int = 2) -> None:
    assert parse_rand_augment(config.augment.rand_augment) == RandAugment(9.0, 0.5, operations, 0.5)
    assert config.augment.random_erasing == 0.25
    assert (config.mix.mixup, config.mix.cutmix, config.label_smoothing) == (0.8, 1.0, 0.1)
    assert (config.view.repeats, config.view.crop_scale) == (1, (0.08, 1.0))
    view = config.views
    assert (view.media, view.num_frames, view.size, view.interpolation) == ("image", 1, 224, "bicubic")
    assert int(view.size / view.crop_share) == 256
    assert config.optimizer.betas == (0.9, 0.999)
    assert (config.optimizer.weight_decay, config.schedule.final_learning_rate) == (0.05, 1e-6)


@pytest.mark.parametrize("size", IMAGENET)
def test_imagenet_is_table_14b(size: str) -> None:
    config = load(f"in1k_{size}")
    check_what_images_share(config)
    epochs, learning_rate, drop_path, layer_decay = IMAGENET[size]
    assert (config.model, config.epochs, config.global_batch) == (f"hiera_{size}_224", epochs, 1024)
    assert config.peak_learning_rate == pytest.approx(learning_rate)
    assert config.model_overrides == {"drop_path_rate": drop_path}
    assert (config.optimizer.layer_decay, config.optimizer.clip_gradient_norm) == (layer_decay, 0.0)
    assert config.schedule.warmup_epochs == 5


@pytest.mark.parametrize("dataset", ["inat17", "inat18", "inat19", "places365"])
@pytest.mark.parametrize("size", SIZES)
def test_transfer_lies_within_the_searched_ranges(dataset: str, size: str) -> None:
    config = load(f"{dataset}_{size}")
    check_what_images_share(config)
    assert config.model == f"hiera_{size}_224"
    assert config.optimizer.layer_decay in (0.875, 0.9, 0.925)
    assert 0.1 <= config.model_overrides["drop_path_rate"] <= 0.5
    assert config.model_overrides["head_dropout"] in (0.1, 0.2, 0.3)


def test_huge_at_448_trains_its_positions_at_half_the_rate() -> None:
    """Paper §A.2; above 224 px images are resized straight to the size (MAE)."""
    config = load("inat18_huge_448")
    assert (config.model, config.input_size) == ("hiera_huge_224", (448, 448))
    assert (config.views.size, config.views.crop_share) == (448, 1.0)
    assert config.optimizer.layer_decay_positions == 0.5
    assert load("inat18_huge").optimizer.layer_decay_positions is None


@pytest.mark.parametrize(("size", "drop_path"), [("tiny", 0.1), ("small", 0.1), ("base", 0.3), ("large", 0.5)])
def test_imagenet_from_scratch_is_mvitv2s(size: str, drop_path: float) -> None:
    config = load_config(FinetuneConfig, "finetune", [f"in1k_scratch_{size}", "data=d", "output=o"])
    check_what_images_share(config, operations=6)
    assert (config.init, config.epochs, config.global_batch, config.schedule.warmup_epochs) == (None, 300, 2048, 70)
    assert config.peak_learning_rate == pytest.approx(2e-3)
    assert config.model_overrides == {"drop_path_rate": drop_path}
    assert (config.optimizer.layer_decay, config.optimizer.clip_gradient_norm) == (1.0, 1.0)


def test_kinetics_from_scratch_is_mvitv2s() -> None:
    config = load_config(FinetuneConfig, "finetune", ["k400_scratch_base", "data=d", "output=o"])
    assert parse_rand_augment(config.augment.rand_augment) == RandAugment(7.0, 0.5, 4, 0.5)
    assert (config.init, config.epochs, config.view.repeats, config.schedule.warmup_epochs) == (None, 200, 2, 30)
    assert config.peak_learning_rate == pytest.approx(1.6e-3 * config.global_batch / 512)
    assert config.model_overrides == {"drop_path_rate": 0.3, "head_dropout": 0.5}
    assert (config.optimizer.layer_decay, config.optimizer.clip_gradient_norm) == (1.0, 1.0)


def test_images_are_evaluated_by_one_view() -> None:
    config = load_config(EvaluateConfig, "evaluate", ["in1k", "init=i", "data=d", "output=o"])
    assert (config.views.clips, config.views.crops) == (1, 1)
