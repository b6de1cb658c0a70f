"""Small files that claim to be, or become, enormous. Each function writes one and returns its path."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tests.support.numbered import write_numbered

TEN_MILLION = 10_000_000
OLD = {"_use_new_zipfile_serialization": False}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def box(kind: bytes, content: bytes) -> bytes:
    """A box of MP4."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def element(number: int, content: bytes) -> bytes:
    """An element of Matroska, its length in eight bytes."""
    return number.to_bytes(-(-number.bit_length() // 8), "big") + (2**56 | len(content)).to_bytes(8, "big") + content


def large_picture(folder: Path) -> Path:
    """32 bytes of header and a key frame of VP8 that claims 16383 x 16383 pixels."""
    frame = b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(200)
    header = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP80", 16383, 16383, 25, 1, 1, 0)
    return _written(folder / "large.ivf", header + struct.pack("<IQ", len(frame), 0) + frame)


def ten_million_frames(folder: Path) -> Path:
    """An MP4 whose sample tables claim ten million frames of one byte."""
    path = write_numbered(folder / "frames.mp4", 8, b_frames=0)
    content = bytearray(path.read_bytes())
    many = TEN_MILLION.to_bytes(4, "big")
    times = content.index(b"stts") + 4
    content[times + 8 : times + 12] = many  # after flags and the number of entries
    sizes = content.index(b"stsz") + 4
    content[sizes + 4 : sizes + 12] = (1).to_bytes(4, "big") + many
    return _written(path, bytes(content))


def two_frames_of_a_year(folder: Path) -> Path:
    """Between its two frames a year passes."""
    return write_numbered(folder / "year.mkv", 2, times=[0.0, 31_000_000.0], b_frames=0)


def many_streams(folder: Path) -> Path:
    """An MP4 with its one track twenty thousand times."""
    content = write_numbered(folder / "streams.mp4", 2, b_frames=0).read_bytes()
    moov = content.index(b"moov") - 4
    inner = content[moov + 8 : moov + int.from_bytes(content[moov : moov + 4], "big")]
    start = inner.index(b"trak") - 4
    track = inner[start : start + int.from_bytes(inner[start : start + 4], "big")]
    return _written(folder / "streams.mp4", content[:moov] + box(b"moov", inner[:start] + track * 20_000))


def boxes_in_boxes(folder: Path) -> Path:
    """Thirty thousand boxes of MP4, each within the one before."""
    depth = 30_000
    nested = b"".join(struct.pack(">I", 8 * (depth - level)) + b"moov" for level in range(depth))
    return _written(folder / "deep.mp4", box(b"ftyp", b"isom" + bytes(4)) + nested)


def compressed_index(folder: Path) -> Path:
    """A compressed index of QuickTime that claims to become almost 2 GiB."""
    compressed = struct.pack(">I", 2**31 - 10) + zlib.compress(bytes(2**24), 9)
    index = box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", compressed))
    return _written(folder / "index.mov", box(b"ftyp", b"qt  " + bytes(4)) + box(b"moov", index))


def repeated_edits(folder: Path) -> Path:
    """An MP4 whose edit list shows all of its frames fifty thousand times."""
    content = write_numbered(folder / "edits.mp4", 200, size=(16, 16), b_frames=0).read_bytes()
    moov = content.index(b"moov") - 4
    inner = content[moov + 8 : moov + int.from_bytes(content[moov : moov + 4], "big")]
    start = inner.index(b"trak") - 4
    track = inner[start + 8 : start + int.from_bytes(inner[start : start + 4], "big")]
    edits = track.index(b"edts") - 4
    after = edits + int.from_bytes(track[edits : edits + 4], "big")
    entries = struct.pack(">IiI", 8_000, 0, 0x10000) * 50_000
    forged = box(b"edts", box(b"elst", struct.pack(">II", 0, 50_000) + entries))
    whole = inner[:start] + box(b"trak", track[:edits] + forged + track[after:])
    return _written(folder / "edits.mp4", content[:moov] + box(b"moov", whole))


def large_attachment(folder: Path) -> Path:
    """A Matroska file with an attachment of 384 MiB, of which the disk holds nothing."""
    size = 3 * 2**27
    head = element(0x1A45DFA3, element(0x4282, b"matroska"))
    file = element(0x466E, b"a.ttf") + element(0x4660, b"font/ttf") + element(0x46AE, b"\1")
    data = b"\x46\x5c" + (2**56 | size).to_bytes(8, "big")
    sizes = [size + len(file) + len(data)]
    sizes += [sizes[0] + 2 + 8]
    attached = b"\x61\xa7" + (2**56 | sizes[0]).to_bytes(8, "big")
    attachments = b"\x19\x41\xa4\x69" + (2**56 | sizes[1]).to_bytes(8, "big")
    segment = b"\x18\x53\x80\x67" + (2**56 - 1 | 2**56).to_bytes(8, "big")
    path = _written(folder / "font.mkv", head + segment + attachments + attached + file + data)
    with path.open("ab") as sparse:
        sparse.truncate(path.stat().st_size + size)
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_png(folder: Path) -> Path:
    """40,000 x 40,000 pixels of one bit."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(5_001 * 40_000), 9)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return _written(folder / "large.png", b"\x89PNG\r\n\x1a\n" + parts)


def png_with_long_text(folder: Path) -> Path:
    """One pixel, and a comment and a colour profile that become 256 MiB each."""
    maker, part = zlib.compressobj(9), bytes(2**24)
    packed = b"".join(maker.compress(part) for _ in range(16)) + maker.flush()
    parts = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + _chunk(b"iCCP", b"a\0\0" + packed)
    parts += _chunk(b"zTXt", b"a\0\0" + packed) + _chunk(b"IDAT", zlib.compress(bytes(4))) + _chunk(b"IEND", b"")
    return _written(folder / "text.png", b"\x89PNG\r\n\x1a\n" + parts)


def gif_of_many_frames(folder: Path) -> Path:
    """1.2 million frames of one pixel."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return _written(folder / "many.gif", b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) +
                    frame * 1_200_000 + b"\x3b")  # fmt: skip


def large_gif(folder: Path) -> Path:
    """A screen of one pixel and a frame of 65535 x 65535."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return _written(folder / "large.gif", screen + frame + b"\x3b")


def large_webp(folder: Path) -> Path:
    """30 bytes of header that claim 16383 x 16383 pixels."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    return _written(folder / "large.webp", b"RIFF" + struct.pack("<I", len(body)) + body + bytes(100))


def large_strip(folder: Path) -> Path:
    """A TIFF of 30,000 x 30,000 pixels in one compressed strip."""
    path = folder / "strip.tif"
    Image.new("1", (30_000, 30_000)).save(path, compression="tiff_deflate", strip_size=2**30)
    return path


def list_of_many_rows(folder: Path) -> Path:
    """520 KB of gzip, 131 million rows."""
    with gzip.open(folder / "rows.csv.gz", "wb", 9) as file:
        file.write(b"path,label\n")
        for _ in range(500):
            file.write(b"a,b\n" * 2**18)
    return folder / "rows.csv.gz"


def list_of_one_field(folder: Path) -> Path:
    """260 KB of gzip, a field of 256 MiB."""
    with gzip.open(folder / "field.csv.gz", "wb", 9) as file:
        file.write(b"path\n")
        for _ in range(256):
            file.write(b"a" * 2**20)
    return folder / "field.csv.gz"


def parquet_of_long_texts(folder: Path) -> Path:
    """3 KB: a million rows, each of which is the same text of a megabyte."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(TEN_MILLION // 10, np.int32)), pa.array(["a" * 2**20]))
    path = folder / "texts.parquet"
    pq.write_table(pa.table({"path": text}), path, compression="zstd", dictionary_pagesize_limit=2**30)
    return path


def parquet_of_many_rows(folder: Path) -> Path:
    """30 KB, ten million rows."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(TEN_MILLION, np.int8)), pa.array(["a"]))
    pq.write_table(pa.table({"path": text}), folder / "rows.parquet", compression="zstd", row_group_size=2**30)
    return folder / "rows.parquet"


def parquet_without_pictures(folder: Path) -> Path:
    """20 KB, ten million rows of a picture that is null."""
    pictures = pa.StructArray.from_arrays([pa.nulls(TEN_MILLION, pa.binary())], ["bytes"])
    path = folder / "pictures.parquet"
    pq.write_table(pa.table({"image": pictures}), path, compression="zstd", row_group_size=2**30)
    return path


def parquet_of_one_page(folder: Path) -> Path:
    """25 KB, a page of one value of 512 MiB."""
    text = pa.array(["a" * 2**29], pa.large_string())
    pq.write_table(pa.table({"path": text}), folder / "page.parquet", compression="zstd", write_statistics=False)
    return folder / "page.parquet"


def sparse_text(path: Path) -> Path:
    """64 GiB of zeros that take no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(2**36)
    return path


def long_tar_header(folder: Path) -> Path:
    """A tar file whose first header claims attributes of 2 GiB, of which the disk holds nothing."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**31
    path = _written(folder / "header.tar", header.tobuf(tarfile.USTAR_FORMAT))
    with path.open("ab") as sparse:
        sparse.truncate(2**31 + 4096)
    return path


class _Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def pickled_bytes(folder: Path) -> Path:
    """500 bytes that become 4 GiB of zeros."""
    torch.save({"model_state": _Calls(bytearray, 2**32)}, folder / "bytes.pth")
    return folder / "bytes.pth"


def old_pickled_bytes(folder: Path) -> Path:
    """The same in the format of PyTorch before 1.6."""
    torch.save({"model_state": _Calls(bytearray, 2**32)}, folder / "old.pth", **OLD)
    return folder / "old.pth"


def pickled_encodings(folder: Path) -> Path:
    """Hexadecimal digits of hexadecimal digits, 34 times: 600 bytes, 16 GiB."""
    value: Any = _Calls(pickle.codecs.encode, "a", "latin1")  # type: ignore[attr-defined]
    for _ in range(34):
        value = _Calls(pickle.codecs.encode, value, "hex")  # type: ignore[attr-defined]
    torch.save({"model_state": value}, folder / "hex.pth")
    return folder / "hex.pth"


def compressed_tensors(folder: Path) -> Path:
    """260 KB of ZIP with a tensor of 256 MiB."""
    stored = io.BytesIO()
    torch.save({"blocks.0.norm1.weight": torch.zeros(2**26)}, stored)
    path = folder / "zip.pth"
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return path


def expanded_tensor(folder: Path) -> Path:
    """A tensor of a trillion values, which are one value."""
    tensors = {"pos_embed_spatial": torch.zeros(1).expand(1, 2**30, 1024), "blocks.0.norm1.weight": torch.zeros(9)}
    torch.save({"model_state": tensors}, folder / "expanded.pth")
    return folder / "expanded.pth"


def long_safetensors_header(folder: Path) -> Path:
    """A header that claims 90 MB, in a file of a hundred bytes."""
    return _written(folder / "header.safetensors", struct.pack("<Q", 90_000_000) + b"{}" + b" " * 90)
