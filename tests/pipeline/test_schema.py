"""What names a clip: its bytes and its span, nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import clip_id

uris = st.text(max_size=20)


@given(uris, uris, uris, uris)
def test_clips_of_other_content_have_other_ids(uri: str, version: str, other_uri: str, other_version: str) -> None:
    """Also where one URI ends with what begins the other's version."""
    same = (uri, version) == (other_uri, other_version)
    assert (clip_id(uri, version, 0.0, 1.0) == clip_id(other_uri, other_version, 0.0, 1.0)) == same


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_every_span_has_an_id_that_fits_int64(start: float, end: float) -> None:
    assert 0 <= clip_id("s3://bucket/a.mp4", "etag", start, end) < 2**63
    if start != end:
        assert clip_id("s3://bucket/a.mp4", "etag", start, end) != clip_id("s3://bucket/a.mp4", "etag", end, start)


def test_a_file_name_that_is_no_text_has_an_id() -> None:
    assert clip_id("/videos/caf\udce9.mp4", "etag", 0.0, 1.0) != clip_id("/videos/caf.mp4", "etag", 0.0, 1.0)


def test_ids_stay_what_they_are() -> None:
    """A golden value: prepared sets, and so the draws of training, hang on it."""
    assert clip_id("s3://bucket/a.mp4", "etag", 0.0, 1.5) == 8502211807986885078
