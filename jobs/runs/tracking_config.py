"""The keys that say where runs are recorded. Actors import them with every configuration, so this loads no MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.core.cli import ConfigT, replace
from jobs.core.redaction import without_secrets

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
EXPERIMENT_NAME_LENGTH = 256  # the database column; MLflow itself does not check it, and SQLite takes any length


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow tracking URI (`sqlite:////absolute/path.db`, `http://host:port`). Default: MLFLOW_TRACKING_URI, else
    `mlflow.db` in the folder that holds `output` (of `register`: `init`); `none` records nothing beyond `output`
    itself. A password belongs in MLFLOW_TRACKING_PASSWORD: it is never recorded or printed, wherever it stands."""
    experiment: str = "hiera-video"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if not self.experiment.strip() or len(self.experiment) > EXPERIMENT_NAME_LENGTH:
            raise ValueError(
                f"experiment={self.experiment[:40]}: must have 1 to {EXPERIMENT_NAME_LENGTH} characters, not only "
                "spaces; give a shorter name, or leave it out"
            )
        if self.uri is None or self.uri == "none":
            return
        shown = without_secrets(self.uri)
        if self.uri.partition("://")[0].partition("+")[0] not in SCHEMES:
            raise ValueError(f"uri={shown}: must begin with one of {', '.join(SCHEMES)}; use http://host:port or none")
        if self.uri.startswith("sqlite:///") and not self.uri.startswith("sqlite:////"):
            raise ValueError(
                f"uri={shown}: a relative SQLite path means another file in every worker's directory; "
                "write sqlite:////absolute/path.db"
            )


def unrecorded(config: ConfigT) -> ConfigT:
    """The configuration without the tracking URI, for workers and job metadata, which do not need it."""
    return replace(config, tracking=TrackingConfig("none"))
