"""Packed collections: tar shards as WebDataset writes them, Parquet files as Hugging Face's `datasets` does."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_tar(path: Path, samples: Sequence[Mapping[str, bytes]]) -> Path:
    """A tar file whose samples have members by their endings: ``{"jpg": ..., "cls": ...}``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for ending, content in sample.items():
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, pictures: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> Path:
    """Columns ``image {bytes, path}`` and ``label``, two rows a row group, class names in the schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    images = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(pictures)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path
