"""What FFmpeg's decoders log about damage in frames that they still return."""

from __future__ import annotations

from typing import Self

import av


class Complaints:
    """Errors that a decoder logs while it still returns frames; in changed H.264 files this finds some more damage.

    Use around decoding, in one thread; what the encoder and the scaler log does not count.
    """

    def __init__(self, decoder_name: str) -> None:
        self.decoder_name = decoder_name
        self._heard = 0

    def __enter__(self) -> Self:
        av.logging.set_level(av.logging.ERROR)
        self._capture = av.logging.Capture()
        self._log = self._capture.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)
        av.logging.set_level(av.logging.PANIC)

    def new(self) -> str:
        """The first one since the last call; '' when there is none."""
        fresh = self._log[self._heard :]
        self._heard = len(self._log)
        return next((text.strip() for _, name, text in fresh if name == self.decoder_name), "")
