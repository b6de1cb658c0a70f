"""Storage that fails now and then: a call is made again before a whole job is given up for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.storage.files import StorageError

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.4
# An archived object, a key over 1024 bytes, no key at all.
_OF_THE_OBJECT = ("InvalidObjectState", "KeyTooLongError", "ParamValidationError")
Answer = TypeVar("Answer")


def patiently(call: Callable[[], Answer], attempts: int = ATTEMPTS) -> Answer:
    """The answer of ``call``, which may be made several times, with growing pauses.

    Each request is already retried by the storage client; among the millions of a large job some fail all the same.

    Raises:
        StorageError: at once when the object is missing or not permitted, else after the last attempt.
    """
    for attempt in range(1, attempts):
        try:
            return call()
        except StorageError as error:
            if error.missing or is_forbidden(error):
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    return call()


def is_of_the_object(error: StorageError) -> bool:
    """Whether the object's own name or state is what is wrong, and not the storage that should answer.

    A local file counts as such: its disk cannot be told from it.
    """
    return not error.uri.startswith("s3://") or any(code in error.happened for code in _OF_THE_OBJECT)


def is_forbidden(error: StorageError) -> bool:
    """Whether the storage refuses these credentials this object."""
    return "AccessDenied" in error.happened or "403" in error.happened
