"""Parameters and multiply-adds against the paper (Tab. 2 and 4)."""

from __future__ import annotations

import pytest

from hiera_video.analysis.flops import complexity

PAPER = {
    "hiera_tiny_224": (28, 5),
    "hiera_small_224": (35, 6),
    "hiera_base_224": (52, 9),
    "hiera_base_plus_224": (70, 13),
    "hiera_large_224": (214, 40),
    "hiera_huge_224": (673, 125),
    "hiera_base_16x224": (51, 102),
    "hiera_base_plus_16x224": (69, 133),
    "hiera_large_16x224": (213, 413),
    "hiera_huge_16x224": (672, 1159),
}


@pytest.mark.parametrize("name", PAPER)
def test_counts_equal_the_papers_tables(name: str) -> None:
    parameters, multiply_adds, _ = complexity(name)
    assert (round(parameters / 1e6), round(multiply_adds / 1e9)) == PAPER[name]


def test_decoder_dominates_the_pretraining_of_base() -> None:
    counted = complexity("mae_hiera_base_16x224")
    assert counted.encoder_multiply_adds / counted.multiply_adds == pytest.approx(0.15, abs=0.01)


def test_cheaper_decoders_multiply_less() -> None:
    full, subset, cross = (complexity("mae_hiera_base_16x224", decoder=kind) for kind in ("full", "subset", "cross"))
    assert cross.multiply_adds < subset.multiply_adds < 0.6 * full.multiply_adds
