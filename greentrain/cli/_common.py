"""What several commands share: the standard options, output and the work folder's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

__all__ = ["CLUSTER_FILE", "PROFILES_DIR", "emit_json", "json_option", "say", "sysroot_option"]

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
