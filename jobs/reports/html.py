"""HTML pages from the templates beside this file: every value is escaped and cleaned of secrets on its way in."""

from __future__ import annotations

import base64
import hashlib
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
    uri = without_secrets(uri)  # before it is quoted, which would disguise a secret
    scheme, is_uri, _ = uri.partition("://")
    if is_uri:
        return uri if scheme.lower() in LINKED_SCHEMES else None
    return f"file://{urllib.parse.quote(uri)}" if uri.startswith("/") else None


def colour(label: str) -> str:
    """The same colour for a label everywhere."""
    hue = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=2).digest(), "little") % 360
    return f"hsl({hue} 68% 52%)"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def file_name(uri: str) -> str:
    """The last part of a path or URI, readable."""
    name = without_secrets(uri).rpartition("/")[2]
    return urllib.parse.unquote(name) if uri.startswith("file://") else name


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
_ENVIRONMENT.filters |= {function.__name__: function for function in (data_uri, link, colour, duration, file_name)}
