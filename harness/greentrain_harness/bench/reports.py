"""How long a report takes and how much memory, over runs of many ledger rows.

    python -m greentrain_harness.bench.reports [--runs 10] [--rows 100000] [--shape rounds|steps]

The runs are made here: two devices, every round a step and its actions (``rounds``), or steps alone (``steps``, the
heaviest for the tables). Each report is made in a process of its own. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from greentrain.ledger import LedgerRow, write_ledger

__all__ = ["main"]

_MOST_S, _MOST_BYTES, _MOST_PAGE_BYTES = 10.0, 1_000_000_000, 1_500_000
_SHAPES = {
    "rounds": ("step", "forward", "backward", "send", "receive", "sum", "update", "wait"),
    "steps": ("step",),
}
_ROUND_S = 0.1
_PROGRAM = "from greentrain_harness.bench.reports import measured; measured()"


@click.command(help=__doc__)
@click.option("--runs", "runs_n", type=click.IntRange(1), default=10, show_default=True)
@click.option("--rows", "rows_n", type=click.IntRange(10), default=100_000, show_default=True, help="Per run.")
@click.option("--shape", "shapes", type=click.Choice(list(_SHAPES)), multiple=True, help="Only this one.")
def main(runs_n: int, rows_n: int, shapes: tuple[str, ...]) -> None:
    """Print one line per shape."""
    click.echo(f"{runs_n} runs × {rows_n} ledger rows; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    click.echo(f"{'shape':<8}{'wall':>9}{'processor':>11}{'memory':>10}{'page':>10}{'rows/s':>12}  holds")
    sound = True
    for shape in shapes or tuple(_SHAPES):
        with tempfile.TemporaryDirectory() as name:
            folders = _make_runs(Path(name), runs_n, rows_n, _SHAPES[shape])
            found = json.loads(
                subprocess.run(
                    [sys.executable, "-c", _PROGRAM, *map(str, folders)],
                    check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                ).stdout
            )  # fmt: skip
        holds = (
            found["wall_s"] <= _MOST_S
            and found["memory_bytes"] <= _MOST_BYTES
            and found["page_bytes"] <= _MOST_PAGE_BYTES
        )
        sound &= holds
        rows_per_s = runs_n * rows_n / found["wall_s"]
        click.echo(
            f"{shape:<8}{found['wall_s']:>7.2f} s{found['cpu_s']:>9.2f} s{found['memory_bytes'] / 1e6:>7.0f} MB"
            f"{found['page_bytes'] / 1e3:>7.0f} kB{rows_per_s:>12,.0f}  {'yes' if holds else 'NO'}"
        )
    click.echo(f"bars: {_MOST_S:g} s, {_MOST_BYTES / 1e6:g} MB, {_MOST_PAGE_BYTES / 1e3:g} kB")
    sys.exit(0 if sound else 1)


def measured() -> None:
    """Make one report of the folders named as arguments, in a process of its own, and print what it took."""
    began_s = time.perf_counter()
    from greentrain.carbon import Intensity
    from greentrain_reports.report import write_report

    folders = [Path(text) for text in sys.argv[1:]]
    grid = Intensity(kg_per_kwh=0.1, place="given", year=None, source="a bench")
    files = write_report(folders, basis=grid, output=folders[0].parent / "out")
    assert files.html is not None
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "memory_bytes": used.ru_maxrss * 1024,
        "page_bytes": files.html.stat().st_size,
    }
    sys.stdout.write(json.dumps(facts))


def _make_runs(folder: Path, runs_n: int, rows_n: int, actions: tuple[str, ...]) -> list[Path]:
    folders = [folder / f"run-{number}" for number in range(runs_n)]
    for path in folders:
        write_ledger(path / "ledger.csv", _rows(path.name, rows_n, actions))
    return folders


def _rows(run: str, rows_n: int, actions: tuple[str, ...]) -> Iterator[LedgerRow]:
    devices = ("nano-1", "orin-1")
    for number in range(rows_n):
        step, place = divmod(number, len(devices) * len(actions))
        rank, at = divmod(place, len(actions))
        whole = actions[at] == "step"
        yield LedgerRow(
            run=run, device=devices[rank], rank=rank, step=step, action=actions[at],
            t_start_s=step * _ROUND_S + (0.0 if whole else (at - 1) * _ROUND_S / len(actions)),
            duration_s=_ROUND_S if whole else _ROUND_S / len(actions),
            energy_j=0.7 + 0.01 * (step % 7) if whole else None, error_j=0.02 if whole else None,
            bytes=4096 if actions[at] == "send" else 0, source="measured", meter="ina3221",
        )  # fmt: skip


if __name__ == "__main__":
    main()
