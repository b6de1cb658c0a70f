"""What is wrong with a collection as its user gave it; the commands end with its text and exit code 2."""

from __future__ import annotations


class InputError(ValueError):
    """What was given cannot be used; the text names the key or file, the rule and a remedy."""


class ManifestError(InputError):
    """Annotations that do not follow their convention: file, error and remedy."""


class VanishedSourceError(InputError):
    """Too many of an output's videos are missing in its source: how many, examples, and how to confirm."""
