"""Images through the isolated decoder: the pixels of Pillow to the bit, and one reason for every broken file."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, ImageView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import CropBox
from tests.support.hijacked_child import hijack, saying
from tests.support.pictures import centred, cropped, drawn, photograph

WHOLE = (40, 60)


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(DecodeConfig(), "image") as decoder:
        yield decoder


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def pixels(decoder: IsolatedDecoder, path: Path, size: tuple[int, int] = WHOLE) -> np.ndarray:
    """The whole picture in its own size."""
    (clip,) = decoder.decode(path, [ImageView(None, size)])
    return clip[0]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_views_of_a_photograph_are_pillows_to_the_bit(decoder: IsolatedDecoder, name: str) -> None:
    crops = [CropBox(0, 0, 427, 640), CropBox(10, 20, 300, 200), CropBox(400, 600, 20, 31), CropBox(3, 5, 224, 224)]
    views = [*(ImageView(crop, (224, 224)) for crop in crops), ImageView(None, (224, 224), short_side=256)]
    views.append(ImageView(None, (448, 448), short_side=448))
    found = decoder.decode(photograph(name), views)
    with Image.open(photograph(name)) as picture:
        expected = [*(cropped(picture, crop, 224) for crop in crops), centred(picture, 256, 224)]
        expected.append(centred(picture, 448, 448))
    for clip, want in zip(found, expected, strict=True):
        assert clip.shape[0] == 1
        np.testing.assert_array_equal(clip[0], want)


def test_an_image_in_memory_gives_the_same_pixels(decoder: IsolatedDecoder) -> None:
    view = ImageView(CropBox(5, 6, 200, 300), (64, 64))
    by_path, by_bytes = (decoder.decode(image, [view])[0] for image in (photograph(), photograph().read_bytes()))
    np.testing.assert_array_equal(by_path, by_bytes)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "avif", "ppm"])
def test_the_content_decides_the_format(decoder: IsolatedDecoder, tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"picture.{suffix}", drawn())
    misnamed = path.rename(tmp_path / "picture.JPEG")
    with Image.open(misnamed) as picture:
        np.testing.assert_array_equal(pixels(decoder, misnamed), np.asarray(picture.convert("RGB")))
    info = decoder.validate(misnamed)
    assert (info.width, info.height, info.num_frames) == (60, 40, 1)
    assert info.codec == {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb_as_pillow_does_it(decoder: IsolatedDecoder, tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png"), drawn().convert(mode))
    with Image.open(path) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(pixels(decoder, path), np.asarray(picture.convert("RGB")))


def test_a_palette_with_transparency(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = saved(tmp_path / "palette.png", drawn().convert("P"), transparency=3)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(pixels(decoder, path), np.asarray(picture.convert("RGB")))


def test_progressive_jpeg(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = saved(tmp_path / "progressive.jpg", drawn(), progressive=True)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(pixels(decoder, path), np.asarray(picture))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_grey_levels(decoder: IsolatedDecoder, tmp_path: Path, suffix: str) -> None:
    levels = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    path = saved(tmp_path / f"deep.{suffix}", Image.fromarray(levels))
    found = pixels(decoder, path)
    np.testing.assert_array_equal(found, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_turns_the_picture(decoder: IsolatedDecoder, tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / f"turned.{suffix}", drawn(), exif=exif)
    with Image.open(path) as picture:
        shown = ImageOps.exif_transpose(picture).convert("RGB")
    info = decoder.validate(path)
    assert (info.width, info.height) == shown.size
    np.testing.assert_array_equal(pixels(decoder, path, shown.size[::-1]), np.asarray(shown))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_turn_is_none(decoder: IsolatedDecoder, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "odd.png", drawn(), exif=exif)
    np.testing.assert_array_equal(pixels(decoder, path), np.asarray(drawn()))


def test_a_damaged_exif_block_is_none(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.jpg", drawn(), exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff" + bytes(20))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(pixels(decoder, path), np.asarray(picture))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken_and_all_are_counted(
    decoder: IsolatedDecoder, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"moving.{suffix}"
    drawn().save(path, save_all=True, append_images=[drawn(seed=seed) for seed in (1, 2)])
    assert decoder.probe(path).num_frames == 3
    with Image.open(path) as picture:
        np.testing.assert_array_equal(pixels(decoder, path), np.asarray(picture.convert("RGB")))


def test_one_pixel_is_an_image(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = saved(tmp_path / "dot.png", Image.new("RGB", (1, 1), (10, 20, 30)))
    views = [ImageView(CropBox(0, 0, 1, 1), (8, 8)), ImageView(None, (8, 8), short_side=9)]
    for clip in decoder.decode(path, views):
        assert (clip == (10, 20, 30)).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims to be this large, and is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def large_webp() -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body + bytes(100)


def half(picture: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()[: len(content.getvalue()) // 2]


BROKEN = {
    "nothing.jpg": (b"", "empty"),
    "page.jpg": (b"<!doctype html><html><body>404 Not Found</body></html>", "not_an_image"),
    "cut.jpg": (half(drawn(), "JPEG"), "damaged"),
    "cut.png": (half(drawn(), "PNG"), "damaged"),
    "cut.webp": (half(drawn(), "WEBP"), "damaged"),
    "header.jpg": (b"\xff\xd8\xff\xe0", "not_an_image"),
    "bomb.png": (bomb(20_000, 20_000), "max_image_pixels"),
    "bomb.webp": (large_webp(), "max_image_pixels"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not_an_image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_has_one_reason(decoder: IsolatedDecoder, tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for request in (decoder.validate, lambda path: decoder.decode(path, [ImageView(None, (8, 8))])):
        with pytest.raises(DecodeError) as caught:
            request(path)
        assert caught.value.reason == reason, caught.value.message
    assert decoder.children_lost == 0


def several(*contents: bytes) -> tuple[list[bytes], list[list[ImageView]], list[list[np.ndarray]]]:
    """Images with two views each, and where these go."""
    views = [ImageView(CropBox(1, 2, 30, 50), (16, 24)), ImageView(None, (8, 8), short_side=10)]
    outputs = [[np.full((1, *view.size, 3), 99, np.uint8) for view in views] for _ in contents]
    return list(contents), [views] * len(contents), outputs


def check_several(
    decoder: IsolatedDecoder, images: list[bytes], views: list[list[ImageView]], outputs: list[list[np.ndarray]]
) -> list[str]:
    """Decode them together: the pixels of each alone, untouched where it has none; returns the reasons."""
    reasons = decoder.decode_images(images, views, outputs)
    for image, of_image, clips, reason in zip(images, views, outputs, reasons, strict=True):
        if reason:
            assert all((clip == 99).all() for clip in clips)
            continue
        for clip, expected in zip(clips, decoder.decode(image, of_image), strict=True):
            np.testing.assert_array_equal(clip, expected)
    return reasons


def test_several_images_in_one_request(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    """Each as if it were alone, broken ones among them."""
    good = [photograph().read_bytes(), saved(tmp_path / "a.png", drawn(seed=1)).read_bytes()]
    decoder.validate(tmp_path / "a.png")
    asked = decoder._child.requests if decoder._child else 0
    images, views, outputs = several(good[0], *(content for content, _ in BROKEN.values()), good[1])
    reasons = decoder.decode_images(images, views, outputs)
    assert reasons == ["", *(reason for _, reason in BROKEN.values()), ""]
    assert decoder._child is not None
    assert decoder._child.requests == asked + 1
    assert check_several(decoder, images, views, several(*images)[2]) == reasons
    assert decoder.children_lost == 0


def test_a_child_that_dies_over_several_images_costs_none_of_them(tmp_path: Path) -> None:
    with IsolatedDecoder(DecodeConfig(), "image") as decoder:
        decoder.validate(photograph())
        assert decoder._child is not None
        os.kill(decoder._child.process_id, signal.SIGKILL)
        contents = [photograph(name).read_bytes() for name in ("china.jpg", "flower.jpg")]
        assert check_several(decoder, *several(*contents)) == ["", ""]
        assert decoder.children_lost == 1


@pytest.mark.parametrize("answer", ["", "\n\n", "\ntimeout", "\nno word"])
def test_a_child_that_was_taken_over_gives_no_reasons(answer: str, tmp_path: Path) -> None:
    """Too few, too many, one that the parent alone gives, and one that is no word: nothing of it is believed."""
    with IsolatedDecoder(DecodeConfig(deadline_seconds=0.5), "image") as decoder:
        hijack(decoder)
        message = saying(tmp_path / "image.jpg", ("done", answer)).read_bytes()
        images, views, outputs = several(message, b"\xff" * 4)
        assert decoder.decode_images(images, views, outputs) == ["", "crashed"]


def test_a_missing_image_a_folder_and_floats(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    floats = saved(tmp_path / "floats.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    reasons = []
    for path in (tmp_path / "none.jpg", tmp_path, floats):
        with pytest.raises(DecodeError) as caught:
            decoder.validate(path)
        reasons.append(caught.value.reason)
    assert reasons == ["missing", "not_a_file", "unsupported"]


def test_a_bomb_is_refused_before_its_pixels(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(40_000, 40_000))
    decoder.validate(saved(tmp_path / "warm.png", drawn()))
    began = time.monotonic()
    with pytest.raises(DecodeError, match="1600000000 is over max_image_pixels"):
        decoder.probe(path)
    assert time.monotonic() - began < 1


def test_a_sliver_is_refused_where_the_test_transform_would_blow_it_up(
    decoder: IsolatedDecoder, tmp_path: Path
) -> None:
    path = saved(tmp_path / "sliver.png", Image.new("L", (20_000, 1)))
    with pytest.raises(DecodeError, match="max_image_pixels"):
        decoder.decode(path, [ImageView(None, (224, 224), short_side=256)])
    assert decoder.decode(path, [ImageView(CropBox(0, 0, 1, 20_000), (16, 16))])[0].shape == (1, 16, 16, 3)


def test_views_of_videos_are_refused(decoder: IsolatedDecoder) -> None:
    with pytest.raises(DecodeError, match="no frames to choose"):
        decoder.decode(photograph(), [FrameView(np.zeros(1, np.int64), None, (8, 8))])


def test_images_are_decoded_by_a_process_with_few_system_calls(decoder: IsolatedDecoder) -> None:
    decoder.validate(photograph())
    (status,) = [
        path.read_text()
        for path in Path("/proc").glob("[0-9]*/status")
        if "pipeline.decode.images.child" in (path.parent / "cmdline").read_text()
        and f"PPid:\t{os.getpid()}\n" in path.read_text()
    ]
    assert "Seccomp:\t2\n" in status


@pytest.mark.parametrize(
    ("module", "absent"),
    [("pipeline.decode.images.child", {"ray", "pyarrow", "cv2", "decord"}), ("pipeline.decode.child", {"ray", "PIL"})],
)
def test_a_child_imports_only_what_its_kind_needs(module: str, absent: set[str]) -> None:
    """So that it starts in 0.2 s."""
    code = f"import sys, {module}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in found
    assert not absent & set(found)
