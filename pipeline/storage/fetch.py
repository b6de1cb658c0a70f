"""One object of a collection as a local file: looked at before it is touched, and removed with its last user.

What lies in a collection comes from anybody. A FIFO would hang its reader, a device never ends, an object may be larger
than this machine's disk. So its kind and size are compared first, a download ends where it exceeds its limit, and it is
kept in a file without a name, which a killed process cannot leave behind.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.storage import s3 as object_storage
from pipeline.storage.errors import errors_named, refuse_over, size_of_file
from pipeline.storage.files import local_path


@contextlib.contextmanager
def fetched(uri: str, max_bytes: int) -> Iterator[Path]:
    """A path under which this process can read an object while the context lasts; a local file is its own copy.

    Raises:
        StorageError: by its ``reason``: missing, forbidden, unreadable; not_a_file; max_bytes; disk_full, which is this
            machine's fault.
    """
    path = local_path(uri)
    if path is not None:
        with errors_named(uri):
            size = size_of_file(uri, path)
        refuse_over(uri, size, max_bytes)
        yield path
        return
    with tempfile.TemporaryFile(prefix="video-") as file:
        with errors_named(uri):
            object_storage.download(uri, file, max_bytes)
        yield Path(f"/proc/self/fd/{file.fileno()}")
