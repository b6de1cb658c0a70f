"""S3 Inventories in the formats that object storage writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.s3_inventory import inventory_parts


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_inventory_lists_what_exists_now(tmp_path: Path, kind: str) -> None:
    """Keys in a CSV inventory are URL-encoded; delete markers and old versions are no objects."""
    if kind == "CSV":
        lines = (
            '"b","videos/a+b%2Bc.mp4","12","etag1","true","false"\n'
            '"b","old.mp4","1","e","false","false"\n"b","gone.mp4","","","true","true"\n'
        )
        write(tmp_path / "data" / "part.csv", lines)
        schema = "Bucket, Key, Size, ETag, IsLatest, IsDeleteMarker"
    else:
        table = pa.table(
            {
                "bucket": ["b", "b"],
                "key": ["videos/a b+c.mp4", "old.mp4"],
                "size": pa.array([12, 1], pa.int64()),
                "e_tag": ["etag1", "e"],
                "is_latest": [True, False],
                "is_delete_marker": [False, False],
            }
        )
        (tmp_path / "data").mkdir()
        pq.write_table(table, tmp_path / "data" / "part.csv")
        schema = "message"
    manifest = {
        "destinationBucket": "arn:aws:s3:::lists",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": "x/data/part.csv"}],
    }
    parts = inventory_parts(write(tmp_path / "manifest.json", json.dumps(manifest)))
    listed = pa.concat_tables(parts).to_pylist()
    assert [(row["uri"], row["size"], row["etag"]) for row in listed] == [("s3://b/videos/a b+c.mp4", 12, "etag1")]


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json: is not an S3 Inventory manifest"):
        list(inventory_parts(write(tmp_path / "manifest.json", '{"files": []}')))
