"""The names of files of the two kinds."""

from __future__ import annotations

from pipeline.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def test_suffixes_are_sorted_lower_case_and_of_one_kind() -> None:
    for suffixes in (VIDEO_SUFFIXES, IMAGE_SUFFIXES):
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
        assert list(suffixes) == sorted(set(suffixes))
    assert not set(VIDEO_SUFFIXES) & set(IMAGE_SUFFIXES)
