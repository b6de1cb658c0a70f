"""Class lists in every published form are one list in the order of the indices."""

from __future__ import annotations

import json

import pytest

from pipeline.manifest.class_names import parse_class_names

NAMES = ["abseiling", "sharpening knives", "it's a test", "zumba"]
LAST = {name: index for index, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".json", json.dumps(NAMES)),
        (".json", json.dumps(dict(sorted(LAST.items(), key=lambda item: -item[1])))),
        (".json", json.dumps({f'"{name}"': index for name, index in LAST.items()})),
        (".json", json.dumps({name: str(index) for name, index in LAST.items()})),
        (".json", json.dumps({str(index): name for name, index in reversed(LAST.items())})),
        (".json", json.dumps({"id2label": {str(index): name for name, index in LAST.items()}, "label2id": LAST})),
        (".txt", "\n".join(NAMES)),
        (".txt", "\n\n".join(f'"{name}" ' for name in NAMES) + "\n"),
        (".names", "\n".join(f"{index} {name}" for name, index in LAST.items())),
        (".txt", "\n".join(f"{index}, {name}" for name, index in reversed(LAST.items()))),
        (".csv", "id,name\n" + "\n".join(f"{index},{name}" for name, index in reversed(LAST.items()))),
        (".csv", "\n".join(f'"{name}",{index}' for name, index in LAST.items())),
        (".csv", "name\n" + "\n".join(f'"{name}"' for name in NAMES)),
    ],
)
def test_every_form_gives_the_same_names(suffix: str, text: str) -> None:
    assert parse_class_names(text, suffix) == NAMES


@pytest.mark.parametrize(
    ("suffix", "text", "names"),
    [
        (".json", '{"7": 0, "8": 1}', ["7", "8"]),
        (".json", '{"0": 7, "1": 8}', ["7", "8"]),
        (".json", '{"1": 0, "0": 1}', ["1", "0"]),
        (".json", '{"0": "0", "1": "1"}', ["0", "1"]),
        (".txt", "1 person\n2 people", ["1 person", "2 people"]),
        (".txt", "007\n008", ["007", "008"]),
        (".csv", "sit, down\nstand", ["sit,down", "stand"]),
    ],
)
def test_numbers_are_names_where_they_cannot_be_indices(suffix: str, text: str, names: list[str]) -> None:
    assert parse_class_names(text, suffix) == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 0, "b": 2}', "0 to 1, each once"),
        ('{"a": 0, "b": 0}', "0 to 1, each once"),
        ('{"1": "a", "2": "b"}', "0 to 1, each once"),
        ('{"1": "0", "0": "1"}', None),
        ('{"1": "2", "2": "0", "0": "1"}', "numbers as names and as indices"),
        ('[{"id": 0, "name": "a"}]', "list of names"),
        ('{"a": [0]}', "names and indices alone"),
        ("5", "list of names"),
    ],
)
def test_what_is_neither_is_refused(text: str, reason: str | None) -> None:
    if reason is None:  # swapped twice is the same either way
        assert parse_class_names(text, ".json") == ["1", "0"]
        return
    with pytest.raises(ValueError, match=reason):
        parse_class_names(text, ".json")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [(".json", '{"0": "a", "1": "", "2": "b"}'), (".json", '["a", " ", "b"]'), (".csv", "0,a\n1,\n2,b\n")],
)
def test_an_index_without_a_name_moves_no_other(suffix: str, text: str) -> None:
    with pytest.raises(ValueError, match="index 1 has no name"):
        parse_class_names(text, suffix)


def test_a_class_that_is_called_action_is_no_header() -> None:
    assert parse_class_names("action\nrun\n", ".csv") == ["action", "run"]
