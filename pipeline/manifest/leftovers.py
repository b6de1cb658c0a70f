"""Files of a listing that are no videos of the collection: other suffixes, leftovers of systems and editors."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.media import SUFFIXES, Media

_NAMES = {media: "(" + "|".join(map(re.escape, suffixes)) + ")$" for media, suffixes in SUFFIXES.items()}
# Hidden files and folders (`.git`, `._a.mp4`; not `.` and `..`), and the folders of macOS, Synology, QNAP, NetApp,
# Windows, Linux and Python. A class folder of such a name is none: `source=` may still name it itself.
_SYSTEM = (
    r"(?i)(?:^|/)(?P<part>\.[^./][^/]*|\.\.[^/]+|~\$[^/]*|__macosx|__pycache__|@eadir|@recycle|@tmp|#recycle|#snapshot"
    r"|~snapshot|lost\+found|system volume information|\$recycle\.bin|recycler|found\.\d{3})(?P<folder>/|$)"
)
_SUFFIX = r"[^/]+(?P<suffix>\.[^./]+)$"
_TEXT = functools.partial(pa.scalar, type=pa.large_string())


def is_video(paths: pa.ChunkedArray | pa.Array, media: Media = "video") -> pa.ChunkedArray | pa.Array:
    """Whether each name ends as the names of videos do, or of images (`SUFFIXES`)."""
    return pc.match_substring_regex(pc.utf8_lower(paths), _NAMES[media])


def is_leftover(relative: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Whether each path below the source is hidden or in a folder that a system made for itself."""
    return pc.match_substring_regex(relative, _SYSTEM)


def below(uris: pa.ChunkedArray, root: str) -> pa.ChunkedArray:
    """The part of each URI below the source: folders above it may be hidden."""
    return pc.if_else(
        pc.starts_with(uris, root),
        pc.utf8_slice_codeunits(uris, start=len(root)),
        pc.replace_substring_regex(uris, r"^\w+://[^/]*", ""),
    )


def videos_of(listed: pa.Table, prefix: str, skipped: Counter[str], media: Media = "video") -> pa.Table:
    """The videos of a listing, or its images; the other files are added to ``skipped`` by their kind.

    Kinds: a folder (``.git/``), hidden files (``._*``, ``.*``), a folder that cannot be listed
    (``class/ (unreadable)``), or a suffix.
    """
    relative = below(listed["uri"], prefix)
    kept = pc.and_(is_video(relative, media), pc.invert(is_leftover(relative)))
    counts = pc.value_counts(_kinds(relative.filter(pc.invert(kept))))
    skipped.update({entry["values"]: entry["counts"] for entry in counts.to_pylist()})
    return listed.filter(kept)


def of_the_other_kind(skipped: Mapping[str, int], media: Media) -> int:
    """How many skipped files are images where videos were looked for, or videos where images were."""
    others = [suffix for kind, suffixes in SUFFIXES.items() if kind != media for suffix in suffixes]
    return sum(skipped.get(suffix, 0) for suffix in others)


def _kinds(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """The kind of each skipped file: there may be as many as videos, so none becomes a Python object."""
    paths = pc.cast(paths, pa.large_string())
    system = pc.extract_regex(paths, _SYSTEM)  # null for other names
    part, folder = (pc.struct_field(system, name) for name in ("part", "folder"))
    others = pc.if_else(pc.starts_with(part, "~$"), _TEXT("~$*"), _TEXT(".*"))
    hidden = pc.if_else(pc.starts_with(part, "._"), _TEXT("._*"), others)
    of_system = pc.if_else(pc.equal(folder, "/"), _followed_by(part, "/"), hidden)
    return pc.coalesce(of_system, _suffixes(paths))


def _suffixes(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    suffix = pc.struct_field(pc.extract_regex(pc.utf8_lower(paths), _SUFFIX), "suffix")
    # Of the slash see `pipeline.storage.files.listed_in_parts`.
    return pc.if_else(
        pc.ends_with(paths, "/"), _followed_by(paths, " (unreadable)"), pc.fill_null(suffix, _TEXT("(none)"))
    )


def _followed_by(texts: pa.ChunkedArray, end: str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(texts, _TEXT(end), _TEXT(""))
