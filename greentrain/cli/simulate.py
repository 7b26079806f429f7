"""``greentrain simulate``: the timeline and joules of a plan before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option
from greentrain.cli._problem import load_plan, problem_of_plan
from greentrain.cli._timeline import timeline_text
from greentrain.files import write_text
from greentrain.ledger import write_ledger
from greentrain.simulator import simulate, to_estimate
from greentrain.units import format_quantity

__all__ = ["command"]

_NARROWEST, _WIDEST = 40, 160


@click.command("simulate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the round: FILE.html as a picture, else its rows as a ledger CSV.",
)
@json_option
def command(plan_path: Path, cluster_path: Path, profiles: Path, output: Path | None, as_json: bool) -> None:
    """Run one round of PLAN in simulated time."""
    plan = load_plan(plan_path)
    _, problem = problem_of_plan(plan, plan_path, cluster_path, profiles)
    rows = simulate(plan, problem)
    price = to_estimate(rows, plan, problem)
    if output is not None and output.suffix == ".html":
        from greentrain_reports.round_page import round_page

        write_text(output, round_page(plan, rows, price))
    elif output is not None:
        write_ledger(output, rows)
    if as_json:
        emit_json({"estimate": price, "rows": len(rows), "file": None if output is None else str(output)})
        return
    click.echo(
        f"One round: {format_quantity(price.step_s, 'time')}, {price.samples_per_s:.4g} samples/s, "
        f"{price.energy_j_per_sample:.4g} J/sample (simulated, modelled power)"
    )
    room = shutil.get_terminal_size().columns - max(len(device) for device in plan.devices) - 6
    click.echo(timeline_text(plan.devices, rows, price.step_s, columns=min(max(room, _NARROWEST), _WIDEST)))
    for device, causes in price.energy_j.items():
        parts = ", ".join(f"{cause} {format_quantity(energy_j, 'energy')}" for cause, energy_j in causes.items())
        click.echo(f"  {device}: {parts}")
    if output is not None:
        click.echo(f"Written: {output}")
