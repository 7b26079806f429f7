"""Predicted beside measured on emulated clusters, for the planner's plans and the baselines.

Run as root: ``python -m greentrain_harness.bench.lab [--models digits-cnn] [--quotas 60,40,25,15] [--bandwidths
100Mbit] [--plans …] [--rounds 40] [-o table.csv]``. For every cluster it sets up a lab of its own, measures every node,
plans each model with several planners, trains each plan for the same number of rounds, and takes the lab down. Rows
that the CSV file holds already are not run again. Joules are modelled from the nodes' real CPU time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from greentrain.errors import GreentrainError, RunError
from greentrain.files import read_json
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_links, measure_nodes
from greentrain_harness.bench._lab_table import Row, agreement_table, plans_table, ratios_table, read_rows, write_rows

__all__ = ["main"]

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


class Case(NamedTuple):
    """A cluster of the sweep."""

    quotas: str
    bandwidth: str


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    rows = read_rows(options.output) if options.output is not None else []
    try:
        for quotas in options.quotas:
            # Nodes of the same quotas are measured once: a slower link changes no layer.
            with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as folder:
                for bandwidth in options.bandwidths.split(","):
                    _run_case(Path(folder), Case(quotas, bandwidth), options, rows)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    finally:
        if rows:
            sys.stdout.write("\n".join((plans_table(rows), agreement_table(rows), ratios_table(rows))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.lab", description=_ABOUT)
    parser.add_argument("--rounds", type=int, default=40, help="rounds per plan")
    parser.add_argument(
        "--quotas", nargs="+", default=["60,40,25,15"], help="clusters: percent of a core by node, comma"
    )
    parser.add_argument("--bandwidths", default="100Mbit", help="links of each cluster, comma")
    parser.add_argument("--models", default="digits-cnn", help="workloads, comma")
    parser.add_argument("--plans", default="", help=f"of {', '.join(_PLANS)}; comma; default: what fits the model")
    parser.add_argument("--micro-batch", help="only plans of this micro-batch")
    parser.add_argument("-o", dest="output", type=Path, help="CSV file of the rows; rows in it are not run again")
    return parser


def _run_case(folder: Path, case: Case, options: argparse.Namespace, rows: list[Row]) -> None:
    wanted = [
        (model, plan)
        for model in options.models.split(",")
        for plan in (options.plans.split(",") if options.plans else _PLANS)
        if not any((row.model, row.plan, row.quotas, row.bandwidth) == (model, plan, *case) for row in rows)
    ]
    if not wanted:
        return
    name = f"bench{os.getpid()}"
    try:
        greentrain(folder, "lab", "up", "--name", name, "--quotas", case.quotas, "--bandwidth", case.bandwidth)
        for model in dict.fromkeys(model for model, _ in wanted):
            measure_nodes(folder, name, model)
        measure_links(folder, name, case.bandwidth)
        greentrain(folder, "cluster", "init", "--lab", name, "--force")
        for number, (model, plan) in enumerate(wanted):
            row = _row(folder, case, model, plan, f"{case.bandwidth}-{number}", options)
            if row is not None:
                rows.append(row)
                if options.output is not None:
                    write_rows(options.output, rows)
    finally:
        lab_down(folder, name)


def _row(folder: Path, case: Case, model: str, plan: str, run: str, options: argparse.Namespace) -> Row | None:
    """One plan, run; None where the planner has none for this model, or its run failed."""
    sys.stderr.write(f"{model}, {case.quotas} %, {case.bandwidth}: {plan} …\n")
    choice = [*_PLANS[plan], *(["--micro-batch", options.micro_batch] if options.micro_batch else [])]
    try:
        greentrain(folder, "schedule", *choice, "--model", model, "--no-explain", "-o", "plan.json")
        greentrain(folder, "train", "plan.json", "--run", run, "--rounds", str(options.rounds))
    except RunError as error:
        sys.stderr.write(f"  left out: {error.message}\n")
        return None
    summary = read_json(folder / "runs" / run / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    predicted, measured = summary.predicted, summary.measured
    if predicted.step_s is None or predicted.joules_per_sample is None or measured.joules_per_sample is None:
        raise RunError(f"{summary.run}: the summary lacks a figure.", hint="Run the benchmark again.")
    return Row(
        model=model,
        quotas=case.quotas,
        bandwidth=case.bandwidth,
        plan=plan,
        parallelism=summary.parallelism,
        devices=" ".join(summary.devices),
        predicted_step_s=predicted.step_s,
        measured_step_s=summary.duration_s / summary.rounds,
        predicted_j_per_sample=predicted.joules_per_sample,
        measured_j_per_sample=measured.joules_per_sample,
        samples_per_s=summary.samples / summary.duration_s,
        memory_error=_memory_error(summary),
    )


def _memory_error(summary: Summary) -> float | None:
    """Predicted over measured peak memory, less one, of the device where they differ most; None: not measured."""
    both = [(size, summary.measured.peak_bytes.get(device)) for device, size in summary.predicted.peak_bytes.items()]
    errors = [predicted / measured - 1 for predicted, measured in both if measured]
    return max(errors, key=abs, default=None)


if __name__ == "__main__":
    sys.exit(main())
