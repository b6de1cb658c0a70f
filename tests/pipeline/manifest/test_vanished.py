"""When a source that shrinks stops its commands: from ten videos and a share on, and always when it is empty."""

from __future__ import annotations

import pytest

from pipeline.manifest.errors import VanishedSourceError
from pipeline.manifest.vanished import Vanished, refuse_no_share


@pytest.mark.parametrize(
    ("count", "of", "empty", "share"),
    [(800, 800, True, 0.2), (3, 3, True, 0.2), (10, 40, False, 0.2), (10, 10, True, 0.99), (30, 40, False, 0.0)],
)
def test_too_many_are_refused_with_number_examples_and_remedy(count: int, of: int, empty: bool, share: float) -> None:
    with pytest.raises(VanishedSourceError) as caught:
        Vanished(count, ["/v/a.mp4"], of, empty).refuse_above(share, "/v")
    expected = (f"max_deleted_share={share:g}: source=/v ", f"{count} of {of}", "/v/a.mp4", "confirm with max_deleted_")
    assert all(part in str(caught.value) for part in expected), caught.value


@pytest.mark.parametrize(
    ("count", "of", "empty", "share"),
    [(0, 0, True, 0.2), (9, 12, False, 0.2), (10, 50, False, 0.2), (800, 800, True, 1.0), (39, 40, False, 1.0)],
)
def test_a_few_or_confirmed_ones_pass(count: int, of: int, empty: bool, share: float) -> None:
    Vanished(count, ["/v/a.mp4"], of, empty).refuse_above(share, "/v")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"max_deleted_share=.*: must lie between 0 and 1"):
        refuse_no_share(share)
