"""No secret leaves the process: what is printed, logged, recorded or handed to other commands goes through here."""

from __future__ import annotations

import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

HIDDEN = "***"
SHORTEST_SECRET = 6  # shorter values of the variables below occur in ordinary text
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
_USER_INFORMATION = re.compile(r"(?<=://)[^/\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:password|token|secret|signature|credential|access[_-]?key)[\w-]*=)[^&\s'\"]+", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """The text without user names and passwords in URIs, secret query parameters, and the environment's secrets."""
    text = _SECRET_PARAMETER.sub(rf"\1{HIDDEN}", _USER_INFORMATION.sub("", text))
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    return text


def public(tree: Any) -> Any:
    """Nested dictionaries and lists with every text cleaned by `without_secrets`."""
    if isinstance(tree, dict):
        return {key: public(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [public(value) for value in tree]
    return without_secrets(tree) if isinstance(tree, str) else tree


def clean_tracebacks() -> None:
    """Print the traceback of an error that ends the process without secrets."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = write
