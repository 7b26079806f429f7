"""What several commands share: the standard options, output and the work folder's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

__all__ = ["CLUSTER_FILE", "PROFILES_DIR", "emit_json", "json_option", "say", "sysroot_option", "table_lines"]

CLUSTER_FILE = Path("cluster.toml")
PROFILES_DIR = Path("profiles")

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """``--json``: print one JSON object for machines instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")(function)


def sysroot_option(function: F) -> F:
    """``--sysroot DIR``: prefix of /sys, /proc and /etc for every sensor."""
    return click.option(
        "--sysroot",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("/"),
        envvar="GREENTRAIN_SYSROOT",
        help="Prefix of /sys, /proc and /etc (recorded trees, containers, the lab).",
    )(function)


def emit_json(value: object) -> None:
    """Print a struct or builtins as one line of JSON."""
    click.echo(msgspec.json.encode(value).decode())


def say(text: str, *, quiet: bool = False) -> None:
    """Progress and remarks go to stderr, results to stdout."""
    if not quiet:
        click.echo(text, err=True)


def table_lines(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"{indent}{line}".rstrip() for line in cells]
