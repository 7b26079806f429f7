"""``greentrain doctor``: what this machine can measure, and how to mend what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import emit_json, json_option, say, sysroot_option

if TYPE_CHECKING:
    from greentrain_harness.doctor import Diagnosis

__all__ = ["command"]

_MARKS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "note": ""}


@click.command("doctor")
@json_option
@sysroot_option
def command(as_json: bool, sysroot: Path) -> None:
    """Show every meter with why it is usable or not, and what to do about it.

    Exits 0 also when sensors are missing: then joules are modelled, and every output says so.
    """
    from greentrain_harness.doctor import diagnose
    from greentrain_harness.restore import restore_pending

    for remark in restore_pending(sysroot):
        say(remark)
    diagnosis = diagnose(sysroot)
    if as_json:
        emit_json(diagnosis)
    else:
        _print(diagnosis)


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(diagnosis.device)}[/]: {escape(diagnosis.host)}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "", "found, and how to mend it"):
        table.add_column(title, overflow="fold")
    area = ""
    for finding in diagnosis.findings:
        detail = escape(finding.detail)
        if finding.mend is not None:
            detail += f"\n[cyan]→ {escape(finding.mend)}[/]"
        shown = finding.area if finding.area != area else ""
        table.add_row(shown, escape(finding.name), _MARKS[finding.state], detail)
        area = finding.area
    console.print(table)
    console.print(
        f"--device auto uses [bold]{diagnosis.meter}[/]: joules here are source={diagnosis.source}.", highlight=False
    )
