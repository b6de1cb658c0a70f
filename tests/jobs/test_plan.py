"""The command: table, JSON, money, and one message for a mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs.plan import main
from jobs.planning.cluster import GPUS
from jobs.training.mfu import peak_of
from tests.support.small_set import small_prepared_set

PLAN = ["pretrain", "demo", "model=mae_hiera_test_8x64", "mask_ratio=0.75", "gpus=2"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plan", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_json_has_every_figure_with_its_basis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: USD\ngpu_hour: {h100: 2}\n")
    assert run(monkeypatch, *PLAN, f"prices={prices}", "json=true") == 0
    plan = json.loads(capsys.readouterr().out)
    figures = {line["name"]: line for line in plan["figures"]}
    assert plan["plan"] == "pretrain demo on 2 h100"
    assert figures["money: GPU-hours"]["value"] == pytest.approx(2 * figures["GPU-hours"]["value"])
    bases = {line["basis"] for line in plan["figures"]}
    assert {"assumed", "measured (AMD EPYC, 2026-11-21)"} <= bases


def test_the_clips_of_a_set_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_prepared_set(tmp_path).uri
    words = ["finetune", "demo", "model=hiera_test_8x64", "gpus=2", f"data={data}", "steps=null", "epochs=32"]
    assert run(monkeypatch, *words) == 0
    shown = capsys.readouterr().out
    assert "split train of data" in " ".join(shown.replace("│", " ").split())
    assert "finetune demo on 2 h100" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*PLAN, "gpu=h1000"], "gpu=h1000: must be one of h100, "),
        ([*PLAN[:-1], "gpus=0"], "gpus=0: must be positive"),
        (["pretrain", "dmeo"], "recipe=dmeo: no such recipe of pretrain"),
        ([*PLAN, "prices=missing.yaml"], "prices=missing.yaml: "),
        ([*PLAN, "measured=missing"], "measured=missing: "),
        ([*PLAN, "gpu=v100", "precision=bf16"], "gpu=v100: has no bf16; use precision=fp32"),
        (["tag", "model=hiera_basis"], "model=hiera_basis: no such preset"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    assert f"plan: {message}" in capsys.readouterr().err


def test_every_gpu_has_a_peak() -> None:
    assert [gpu.name for gpu in GPUS.values() if gpu.name != "cpu" and peak_of(gpu.cuda_name, "fp32") is None] == []
