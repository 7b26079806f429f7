"""Predicted beside measured on emulated clusters, for the planner's plans and the baselines.

Run as root: ``python -m greentrain_harness.bench.lab [--models digits-cnn] [--quotas 60,40,25,15] [--bandwidths
100Mbit] [--batches 8] [--plans …] [--seconds 20] [-o table.csv]``. For every cluster it sets up a lab of its own,
measures every node, plans each model with several planners, trains each plan for some rounds, and takes the lab down.
A round's seconds and joules are medians of the rounds after the first, in which connections and caches are new. Rows
that the CSV file holds already are not run again. Joules are modelled from the nodes' real CPU time. A shared machine's
own pace changes from minute to minute: how much faster a fixed piece of work ran around each training than around the
measuring stands beside every row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from greentrain.errors import GreentrainError, RunError
from greentrain.files import read_json
from greentrain.ledger import LedgerRow, read_ledger
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain.workloads import load_workload
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_links, measure_nodes
from greentrain_harness.bench._lab_table import Row, agreement_table, plans_table, ratios_table
from greentrain_harness.bench._machine_pace import machine_pace_s
from greentrain_harness.bench._row_files import read_rows, write_rows

__all__ = ["main", "usual_round"]

_ABOUT = "Predicted beside measured on emulated clusters, for the planner's plans and the baselines."

# Name of a row -> options of greentrain schedule.
_PLANS: dict[str, tuple[str, ...]] = {
    "energy-optimal": ("--objective", "energy"),
    "edp-optimal": ("--objective", "edp"),
    "time-optimal": ("--objective", "time"),
    "asteroid": ("--planner", "asteroid"),
    "dapple": ("--planner", "dapple"),
    "pipeline": ("--planner", "pipeline"),
    "tensor-sequence": ("--planner", "tensor-sequence"),
    "tensor": ("--planner", "tensor"),
    "sequence": ("--planner", "sequence"),
    "data": ("--planner", "data"),
    "data-equal": ("--planner", "data-equal"),
}


# The first is not looked at.
_FEWEST_ROUNDS_N = 4


class Case(NamedTuple):
    """A cluster of the sweep."""

    quotas: str
    bandwidth: str


class Wanted(NamedTuple):
    """A plan to run on a cluster."""

    model: str
    batch: int
    plan: str


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    rows = read_rows(options.output, Row) if options.output is not None else []
    try:
        for quotas in options.quotas:
            # Nodes of the same quotas are measured once: a slower link changes no layer.
            paces_s: list[float] = []
            with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as folder:
                for bandwidth in options.bandwidths.split(","):
                    _run_case(Path(folder), Case(quotas, bandwidth), options, rows, paces_s)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    finally:
        if rows:
            sys.stdout.write("\n".join((plans_table(rows), agreement_table(rows), ratios_table(rows))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.lab", description=_ABOUT)
    parser.add_argument(
        "--seconds", type=float, default=20.0,
        help=f"training per plan, as predicted; at least {_FEWEST_ROUNDS_N} rounds are run",
    )  # fmt: skip
    parser.add_argument(
        "--quotas", nargs="+", default=["60,40,25,15"], help="clusters: percent of a core by node, comma"
    )
    parser.add_argument("--bandwidths", default="100Mbit", help="links of each cluster, comma")
    parser.add_argument("--models", default="digits-cnn", help="workloads, comma")
    parser.add_argument("--batches", default="", help="samples per round, comma; default: what the workload says")
    parser.add_argument("--plans", default="", help=f"of {', '.join(_PLANS)}; comma; default: what fits the model")
    parser.add_argument("--micro-batch", help="only plans of this micro-batch")
    parser.add_argument("-o", dest="output", type=Path, help="CSV file of the rows; rows in it are not run again")
    return parser


def _run_case(
    folder: Path, case: Case, options: argparse.Namespace, rows: list[Row], paces_s: list[float]
) -> None:  # fmt: skip
    """Run what is wanted and not there yet; ``paces_s`` are the machine's while the nodes were measured."""
    done = {(row.quotas, row.bandwidth, row.model, row.batch, row.plan) for row in rows}
    wanted = [
        Wanted(model, batch, plan)
        for model in options.models.split(",")
        for batch in map(int, options.batches.split(",") if options.batches else [load_workload(model).batch])
        for plan in (options.plans.split(",") if options.plans else _PLANS)
        if (*case, model, batch, plan) not in done
    ]
    if not wanted:
        return
    name = f"bench{os.getpid()}"
    try:
        greentrain(folder, "lab", "up", "--name", name, "--quotas", case.quotas, "--bandwidth", case.bandwidth)
        models = list(dict.fromkeys(one.model for one in wanted))
        measure_nodes(folder, name, models, before_each=lambda: paces_s.append(machine_pace_s()))
        paces_s.append(machine_pace_s())
        measure_links(folder, name, case.bandwidth)
        greentrain(folder, "cluster", "init", "--lab", name, "--force")
        for number, one in enumerate(wanted):
            row = _row(folder, case, one, f"{case.bandwidth}-{number}", options, statistics.median(paces_s))
            if row is not None:
                rows.append(row)
                if options.output is not None:
                    write_rows(options.output, rows)
    finally:
        lab_down(folder, name)


def _row(
    folder: Path, case: Case, one: Wanted, run: str, options: argparse.Namespace, measured_pace_s: float
) -> Row | None:  # fmt: skip
    """One plan, run; None where the planner has none for this model, or its run failed."""
    sys.stderr.write(f"{one.model}, {one.batch} samples, {case.quotas} %, {case.bandwidth}: {one.plan} …\n")
    choice = [*_PLANS[one.plan], *(["--micro-batch", options.micro_batch] if options.micro_batch else [])]
    try:
        greentrain(
            folder, "schedule", *choice, "--model", one.model, "--batch", str(one.batch), "--no-explain",
            "-o", "plan.json",
        )  # fmt: skip
        plan = read_json(folder / "plan.json", Plan, schema=PLAN_SCHEMA)
        assert plan.estimate is not None
        rounds_n = max(_FEWEST_ROUNDS_N, round(options.seconds / plan.estimate.step_s))
        before_s = machine_pace_s()
        greentrain(folder, "train", "plan.json", "--run", run, "--rounds", str(rounds_n))
        pace_s = statistics.mean((before_s, machine_pace_s()))
        step_s, step_j = usual_round(read_ledger(folder / "runs" / run / "ledger.csv"))
    except RunError as error:
        sys.stderr.write(f"  left out: {error.message}\n")
        return None
    summary = read_json(folder / "runs" / run / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    return Row(
        model=one.model,
        batch=one.batch,
        quotas=case.quotas,
        bandwidth=case.bandwidth,
        plan=one.plan,
        parallelism=summary.parallelism,
        devices=" ".join(summary.devices),
        rounds=summary.rounds,
        predicted_step_s=plan.estimate.step_s,
        measured_step_s=step_s,
        predicted_j_per_sample=plan.estimate.energy_j_per_sample,
        measured_j_per_sample=step_j / one.batch,
        samples_per_s=one.batch / step_s,
        memory_error=_memory_error(summary),
        slower=pace_s / measured_pace_s,
    )


def usual_round(rows: Iterable[LedgerRow]) -> tuple[float, float]:
    """Median seconds and joules of a round of all devices, without the first and those whose joules nobody knows.

    Raises:
        RunError: No round's joules are known.
    """
    rounds: dict[int, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.action == "step" and row.step > 0:
            rounds[row.step].append(row)
    joules = [
        sum(row.energy_j for row in found if row.energy_j is not None)
        for found in rounds.values()
        if all(row.energy_j is not None for row in found)
    ]
    if not joules:
        raise RunError("the run's ledger lacks the joules of every round.", hint="Run the benchmark again.")
    times_s = [max(row.duration_s for row in found) for found in rounds.values()]
    return statistics.median(times_s), statistics.median(joules)


def _memory_error(summary: Summary) -> float | None:
    """Predicted over measured peak memory, less one, of the device where they differ most; None: not measured."""
    both = [(size, summary.measured.peak_bytes.get(device)) for device, size in summary.predicted.peak_bytes.items()]
    errors = [predicted / measured - 1 for predicted, measured in both if measured]
    return max(errors, key=abs, default=None)


if __name__ == "__main__":
    sys.exit(main())
