"""Videos of every container, codec, GOP form, pixel format, orientation, start time, time stamps and pixel aspect.

Each frame has its number painted in and a colour in each corner, so that the right frame, its way up and its colours
can be told from any other. Legend: H, W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

Picture = npt.NDArray[np.uint8]

FRAMES, FPS, GOP = 30, 25, 10
HEIGHT, WIDTH = 96, 128  # a size that H.263 has
BITS = 5
CORNERS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30))

ALL_GOPS = ("closed", "open", "b_frames", "intra")
GOPS = {
    **dict.fromkeys(("libx264", "libx265", "mpeg2video", "mpeg1video", "mpeg4"), ALL_GOPS),
    **dict.fromkeys(("libvpx", "libvpx-vp9", "h263", "flv", "wmv2", "msmpeg4", "libsvtav1"), ("closed",)),
}
"""GOP forms of a codec; all others have key frames only."""

PIXELS = {
    "libx264": ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"),
    "libx264rgb": ("rgb24",),
    "libx265": ("yuv420p", "yuv444p", "yuv420p10le", "gray"),
    "libvpx-vp9": ("yuv420p", "yuv444p", "gbrp"),
    "ffv1": ("yuv420p", "gray", "yuv444p10le", "yuva420p", "bgra", "gbrp10le"),
    "png": ("rgb24", "rgba", "gray", "pal8"),
    "qtrle": ("rgb24", "argb"),
    "rawvideo": ("yuv420p", "bgr24", "gray", "pal8"),
    "mjpeg": ("yuvj420p", "yuvj444p"),
    "prores_ks": ("yuv422p10le", "yuva444p10le"),
    "huffyuv": ("yuv422p", "bgra"),
    "gif": ("pal8",),
    "dvvideo": ("yuv420p",),
}

CONTAINERS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1"),
    "mov": ("libx264", "prores_ks", "mjpeg", "qtrle", "png"),
    "m4v": ("libx264", "mpeg4"),
    "3gp": ("libx264", "mpeg4", "h263"),
    "mkv": ("libx264", "libx264rgb", "libx265", "libvpx", "ffv1", "mpeg2video", "mpeg4"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "avi": ("mpeg4", "libx264", "mjpeg", "huffyuv", "ffv1", "rawvideo"),
    "ts": ("libx264", "libx265", "mpeg2video", "mpeg4"),
    "m2ts": ("libx264", "mpeg2video"),
    "mpg": ("mpeg2video", "mpeg1video"),
    "vob": ("mpeg2video",),
    "ogv": ("libvpx",),
    "flv": ("libx264", "flv"),
    "asf": ("wmv2", "msmpeg4"),
    "wmv": ("wmv2",),
    "mxf": ("mpeg2video", "libx264"),
    "gif": ("gif",),
}
FORMATS = {"mkv": "matroska", "m4v": "ipod", "ts": "mpegts", "m2ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}
TURNING = ("mp4", "mov", "m4v")  # containers that hold any display matrix
JOINABLE = ("ts", "m2ts", "mpg", "vob")  # of which two files, one after the other, are a file
VARIABLE = ("avi", "mp4", "mov", "m4v", "3gp", "mkv", "webm", "ts", "m2ts", "flv", "asf", "wmv")
CUTTABLE = ("ts", "m2ts", "mpg", "vob", "mkv", "flv")

MATRICES = tuple(
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a) == abs(d) and abs(b) == abs(c) and abs(a) + abs(b) == 1
)


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    container: str
    codec: str
    gop: str = "intra"
    pixels: str = "yuv420p"
    orientation: int = MATRICES.index((1, 0, 0, 1))
    start: int = 0
    """Seconds."""
    stamps: str = "regular"
    """`regular`; `variable`; `gap`: five seconds without a frame; `restart`: two files, one after the other; `cut`: the
    first three packets are missing."""
    aspect: Fraction = Fraction(1)

    @property
    def name(self) -> str:
        """For the list of tests."""
        matrix = ",".join(map(str, MATRICES[self.orientation]))
        aspect = f"{self.aspect.numerator}:{self.aspect.denominator}"
        return f"{self.container}-{self.codec}-{self.gop}-{self.pixels}-[{matrix}]-{self.start}s-{self.stamps}-{aspect}"


def cells(per_pair: int) -> Iterator[Cell]:
    """Every container with every codec: each value of each axis alone, then ``per_pair`` mixtures of values."""
    for container, codec in ((name, codec) for name, codecs in CONTAINERS.items() for codec in codecs):
        axes: dict[str, tuple[Any, ...]] = {
            "gop": GOPS.get(codec, ("intra",)),
            "pixels": PIXELS.get(codec, ("yuv420p",)),
            "orientation": tuple(range(len(MATRICES))) if container in TURNING else (Cell.orientation,),
            "start": (0,) if container == "avi" else (0, 7) if container == "gif" else (0, 7, 95_000),
            "stamps": (
                "regular",
                *(("variable", "gap") if container in VARIABLE else ()),
                *(("restart",) if container in JOINABLE else ()),
                *(("cut",) if container in CUTTABLE else ()),
            ),
            "aspect": (Fraction(1), Fraction(4, 3), Fraction(8, 9)),
        }
        plain = Cell(container, codec, axes["gop"][0], axes["pixels"][0])
        draw = np.random.default_rng(len(container) + 1000 * sum(map(ord, codec)))
        if container == "avi" and len(axes["gop"]) > 1:  # its packets have no times of presentation to be irregular
            axes["stamps"] = ("regular",)
        found = [plain, *(replace(plain, **{axis: value}) for axis, values in axes.items() for value in values)]
        for _ in range(per_pair):
            mixed = {axis: values[draw.integers(len(values))] for axis, values in axes.items()}
            found.append(replace(plain, **mixed))
        yield from dict.fromkeys(found)


def painted(number: int) -> Picture:
    """Frame ``number``: colours in the corners, its bits as black and white blocks in the middle. [H, W, 3]"""
    picture = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    side = 32
    for colour, (row, column) in zip(CORNERS, itertools.product((0, 1), repeat=2), strict=True):
        picture[row * (HEIGHT - side) :][:side, column * (WIDTH - side) :][:, :side] = colour
    for bit in range(BITS):
        picture[40:56, 24 + 16 * bit : 40 + 16 * bit] = 235 if number >> bit & 1 else 16
    return picture


def shown(picture: Picture, matrix: tuple[int, int, int, int], aspect: float) -> Picture:
    """The picture by its display matrix (pixel by pixel, x' = a x + c y, y' = b x + d y) in square pixels."""
    if aspect != 1:
        picture = cv2.resize(picture, (round(WIDTH * aspect), HEIGHT), interpolation=cv2.INTER_LINEAR)
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    rows, columns = b * x + d * y, a * x + c * y
    rows, columns = rows - rows.min(), columns - columns.min()
    result = np.empty((rows.max() + 1, columns.max() + 1, 3), np.uint8)
    result[rows, columns] = picture
    return result


def read_bits(picture: Picture, matrix: tuple[int, int, int, int]) -> int:
    """The number of a shown picture of any size, by turning it back."""
    a, b, c, d = matrix
    back = shown(cv2.resize(picture, (WIDTH, HEIGHT) if a else (HEIGHT, WIDTH)), (a, c, b, d), 1)
    columns = 32 + 16 * np.arange(BITS)
    levels = back[44:52][:, columns[:, None] + np.arange(-3, 3)].mean(axis=(0, 2, 3))
    return int(((levels > 125) << np.arange(BITS)).sum())


def frame_ticks(cell: Cell) -> list[int]:
    """The times at which the frames of a cell are shown, in frames of the nominal rate."""
    if cell.stamps == "variable":
        return np.cumsum([0, *np.random.default_rng(0).integers(1, 4, FRAMES - 1)]).tolist()
    return [number + (5 * FPS if cell.stamps == "gap" and number > FRAMES // 2 else 0) for number in range(FRAMES)]


def write_cell(path: Path, cell: Cell) -> None:
    """Write the video of a cell."""
    formats = {"format": FORMATS.get(cell.container, cell.container)}
    options = {"mpegts_m2ts_mode": "1"} if cell.container == "m2ts" else {}
    with av.open(str(path), "w", options=options, **formats) as container:
        stream: Any = container.add_stream(cell.codec, rate=FPS, options=_encoder_options(cell))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, cell.pixels
        codec = stream.codec_context
        codec.thread_count, codec.time_base = 1, Fraction(1, FPS)
        codec.gop_size = 1 if cell.gop == "intra" else GOP
        codec.max_b_frames = 2 if cell.gop in ("open", "b_frames") else 0
        codec.sample_aspect_ratio = cell.aspect
        if MATRICES[cell.orientation] != (1, 0, 0, 1):
            stream.set_display_matrix(_display_matrix(MATRICES[cell.orientation]))
        packets = []
        for number, tick in enumerate(frame_ticks(cell)):
            frame = _frame(painted(number), cell.pixels)
            frame.pts, frame.time_base = tick, Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets[3 if cell.stamps == "cut" else 0 :]:
            shift = int(cell.start / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            container.mux(packet)
    if cell.stamps == "restart":
        path.write_bytes(path.read_bytes() * 2)


def plain_frames(path: Path) -> tuple[list[Picture], list[float], tuple[int, int, int, int], float]:
    """FFmpeg's own frames from the first key frame on, as coded, and their seconds; display matrix and pixel aspect."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
        frames = [frame for packet in packets for frame in packet.decode() if not frame.is_corrupt]
        aspect = float(stream.sample_aspect_ratio or 1)
    data = frames[0].side_data.get(Type.DISPLAYMATRIX)
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), np.int32)[:5]).tolist() if data else (1, 0, 0, 0, 1)
    seconds = [float(frame.time - frames[0].time) for frame in frames]
    return [frame.to_ndarray(format="rgb24") for frame in frames], seconds, (a, b, c, d), aspect


def _frame(picture: Picture, pixels: str) -> Any:
    if pixels != "pal8":
        return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    colours, indices = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0] = 255  # alpha, red, green, blue
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((indices.reshape(HEIGHT, WIDTH).astype(np.uint8), palette), format="pal8")


def _display_matrix(matrix: tuple[int, int, int, int]) -> list[int]:
    a, b, c, d = (value << 16 for value in matrix)
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


def _encoder_options(cell: Cell) -> dict[str, str]:
    is_open = int(cell.gop == "open")
    if cell.codec.startswith("libx264"):
        return {"preset": "ultrafast", "crf": "8", "x264-params": f"open-gop={is_open}:scenecut=0:keyint_min=1"}
    if cell.codec == "libx265":
        lossless = f"open-gop={is_open}:scenecut=0:log-level=none:pools=none:frame-threads=1"
        return {"preset": "ultrafast", "crf": "8", "x265-params": lossless}
    if cell.codec.startswith("libvpx"):
        return {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "4M"}
    if cell.codec == "libsvtav1":
        return {"preset": "13", "crf": "10"}
    if cell.codec == "mjpeg":
        return {"qmin": "1", "qmax": "3"}
    if cell.codec in ("gif", "png", "qtrle", "rawvideo", "ffv1", "huffyuv", "prores_ks"):
        return {}
    return {
        "qmin": "1",
        "qmax": "3",
        "b": "4M",
        **({} if is_open else {"flags": "+cgop", "sc_threshold": "1000000000"}),
    }
