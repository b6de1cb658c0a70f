"""Transcoding in a child process, so that no video can take a Ray worker down, hang it or fill its memory.

Clips stream back as they are finished, so a day of footage needs the memory of one clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.decode.child_process import IsolatedService
from pipeline.decode.config import DecodeConfig, VideoInfo
from pipeline.transcode.config import Damage, Output, StoredClip, TranscodeConfig


class IsolatedTranscoder(IsolatedService):
    """Processes videos in a child; the deadline of ``limits`` holds for each step, not for a whole video."""

    def __init__(self, config: TranscodeConfig, limits: DecodeConfig) -> None:
        self.config = config
        # A clip may be as large as what the child may hold; it is one message.
        super().__init__("pipeline.transcode.child", limits, (VideoInfo, StoredClip, Damage), limits.memory_bytes)

    def process(self, path: str | os.PathLike[str]) -> Iterator[Output | VideoInfo]:
        """The clips of a local video, as `transcode.process` emits them; last its facts.

        Raises:
            DecodeError: the video cannot be used ("crashed", "timeout" when the child died of it).
        """
        facts = None
        for output in self.answers(path, self.config):
            if facts is not None or not isinstance(output, StoredClip | Damage | VideoInfo):
                raise self._distrusted("the decoder answered with no clips and facts")
            facts = output if isinstance(output, VideoInfo) else None
            yield output
        if facts is None:
            raise self._distrusted("the decoder answered without facts")
