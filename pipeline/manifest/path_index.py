"""The rule for paths of lists, and the files of a listing by path, by another form of it, or by name."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import Digests, name_digests, positions
from pipeline.manifest.readers import file_stem
from pipeline.manifest.text_columns import joined
from pipeline.storage.files import absolute, content_versions, is_local, local_path

_FILES_NAMED = 4


class RowIndex:
    """The row of each of N texts; made once, for any number of batches (`index_in` would hash all N for each)."""

    def __init__(self, texts: pa.ChunkedArray | pa.Array) -> None:
        digests = name_digests(pc.fill_null(texts, ""))
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def rows(self, wanted: pa.ChunkedArray | pa.Array) -> pa.Array:
        """The first row that holds each text, null where none does. [wanted]"""
        if not len(self._digests):
            return pa.nulls(len(wanted), pa.int64())
        found = positions(name_digests(pc.fill_null(wanted, "")), self._digests)
        absent = (found < 0) | np.asarray(wanted.is_null())
        return pa.array(self._order[found], pa.int64(), mask=absent)

    def counts(self, rows: pa.Array) -> pa.Array:
        """How many rows hold the text of each of these first rows; null for null. [rows]"""
        return pc.take(pa.array(self._counts), rows)

    def alike(self, rows: pa.Array, nth: int) -> pa.Array:
        """The nth row, from 0, that holds the text of each of these; null where they are fewer. [rows]"""
        wanted = rows.fill_null(0).to_numpy()
        fewer = (self._counts[wanted] <= nth) | np.asarray(rows.is_null())
        found = self._order[np.where(fewer, 0, self._starts[wanted] + nth)]
        return pa.array(found, pa.int64(), mask=fewer)

    @functools.cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Where the text of each row begins in the order. [N]"""
        starts = np.empty_like(self._order)
        starts[self._order] = np.searchsorted(self._digests, self._digests)
        return starts

    @functools.cached_property
    def _counts(self) -> npt.NDArray[np.int64]:
        """How many rows hold the text of each row. [N]"""
        counts = np.empty_like(self._order)
        counts[self._order] = np.searchsorted(self._digests, self._digests, "right")
        return counts - self._starts


class ListingIndex:
    """What a listing knows of each file, found by URI or by the file's name."""

    def __init__(self, listing: pa.Table) -> None:
        self.uris = pc.cast(listing["uri"], pa.large_string()).combine_chunks()
        self.versions = content_versions(listing).combine_chunks()
        self.sizes = listing["size"].combine_chunks()

    def rows_of(self, paths: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """By URI, else by another form of it (case, Unicode) that one file alone has. [N]

        Returns:
            The rows, null where there is none, and a message for each path of which several files are a form.
        """
        found = self._by_uri.rows(paths)
        absent = found.is_null()
        if found.null_count == paths.null_count:
            return found, nulls(len(paths), pa.large_string())
        loose = self._by_form.rows(_form(paths.filter(absent)))
        several = pc.greater(self._by_form.counts(loose), 1)
        found = pc.replace_with_mask(found, absent, pc.if_else(several, pa.scalar(None, loose.type), loose))
        if not pc.any(several).as_py():
            return found, nulls(len(paths), pa.large_string())
        messages = self._several_named(pc.if_else(several, loose, pa.scalar(None, loose.type)))
        return found, pc.replace_with_mask(nulls(len(paths), messages.type), absent, messages)

    def _several_named(self, rows: pa.Array) -> pa.Array:
        """A message for each row that names the first files of the same form; null for null. [N]"""
        first, *others = (pc.take(self.uris, self._by_form.alike(rows, nth)) for nth in range(_FILES_NAMED))
        # Arrow drops the rows in which all parts are null.
        names = pc.binary_join_element_wise(
            first.fill_null(""), *others, pa.scalar(", ", pa.large_string()), null_handling="skip"
        )
        message = joined("", "several files are forms of this path: ", names, "; rename all but one")
        return pc.if_else(rows.is_null(), pa.scalar(None, message.type), message)

    @functools.cached_property
    def _by_form(self) -> RowIndex:
        return RowIndex(_form(self.uris))

    def rows_of_names(self, batch: pa.Table) -> pa.Array:
        """By ``{id}_{start}_{end}``, else by the bare id, in whatever folder the file lies."""
        return pc.coalesce(self._by_stem.rows(batch["stem"]), self._by_stem.rows(batch["bare_id"]))

    @functools.cached_property
    def _by_uri(self) -> RowIndex:
        return RowIndex(self.uris)

    @functools.cached_property
    def _by_stem(self) -> RowIndex:
        return RowIndex(file_stem(self.uris))

    def not_among(self, digests: Digests) -> pa.Array:
        return self.uris.filter(pa.array(~np.isin(name_digests(self.uris), digests)))


def nulls(length: int, kind: pa.DataType) -> pa.Array:
    """Nulls that share one buffer with all others of their kind."""
    size = 1 << max(20, length.bit_length())
    return _shared_nulls(size, kind).slice(0, length)


@functools.lru_cache(maxsize=8)
def _shared_nulls(length: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(length, kind)


def combined(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _form(paths: Any) -> Any:
    """What all forms of one path have in common: upper and lower case, composed and decomposed Unicode."""
    return pc.utf8_normalize(pc.utf8_lower(pc.utf8_normalize(combined(paths), form="NFC")), form="NFC")


def _tidy(paths: pa.ChunkedArray, local: bool) -> pa.ChunkedArray:
    """Paths without blanks around them and without `./`; of local ones also without `..` and repeated slashes."""
    paths = pc.replace_substring_regex(pc.utf8_trim_whitespace(paths), r"^(?:\./+)+", "")
    untidy = pc.match_substring_regex(paths, r"//|/\.{1,2}/|^\.\./")
    untidy = pc.fill_null(pc.and_(untidy, pc.invert(pc.match_substring(paths, "://"))), False)
    if not local or not pc.any(untidy).as_py():
        return paths
    tidied = pa.array([os.path.normpath(path) for path in paths.filter(untidy).to_pylist()], paths.type)
    return pa.chunked_array([pc.replace_with_mask(combined(paths), combined(untidy), tidied)])


def absolute_paths(root: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    paths = _tidy(_plain(paths), is_local(root))
    below = pc.binary_join_element_wise(
        pa.scalar(root.rstrip("/"), pa.large_string()), paths, pa.scalar("/", pa.large_string())
    )
    is_absolute = pc.fill_null(pc.match_substring_regex(paths, r"^/|^\w+://"), False)
    # `if_else` allocates memory for both choices of every row: most lists need only one of them.
    if not pc.any(is_absolute).as_py():
        return below
    return paths if pc.all(is_absolute).as_py() else pc.if_else(is_absolute, paths, below)


def _plain(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """``file://`` URIs as the paths that a listing gives; those of names that are no valid text stay URIs."""
    is_uri = pc.fill_null(pc.starts_with(paths, "file://"), False)
    if not pc.any(is_uri).as_py():
        return paths
    plain = pa.array([plain_uri(uri) for uri in paths.filter(is_uri).to_pylist()], paths.type)
    return pa.chunked_array([pc.replace_with_mask(combined(paths), combined(is_uri), plain)])


def uri_of_path(source: str, path: str) -> str:
    """The URI of one annotated path, by the rule for lists: relative to the source, without blanks, `./` and `//`."""
    paths = pa.chunked_array([pa.array([path], pa.large_string())])
    uri: str = absolute_paths(plain_uri(absolute(source)), paths)[0].as_py()
    return uri


def plain_uri(uri: str) -> str:
    """A ``file://`` URI as the path that a listing gives, unless the path is no valid text; others as they are."""
    if not uri.startswith("file://"):
        return uri
    path = str(local_path(uri))
    try:
        path.encode()
    except UnicodeEncodeError:
        return uri
    return path
