"""What the demo makes: again only for other keys, and with few labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo import source
from jobs.demo.config import DemoConfig


def test_other_keys_are_another_folder(tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [{}, {"videos": 80}, {"labels": 5}, {"difficulty": 0.5}, {"seed": 1}]
    folders = {source.made_folder(DemoConfig(output=str(tmp_path), **keys)) for keys in changes}  # type: ignore[arg-type]
    assert len(folders) == len(changes)
    assert source.made_folder(DemoConfig(output=str(tmp_path), compare=False)) in folders


def test_what_is_there_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def render(folder: Path, count: int, *_: object, **__: object) -> None:
        made.append(folder)
        folder.mkdir(parents=True)
        lines = "".join(f"a/{number}.mp4,a\n" for number in range(count))
        (folder / "annotations.csv").write_text(f"path,label\n{lines}")

    monkeypatch.setattr(source, "render_motion_videos", render)
    config = DemoConfig(output=str(tmp_path), videos=80, labels=3)
    folder = source.made_folder(config)
    for _ in range(2):
        source.make_source(config, folder)
    assert made == [folder]
    assert (folder / "annotations.csv").read_text().count(",a,train") == 3
