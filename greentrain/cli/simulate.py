"""``greentrain simulate``: the timeline and joules of a plan before anything runs."""

from __future__ import annotations

from pathlib import Path

import click

from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option
from greentrain.cli._problem import load_plan, problem_of_plan
from greentrain.ledger import LedgerRow, write_ledger
from greentrain.plan import Plan
from greentrain.simulator import simulate, to_estimate
from greentrain.units import format_quantity

__all__ = ["command"]

_WIDTH = 72
_MARKS = {"forward": "F", "backward": "B", "update": "U", "sum": "A", "wait": "·"}


@click.command("simulate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the rows of the round as a ledger CSV.",
)
@json_option
def command(plan_path: Path, cluster_path: Path, profiles: Path, output: Path | None, as_json: bool) -> None:
    """Run one round of PLAN in simulated time."""
    plan = load_plan(plan_path)
    _, problem = problem_of_plan(plan, plan_path, cluster_path, profiles)
    rows = simulate(plan, problem)
    price = to_estimate(rows, plan, problem)
    if output is not None:
        write_ledger(output, rows)
    if as_json:
        emit_json({"estimate": price, "rows": len(rows), "file": None if output is None else str(output)})
        return
    click.echo(
        f"One round: {format_quantity(price.step_s, 'time')}, {price.samples_per_s:.4g} samples/s, "
        f"{price.energy_j_per_sample:.4g} J/sample (simulated, modelled power)"
    )
    click.echo(timeline(plan, rows, price.step_s))
    for device, causes in price.energy_j.items():
        parts = ", ".join(f"{cause} {format_quantity(energy_j, 'energy')}" for cause, energy_j in causes.items())
        click.echo(f"  {device}: {parts}")
    if output is not None:
        click.echo(f"Written: {output}")


def timeline(plan: Plan, rows: list[LedgerRow], step_s: float) -> str:
    """A row of characters per device: F forward, B backward, A gradient sum, U update, · waiting."""
    lines: list[str] = []
    width = max(len(device) for device in plan.devices)
    for device in plan.devices:
        cells = [" "] * _WIDTH
        for row in rows:
            if row.device == device and row.action in _MARKS:
                first = int(row.t_start_s / step_s * _WIDTH)
                last = max(first + 1, round((row.t_start_s + row.duration_s) / step_s * _WIDTH))
                for position in range(first, min(last, _WIDTH)):
                    if cells[position] in (" ", "·"):
                        cells[position] = _MARKS[row.action]
        lines.append(f"  {device:{width}} |{''.join(cells)}|")
    lines.append(f"  {'':{width}}  F forward  B backward  A gradient sum  U update  · waiting")
    return "\n".join(lines)
