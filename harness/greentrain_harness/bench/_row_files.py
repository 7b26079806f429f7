"""Rows of a benchmark in its CSV file, so that a later run goes on from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from greentrain.errors import UsageError
from greentrain.files import read_csv, write_csv

__all__ = ["read_rows", "write_rows"]

R = TypeVar("R", bound=msgspec.Struct)


def write_rows(path: Path, rows: Sequence[msgspec.Struct]) -> None:
    """Write rows of one kind as CSV; nothing is written by halves."""
    if rows:
        columns = rows[0].__struct_fields__
        write_csv(path, columns, ([getattr(row, name) for name in columns] for row in rows))


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Rows of an earlier run; none when there is no file.

    Raises:
        UsageError: The file is no table of this kind.
    """
    if not path.exists():
        return []
    columns, lines = read_csv(path)
    try:
        return [
            msgspec.convert(
                {name: cell or None for name, cell in zip(columns, line, strict=True)}, type=kind, strict=False
            )
            for line in lines
        ]
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{path}: no table of this benchmark ({error}).", hint="Give another file as -o.") from error
