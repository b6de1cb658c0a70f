"""No secret leaves the process: what is printed, logged, recorded or handed to other commands goes through here."""

from __future__ import annotations

import base64
import functools
import html
import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

from jobs.core.uri_credentials import HIDDEN, is_secret_name, passwords_in, without_credentials

SHORTEST_SECRET = 6  # shorter values of secret variables occur in ordinary text
# Up to the end of the line where nothing closes it.
_QUOTED = (
    r"(?:\\+\"(?:\\{4}|\\{3}\"|[^\"\n])*(?:\"|$)"  # within a quoted text
    r"|b?\"(?:\\.|[^\"\n])*(?:\"|$)|b?'(?:\\.|[^'\n])*(?:'|$))"
)
# A comma or a bracket belongs to the value where neither a space nor the next `name=` follows.
_WORD = r"(?:[^\s&'\"<>,;)\]}]|[,;)\]}](?=[^\s&'\"<>,;)\]}])(?![\w.-]+[=:]))"
_VALUE = rf"(?:{_QUOTED}|{_WORD})+"
# What is said about a secret (`RAY_AUTH_TOKEN: must be set`) instead of its value.
_PROSE = (
    r"(?!(?:an?|and|are|cannot|expired|for|give|has|in|invalid|is|may|missing|must|no|not|of|or|required|set|should|the|"
    r"to|use|was)\b(?:[ \t]+\S|[ \t]*$))"
)
# `api_key=...`, `"password": "..."`, `token: ...`, `--token ...`: the name is judged by `is_secret_name`.
_ASSIGNED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]+)"
    rf"(?P<sign>(?:\\*['\"]\s{{0,3}}|[ \t]{{0,9}})(?:={{1,3}}|:=?)(?!//)(?:|\s{{1,9}}{_PROSE}))(?P<value>{_VALUE})",
    re.MULTILINE,
)
_OPTION = re.compile(
    rf"(?<![\w.-])(?P<name>--[A-Za-z][\w-]*)(?P<sign>[ \t]+){_PROSE}(?P<value>(?!-){_VALUE})", re.MULTILINE
)
# A line of YAML, INI or TOML: the value may hold spaces.
_LINE = re.compile(
    r"^[ \t]{0,40}(?:- )?(?P<name>[\w.-]+)(?P<sign>[ \t]{1,40}=[ \t]*|=[ \t]{1,9}|[ \t]{0,40}:[ \t]{1,9})"
    rf"{_PROSE}(?P<value>(?!\*\*\*)[^\s'\"][^\n]*)",
    re.MULTILINE,
)
_PARAMETER = r"(?:\w+=\"(?:\\.|[^\"\n])*(?:\"|$)|[^\s,'\"&]+)"
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization|\bx-[\w-]{0,40}(?:key|token|signature|credential))"
    r"(?P<sign>\\*['\"]?\s{0,3}[:=]\s{0,3})"
    rf"(?P<value>{_QUOTED}|(?:[A-Za-z][\w-]*\s+)?{_PARAMETER}(?:,\s{{0,3}}(?=\w+=){_PARAMETER})*)",
    re.IGNORECASE | re.MULTILINE,
)
# Its values may hold quotes and spaces: everything goes up to the end of the line, or of the quoted text.
_COOKIE = re.compile(
    rf"(?P<name>\b(?:set-)?cookie2?)(?P<sign>\\*['\"]?\s{{0,3}}[:=]\s{{0,3}})(?P<value>{_QUOTED}(?!\s*;)|[^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_SCHEME_AND_CREDENTIAL = re.compile(r"\b(?P<scheme>[Bb]earer|Basic)\s+[\w.~+/-]{8,}=*")


def without_secrets(text: str) -> str:
    """The text without credentials in URIs, assignments and headers, and without the environment's secrets.

    Those are the values of variables with secret names (`is_secret_name`) and the passwords of URIs in variables, as
    they are and percent-encoded, in base64, or as JSON, Python, HTML and shells write them.
    """
    for form in secret_forms():
        text = text.replace(form, HIDDEN)
    text = without_credentials(text)
    for header in (_COOKIE, _HEADER):
        text = header.sub(rf"\g<name>\g<sign>{HIDDEN}", text)
    text = _SCHEME_AND_CREDENTIAL.sub(rf"\g<scheme> {HIDDEN}", text)
    for assignment in (_LINE, _ASSIGNED, _OPTION):
        text = assignment.sub(_hidden_if_secret, text)
    return text


def _hidden_if_secret(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]):
        return found[0]
    before = found.string[found.start() : found.start("value")]
    return f"{before}{HIDDEN}"


def secret_forms() -> list[str]:
    """Every text by which a secret of the environment may be known, the longest first."""
    values = {form for name, value in os.environ.items() for form in _secrets_of(name, value)}
    return sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)


@functools.lru_cache(maxsize=1024)
def _secrets_of(name: str, value: str) -> tuple[str, ...]:
    if value.startswith("/") and os.path.exists(value):  # the shell's PWD, SSH_AUTH_SOCK: no password names a file
        return ()
    # `://` makes no URI: a password may hold it.
    found = passwords_in(value) | ({value, value.strip()} if is_secret_name(name) else set())
    return tuple(secret for secret in found if len(secret) >= SHORTEST_SECRET)


@functools.lru_cache(maxsize=256)
def _forms(secret: str) -> tuple[str, ...]:
    backslashes = secret.replace("\\", "\\\\")
    escaped = (
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(f"'\"{secret}")[4:-1],
        repr(secret.encode(errors="surrogateescape"))[2:-1],
        secret.encode("unicode_escape").decode(),
        *(backslashes.replace(quote, f"\\{quote}") for quote in "'\""),
        shlex.quote(secret)[1:-1],
        html.escape(secret),
        html.escape(secret, quote=False),
    )
    percent = (
        quote(secret, errors="replace"),
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
    )
    lower = (re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in percent)
    return tuple({secret, *escaped, *percent, *lower, *_in_base64(secret.encode(errors="surrogateescape"))})


def _in_base64(secret: bytes) -> Iterator[str]:
    """The characters that are the secret's own, wherever it begins in what was encoded (`user:password`)."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret).decode()
        first, last = -(-8 * before // 6), (before + len(secret)) * 8 // 6
        own = encoded[first:last]
        if len(own) >= SHORTEST_SECRET:
            yield own
            yield own.replace("+", "-").replace("/", "_")


def public(tree: Any) -> Any:
    """Nested dictionaries and lists with every text cleaned by `without_secrets`, values of secret names hidden."""
    if isinstance(tree, dict):
        return {
            without_secrets(key) if isinstance(key, str) else key: _public_value(key, value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [public(value) for value in tree]
    return without_secrets(tree) if isinstance(tree, str) else tree


def _public_value(key: Any, value: Any) -> Any:
    return (
        HIDDEN if isinstance(key, str) and isinstance(value, str) and value and is_secret_name(key) else public(value)
    )
