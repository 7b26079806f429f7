"""Checks shared by the nouns: every noun is checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Collection

__all__ = ["require", "require_id", "require_non_negative", "require_positive"]


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with a sentence unless the condition holds.

    msgspec turns a ``ValueError`` from ``__post_init__`` into a ``ValidationError`` that names
    the field path, so files and constructors are checked by the same line.
    """
    if not condition:
        raise ValueError(message)


def require_non_negative(**values: float | None) -> None:
    """Every value that is given is finite and at least 0."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}, expected a finite number of at least 0")


def require_positive(**values: float | None) -> None:
    """Every value that is given is finite and above 0."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}, expected a finite number above 0")


def require_id(value: str, *, what: str, forbidden: Collection[str] = " \t\n@>:[]/,") -> None:
    """An identifier is not empty and free of the characters that the text forms use."""
    bad = [c for c in value if c in forbidden or c.isspace() or not c.isprintable()]
    if not value or bad:
        raise ValueError(f"{what} is {value!r}, expected a name without spaces or any of @ > : [ ] / ,")
