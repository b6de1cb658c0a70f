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
