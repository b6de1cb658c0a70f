"""The public code (`hiera-transformer`, without its dependencies) as the reference of the numbers.

It imports only `DropPath` and `Mlp` from timm; both are replaced here by the few lines that matter.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from hiera_video.models.presets import create_model, model_names
from hiera_video.models.random_draws import random_keep_mask
from hiera_video.weights.checkpoint_files import load_official
from hiera_video.weights.key_mapping import to_official

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
PUBLIC_PRESETS = [name for name in model_names() if "demo" not in name and "test" not in name]


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        shape = (x.shape[0], *[1] * (x.ndim - 1))
        return x * (torch.floor(torch.rand(shape, device=x.device) + keep) / keep)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), act_layer(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _install_timm_stub() -> None:
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath, layers.Mlp = DropPath, Mlp
    for name in ("timm", "timm.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault("timm.models.layers", layers)


_install_timm_stub()

import hiera  # noqa: E402  (after its stub)
import hiera.hiera as classifiers  # noqa: E402
import hiera.hiera_mae as autoencoders  # noqa: E402


def preset_arguments(name: str) -> dict[str, Any]:
    """What a preset of the public code passes to its class; the big ones are never built for this."""
    module, class_name = (autoencoders, "MaskedAutoencoderHiera") if name.startswith("mae_") else (classifiers, "Hiera")
    with mock.patch.object(module, class_name, side_effect=lambda **arguments: arguments):
        return getattr(hiera, name)()


def official_model(name: str, **overrides: Any) -> nn.Module:
    """A preset of the public code with other arguments, all weights and biases random: no term hides behind a zero."""
    arguments = preset_arguments(name) | overrides
    with uninitialised():
        model = hiera.MaskedAutoencoderHiera(**arguments) if name.startswith("mae_") else hiera.Hiera(**arguments)
    randomize(model)
    return model


@contextmanager
def uninitialised() -> Iterator[None]:
    """Models built here have arbitrary weights: initialising the widest takes longer than the test itself."""
    names = ("trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "uniform_", "constant_", "zeros_")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(nn.init, name, side_effect=lambda tensor, *_, **__: tensor))
        yield


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Random values everywhere, norms' factors around one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.03 if parameter.ndim > 1 else 0.1, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.add_(1.0)


def official_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Logits of the public classifier, which returns probabilities outside of training."""
    model.head.act_func = nn.Identity()
    return model(pixels)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max|b|, as the contracts measure parity."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def peers(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """Our model and the public one with the same weights; shrunk in depth and size, not in structure."""
    shared = {"input_size": _small_input(name), "stages": (1, 1, 2, 1), **arguments}
    theirs = official_model(name, **shared)
    with uninitialised():
        ours = create_model(name, **shared, **({"mask_ratio": 0.5} if name.startswith("mae_") else {}))
    load_official(ours, theirs.state_dict())
    return ours.eval(), theirs.eval()


def small_pixels(name: str) -> Tensor:
    """An input for `peers`."""
    return torch.randn(2, 3, *_small_input(name), generator=torch.Generator().manual_seed(1))


def half_mask(model: nn.Module) -> Tensor:
    """A mask for `peers` that keeps half of the mask units."""
    return random_keep_mask(2, model.num_mask_units, 0.5, torch.Generator().manual_seed(2))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare the gradients of all parameters that have one in the public model."""
    own = to_official({name: parameter.grad for name, parameter in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            assert relative_difference(own[name], parameter.grad) < GRADIENT_TOLERANCE, name


def _small_input(name: str) -> tuple[int, ...]:
    return (6, 64, 64) if "16x" in name else (96, 64)
