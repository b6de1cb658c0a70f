"""From the labels of annotations to a class list and a code per row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.manifest.formats import read_class_list
from pipeline.manifest.readers import Annotations
from pipeline.manifest.splits import Codes

# Spreadsheets write an index as 3.0 where another row of the column is empty. 007 is a name.
_INDEX = re.compile(r"(0|[1-9]\d*)(?:\.0+)?")
_NEGATIVE = re.compile(r"-\d+(?:\.0+)?")
_NUMBER = re.compile(r"-?\d{1,18}")
_LARGEST_INDEX = 100_000  # beyond, a number is an id, and a class for every smaller one would mean nothing


def unified(chunks: list[pa.Array]) -> tuple[list[str], Codes]:
    """Chunks with dictionaries of their own → one list of words and a code per row, -1 for null."""
    if not chunks:
        return [], np.empty(0, np.int32)
    rows = pa.chunked_array(chunks).unify_dictionaries()
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in rows.chunks]
    return rows.chunks[0].dictionary.to_pylist(), np.concatenate(codes).astype(np.int32)


def class_labels(
    labels: list[str], codes: Codes, annotations: Annotations, class_list: str | None
) -> tuple[list[str], Codes, tuple[str, ...]]:
    """The labels as names, their codes, and the class list."""
    listed = read_class_list(class_list) if class_list is not None else annotations.classes
    labels, codes = _same_words([unicodedata.normalize("NFC", label).strip() for label in labels], codes)
    listed = None if listed is None else tuple(unicodedata.normalize("NFC", name) for name in listed)
    if annotations.digits_are_indices:
        negative = np.array([*(bool(_NEGATIVE.fullmatch(label)) for label in labels), False])
        codes = np.where(negative[codes], np.int32(-1), codes)
        indices = _indices([labels[code] for code in np.unique(codes[codes >= 0])], listed)
        if indices is not None:
            listed = listed or tuple(str(index) for index in range(max(indices.values(), default=-1) + 1))
            named = {label: listed[index] if index < len(listed) else str(index) for label, index in indices.items()}
            labels, codes = _same_words([named.get(label, label) for label in labels], codes)
    in_use = [labels[code] for code in np.unique(codes[codes >= 0])]
    return labels, codes, listed if listed is not None else tuple(sorted(in_use, key=_numbers_by_value(in_use)))


def _same_words(labels: list[str], codes: Codes) -> tuple[list[str], Codes]:
    """Each word once: forms of one label may have become equal."""
    words = list(dict.fromkeys(labels))
    code_of = {word: code for code, word in enumerate(words)}
    return words, np.array([*(code_of[label] for label in labels), -1], np.int32)[codes]


def _indices(labels: Sequence[str], listed: Sequence[str] | None) -> dict[str, int] | None:
    """The class index that each label is; None where labels are names.

    They are names if one is no whole number, if all stand in the class list, or if they are too large for indices.
    """
    numbers = {label: int(match[1]) for label in labels if (match := _INDEX.fullmatch(label))}
    if len(numbers) < len(labels) or (listed is not None and set(labels) <= set(listed)):
        return None
    return numbers if max(numbers.values(), default=0) <= _LARGEST_INDEX else None


def _numbers_by_value(words: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """The order of class names: 2 before 10 where all are numbers."""
    if all(_NUMBER.fullmatch(word) for word in words):
        return lambda word: (int(word), word)
    return lambda word: (0, word)


def outside(codes: Codes, words: list[str], allowed: Collection[str], *, none: bool = False) -> npt.NDArray[np.bool_]:
    """Rows whose word is none of the allowed; rows without a word are outside only if ``none``."""
    return np.array([*(word not in allowed for word in words), none])[codes]


def recoded(codes: Codes, words: list[str], order: Sequence[str]) -> Codes:
    return np.array([*(order.index(word) if word in order else -1 for word in words), -1], np.int32)[codes]
