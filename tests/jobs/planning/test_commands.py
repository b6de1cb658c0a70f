"""The plans of commands, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hiera_video.analysis.flops import complexity
from jobs.plan import planned
from jobs.planning.request import read_arguments

TINY = "model=hiera_test_8x64"


def values(line: str) -> dict[str, Any]:
    """The lines of a plan by name."""
    _, figures = planned(read_arguments(line.split()))
    return {figure.name: figure.value for figure in figures}


def test_prepare_by_hand() -> None:
    found = values("prepare gpus=8 clips=1000000 clip_seconds=30")
    assert found["what saturates first"] == "cores"
    assert found["hours"] == pytest.approx(10**6 * 3.2 / 2 / 191 / 3600)
    assert found["bytes kept: prepared set"] == pytest.approx(10**6 * 30 * 62_500 * 0.8 / 2**30)
    assert found["GPU-hours"] == 0
    kept = values("prepare transcode.mode=passthrough clips=1000000 host.storage_gbit=1")
    assert kept["what saturates first"] == "object storage"
    assert kept["hours"] == pytest.approx(10**6 * 2 * 625_000 / 1.25e8 / 3600)


def test_tag_by_hand() -> None:
    found = values(f"tag gpus=8 gpu=l4 {TINY} precision=bf16 clips=1000 clip_seconds=20 hop_seconds=4")
    assert found["model"] == "hiera_test_8x64"
    assert found["windows"] == 1000 * (1 + math.ceil(18 / 4))
    assert found["what saturates first"] == "decoding"
    assert found["hours"] == pytest.approx(1000 * 6 * 0.024 / 2 / (192 - 8 - 1) / 3600)
    assert found["cores that decode"] == 183


def test_evaluate_by_hand() -> None:
    found = values(f"evaluate k400 gpus=1 gpu=t4 {TINY} clips=1000 host.cores=4000")
    speed = 0.35 * 8.1e12 / (2 * complexity("hiera_test_8x64").multiply_adds)
    assert found["views"] == 15_000
    assert found["what saturates first"] in ("GPUs", "object storage")
    assert found["views a second"] == pytest.approx(min(speed, 15 * 5500))


@pytest.mark.parametrize("media", ["model=hiera_test_96"])
def test_images_have_one_view_and_cost_their_own(media: str) -> None:
    found = values(f"tag gpus=1 {media} clips=500 host.cores=3")
    assert found["windows"] == 500
    assert found["hours"] == pytest.approx(500 * 0.0058 / 3600)


def test_pretrain_by_hand() -> None:
    line = "pretrain demo model=mae_hiera_test_8x64 mask_ratio=0.75 gpus=2 clips=1000 steps=null epochs=8"
    found = values(f"{line} gpu=a100 global_batch=32 host.notice_seconds=1")
    assert found["optimizer steps"] == 250
    assert found["views a second"] == pytest.approx(min(39 * 8, 183 / 0.0075))
    assert found["hours"] == pytest.approx(250 * 32 / (39 * 8) / 3600)
    assert found["GPU-hours"] == pytest.approx(2 * found["hours"])
    parameters = complexity("mae_hiera_test_8x64").parameters
    assert found["a checkpoint"] == pytest.approx(12 * parameters / 2**30)
    assert any("fits into the notice of 1 s" in name for name in found)
    assert [name for name in found if "(chosen)" in name] == ["memory of a worker, ZeRO 1 (chosen)"]


def test_a_checkpoint_that_is_too_long_for_the_notice_is_said() -> None:
    found = values("finetune demo model=hiera_test_8x64 gpus=2 host.notice_seconds=0.0001")
    assert any("longer than the notice of 0.0001 s" in name for name in found)
