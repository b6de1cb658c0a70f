"""What a path holds, as messages about a wrong path word it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.core.errors import UserError
from jobs.core.holdings import holding
from jobs.core.init_source import local_weights


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"run.json": '{"command": "tag", "pins": {}}'}, "holds a tag run"),
        ({"run.json": '{"command": "evaluate"}'}, "holds an evaluate run"),
        ({"run.json": '{"pins": {"command": "finetune"}}'}, "holds a finetune run"),
        ({"run.json": "{}"}, "holds a run"),
        ({"run.json": "[1]"}, "holds a run"),
        ({"run.json": '{"pins": 3}'}, "holds a run"),
        ({"run.json": "no JSON"}, "holds a run"),
        ({"run.json": '{"command": "prepare"}', "dataset.json": "{}"}, "holds a prepared set"),
        ({"video.mp4": ""}, "holds neither a run nor a prepared set"),
    ],
)
def test_what_a_folder_holds(files: dict[str, str], found: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert holding(str(tmp_path)) == found
    weights = pytest.raises(UserError, match=rf"^init={tmp_path}: {found}, no model.safetensors; give the output of a")
    with weights, local_weights(str(tmp_path)):
        pass


def test_a_file_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("video")
    assert holding(str(tmp_path / "list.csv")) == "is a file"
    assert holding(str(tmp_path / "mistyped")) == "does not exist"
    missing = pytest.raises(UserError, match=rf"^init={tmp_path}/mistyped: does not exist; give the output of a")
    with missing, local_weights(str(tmp_path / "mistyped")):
        pass
