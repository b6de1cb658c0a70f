"""What the transcoder's child does: a request is the configuration, clips come out as they are finished."""

from __future__ import annotations

from pipeline.decode.child_loop import Replies, serve
from pipeline.decode.config import VideoInfo
from pipeline.decode.video_file import Video
from pipeline.transcode.config import TranscodeConfig
from pipeline.transcode.transcode import process


def transcode(path: str, config: TranscodeConfig, replies: Replies) -> VideoInfo:
    """Emit the clips of a video; the answer is its facts."""
    with Video(path, replies.limits, replies.progress) as video:
        return process(video, config, replies.emit)


def main(connection_file: int) -> None:
    """Serve the parent at the other end of ``connection_file``."""
    serve(connection_file, {TranscodeConfig: transcode}, starts_threads=True)  # x264 does, even for one of its own
