"""What a micro-batch becomes in fine-tuning: draws, soft targets, what learns. No Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from hiera_video.augmentation.basic import normalize_video
from hiera_video.optimization import build_optimizer
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.finetune import Classification, FinetuneConfig

SMALL = ["model=hiera_test_8x64", "global_batch=4", "micro_batch=4",
         "precision=fp32"]  # fmt: skip
KEPT = ("model_overrides.head_dropout=0", "model_overrides.drop_path_rate=0")
HEAD = {"head.weight", "head.bias"}
DROPS = "model_overrides.drop_path_rate=0.5"
PLAIN = ["augment.rand_augment=", "augment.random_erasing=0", "mix.mixup=0", "mix.cutmix=0"]


def config(*more: str, recipe: str = "k400_base") -> FinetuneConfig:
    return load_config(FinetuneConfig, "finetune", [recipe, "data=d", "output=o", "init=i", *SMALL, *more])


def step(*more: str, recipe: str = "k400_base") -> Classification:
    torch.manual_seed(0)
    return Classification(config(*more, recipe=recipe), num_classes=8)


def batch(samples: tuple[int, ...] = (0, 1, 2, 3), seed: int = 5, number: int = 0) -> MicroBatch:
    frames = torch.randint(0, 256, (4, 8, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return MicroBatch(
        frames=frames[list(samples)],
        labels=torch.tensor([3, 0, 7, 3])[list(samples)],
        sample_ids=[f"{sample}#0" for sample in samples],
        epochs=[0] * len(samples),
        position=0,
        seed=seed,
        step=number,
        index=0,
    )


def test_the_loss_is_a_function_of_the_batch_alone() -> None:
    model = step()
    first = model(batch())
    torch.manual_seed(99)
    torch.rand(17)
    assert torch.equal(model(batch()), first)
    assert not torch.equal(model(batch(seed=6)), first)
    assert not torch.equal(model(batch(number=1)), first)


def test_a_view_is_changed_alike_whoever_is_beside_it() -> None:
    model = step()
    together = model._augmented(batch())
    apart = model._augmented(batch((2, 0)))
    assert torch.equal(apart, together[[2, 0]])
    assert not torch.equal(together, normalize_video(batch().frames))


def test_without_augmentation_it_is_cross_entropy_with_label_smoothing() -> None:
    model = step(*PLAIN, "augment.horizontal_flip=0", *KEPT)
    logits = model.model(normalize_video(batch().frames))
    expected = functional.cross_entropy(logits, batch().labels, label_smoothing=0.1)
    torch.testing.assert_close(model(batch()), expected)


def test_something_is_never_flipped() -> None:
    """Over many epochs: without RandAugment and erasing the pixels are those that came, under Kinetics they are not."""
    for recipe, same in (("ssv2_base", True), ("k400_to_ssv2_base", True), ("k400_base", False)):
        model = step(*PLAIN, recipe=recipe)
        views = [replace(batch(), epochs=[epoch] * 4) for epoch in range(20)]
        pictures = [model._augmented(view) for view in views]
        assert all(torch.equal(picture, normalize_video(batch().frames)) for picture in pictures) is same


def test_undecodable_micro_batch_costs_nothing() -> None:
    loss = step()(replace(batch(), labels=torch.full((4,), -1)))
    assert float(loss.detach()) == 0.0
    loss.backward()


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        ("head", {"head.weight", "head.bias"}),
        ("norm_and_head", {"head.weight", "head.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_what_does_not_learn_stays(learn: str, expected: set[str]) -> None:
    model = step(f"learn={learn}", DROPS, "optimizer.learning_rate=0.1")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    optimizer = build_optimizer(model.model, config().optimizer)
    model(batch()).backward()
    optimizer.step()
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == expected
    assert 3 * (model.multiply_adds() or 0) == step(DROPS).multiply_adds()  # the encoder's backward pass is left out


def test_features_of_a_frozen_encoder_do_not_drop_paths() -> None:
    frozen, learning = (
        step("learn=head", "model_overrides.drop_path_rate=0.5"),
        step("model_overrides.drop_path_rate=0.5"),
    )
    pixels = normalize_video(batch().frames)
    for model, same in ((frozen, True), (learning, False)):
        model.train()
        torch.manual_seed(1)
        assert torch.equal(model.model.embed(pixels), model.model.embed(pixels)) is same


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["micro_batch=1"], "micro_batch=1: mixup and cutmix mix"),
        (["learn=head", "init=null"], "learn=head: leaves the encoder as init has it"),
        (["learn=head", "new_blocks=1"], "learn=head: leaves the encoder"),
        (["learn=tail"], "learn=tail: "),
        (["augment.rand_augment=rand-m7"], "augment.rand_augment=rand-m7: must be a `rand` policy with `inc1`"),
        (["augment.random_erasing=2"], "augment.random_erasing=2.0: must lie in"),
        (["model_overrides.num_classes=3"], "model_overrides.num_classes=3: comes from the data's class list"),
        (["optimizer.name=sgd", "optimizer.momentum=0.9"], "optimizer.momentum=0.9: no such key"),
        (["optimizer.weight_decay=.nan"], "optimizer.weight_decay=nan: must be a finite number"),
        (["mix.mixup=.inf"], "mix.mixup=inf: must be a finite number"),
        (["epochs=.inf"], "epochs=inf: must be a finite number"),
        (["epochs=inf"], "epochs=inf: must be a finite number"),
        (["optimizer.weight_decay=nan"], "optimizer.weight_decay=nan: must be a finite number"),
        (["optimizer.betas=[0.9,.nan]"], "each must lie in"),
        (["data="], "data=: is required; give a value"),
        (["mix.mixup=-1"], "mix.mixup=-1.0: must not be negative"),
    ],
)
def test_mistakes_are_told_by_their_key(keys: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        config(*keys)


IMAGES = ("model=hiera_test_96", "global_batch=4", "micro_batch=4", "precision=fp32")


def image_batch() -> MicroBatch:
    frames = torch.randint(0, 256, (4, 1, 96, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return replace(batch(), frames=frames)


def image_step(*more: str) -> Classification:
    torch.manual_seed(0)
    keys = ["in1k_tiny", "data=d", "output=o", *IMAGES, *more]
    return Classification(load_config(FinetuneConfig, "finetune", keys), num_classes=8)


def test_an_image_is_a_view_of_one_frame_and_only_the_step_drops_its_axis() -> None:
    model = image_step()
    assert model._config.views.num_frames == 1
    loss = model(image_batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.model.parameters())


def test_an_image_is_measured_as_a_plain_loop_would() -> None:
    model = image_step().eval()
    frames, labels = image_batch().frames, image_batch().labels
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((frames[:, 0].float() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = functional.cross_entropy(model.model(pixels), labels)
    assert model.measure(image_batch())["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_video_given_to_a_model_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="views have 8 frames: a model of images takes 1"):
        image_step().measure(batch())
