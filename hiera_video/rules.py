"""Rules of a config's values, declared beside its fields and checked when it is created."""

from __future__ import annotations

from collections.abc import Iterator

Rules = Iterator[tuple[str, object, str]]
"""Key, whether its rule holds, and the rule with its remedy. A rule may rely on those before it."""


class Checked:
    """Base of a config dataclass that refuses values against its rules."""

    def rules(self) -> Rules:
        """All rules, in the order in which they are checked."""
        yield from ()

    def __post_init__(self) -> None:
        for key, holds, rule in self.rules():
            if not holds:
                value = getattr(self, key)
                raise ValueError(f"{key}={str(value).lower() if isinstance(value, bool) else value}: {rule}")
