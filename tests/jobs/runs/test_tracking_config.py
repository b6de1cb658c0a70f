"""Where runs are recorded: what is refused at once."""

from __future__ import annotations

import pytest

from jobs.runs.tracking_config import EXPERIMENT_NAME_LENGTH, TrackingConfig


@pytest.mark.parametrize(
    ("uri", "told"), [("mlruns", "must begin with one of"), ("sqlite:///mlflow.db", "relative SQLite path")]
)
def test_a_wrong_place_is_told_at_once(uri: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrackingConfig(uri)


@pytest.mark.parametrize("name", [" ", "x" * (EXPERIMENT_NAME_LENGTH + 1)])
def test_a_name_that_no_database_takes_is_told_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="must have 1 to 256 characters"):
        TrackingConfig(experiment=name)
