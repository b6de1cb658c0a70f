"""From annotations and video objects to Arrow batches of decoded clips, in a known order, whatever is broken."""

from pipeline.schema import CLIP_SCHEMA, REJECTED_SCHEMA, UNLABELLED, clip_id
from pipeline.storage import (
    StorageError,
    absolute,
    delete,
    exists,
    filesystem,
    is_local,
    is_local_relative,
    join,
    list_files,
    local_copy,
    read_bytes,
    write_bytes,
    write_if_absent,
)

__all__ = [
    "CLIP_SCHEMA",
    "REJECTED_SCHEMA",
    "UNLABELLED",
    "StorageError",
    "absolute",
    "clip_id",
    "delete",
    "exists",
    "filesystem",
    "is_local",
    "is_local_relative",
    "join",
    "list_files",
    "local_copy",
    "read_bytes",
    "write_bytes",
    "write_if_absent",
]
