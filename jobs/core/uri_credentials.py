"""Credentials in URIs: found in text, taken out of it, and refused in arguments.

Everybody on the machine sees a command's arguments, and a URI is copied into logs, reports and histories. Passwords
belong in environment variables.
"""

from __future__ import annotations

import itertools
import re
from urllib.parse import unquote

HIDDEN = "***"
# Names whose values are secret, by their words: `api_key`, `X-Amz-Signature`, `sslpassword`, `sig` of a shared access
# signature. Plurals are counts (`num_tokens`).
_SECRET_WORDS = frozenset({"accesskey", "apikey", "auth", "authorization", "credential", "credentials", "jwt",
                           "passphrase", "privatekey", "pw", "pwd", "sas", "secretkey", "sig",
                           "signature"})  # fmt: skip
_SECRET_ENDINGS = ("password", "passwd", "secret", "token")
# Last words of names whose values say where a secret is, or how it is used, not what it is.
_ABOUT_SECRETS = (
    "file",
    "path",
    "dir",
    "mode",
    "url",
    "uri",
    "endpoint",
    "error",
    "exception",
    "type",
    "ttl",
    "seconds",
)
_KEYS = frozenset({"api", "access", "private", "secret", "account", "shared", "signing", "encryption", "subscription"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# What a query may say aloud; the value of any other key is hidden.
SHOWN_QUERY_KEYS = frozenset({
    "charset", "connect_timeout", "delimiter", "driver", "experiment_id", "experiment_ids", "list-type", "max-keys",
    "max_results", "mode", "name", "page", "partnumber", "path", "prefix", "region", "run_id", "run_uuid", "sslmode",
    "timeout", "uploads", "version", "versionid", "x-amz-algorithm", "x-amz-date", "x-amz-expires",
    "x-amz-signedheaders",
})  # fmt: skip
SENTENCE_ENDS = ".,:;)]}"
_WEB = ("http", "https")
_INSTEAD = {
    **dict.fromkeys(_WEB, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_DATABASE = "set the whole URI as MLFLOW_TRACKING_URI"
_AUTHORITY = re.compile(r"[^/?#\s'\"<>`\\]*")
_PORT = re.compile(r":\d*(?=$|[\s/?#'\"<>`,;.:)\]}])")
_QUERY = re.compile(r"[?#][^\s'\"<>`]*")


def is_secret_name(name: str) -> bool:
    """Whether a variable, key or parameter of this name holds a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _ABOUT_SECRETS:
        return False
    keys = (first in _KEYS and second == "key" for first, second in itertools.pairwise(words))
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words) or any(keys)


def without_credentials(text: str) -> str:
    """The text without user names and passwords in its URIs, and with the values of their queries hidden.

    A password may hold what should have been percent-encoded (``/ @ ' "``, spaces): then everything up to the last
    ``@`` before the next URI goes.
    """
    before, *parts = text.split("://")
    cleaned = [before]
    for rest in parts:
        on_the_web = before[-5:].lower().endswith(_WEB)
        cleaned.append(_without_query(_without_user(rest), on_the_web))
        before = rest
    return "://".join(cleaned)


def user_and_password(uri: str) -> tuple[str, str] | None:
    """Who a URI logs in as, as written; None where it names nobody."""
    _, _, rest = uri.partition("://")
    length = _user_length(rest)
    user, _, password = rest[: max(0, length - 1)].partition(":")
    return (user, password) if length else None


def passwords_in(uri: str) -> set[str]:
    """The passwords that a URI holds, in its user information and its query, raw and decoded."""
    found = {login[1] or login[0]} if (login := user_and_password(uri)) else set()
    found |= _secret_query(uri)
    return {form for value in found if value for form in (value, unquote(value))}


def _secret_query(uri: str) -> set[str]:
    entries = (entry.partition("=") for entry in re.split(r"[?#&;]", uri.partition("://")[2])[1:])
    return {value for key, _, value in entries if value and is_secret_name(key)}


def _without_user(rest: str) -> str:
    """What follows ``scheme://``, without user information."""
    while length := _user_length(rest):
        rest = rest[length:]
    return rest


def _user_length(rest: str) -> int:
    """Characters of the user information at the beginning of what follows ``scheme://``, with its ``@``."""
    match = _AUTHORITY.match(rest)
    authority = match[0] if match else ""
    host, colon, _ = authority.partition(":")
    if colon and not authority.startswith("[") and not _is_port(rest[len(host) :]):
        return rest.partition("\n")[0].rfind("@") + 1  # `user:password@`, the password perhaps not encoded
    return authority.rfind("@") + 1


def _is_port(after_host: str) -> bool:
    """Whether ``:`` begins a port, or ends a URI in a sentence; otherwise it begins a password."""
    return bool(_PORT.match(after_host))


def _without_query(rest: str, on_the_web: bool) -> str:
    """The values of a query and a fragment hidden, of all keys but `SHOWN_QUERY_KEYS`."""
    return _QUERY.sub(lambda found: _hidden_query(found[0], on_the_web), rest, count=1)


def _hidden_query(query: str, on_the_web: bool) -> str:
    inner = query.rstrip(SENTENCE_ENDS)
    entries = re.split(r"([?#&;])", inner)
    return "".join(_hidden_entry(entry, on_the_web) for entry in entries) + query[len(inner) :]


def _hidden_entry(entry: str, on_the_web: bool) -> str:
    key, is_pair, value = entry.partition("=")
    if not is_pair:  # of object storage, `?` may be a part of a name
        return entry if len(entry) < 2 or not on_the_web or key.lower() in SHOWN_QUERY_KEYS else HIDDEN
    return entry if not value or key.lower() in SHOWN_QUERY_KEYS else f"{key}={HIDDEN}"


def is_server(uri: str) -> bool:
    """Whether opening the URI sends something to a host, credentials perhaps; files and registered names do not."""
    scheme, is_uri, _ = uri.partition("://")
    return bool(is_uri) and scheme.partition("+")[0].lower() not in ("file", "sqlite")


def same_server(uri: str, other: str | None) -> bool:
    """Whether two URIs name the same server and path, whoever logs in."""
    return other is not None and without_credentials(uri).rstrip("/") == without_credentials(other).rstrip("/")


def refusal(uri: str) -> str | None:
    """Why an argument must not be this URI, and what to set instead; None for one without a password."""
    login = user_and_password(uri)
    scheme = uri.partition("://")[0].lower()
    # The user alone of a web server is a token; databases and others know users without a password.
    if not passwords_in(uri) or (login and not login[1] and scheme not in (*_WEB, "s3") and not _secret_query(uri)):
        return None
    return (
        f"must not hold a password, which others can read in the list of processes; {_INSTEAD.get(scheme, _DATABASE)}"
    )
