"""Transcoding in a child process, so that no video can take a Ray worker down, hang it or fill its memory.

Clips stream back as they are finished, so a day of footage needs the memory of one clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.decode.child_process import IsolatedService
from pipeline.decode.config import DecodeConfig, VideoInfo
from pipeline.transcode.config import Output, TranscodeConfig


class IsolatedTranscoder(IsolatedService):
    """Processes videos in a child; the deadline of ``limits`` holds for each step, not for a whole video."""

    def __init__(self, config: TranscodeConfig, limits: DecodeConfig) -> None:
        self.config = config
        super().__init__("pipeline.transcode.child", limits)

    def process(self, path: str | os.PathLike[str]) -> Iterator[Output | VideoInfo]:
        """The clips of a local video, as `transcode.process` emits them; last its facts.

        Raises:
            DecodeError: the video cannot be used ("crashed", "timeout" when the child died of it).
        """
        return self.answers(path, self.config)
