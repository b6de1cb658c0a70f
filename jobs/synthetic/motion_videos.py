"""Rendered labelled videos: eight motions that no single frame reveals.

Shapes live on a torus (they leave at one edge and enter at the other), at any angle and at a size between two
bounds. The class moves exactly one of these: a position, the angle, or the size. Each is a stationary process:
position uniform on the torus, angle uniform modulo a turn, log-size uniform on its interval with a sawtooth wrap.
So the distribution of one frame is the same for every class, and a model must look at several.

``T`` frames, ``S`` pixels of a frame's side, ``P`` pixels of the patch around the shape, ``M`` cells of a shape's map.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

# Sign of the change in x, y (downwards), angle (clockwise on screen) and log-size.
_DIRECTIONS = {
    "moves_left": (-1, 0, 0, 0),
    "moves_right": (1, 0, 0, 0),
    "moves_up": (0, -1, 0, 0),
    "moves_down": (0, 1, 0, 0),
    "turns_clockwise": (0, 0, 1, 0),
    "turns_anticlockwise": (0, 0, -1, 0),
    "grows": (0, 0, 0, 1),
    "shrinks": (0, 0, 0, -1),
}
MOTION_CLASSES = tuple(_DIRECTIONS)
SPEED_RANGE = (0.4, 0.9)
"""How much of its whole range (frame side, turn, log-size interval) the moving quantity covers in one video."""
RADIUS_RANGE = (0.12, 0.30)
"""The shape's radius as a share of the frame's side."""
RAMP_RANGE = (10, 150)
"""Darkest and brightest level of the calm background; the shapes' strongest channel is at 255."""
WEBM_SHARE = 0.25
CODE_COLUMNS, CODE_BIT_ROWS, CODE_CELL_SHARE = 6, 2, 1 / 32
MAX_FRAME_NUMBER = 2 ** (CODE_COLUMNS * CODE_BIT_ROWS) - 1

_MAP_CELLS = 96
Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]


class MotionVideo(NamedTuple):
    """One rendered file and its class."""

    path: Path
    label: str


@dataclass(frozen=True)
class Rendering:
    """How rendered videos look and are stored."""

    difficulty: float = 0.0
    """0: bright shapes on a calm dark background; 1: random colours, textures, two-tone backgrounds."""
    size: int = 128
    """Side of the square frames, pixels; even."""
    num_frames: int = 32
    fps: int = 30
    shapes: int = 4
    """Shapes that move alike, each with its own look, position, speed and phase. Several are easier than one: a
    model of a million parameters starts to learn within 20 steps from four, and after hundreds from one."""

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must lie in [0, 1]; use 0 for the easiest")
        if self.size < 64 or self.size % 2:
            raise ValueError(f"size={self.size}: must be even and at least 64 pixels; use 128")
        if not 1 <= self.num_frames <= MAX_FRAME_NUMBER:
            raise ValueError(
                f"num_frames={self.num_frames}: must be 1 to {MAX_FRAME_NUMBER}, which the corner code counts; use 32"
            )
        if self.shapes < 1:
            raise ValueError(f"shapes={self.shapes}: must be at least 1; use 4")


class Motion(NamedTuple):
    """The shape's state at every frame, each ``[T]`` float64."""

    x: npt.NDArray[np.float64]
    """Centre, share of the frame's width from the left, in [0, 1)."""
    y: npt.NDArray[np.float64]
    """Centre, share of the frame's height from the top, in [0, 1)."""
    angle: npt.NDArray[np.float64]
    """Radians clockwise on the screen, in [0, 2π)."""
    log_size: npt.NDArray[np.float64]
    """Where the logarithm of the radius lies between its bounds, in [0, 1)."""


def render_motion_videos(
    folder: str | Path,
    count: int,
    seed: int,
    difficulty: float = 0.0,
    *,
    size: int = 128,
    num_frames: int = 32,
    fps: int = 30,
    shapes: int = 4,
    progress: bool = False,
    workers: int | None = None,
    annotations: bool = False,
) -> list[MotionVideo]:
    """Write ``count`` labelled videos as ``folder/<class>/<class>_<number>.mp4`` or ``.webm``.

    About a quarter are VP9 WebM, the rest H.264 MP4; classes take turns. Equal arguments give equal files.

    Args:
        folder: created if missing.
        annotations: also write ``annotations.csv`` (path, label) beside the class folders.
        workers: threads; all cores by default (drawing and encoding run outside Python's lock).

    Raises:
        ValueError: an argument outside its rule, see `Rendering`.
    """
    rendering = Rendering(difficulty, size, num_frames, fps, shapes)
    for label in MOTION_CLASSES:
        (Path(folder) / label).mkdir(parents=True, exist_ok=True)

    def render(number: int) -> MotionVideo:
        return render_motion_video(Path(folder), number, seed, rendering)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        console = Console(stderr=True)
        finished = pool.map(render, range(count))
        videos = list(track(finished, "rendering", total=count, console=console, disable=not progress))
    if annotations:
        lines = (f"{video.path.relative_to(folder).as_posix()},{video.label}\n" for video in videos)
        (Path(folder) / "annotations.csv").write_text("".join(["path,label\n", *lines]))
    return videos


def render_motion_video(folder: Path, number: int, seed: int, rendering: Rendering) -> MotionVideo:
    """Draw and encode the video of one number; depends on (number, seed, rendering) alone."""
    label = MOTION_CLASSES[number % len(MOTION_CLASSES)]
    rng = np.random.default_rng([seed, number])
    suffix = ".webm" if rng.random() < WEBM_SHARE else ".mp4"
    motions = [draw_motion(label, rendering.num_frames, rng) for _ in range(rendering.shapes)]
    frames = paint_frame_numbers(draw_frames(motions, rendering, rng))
    path = folder / label / f"{label}_{number:05d}{suffix}"
    encode(path, frames, rendering.fps)
    return MotionVideo(path, label)


def draw_motion(label: str, num_frames: int, rng: np.random.Generator) -> Motion:
    """The path of a class through (x, y, angle, log-size), from a start uniform in all four.

    A shift modulo 1 keeps a uniform distribution uniform, hence every frame has the same distribution in every class.
    """
    start = rng.random(4)
    speed = rng.uniform(*SPEED_RANGE) * np.array(_DIRECTIONS[label])
    share = np.arange(num_frames) / max(num_frames, 2)
    x, y, turn, log_size = ((start + share[:, None] * speed) % 1.0).T
    return Motion(x, y, 2 * np.pi * turn, log_size)


def draw_frames(motions: Sequence[Motion], rendering: Rendering, rng: np.random.Generator) -> Frames:
    """One shape a motion on a common background → uint8 ``[T, S, S, 3]``."""
    background = _background(rendering.size, rendering.difficulty, rng)
    frames = np.repeat(background[None], len(motions[0].x), axis=0)
    for motion in motions:
        _draw_shape(frames, motion, _shape_map(rng), _colour_map(rendering.difficulty, rng))
    return frames


def _draw_shape(frames: Frames, motion: Motion, alpha_map: Floats, colour_map: Floats) -> None:
    """Draw one shape over the frames, in place."""
    size = frames.shape[1]
    low, high = np.log(RADIUS_RANGE)
    radius = (size * np.exp(low + motion.log_size * (high - low))).astype(np.float32)
    reach = int(np.ceil(radius.max())) + 1
    offsets = np.arange(-reach, reach + 1)
    columns, dx = _patch_axis(motion.x * size, offsets, size)
    rows, dy = _patch_axis(motion.y * size, offsets, size)
    cells = _map_cells(dx[:, None, :], dy[:, :, None], motion.angle.astype(np.float32), radius)
    pixels = (np.arange(len(radius))[:, None, None], rows[:, :, None], columns[:, None, :])
    alpha = alpha_map.reshape(-1)[cells][..., None]
    behind = frames[pixels].astype(np.float32)
    frames[pixels] = behind + alpha * (colour_map.reshape(-1, 3)[cells] - behind)


def paint_frame_numbers(frames: Frames) -> Frames:
    """Paint each frame's number into its top left corner, in place: two rows of bits, then the same inverted."""
    height, width = frames.shape[1:3]
    numbers = np.arange(len(frames))
    bits = (numbers[:, None] >> np.arange(CODE_COLUMNS * CODE_BIT_ROWS)) & 1
    grid = bits.reshape(-1, CODE_BIT_ROWS, CODE_COLUMNS)
    grid = np.concatenate([grid, 1 - grid], axis=1)
    row_edges = _cell_edges(2 * CODE_BIT_ROWS, height)
    column_edges = _cell_edges(CODE_COLUMNS, width)
    cell_of_row = np.repeat(np.arange(2 * CODE_BIT_ROWS), np.diff(row_edges))
    cell_of_column = np.repeat(np.arange(CODE_COLUMNS), np.diff(column_edges))
    code = grid[:, cell_of_row][:, :, cell_of_column]
    frames[:, : code.shape[1], : code.shape[2]] = np.where(code, 235, 16)[..., None]
    return frames


def encode(path: Path, frames: Frames, fps: int) -> None:
    """Write uint8 ``[T, H, W, 3]`` as VP9 if the name ends in ``.webm``, else as H.264; one thread, so equal bytes."""
    with av.open(str(path), "w", options=_MUXER_OPTIONS.get(path.suffix, {})) as container:
        codec, options = _VP9 if path.suffix == ".webm" else _H264
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


# High quality: what the codec leaves behind a moving edge must not become a hint in a single frame. x264's macroblock
# tree gives different bytes from run to run.
_H264 = ("libx264", {"preset": "veryfast", "crf": "17", "bf": "0", "x264-params": "mbtree=0"})
_VP9 = ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "20", "b": "0"})
# Without this the WebM muxer writes a random segment id, and equal videos would differ in their bytes.
_MUXER_OPTIONS = {".webm": {"fflags": "+bitexact"}}


def _patch_axis(
    centre: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Pixel indices around a centre on the torus ``[T, P]`` and their distances from it, pixels ``[T, P]``."""
    pixel = np.floor(centre).astype(np.int64)
    distance = offsets[None, :] + 0.5 - (centre - pixel)[:, None]
    return (pixel[:, None] + offsets[None, :]) % size, distance.astype(np.float32)


def _map_cells(dx: Floats, dy: Floats, angle: Floats, radius: Floats) -> npt.NDArray[np.int64]:
    """For pixels at (dx ``[T,1,P]``, dy ``[T,P,1]``) the flat index of the shape map's cell ``[T, P, P]``.

    Pixels beyond the map get a cell on its rim, which is empty.
    """
    cos, sin = (np.cos(angle) / radius)[:, None, None], (np.sin(angle) / radius)[:, None, None]
    scale = np.float32((_MAP_CELLS - 1) / 2)
    u = (cos * dx + sin * dy) * scale + scale
    v = (cos * dy - sin * dx) * scale + scale
    column = np.clip(u + 0.5, 0, _MAP_CELLS - 1).astype(np.int64)
    row = np.clip(v + 0.5, 0, _MAP_CELLS - 1).astype(np.int64)
    return row * _MAP_CELLS + column


def _shape_map(rng: np.random.Generator) -> Floats:
    """Opacity ``[M, M]`` of a shape that looks different at every angle; soft edges, empty rim."""
    v, u = np.mgrid[-1.05 : 1.05 : _MAP_CELLS * 1j, -1.05 : 1.05 : _MAP_CELLS * 1j]
    kind = rng.integers(4)
    a, b = rng.uniform(0, 1, 2)
    if kind == 0:  # a disc with a bite
        inside = (np.hypot(u, v) < 0.95) & ~((np.abs(v) < (0.35 + 0.3 * a) * (u + 0.2)) & (u > -0.2))
    elif kind == 1:  # an L with one long and one short arm
        arm = 0.25 + 0.2 * b
        inside = (np.abs(u + 0.35) < arm) & (np.abs(v) < 0.85) | (v > 0.85 - 2 * arm) & (v < 0.85) & (
            np.abs(u) < 0.35 + arm
        )
    elif kind == 2:  # a flag on a pole
        inside = (np.abs(u + 0.4) < 0.13) & (np.abs(v) < 0.9) | (np.abs(u - 0.1) < 0.55) & (
            np.abs(v + 0.5) < 0.25 + 0.15 * a
        )
    else:  # a drop: round at one end, pointed at the other
        inside = np.abs(v) < (0.35 + 0.25 * a) * (1 - u) * np.sqrt(np.clip(1 - u**2, 0, None))
    opacity: Floats = _soften(inside.astype(np.float32))
    opacity[[0, -1]] = 0
    opacity[:, [0, -1]] = 0
    return opacity


def _soften(image: Floats) -> Floats:
    """A 3 by 3 binomial blur."""
    for axis in (0, 1):
        image = ((np.roll(image, 1, axis) + 2 * image + np.roll(image, -1, axis)) / 4).astype(np.float32)
    return image


def _colour_map(difficulty: float, rng: np.random.Generator) -> Floats:
    """The shape's own colours ``[M, M, 3]`` in 0 to 255: a bright tint, with difficulty any colour and a texture."""
    tint = 1 - 0.35 * rng.random(3)
    colour: npt.NDArray[np.float64] = (1 - difficulty) * (tint / tint.max() * 255) + difficulty * rng.uniform(
        20, 235, 3
    )
    texture = _texture(_MAP_CELLS, rng)[..., None] * rng.uniform(-110, 110, 3)
    return np.clip(colour + difficulty * texture, 0, 255).astype(np.float32)


def _background(size: int, difficulty: float, rng: np.random.Generator) -> Frames:
    """What lies behind the shapes, uint8 ``[S, S, 3]``: a calm dark ramp, with difficulty two-toned and textured.

    The ramp is what a masked autoencoder learns first: its direction shows in every patch of a video.
    """
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    slope = np.cos(direction) * u + np.sin(direction) * v
    calm = (RAMP_RANGE[0] + (slope / np.abs(slope).max() + 1) / 2 * (RAMP_RANGE[1] - RAMP_RANGE[0]))[..., None]
    tones = rng.uniform(20, 235, (2, 3))
    angle, split = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
    second = (np.cos(angle) * u + np.sin(angle) * v > split)[..., None]
    busy = np.where(second, tones[0], tones[1]) + _texture(size, rng)[..., None] * rng.uniform(-60, 60, 3)
    background: Frames = np.clip((1 - difficulty) * calm + difficulty * busy, 0, 255).astype(np.uint8)
    return background


def _texture(size: int, rng: np.random.Generator) -> Floats:
    """A sum of random plane waves ``[size, size]``, about -1 to 1."""
    cycles_u, cycles_v, phases = rng.uniform((-4.5, -4.5, 0), (4.5, 4.5, 1), (3, 3)).T
    position = np.linspace(0, 1, size)
    across = np.exp(2j * np.pi * (np.outer(cycles_u, position) + phases[:, None]))
    down = np.exp(2j * np.pi * np.outer(cycles_v, position))
    waves: Floats = ((down.T @ across).imag / len(phases)).astype(np.float32)
    return waves


def _cell_edges(cells: int, length: int) -> npt.NDArray[np.int64]:
    return np.round(np.arange(cells + 1) * length * CODE_CELL_SHARE).astype(np.int64)
