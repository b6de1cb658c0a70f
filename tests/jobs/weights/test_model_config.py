"""`model_overrides`: every mistake is one message with the dotted key, before anything runs."""

from __future__ import annotations

import pytest

from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig

PLACES = ["data=d", "output=o", "steps=1"]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("model_overrides.nonsense=3", r"^model_overrides\.nonsense=3: .*known: .*drop_path_rate"),
        ("model_overrides.num_heads=abc", r"^model_overrides\.num_heads=abc: .*[Ii]nteger"),
        ("model_overrides.stages=5", r"^model_overrides\.stages=5: "),
        ("model_overrides.stages=[1,2]", r"^model_overrides\.(mask_unit_size|q_pool)="),
        ("model_overrides.drop_path_rate=2", r"^model_overrides\.drop_path_rate=2.*: must lie in \[0, 1\)"),
        ("model_overrides.input_size=[16,224]", r"^model_overrides\.(input_size|q_stride)="),
        ("model_overrides.sep_pos_embed=perhaps", r"^model_overrides\.sep_pos_embed=perhaps: "),
        ("model=mae_hiera_bsae_16x224", r"^model=mae_hiera_bsae_16x224: no such preset; did you mean"),
    ],
)
def test_mistakes_carry_the_dotted_key(argument: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_config(PretrainConfig, "pretrain", [*PLACES, argument])
    if not argument.startswith("model="):
        with pytest.raises(UserError, match=told):
            load_config(FinetuneConfig, "finetune", [*PLACES, argument])


def test_what_has_a_key_of_its_own_keeps_its_name() -> None:
    with pytest.raises(UserError, match=r"^model_overrides\.mask_ratio=0\.5: has its own key; write mask_ratio"):
        load_config(PretrainConfig, "pretrain", [*PLACES, "model_overrides.mask_ratio=0.5"])
    with pytest.raises(UserError, match=r"^mask_ratio=0\.999: keeps"):
        load_config(PretrainConfig, "pretrain", [*PLACES, "mask_ratio=0.999"])


def test_values_arrive_with_their_types() -> None:
    arguments = [*PLACES, "model_overrides.drop_path_rate=0", "model_overrides.stages=[1,2,3,1]"]
    architecture = load_config(PretrainConfig, "pretrain", arguments).model_config
    assert (architecture.drop_path_rate, architecture.stages) == (0.0, (1, 2, 3, 1))
    assert isinstance(architecture.drop_path_rate, float)
