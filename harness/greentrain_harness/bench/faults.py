"""Faults in the lab: how soon a lost device is noticed, how soon training goes on, and that nothing is lost.

Run as root: ``python -m greentrain_harness.bench.faults [--plans data,pipeline,hybrid] [--faults kill,freeze,link]
[--trials 1] [-o faults.csv]``. For every plan, fault and place in the plan it trains in a lab of its own, harms one
device at a random moment (SIGKILL, SIGSTOP, or its link set down), and holds the losses of all rounds against an
undisturbed run. Then it kills the same devices again and stops, plans anew and restarts everything from the last
checkpoint, which is what the repair is compared with. Rows that the CSV files hold already are not run again.

``--soak 50`` instead strikes one run with so many random faults, of any device, and looks at what is left.
Joules are modelled from the nodes' real CPU time.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path
from typing import cast

from greentrain.errors import GreentrainError, RunError
from greentrain_harness.bench._faults_crew import FAULTS, Fault
from greentrain_harness.bench._faults_plans import PLANS, victims
from greentrain_harness.bench._faults_runs import fault_row, restart_row
from greentrain_harness.bench._faults_setting import OWN_MODEL, Setting, open_setting
from greentrain_harness.bench._faults_soak import soak, soak_table
from greentrain_harness.bench._faults_table import (
    FaultRow,
    RestartRow,
    faults_table,
    restarts_table,
)
from greentrain_harness.bench._row_files import read_rows, write_rows

__all__ = ["main"]

_ABOUT = "Faults in the lab: how soon they are noticed and repaired, and that nothing is lost."
# So many that stages which one device holds are copied every few rounds: then layers travel after a loss.
_LOSSES_PER_HOUR = 5000.0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        with open_setting(
            quotas=options.quotas, bandwidth=options.bandwidth, model=options.model, batch=options.batch,
            losses_per_hour=_LOSSES_PER_HOUR,
        ) as setting:  # fmt: skip
            if options.soak:
                _soak(setting, options)
            else:
                _sweep(setting, options)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.faults", description=_ABOUT)
    parser.add_argument("--quotas", default="40,30,20,20", help="percent of a core by node, comma")
    parser.add_argument("--bandwidth", default="100Mbit", help="each node's link")
    parser.add_argument("--model", default=OWN_MODEL, help="workload; default: digits-vit with momentum")
    parser.add_argument("--batch", type=int, default=16, help="samples per round")
    parser.add_argument("--plans", default=",".join(PLANS), help="comma")
    parser.add_argument("--faults", default=",".join(FAULTS), help="comma")
    parser.add_argument("--trials", type=int, default=1, help="runs per plan, fault and place")
    parser.add_argument("--restarts", type=int, default=1, help="restarts per plan and place; 0: none")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="one run with so many random faults instead")
    parser.add_argument("--soak-pace", type=float, default=25.0, help="seconds per fault that the soak's rounds last")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("-o", dest="output", type=Path, help="CSV file; restarts go to NAME-restarts.csv beside it")
    return parser


def _soak(setting: Setting, options: argparse.Namespace) -> None:
    rounds_n = max(math.ceil(options.soak * options.soak_pace / setting.step_s), 20)
    for plan in options.plans.split(","):
        found = soak(setting, plan, options.soak, rounds_n, random.Random(options.seed))
        sys.stdout.write(soak_table(found, options.soak) + "\n")
        sys.stdout.flush()


def _sweep(setting: Setting, options: argparse.Namespace) -> None:
    output: Path | None = options.output
    restarts_path = None if output is None else output.with_name(f"{output.stem}-restarts.csv")
    rows = [] if output is None else read_rows(output, FaultRow)
    restarts = [] if restarts_path is None else read_rows(restarts_path, RestartRow)
    try:
        for plan in options.plans.split(","):
            _faults(setting, plan, options, rows)
            _restarts(setting, plan, options, restarts, restarts_path)
    finally:
        sys.stdout.write("\n".join((faults_table(rows), restarts_table(restarts, rows))))


def _faults(setting: Setting, plan: str, options: argparse.Namespace, rows: list[FaultRow]) -> None:
    for fault in cast("list[Fault]", options.faults.split(",")):
        for victim in victims(setting.plans[plan]):
            for trial in range(options.trials):
                key = (plan, fault, victim.role, trial)
                if any((row.plan, row.fault, row.role, row.trial) == key for row in rows):
                    continue
                sys.stderr.write(f"{plan}: {fault} of {victim.device} ({victim.role}) …\n")
                rows.append(fault_row(setting, plan, fault, victim, trial, _rng(options.seed, *key)))
                if options.output is not None:
                    write_rows(options.output, rows)


def _restarts(
    setting: Setting, plan: str, options: argparse.Namespace, rows: list[RestartRow], path: Path | None
) -> None:
    for victim in victims(setting.plans[plan]):
        for trial in range(options.restarts):
            key = (plan, victim.role, trial)
            if any((row.plan, row.role, row.trial) == key for row in rows):
                continue
            sys.stderr.write(f"{plan}: restart without {victim.device} ({victim.role}) …\n")
            try:
                rows.append(restart_row(setting, plan, victim, trial, _rng(options.seed, *key)))
            except RunError as error:
                sys.stderr.write(f"  left out: {error.message}\n")
                continue
            if path is not None:
                write_rows(path, rows)


def _rng(*parts: object) -> random.Random:
    return random.Random(repr(parts))


if __name__ == "__main__":
    sys.exit(main())
