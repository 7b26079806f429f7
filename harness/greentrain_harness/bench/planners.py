"""The planners on published layer profiles: who wins, how true the formula is, how fast they plan.

Run: ``python -m greentrain_harness.bench.planners --data DIR [--table errors] [--quick] [--only NAME] [-o DIR]``.
The clusters are catalogue devices and every figure is modelled.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from greentrain.errors import GreentrainError, UsageError
from greentrain_harness.bench._planner_cases import clusters, load_chains, load_modes
from greentrain_harness.bench._planner_errors import error_rows, error_table

__all__ = ["main"]

DATA_VARIABLE = "GREENTRAIN_PUBLIC_DATA"
_QUICK_MODELS = ("alexnet", "resnet50", "vit-base-patch16-224")
_QUICK_CLUSTERS = ("nano-4", "mixed-6", "mixed-6-wifi", "two-rooms")


@click.command(help=__doc__)
@click.option("--data", envvar=DATA_VARIABLE, type=click.Path(path_type=Path), help="Folder of public measurements.")
@click.option("--table", "tables", type=click.Choice(["errors"]), multiple=True)
@click.option("--quick", is_flag=True, help="Three profiles on four clusters, fewer plans.")
@click.option("--only", default="", help="Only pairs 'profile × cluster' whose name holds this text.")
@click.option("--plans", "plans_n", type=click.IntRange(1), default=None, help="Random plans per pair.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for CSV files.")
def main(
    data: Path | None, tables: tuple[str, ...], quick: bool, only: str, plans_n: int | None, output: Path | None
) -> None:
    """Print the tables."""
    try:
        run(data, tables or ("errors",), quick=quick, only=only, plans_n=plans_n, output=output)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


def run(
    data: Path | None, tables: Sequence[str], *, quick: bool, only: str, plans_n: int | None, output: Path | None
) -> None:
    """Print the chosen tables.

    Raises:
        UsageError: No data folder, or nothing of that name.
    """
    if data is None:
        raise UsageError("no data folder.", hint=f"Name one with --data or {DATA_VARIABLE}.")
    chains = load_chains(data)
    found = clusters(load_modes(data))
    if quick:
        chains = {name: chains[name] for name in _QUICK_MODELS}
        found = {name: found[name] for name in _QUICK_CLUSTERS}
    pairs = [(chain, cluster) for chain in chains.values() for cluster in found.values()
             if only in f"{chain.model} × {cluster.name}"]  # fmt: skip
    if not pairs:
        raise UsageError(f"no pair 'profile × cluster' holds {only!r}.", hint=f"Clusters: {', '.join(found)}.")
    if "errors" in tables:
        rows = list(error_rows(pairs, plans_n=plans_n or (5 if quick else 20)))
        click.echo(error_table(rows))
        write_csv(output, "errors", rows)


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
