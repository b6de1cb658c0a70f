"""Loss curves and the page of a comparison, from runs that MLflow really holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from jobs.compare import CompareConfig, run
from jobs.reports.compare_html import loss_curve
from jobs.runs.tracking import TrackingPlace

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, list[str]]:
    """Two runs of pretraining; the second logged step 3 again after a resume, and lay still before."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("motion")
    runs = []
    for name, batch in (("first <b>", 32), ("second", 64)):
        run_id = client.create_run(experiment, tags={"command": "pretrain"}, run_name=name).info.run_id
        metrics = [Metric("loss", 32 / batch / step, 1000 * step, step) for step in range(1, 6)]
        metrics += [Metric("clips_per_second", 16.0, 1000 * step, step) for step in range(1, 6)]
        metrics += [Metric("loss", 0.2, 9_000_000, 3)] if batch == 64 else []
        client.log_batch(run_id, metrics=metrics, params=[Param("global_batch", str(batch))])
        runs.append(run_id)
    return client, uri, runs


def test_a_curve_counts_steps_views_and_hours_of_work(store: tuple[MlflowClient, str, list[str]]) -> None:
    client, _, runs = store
    first, second = (loss_curve(client, client.get_run(run_id), "x") for run_id in runs)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.loss, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    np.testing.assert_allclose(second.loss, [1 / 2, 1 / 4, 0.2, 1 / 8, 1 / 10])
    np.testing.assert_array_equal(first.steps, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(second.views, [64, 128, 192, 256, 320])
    np.testing.assert_allclose(second.hours, np.arange(1, 6) * 4 / 3600)


def test_the_page_stands_alone(store: tuple[MlflowClient, str, list[str]], tmp_path: Path) -> None:
    _, uri, runs = store
    report = run(CompareConfig(experiment="motion", tracking=TrackingPlace(uri), output=str(tmp_path)))
    assert report["compare.html"] == str(tmp_path / "compare.html")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "compare.html").read_text()
    assert not re.search(r"https?://|<script|<link|<b>", text)
    assert "data:image/png;base64,iVBOR" in text
    for run_id in runs:
        assert run_id[:8] in text
    assert "★" in text
    assert "global_batch" in text
