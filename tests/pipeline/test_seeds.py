"""One derivation of seeds: equal names give equal draws, and every other name a stream independent of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling import generator
from pipeline.seeds import derive_seed

seeds = st.integers(0, 2**63)
texts = st.text(max_size=8)
names = st.lists(st.integers(0, 2**40) | texts, max_size=3)


@given(seeds, texts, st.integers(0, 5), texts)
def test_draws_are_a_function_of_their_names(seed: int, purpose: str, epoch: int, sample: str) -> None:
    draws = generator(seed, purpose, epoch, sample).random(4)
    np.testing.assert_array_equal(draws, generator(seed, purpose, epoch, sample).random(4))
    for other in (
        generator(seed + 1, purpose, epoch, sample),
        generator(seed, purpose + "x", epoch, sample),
        generator(seed, purpose, epoch + 1, sample),
        generator(seed, purpose, epoch, sample + "x"),
        generator(seed, purpose, str(epoch), sample),
    ):
        assert not np.array_equal(draws, other.random(4))


@given(seeds, texts, names, texts, names)
def test_names_are_never_mistaken_for_others(
    seed: int, purpose: str, what: list[int | str], other_purpose: str, other: list[int | str]
) -> None:
    """Also where one list of names, written out, contains the other's separators: ("a", "b") is not ("a,b",)."""
    same = (purpose, what) == (other_purpose, other)
    assert (derive_seed(seed, purpose, *what) == derive_seed(seed, other_purpose, *other)) == same


def test_separators_inside_a_name_do_not_part_it() -> None:
    for separator in (",", ", ", '", "', "\x1f", "#", "\\"):
        assert derive_seed(0, "crop", "a", "b") != derive_seed(0, "crop", f"a{separator}b")


@given(seeds, texts, names)
def test_both_libraries_take_the_seeds(seed: int, purpose: str, what: list[int | str]) -> None:
    derived = derive_seed(seed, purpose, *what)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)
    np.random.default_rng(derived)


def test_seeds_of_many_samples_and_purposes_are_distinct_and_uniform() -> None:
    """200,000 neighbouring names: no collision, and every bit is set as often as a fair coin would (5 sigma)."""
    derived = np.array(
        [
            derive_seed(seed, purpose, epoch, f"{sample}#0")
            for seed in (0, 1)
            for purpose in ("mask", "flip")
            for epoch in range(5)
            for sample in range(10_000)
        ]
    )
    assert len(np.unique(derived)) == len(derived) == 200_000
    bits = (derived[:, None] >> np.arange(63)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(derived))


@pytest.mark.parametrize("other", [("flip", 0), ("mask", 1)])
def test_streams_of_other_purposes_and_samples_are_independent(other: tuple[str, int]) -> None:
    """Their first draws do not correlate: 4,000 samples, 5 sigma."""
    purpose, shift = other
    first = [generator(0, "mask", sample).random() for sample in range(4000)]
    second = [generator(0, purpose, sample + shift).random() for sample in range(4000)]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(4000)


def test_seeds_stay_what_they_are() -> None:
    """Golden values: another derivation would change every run that is resumed."""
    assert derive_seed(7, "crop", 3, "12#0") == 3366768869473860854
    assert derive_seed(0, "") == 6195650636364902744
