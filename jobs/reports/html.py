"""HTML pages from the templates beside this file: every value is escaped and cleaned of secrets on its way in."""

from __future__ import annotations

import base64
import urllib.parse
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.core.redaction import without_secrets

LINKED_SCHEMES = ("file", "s3", "http", "https")


def render(template: str, **values: Any) -> bytes:
    """Fill in a template; the page is UTF-8, holds its style and pictures, and loads nothing."""
    return _ENVIRONMENT.get_template(template).render(values, written=datetime.now(UTC)).encode()


def data_uri(content: bytes, media_type: str) -> str:
    """A picture as the ``src`` of an ``img``."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def link(uri: str) -> str | None:
    """The ``href`` of a path or URI; None for a scheme that a browser should not follow, as ``javascript:``."""
    scheme, is_uri, _ = uri.partition("://")
    if is_uri:
        return uri if scheme.lower() in LINKED_SCHEMES else None
    return f"file://{urllib.parse.quote(uri)}" if uri.startswith("/") else None


def _cleaned(value: Any) -> Any:
    return without_secrets(value) if type(value) is str else value  # not Markup, which was cleaned piece by piece


_ENVIRONMENT = Environment(
    loader=PackageLoader("jobs.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_cleaned,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"data_uri": data_uri, "link": link}
