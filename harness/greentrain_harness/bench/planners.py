"""The planners on published layer profiles: who wins, how true the formula is, how fast they plan.

Run: ``python -m greentrain_harness.bench.planners --data DIR [--table plans] [--quick] [--only NAME] [-o DIR]``.
The clusters are catalogue devices and every figure is modelled.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from greentrain.cluster import Cluster
from greentrain.errors import GreentrainError, UsageError
from greentrain_harness.bench._planner_cases import clusters, load_chains, load_modes
from greentrain_harness.bench._planner_compare import PlannerRow, compare_pair, compare_table, flaws, savings_table
from greentrain_harness.bench._planner_errors import error_rows, error_table
from greentrain_harness.bench._planner_profiles import LayerChain
from greentrain_harness.bench._planner_speed import measure_case, named_cases, speed_table, sweep_cases

__all__ = ["main"]

Pair = tuple[LayerChain, Cluster]

DATA_VARIABLE = "GREENTRAIN_PUBLIC_DATA"
_TABLES = ("plans", "errors", "speed")
_QUICK_MODELS = ("alexnet", "resnet50", "vit-base-patch16-224")
_UNMERGED = 10**6
_QUICK_CLUSTERS = ("nano-4", "mixed-6", "mixed-6-wifi", "two-rooms")


@click.command(help=__doc__)
@click.option("--data", envvar=DATA_VARIABLE, type=click.Path(path_type=Path), help="Folder of public measurements.")
@click.option("--table", "tables", type=click.Choice(_TABLES), multiple=True, help="Only this one; may be repeated.")
@click.option("--quick", is_flag=True, help="Three profiles on four clusters, fewer plans.")
@click.option("--only", default="", help="Only pairs 'profile × cluster', or cases, that hold this.")
@click.option("--plans", "plans_n", type=click.IntRange(1), default=None, help="Random plans per pair.")
@click.option("--limit", "limit_s", type=float, default=60.0, show_default=True, help="Seconds for one plan.")
@click.option("--resume", is_flag=True, help="Keep the pairs that are whole in the CSV file of plans, run the others.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for CSV files.")
def main(
    data: Path | None, tables: tuple[str, ...], quick: bool, only: str, plans_n: int | None, limit_s: float,
    resume: bool, output: Path | None,
) -> None:  # fmt: skip
    """Print the tables; exits 1 when a searching planner is beaten or a bar is missed."""
    plans_n = plans_n or (5 if quick else 20)
    sound = True
    try:
        if resume and output is None:
            raise UsageError("no CSV file to resume from.", hint="Name its folder with -o.")
        if data is None:
            raise UsageError("no data folder.", hint=f"Name one with --data or {DATA_VARIABLE}.")
        pairs = _pairs(data, quick=quick, only=only)
        for table in tables or _TABLES:
            if table == "plans":
                sound &= _plans(pairs, limit_s, output, resume=resume)
            elif table == "errors":
                _errors(pairs, plans_n, output)
            else:
                sound &= _speed(data, quick, only, limit_s, output)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)
    sys.exit(0 if sound else 1)


def _pairs(data: Path, *, quick: bool, only: str) -> list[Pair]:
    chains = load_chains(data)
    found = clusters(load_modes(data))
    if quick:
        chains = {name: chains[name] for name in _QUICK_MODELS}
        found = {name: found[name] for name in _QUICK_CLUSTERS}
    pairs = [(chain, cluster) for chain in chains.values() for cluster in found.values()]
    return [(chain, cluster) for chain, cluster in pairs if only in f"{chain.model} × {cluster.name}"]


def _plans(pairs: Sequence[Pair], limit_s: float, output: Path | None, *, resume: bool = False) -> bool:
    rows = _known_rows(output) if resume and output is not None else []
    done = {(row.model, row.cluster) for row in rows}
    for chain, cluster in pairs:
        if (chain.model, cluster.name) in done:
            continue
        for _, members in itertools.groupby(compare_pair(chain, cluster, limit_s=limit_s), key=lambda row: row.goal):
            listed = list(members)
            click.echo(compare_table(listed))
            rows += listed
        write_csv(output, "plans", rows)
    click.echo(savings_table(rows))
    beaten = flaws(rows)
    click.echo("\n".join([f"Searching planners beaten, or their bounds: {len(beaten)}", *beaten]) + "\n")
    return not beaten


def _known_rows(folder: Path) -> list[PlannerRow]:
    """The rows of an earlier run; it wrote whole pairs only."""
    try:
        with (folder / "plans.csv").open(encoding="utf-8", newline="") as file:
            listed = [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    return [msgspec.convert({"reason": "", **row}, PlannerRow, strict=False) for row in listed]


def _errors(pairs: Sequence[Pair], plans_n: int, output: Path | None) -> None:
    rows = list(error_rows(pairs, plans_n=plans_n))
    if rows:
        click.echo(error_table(rows))
    write_csv(output, "errors", rows)


def _speed(data: Path, quick: bool, only: str, limit_s: float, output: Path | None) -> bool:
    chains, modes = load_chains(data, most_layers=_UNMERGED), load_modes(data)
    cases = itertools.chain(named_cases(chains, modes), () if quick else sweep_cases(chains, modes))
    rows = [row for case in cases if only in case.name for row in measure_case(case, limit_s=limit_s)]
    click.echo(speed_table(rows))
    write_csv(output, "speed", rows)
    return all(row.holds is not False for row in rows if row.planner == "auto")


def write_csv(folder: Path | None, name: str, rows: Iterable[msgspec.Struct]) -> None:
    """Write rows to ``<folder>/<name>.csv``; nothing without a folder."""
    listed = [msgspec.structs.asdict(row) for row in rows]
    if folder is None or not listed:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)


if __name__ == "__main__":
    main()
