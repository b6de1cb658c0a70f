"""Labels of annotations as class names and codes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.manifest.labels import class_labels, outside, recoded, unified
from pipeline.manifest.readers import Annotations


def classes_of(
    labels: list[str], *, indices: bool = False, listed: tuple[str, ...] | None = None
) -> tuple[list[str | None], tuple[str, ...]]:
    """The class name of each row, and the class list."""
    codes = np.arange(len(labels), dtype=np.int32)
    annotations = Annotations([], classes=listed, digits_are_indices=indices)
    words, codes, classes = class_labels(labels, codes, annotations, None)
    return [words[code] if code >= 0 else None for code in codes], classes


def test_chunks_with_dictionaries_of_their_own_become_one() -> None:
    chunks = [pa.array(["a", None]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode()]
    words, codes = unified(chunks)
    assert [words[code] if code >= 0 else None for code in codes] == ["a", None, "b", "a"]
    assert unified([])[0] == []


def test_forms_of_one_label_are_one_class() -> None:
    assert classes_of([" caf\u00e9", "cafe\u0301 "]) == (["caf\u00e9", "caf\u00e9"], ("caf\u00e9",))


@pytest.mark.parametrize(
    ("labels", "classes"), [(["10", "2", "-1"], ("-1", "2", "10")), (["10", "2", "a"], ("10", "2", "a"))]
)
def test_numbers_keep_their_order_where_all_labels_are_numbers(labels: list[str], classes: tuple[str, ...]) -> None:
    assert classes_of(labels)[1] == classes


def test_indices_name_classes_and_negative_ones_none() -> None:
    assert classes_of(["2", "0.0", "-1"], indices=True) == (["2", "0", None], ("0", "1", "2"))
    assert classes_of(["1", "7"], indices=True, listed=("run", "jump"))[0] == ["jump", "7"]


@pytest.mark.parametrize("label", ["007", "1e3", "100001", "no"])
def test_what_cannot_be_an_index_is_a_name(label: str) -> None:
    named, classes = classes_of([label, "3"], indices=True)
    assert named == [label, "3"]
    assert set(classes) == {label, "3"}


def test_codes_of_other_words() -> None:
    codes = np.array([0, 1, -1], np.int32)
    assert outside(codes, ["a", "b"], ("b",)).tolist() == [True, False, False]
    assert outside(codes, ["a", "b"], ("b",), none=True).tolist() == [True, False, True]
    assert recoded(codes, ["a", "b"], ("b",)).tolist() == [-1, 0, -1]
