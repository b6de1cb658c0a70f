"""The keys of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.media import Media


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's few keys; each stage runs its own `demo` recipe."""

    media: Media = "video"
    """Videos, or images: the same commands on either."""
    source: str | None = None
    """Folder of your own videos or images; an `annotations.csv` (columns path, label) in it gives the labels. Default:
    videos of eight motions, which the demo renders, or pieces of two photographs."""
    output: str = "build/demo"
    """Every stage writes its own folder below; `report.html` shows them all."""
    videos: int = 640
    """How many videos, or images, to make."""
    labels: int = 20
    """Of those that the demo makes: labelled ones of each class to fine-tune on. The rest are for pretraining alone,
    but for the held-out ones, which measure the accuracy."""
    difficulty: float = 0.0
    """Appearance of the rendered videos, 0 (bright shapes on a calm background) to 1 (textures everywhere)."""
    compare: bool | None = None
    """Fine-tune from scratch, too, with the same settings, seed and labels, and show both accuracies. Default: only
    for what the demo makes itself."""
    seed: int = 0
    """Decides the rendered videos and every random draw."""

    def __post_init__(self) -> None:
        if self.videos < 80:
            raise ValueError(f"videos={self.videos}: must be at least 80, for eight classes; use 640")
        if self.labels < 1:
            raise ValueError(f"labels={self.labels}: must be at least 1 a class; use 20")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty}: must lie in [0, 1]; use 0 for the easiest")

    @property
    def compares(self) -> bool:
        """Whether a run from scratch is fine-tuned and evaluated, too."""
        return self.source is None if self.compare is None else self.compare
