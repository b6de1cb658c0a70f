"""Tracking URIs of SQLite files, and back."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url


def sqlite_uri(path: str | Path) -> str:
    """The tracking URI of a SQLite file; `?` would begin a query, and `%` an encoded character."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # With the driver's name MLflow leaves the folder alone: otherwise it makes one of the quoted name.
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite tracking URI; None for any other."""
    database = make_url(uri).database if uri.startswith(("sqlite:///", "sqlite+pysqlite:///")) else None
    return Path(database) if database else None
