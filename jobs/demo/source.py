"""What the demo works on: a folder of the user's, or one that it makes itself."""

from __future__ import annotations

from pathlib import Path

from jobs.core.cli import bars_are_drawn, heading
from jobs.core.errors import UserError
from jobs.demo.config import DemoConfig
from jobs.demo.few_labels import keep_few_labels
from jobs.demo.stages import LABELS_FILE
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.synthetic.scene_images import cut_scene_images
from pipeline.storage.files import absolute
from pipeline.tagging.source import list_source


def check_source(config: DemoConfig) -> None:
    """Refuse a source of one's own that holds nothing of the kind.

    Raises:
        UserError: no video, or no image, is there.
    """
    if config.source and len(list_source(config.source, config.media).videos) == 0:
        raise UserError(f"source={config.source}: holds no {config.media}; give a folder or prefix of {config.media}s")


def made_folder(config: DemoConfig) -> Path:
    """Where what the demo makes lies; other keys, another folder."""
    made = f"{config.media}s-{config.videos}-{config.difficulty:g}-{config.seed}-{config.labels}-labels"
    return Path(absolute(config.output)) / made


def make_source(config: DemoConfig, folder: Path) -> None:
    """Make videos or images, one folder per class, and leave few labels; what is there is used again."""
    if not (folder / LABELS_FILE).exists():  # written last
        heading("render")
        if config.media == "image":
            cut_scene_images(folder, config.videos, config.seed, annotations=LABELS_FILE)
        else:
            render_motion_videos(
                folder, config.videos, config.seed, config.difficulty, progress=bars_are_drawn(), annotations=True
            )
    keep_few_labels(folder / LABELS_FILE, config.labels)
