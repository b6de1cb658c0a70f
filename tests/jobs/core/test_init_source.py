"""What `init` may name, and what is read of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.errors import UserError
from jobs.core.init_source import absolute_init, initial_metadata, links_of, local_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", create_model("hiera_test_8x64"), {"run_id": "r1", "command": "pretrain"})
    return tmp_path


def test_a_run_and_its_file_are_the_same_weights(run: Path) -> None:
    for init in (str(run), str(run / "model.safetensors")):
        with local_weights(init) as path:
            assert path.read_bytes() == (run / "model.safetensors").read_bytes()
        assert initial_metadata(init)["run_id"] == "r1"


def test_files_of_other_origin_have_no_metadata(tmp_path: Path) -> None:
    """They are not even opened."""
    assert initial_metadata(None) == {}
    assert initial_metadata(str(tmp_path / "none.pth")) == {}


@pytest.mark.parametrize("name", ["", "none.safetensors"])
def test_missing_weights_are_a_mistake(name: str, tmp_path: Path) -> None:
    init = str(tmp_path / name) if name else str(tmp_path)
    with pytest.raises(UserError, match=rf"^init={init}: .*give the output of a finished training run, or a file"):
        initial_metadata(init)


def test_a_damaged_file_is_a_mistake(run: Path) -> None:
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(UserError, match=rf"^init={run}: .*; give another file"):
        initial_metadata(str(run))


def test_paths_become_absolute_and_models_of_the_registry_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_init("runs/a") == str(tmp_path / "runs" / "a")
    assert absolute_init("s3://bucket/a") == "s3://bucket/a"
    assert absolute_init("models:/motion@best") == "models:/motion@best"


@pytest.mark.parametrize(
    ("metadata", "links"),
    [
        ({"command": "pretrain", "run_id": "p"}, {"pretrain_run_id": "p"}),
        (
            {"command": "finetune", "run_id": "f", "pretrain_run_id": "p"},
            {"finetune_run_id": "f", "pretrain_run_id": "p"},
        ),
        # A second fine-tuning: the first one's link is not that of its input.
        ({"command": "finetune", "run_id": "f2", "finetune_run_id": "f1"}, {"finetune_run_id": "f2"}),
        # A registered copy has no command.
        ({"finetune_run_id": "f", "pretrain_run_id": "p", "run_id": "x"},
         {"finetune_run_id": "f", "pretrain_run_id": "p"}),
        ({"command": "pretrain", "run_id": ""}, {}),
        ({"classes": json.dumps(["a"])}, {}),
    ],
)  # fmt: skip
def test_links_to_the_runs_that_weights_come_from(metadata: dict[str, str], links: dict[str, str]) -> None:
    assert links_of({"config_class": "HieraConfig", **metadata}) == links


def test_public_weights_and_what_derives_from_them_name_their_license() -> None:
    public = links_of({})
    assert public == {"weights_license": "CC-BY-NC-4.0"}
    derived = {"config_class": "HieraConfig", "command": "pretrain", "run_id": "p", **public}
    assert links_of(derived) == {"pretrain_run_id": "p", **public}
