"""Every pretraining recipe against the paper's tables, and how recipes build on each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.core.config import RECIPES, load_config
from jobs.core.errors import UserError
from jobs.training.steps.pretrain import PretrainConfig

SIZES = ("base", "base_plus", "large", "huge")
SETS = ("k400", "k600", "k700", "ssv2")
# Paper Tab. 11a and 12a. Drop path by size; Huge on Kinetics for 3200 epochs, on SSv2 (not confirmed) for 1600.
DROP_PATH = {
    "kinetics": dict(zip(SIZES, (0.1, 0.2, 0.2, 0.4), strict=True)),
    "ssv2": dict(zip(SIZES, (0.1, 0.2, 0.2, 0.3), strict=True)),
}


def load(recipe: str, *more: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [recipe, "data=d", "output=o", *more])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dataset", SETS)
def test_the_papers_values(dataset: str, size: str) -> None:
    config = load(f"{dataset}_{size}")
    kinetics = dataset != "ssv2"
    assert config.model == f"mae_hiera_{size}_16x224"
    assert config.steps is None
    assert (config.epochs, config.global_batch) == ((3200, 512 * 4) if kinetics else (1600, 1024 * 4))
    assert (config.schedule.warmup_epochs, config.schedule.final_learning_rate) == (120 if kinetics else 30, 1e-6)
    assert config.augment.horizontal_flip == (0.5 if kinetics else 0.0)
    rate = 3.2e-4 if kinetics and size == "huge" else 8e-4
    assert config.peak_learning_rate == pytest.approx(rate)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", (0.9, 0.95), 0.05)
    assert (optimizer.clip_gradient_norm, optimizer.layer_decay) == (0.02, 1.0)
    view = config.views
    assert (view.num_frames, view.frame_stride, view.size, view.repeats) == (16, 4, 224, 4)
    assert (view.crop_scale, view.sampling) == ((0.5, 1.0), "uniform" if kinetics else "segments")
    assert (config.mask_ratio, config.precision) == (0.9, "bf16")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dataset", SETS)
def test_the_papers_architecture(dataset: str, size: str) -> None:
    model = load(f"{dataset}_{size}").model_config
    channels = {"base": (96, 1), "base_plus": (112, 2), "large": (144, 2), "huge": (256, 4)}[size]
    assert (model.embed_dim, model.num_heads) == channels
    assert model.stages == ((2, 3, 16, 3) if size.startswith("base") else (2, 6, 36, 4))
    assert (model.q_pool, model.mask_ratio, model.target, model.decoder) == (2, 0.9, "normalized_pixels", "full")
    assert (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == (512, 8, 16)
    assert model.drop_path_rate == DROP_PATH["ssv2" if dataset == "ssv2" else "kinetics"][size]


def test_every_value_has_a_source() -> None:
    for path in (RECIPES / "pretrain").glob("*.yaml"):
        if path.stem.startswith("demo"):
            continue
        for line in path.read_text().splitlines():
            _, _, value = line.partition(": ")
            if not line.strip().startswith(("#", "base:", "names:", "model:")) and value:
                sources = ("HP", "SF", "MST", "MAE", "H's", "ours", "not confirmed")
                assert any(source in line.partition("#")[2] for source in sources), f"{path.name}: {line}"


def test_unconfirmed_values_are_marked() -> None:
    text = (RECIPES / "pretrain" / "kinetics.yaml").read_text()
    keys = {line.partition(":")[0].strip() for line in text.splitlines() if "# not confirmed" in line}
    assert keys == {"precision", "crop_aspect", "clip_gradient_norm", "final_learning_rate", "batch_counts"}


@pytest.mark.parametrize(("dataset", "batch"), [("k400", 512), ("ssv2", 1024)])
def test_the_other_reading_of_the_batch_is_two_keys(dataset: str, batch: int) -> None:
    """Views instead of videos: a quarter of the batch at the same rate."""
    config = load(f"{dataset}_large", "optimizer.batch_counts=views", f"global_batch={batch}")
    assert config.peak_learning_rate == load(f"{dataset}_large").peak_learning_rate == pytest.approx(8e-4)


def test_a_recipe_of_ones_own_builds_on_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: k400_large\nepochs: 10\noptimizer:\n  weight_decay: 0.1\n")
    (tmp_path / "again.yaml").write_text(f"base: {tmp_path / 'mine.yaml'}\nseed: 7\n")
    config = load(str(tmp_path / "again.yaml"), "epochs=5")
    assert (config.seed, config.epochs, config.optimizer.weight_decay) == (7, 5.0, 0.1)
    assert (config.model, config.optimizer.learning_rate) == ("mae_hiera_large_16x224", 8e-4)


def test_a_wrong_base_is_told(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for content, told in (
        ("base: k401", "recipe=k401: no such recipe of pretrain; known: demo, demo_images, imagenet, in1k_base,"),
        (f"base: {recipe}", f"base={recipe}: must not lead back to itself"),
        ("base: [k400_base, demo]", "must be one recipe"),
    ):
        recipe.write_text(content)
        with pytest.raises(UserError) as caught:
            load(str(recipe))
        assert told in str(caught.value)


# Paper Tab. 14a.
IMAGENET_DROP_PATH = {"tiny": 0.0, "small": 0.0, "base": 0.2, "base_plus": 0.2, "large": 0.2, "huge": 0.3}


@pytest.mark.parametrize("size", IMAGENET_DROP_PATH)
def test_imagenet_is_table_14a(size: str) -> None:
    config = load_config(PretrainConfig, "pretrain", [f"in1k_{size}", "data=d", "output=o"])
    assert (config.model, config.epochs, config.global_batch) == (f"mae_hiera_{size}_224", 1600, 4096)
    assert config.peak_learning_rate == pytest.approx(8e-4)
    assert (config.mask_ratio, config.schedule.warmup_epochs, config.view.repeats) == (0.6, 40, 1)
    assert (config.view.crop_scale, config.augment.horizontal_flip) == ((0.2, 1.0), 0.5)
    model = config.model_config
    assert (model.drop_path_rate, model.q_pool, model.decoder_depth) == (IMAGENET_DROP_PATH[size], 2, 8)
    assert (model.decoder_embed_dim, model.decoder_num_heads) == (512, 16)
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert (config.views.media, config.views.num_frames, config.views.size) == ("image", 1, 224)
