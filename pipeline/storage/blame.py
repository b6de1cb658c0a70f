"""Whose fault a failed access is: the object's, which anyone may be who can upload, or that of what surrounds it.

One rule for all commands. The fault of an object costs that object; a fault of the surroundings stops the work.
"""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from pathlib import Path

from pipeline.storage.errors import DISK_FULL, StorageError
from pipeline.storage.files import local_path

# An archived object, a key over 1024 bytes, no key or bucket at all, and names that no request can have.
_OF_THE_OBJECT = (
    "InvalidObjectState", "KeyTooLongError", "ParamValidationError", "names no bucket", "credentials inside a URI",
)  # fmt: skip
# An object's own ACL, its customer's key (SSE-C), its KMS key or its deletion; or the credentials and the path given.
_OF_EITHER = ("AccessDenied", "403", "InvalidRequest", "400", "KMS.", "NoSuchKey", "404", "MethodNotAllowed", "405")
# How a folder fails whose volume is not mounted or no longer answers.
_LOST_MOUNT = (errno.ENOENT, errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.ENODEV, errno.EHOSTDOWN, errno.ETIMEDOUT)
_OF_ACCESS = ("missing", "forbidden", "unreadable", DISK_FULL)


class Blame(StrEnum):
    """Who is to blame."""

    OBJECT = "object"
    """Its name, kind, size or state."""
    EITHER = "either"
    """One answer cannot distinguish them; it is the object where others can be read."""
    SURROUNDINGS = "surroundings"
    """The storage, the mount, the credentials, or this machine."""


def blame(error: StorageError) -> Blame:
    """Whose fault it is that an object of a collection cannot be read."""
    if error.reason not in _OF_ACCESS:
        return Blame.OBJECT
    if error.reason == DISK_FULL:
        return Blame.SURROUNDINGS
    if error.uri.startswith("s3://"):
        return _of_s3(error.happened)
    try:
        path = local_path(error.uri)
    except StorageError:  # of another scheme
        return Blame.OBJECT
    return Blame.OBJECT if path is None else _of_file(path)


def _of_s3(happened: str) -> Blame:
    if any(words in happened for words in _OF_THE_OBJECT):
        return Blame.OBJECT
    answered = happened.rpartition(" answered ")[2] if " answered " in f" {happened}" else ""
    return Blame.EITHER if answered.startswith(_OF_EITHER) else Blame.SURROUNDINGS


def _of_file(path: Path) -> Blame:
    if os.path.islink(path) and not os.path.exists(path):  # to nothing, to itself, or to where it may not
        return Blame.OBJECT
    return Blame.SURROUNDINGS if _is_lost(path.parent) else Blame.EITHER


def _is_lost(folder: Path) -> bool:
    """Whether a folder is missing, no longer answers, or is empty as the folder of an unmounted volume is."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError as error:
        return error.errno in _LOST_MOUNT
