"""S3 Inventory: a listing that object storage writes every day or week, for buckets too large to list."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.orc

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.text_columns import as_text, csv_batches, joined, malformed_named, parquet_batches
from pipeline.storage.files import join, read_bytes, read_text
from pipeline.storage.records import parse_json


def inventory_parts(uri: str) -> Iterator[pa.Table]:
    """An S3 Inventory by its ``manifest.json`` as listings (`storage.files.LISTING_SCHEMA`), a part at a time.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
    """
    with malformed_named(uri):
        content = read_text(uri)
    try:
        manifest = parse_json(content)
        bucket = manifest["destinationBucket"].rpartition(":")[2]
        columns = [name.strip() for name in manifest["fileSchema"].split(",")]
        files = [f"s3://{bucket}/{entry['key']}" for entry in manifest["files"]]
        read = {"CSV": _inventory_csv, "Parquet": _inventory_parquet, "ORC": _inventory_orc}[manifest["fileFormat"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{uri}: is not an S3 Inventory manifest ({error!r} is missing); give its manifest.json"
        ) from error
    for file in files:
        for part in read(_beside(uri, file), columns):
            yield _inventory_rows(part)


def _inventory_csv(uri: str, columns: list[str]) -> Iterator[pa.Table]:
    for table in csv_batches(uri, columns):
        keys = table["Key"].combine_chunks()
        yield table.set_column(table.column_names.index("Key"), "Key", _url_decoded(keys))


def _inventory_parquet(uri: str, _columns: list[str]) -> Iterator[pa.Table]:
    yield from (_inventory_names(table) for table in parquet_batches(uri))


def _inventory_orc(uri: str, _columns: list[str]) -> Iterator[pa.Table]:
    yield _inventory_names(pa.orc.read_table(pa.BufferReader(read_bytes(uri))))


def _inventory_names(table: pa.Table) -> pa.Table:
    """Parquet and ORC name their columns ``last_modified_date`` where the CSV says ``LastModifiedDate``."""
    return table.rename_columns([name.title().replace("_", "").replace("Etag", "ETag") for name in table.column_names])


def _inventory_rows(table: pa.Table) -> pa.Table:
    for name, keep in (("IsLatest", "true"), ("IsDeleteMarker", "false")):
        if name in table.column_names:
            table = table.filter(pc.equal(pc.utf8_lower(as_text(pc.cast(table[name], pa.string()))), keep))
    uri = joined("/", "s3:/", table["Bucket"], table["Key"])
    size = pc.cast(table["Size"], pa.int64()) if "Size" in table.column_names else None
    etag = table["ETag"] if "ETag" in table.column_names else None
    nothing = pa.nulls(len(table), pa.int64())
    return pa.table(
        {
            "uri": as_text(uri),
            "size": nothing if size is None else size,
            "modified_ns": nothing,
            "etag": pa.nulls(len(table), pa.large_string()) if etag is None else as_text(etag),
        }
    )


def _url_decoded(keys: pa.Array) -> pa.Array:
    """Keys of a CSV inventory are URL-encoded; all are decoded in one call, separated by a byte that no key holds."""
    if len(keys) == 0:
        return keys
    return pa.array(urllib.parse.unquote_plus("\0".join(keys.to_pylist())).split("\0"), pa.large_string())


def _beside(manifest: str, file: str) -> str:
    """The inventory's data file; of a downloaded inventory it lies in ``data/`` beside the manifest."""
    if manifest.startswith("s3://"):
        return file
    return join(manifest.rpartition("/")[0] or ".", "data", PurePosixPath(file).name)
