"""Loss curves of training runs against steps, views and hours, and a page that shows them without network access."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console, RenderableType

POINTS_SHOWN = 400
PANELS = ("steps", "views", "hours")
TERMINAL_COLUMNS = 200

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The loss of one run; all arrays have one number a point."""

    name: str
    steps: Numbers
    """Optimizer steps done."""
    views: Numbers
    """Views consumed."""
    hours: Numbers
    """Hours of training, without pauses; NaN where the speed was not recorded."""
    loss: Numbers


def loss_curve(client: MlflowClient, run: Run, name: str) -> Curve | None:
    """A training run's curve as MLflow holds it; None for a run without losses.

    Hours are sums of steps by their own speed, so that a run that lay still for a night is not longer for it.
    """
    losses = _history(client, run, "loss")
    batch = float(run.data.params.get("global_batch", "nan"))
    if not losses:
        return None
    speeds = _history(client, run, "clips_per_second")
    steps = np.array(sorted(losses), np.float64)
    speed = np.array([speeds.get(int(step), np.nan) for step in steps])
    seconds = np.diff(steps, prepend=0.0) * batch / speed
    points = (steps, steps * batch, seconds.cumsum() / 3600, np.array([losses[int(step)] for step in steps]))
    return Curve(name, *(_thinned(values) for values in points))


def curves_picture(commands: Mapping[str, Sequence[Curve]]) -> bytes:
    """A PNG: a row for each command, a panel each for steps, views and hours."""
    figure = Figure(figsize=(15, 4.2 * len(commands)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(commands), len(PANELS), squeeze=False)
    for (command, curves), row in zip(commands.items(), panels, strict=True):
        for axes, unit in zip(row, PANELS, strict=True):
            for curve in curves:
                axes.plot(getattr(curve, unit), curve.loss, linewidth=1.2, label=curve.name)
            axes.set(xlabel=unit, ylabel="loss", title=f"{command}: loss against {unit}")
            axes.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def page(title: str, shown: Sequence[RenderableType], picture: bytes | None) -> bytes:
    """One HTML file with everything in it: what the terminal shows, and the curves."""
    return "".join(_parts(title, shown, picture)).encode()


def _parts(title: str, shown: Sequence[RenderableType], picture: bytes | None) -> Iterator[str]:
    yield f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>{html.escape(title)}</title></head>"
    yield f"<body style='font-family: sans-serif; margin: 2em'><h1>{html.escape(title)}</h1>"
    if picture is not None:
        yield f"<img alt='loss curves' style='max-width: 100%' src='data:image/png;base64,{_base64(picture)}'>"
    for part in shown:
        console = Console(width=TERMINAL_COLUMNS, record=True, file=io.StringIO())
        console.print(part)
        yield console.export_html(
            inline_styles=True, code_format="<pre style='font-family: monospace; overflow-x: auto'>{code}</pre>"
        )
    yield "</body></html>"


def _history(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    """Step → value; a step that was logged twice has the later value."""
    entries = client.get_metric_history(run.info.run_id, metric)
    return {entry.step: entry.value for entry in sorted(entries, key=lambda entry: int(entry.timestamp))}


def _thinned(values: Numbers) -> Numbers:
    """At most 400 means of neighbours."""
    parts = np.array_split(values, min(len(values), POINTS_SHOWN))
    return np.array([part.mean() for part in parts])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
