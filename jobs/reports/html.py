"""HTML pages from the templates beside this file: every value is escaped and cleaned of secrets on its way in."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import urllib.parse
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.core.redaction import without_secrets
from jobs.core.text import shown

# What the product itself reads: files of this host, and object storage. Browsers take a backslash for a slash.
_LINKED = re.compile(r"file:///(?![/\\])|s3://", re.IGNORECASE)
# Of ASCII, but for the `&` and `;` of HTML's entities: Markdown shows what a backslash stands before as it is.
_PUNCTUATION = re.compile(r"([!-%'-/:<-@\[-`{-~])")


def render(template: str, **values: Any) -> bytes:
    """Fill in a template; the page is UTF-8, holds its style, pictures and script, and loads nothing."""
    return _ENVIRONMENT.get_template(template).render(values, written=datetime.now(UTC)).encode()


def script(name: str) -> Markup:
    """A script beside the templates, for a ``script`` element; it takes its data from the page's attributes."""
    assert _ENVIRONMENT.loader is not None
    return Markup(_ENVIRONMENT.loader.get_source(_ENVIRONMENT, name)[0])


def csp_hash(code: str) -> str:
    """The source of the Content-Security-Policy that permits exactly this script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def data_uri(content: bytes, media_type: str) -> Markup:
    """A picture as the ``src`` of an ``img``."""
    return Markup("data:{};base64,").format(media_type) + Markup(base64.b64encode(content).decode())


def link(uri: str) -> str | None:
    """The ``href`` of a path, or of a URI of a file or of object storage; None for every other scheme."""
    uri = without_secrets(uri)  # before it is quoted, which would disguise a secret
    if uri.startswith("/"):
        # Two slashes name another host, to which Windows sends its user's credentials.
        return f"file:///{urllib.parse.quote(uri.lstrip('/'), errors='replace')}"
    return uri if _LINKED.match(uri) else None


def colour(label: str) -> str:
    """The same colour for a label everywhere."""
    hue = int.from_bytes(hashlib.blake2b(label.encode(errors="replace"), digest_size=2).digest(), "little") % 360
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


def markdown(text: str) -> Markup:
    """Text for a Markdown file, in which it is neither markup, link nor HTML."""
    return Markup(_PUNCTUATION.sub(r"\\\1", html.escape(shown(text), quote=False)))


def _cleaned(value: Any) -> Any:
    return shown(value) if type(value) is str else value  # not Markup, which was cleaned piece by piece


_ENVIRONMENT = Environment(
    loader=PackageLoader("jobs.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_cleaned,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    function.__name__: function for function in (csp_hash, data_uri, link, colour, duration, file_name, markdown)
}
