"""Class lists: shipped, and given as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import ManifestConfig, read_class_list
from pipeline.storage.files import StorageError


def test_kinetics_400_names_ship() -> None:
    names = read_class_list("kinetics400")
    assert len(names) == 400
    assert (names[0], names[399]) == ("abseiling", "zumba")


def test_a_split_that_is_not_official_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"^split_number=4: must be an official split: 1, 2 or 3; use 1$"):
        ManifestConfig(split_number=4)


def test_class_lists_hold_each_name_once(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["a", "b", "a"]')
    with pytest.raises(ManifestError, match="twice"):
        read_class_list(str(tmp_path / "names.json"))


@pytest.mark.parametrize(("name", "content"), [("c.json", b'["a", '), ("c.json", b"5")])
def test_malformed_class_lists_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=rf"classes=.*{name}"):
        read_class_list(str(tmp_path / name))


@pytest.mark.parametrize("name", ["c.txt", "c.json", "c.csv"])
def test_class_lists_that_are_no_text_are_named_with_the_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"zumba\ncaf\xe9\n")
    with pytest.raises(StorageError, match=rf"{name}: line 2 is not UTF-8; convert it: iconv -f WINDOWS-1252"):
        read_class_list(str(tmp_path / name))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "content"), [("c.txt", "café|zumba|"), ("c.json", '["café",|"zumba"]|')])
def test_class_lists_of_any_editor(name: str, content: str, end: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.replace("|", end).encode(encoding))
    assert read_class_list(str(tmp_path / name)) == ("café", "zumba")
