"""Figures: one style, no global state, any text."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from jobs.reports.plots import DOTS_PER_INCH, STYLE, Cell, Panel, captioned_image, contact_sheet, curve_panels, png

BROKEN_FORMULA = r"$\broken{ a $ b_{"


def _pixels(content: bytes) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return np.asarray(image, np.uint8)


def test_a_figure_has_its_size_and_leaves_the_settings_alone() -> None:
    before = {key: rcParams[key] for key in STYLE}
    image = _pixels(png(3, 2, lambda figure: figure.add_subplot().set_title("x")))
    assert image.shape == (2 * DOTS_PER_INCH, 3 * DOTS_PER_INCH, 3)
    assert {key: rcParams[key] for key in STYLE} == before


def test_a_failed_drawing_leaves_the_settings_alone() -> None:
    def fail(figure: Figure) -> None:
        raise RuntimeError("no data")

    before = {key: rcParams[key] for key in STYLE}
    with pytest.raises(RuntimeError, match="no data"):
        png(3, 2, fail)
    assert {key: rcParams[key] for key in STYLE} == before


def test_pyplot_is_never_imported() -> None:
    """Its list of open figures would keep every figure of a long run alive."""
    code = (
        "import sys; from jobs.reports.plots import Panel, curve_panels; "
        "curve_panels([[Panel('t', 'x', {'a': ([1], [1])})]]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_text_is_no_formula() -> None:
    lines = {BROKEN_FORMULA: ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}
    for content in (
        curve_panels([[Panel(BROKEN_FORMULA, BROKEN_FORMULA, lines)]]),
        contact_sheet([Cell(BROKEN_FORMULA, None)]),
        captioned_image(np.zeros((20, 400, 3), np.uint8), BROKEN_FORMULA),
    ):
        assert _pixels(content).std() > 0


def test_rows_of_panels() -> None:
    one = Panel("one", "step", {"a": ([1, 2], [3, 4])})
    wide, high = _pixels(curve_panels([[one, one, one]])), _pixels(curve_panels([[one], [one]]))
    assert wide.shape[1] == 3 * high.shape[1]
    assert high.shape[0] == pytest.approx(2 * wide.shape[0], abs=1)


def test_a_contact_sheet_shows_its_pictures() -> None:
    red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    sheet = _pixels(contact_sheet([Cell("red", red), Cell("none", None)]))
    assert (sheet == (255, 0, 0)).all(axis=2).sum() > 1000
    assert _pixels(contact_sheet([])).min() == 255


def test_an_image_is_shown_pixel_for_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (110, 440, 3), dtype=np.uint8)
    np.testing.assert_array_equal(_pixels(captioned_image(image, "caption"))[:110], image)
