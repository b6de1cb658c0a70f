"""From the words of a sweep to its children. Starts nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.errors import UserError
from jobs.sweep.plan import Child, folder_name, plan_children, read_arguments

PRETRAIN = ["pretrain", "demo", "data=/d", "output=/o"]


def plan(*words: str) -> list[Child]:
    return plan_children(read_arguments(words))


def test_every_combination_is_a_child_and_the_last_key_varies_fastest() -> None:
    children = plan(*PRETRAIN, "mask_ratio=[0.5,0.9]", "seed=[1, 2]", "workers=1")
    assert [(child.config.mask_ratio, child.config.seed) for child in children] == [
        (0.5, 1),
        (0.5, 2),
        (0.9, 1),
        (0.9, 2),
    ]
    assert [child.name for child in children][:2] == ["mask_ratio=0.5,seed=1", "mask_ratio=0.5,seed=2"]
    assert {child.config.workers for child in children} == {1}
    assert children[0].config.output == "/o/mask_ratio=0.5,seed=1"


def test_a_key_that_takes_a_list_tries_lists_in_a_list() -> None:
    one = plan(*PRETRAIN, "view.crop_scale=[0.5,1.0]", "seed=[1,2]")
    assert [child.config.view.crop_scale for child in one] == [(0.5, 1.0)] * 2
    several = plan(*PRETRAIN, "view.crop_scale=[[0.5,1.0],[0.8,1.0]]", "workers=[[1,2],2]")
    assert [(child.config.view.crop_scale, child.config.workers) for child in several] == [
        ((0.5, 1.0), [1, 2]),
        ((0.5, 1.0), 2),
        ((0.8, 1.0), [1, 2]),
        ((0.8, 1.0), 2),
    ]


def test_values_mean_what_they_mean_for_the_program() -> None:
    (rate, _) = plan(*PRETRAIN, "optimizer.learning_rate=[8e-4,1]")
    assert rate.config.optimizer.learning_rate == 8e-4
    text = plan("tag", "demo", "source=[no,'a, b']", "init=/i", "output=/o")
    assert [child.config.source for child in text] == ["no", "a, b"]
    decoders = plan(*PRETRAIN, "model_overrides.decoder=[full,cross]")
    assert [child.config.model_config.decoder for child in decoders] == ["full", "cross"]


@given(st.lists(st.text("ab/:. ,é-_", min_size=1, max_size=100), min_size=2, max_size=5, unique=True))
def test_children_never_share_a_folder(places: list[str]) -> None:
    names = [folder_name({"source": place, "seed": "1"}) for place in places]
    assert len(set(names)) == len(places)
    assert all("/" not in name and len(name) <= 100 for name in names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], r"no arguments: must be JOB \[RECIPE\] .*; write `python -m jobs.sweep pretrain"),
        (["output=/o"], "output=/o: must be JOB"),
        (["pretrain", "demo", "extra", "output=/o"], "pretrain demo extra output=/o: must be JOB"),
        (["pretrain", "seed=[1,2]", "stray", "output=/o"], "stray output=/o: must be JOB"),
        (["compare", "output=/o", "seed=[1,2]"], "job=compare: must be one of prepare, pretrain"),
        (["pretrain", "demo", "data=/d", "seed=[1,2]"], "output: is required"),
        ([*PRETRAIN, "seed=[1,2]", "parallel=0"], "parallel=0: must be at least 1"),
        ([*PRETRAIN, "seed=1"], "at least one must list values"),
        ([*PRETRAIN, "seed=[1,1]"], r"seed=\[1,1\]: must list different values"),
        ([*PRETRAIN, "seed=[]"], r"seed=\[\]: must list different values"),
        ([*PRETRAIN, "seed=[1,"], r"seed=\[1,: is not valid YAML"),
        ([*PRETRAIN, "mask_ratio=[0.9,1.5]"], "mask_ratio=1.5: .*must"),
        ([*PRETRAIN, "mask_ration=[0.9,0.5]"], "mask_ration=0.9: .*perhaps mask_ratio is meant"),
        (["pretrain", "dmo", "data=/d", "output=/o", "seed=[1,2]"], "recipe=dmo: no such recipe"),
    ],
)
def test_mistakes_are_told_before_anything_starts(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan(*words)
