"""Settings of transcoding that break their rule are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.transcode.config import TranscodeConfig


@pytest.mark.parametrize(
    "wrong", [{"short_side": 255}, {"crf": 0}, {"gop": 0}, {"clip_seconds": -1.0}, {"hop_seconds": 1.0}]
)
def test_settings_outside_their_rule(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TranscodeConfig(**wrong)


def test_originals_are_always_read_in_square_pixels() -> None:
    with pytest.raises(ValueError, match="square_pixels"):
        TranscodeConfig(mode="passthrough", square_pixels=False)
