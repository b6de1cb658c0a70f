"""What a model config refuses: a value against its rule, and a key that it does not have."""

from __future__ import annotations

from typing import Any

import pytest

from hiera_video.models.config import replace
from hiera_video.models.presets import create_model, model_config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": 1}, "colour: HieraConfig has no such key; known: .*embed_dim"),
        (
            {"input_size": (16, 100, 96)},
            r"multiple of the mask unit, \(2, 32, 32\).*\(16, 96, 96\) and \(16, 128, 96\)",
        ),
        ({"input_size": (7, 64, 64)}, r"nearest sizes are \(6, 64, 64\) and \(8, 64, 64\)"),
        ({"input_size": (64,)}, r"must be \(height, width\) or \(frames, height, width\)"),
        ({"input_size": (64, 64)}, r"q_stride=\(1, 2, 2\): must have 2 numbers"),
        ({"mask_unit_size": (1, 4, 4)}, r"must be q_stride to the power 3; use \(1, 8, 8\)"),
        ({"q_pool": 4}, r"q_pool=4: must lie in \[0, 3\]"),
        ({"mask_unit_attn": (True, True)}, "one value for each of 4 stages"),
        ({"num_heads": 3}, "must give every stage channels divisible by its heads, here 8 by 3"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0: must lie in \[0, 1\)"),
        ({"head_dropout": 1.0}, r"head_dropout=1.0: must lie in \[0, 1\)"),
        ({"num_classes": 0}, "num_classes=0: must be positive"),
        ({"num_heads": 0}, "num_heads=0: must be positive; use at least 1"),
        ({"embed_dim": 0}, "embed_dim=0: must be positive"),
        ({"in_chans": 0}, "in_chans=0: must be positive"),
        ({"stages": (1, 1, 0, 1)}, r"stages=\(1, 1, 0, 1\): must be positive"),
        ({"stages": ()}, r"stages=\(\): must be positive"),
        ({"patch_stride": (2, 0, 4)}, r"patch_stride=\(2, 0, 4\): must be positive"),
        ({"head_mul": 0.5}, "head_mul=0.5: must leave every stage a head"),
        ({"dim_mul": 0.1}, "dim_mul=0.1: must leave every stage a channel"),
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


def test_counts_of_base_video() -> None:
    config = model_config("mae_hiera_base_16x224")
    assert config.is_video
    assert (config.token_grid, config.unit_pixels, config.unit_grid) == ((8, 56, 56), (2, 32, 32), (8, 7, 7))
    assert (config.widths, config.heads) == ((96, 192, 384, 768), (1, 2, 4, 8))
    assert (config.pooled_unit, config.prediction_pixels, config.decoder_tokens) == ((1, 2, 2), 16, 1568)


def test_replaced_lists_become_tuples() -> None:
    assert replace(model_config("hiera_test_8x64"), {"stages": [1, 1, 1, 1]}).stages == (1, 1, 1, 1)
