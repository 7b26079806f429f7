"""Predicted beside measured on an emulated cluster, for the planner's plans and the baselines.

Run as root: ``python -m greentrain_harness.bench.lab [--rounds 40] [--quotas 60,40,25,15]``. It sets up a lab
of its own, measures every node, plans with several planners, trains each plan for the same number of
rounds, prints a table and takes the lab down. Joules are modelled from the nodes' real CPU time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from greentrain.errors import GreentrainError, RunError
from greentrain.files import read_json
from greentrain.summary import SUMMARY_SCHEMA, Summary

__all__ = ["main"]

_ABOUT = "Predicted beside measured on an emulated cluster, for the planner's plans and the baselines."

# Name of a row -> options of greentrain schedule.
_PLANS: dict[str, tuple[str, ...]] = {
    "energy-optimal": ("--objective", "energy"),
    "edp-optimal": ("--objective", "edp"),
    "time-optimal": ("--objective", "time"),
    "pipeline baseline": ("--planner", "pipeline"),
    "data, proportional": ("--planner", "data"),
    "data, equal (as DDP)": ("--planner", "data-equal"),
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of the table; seconds and joules predicted and measured."""

    plan: str
    parallelism: str
    devices: str
    predicted_step_s: float
    measured_step_s: float
    predicted_j: float
    measured_j: float
    samples_per_s: float

    @property
    def step_error(self) -> float:
        """Predicted over measured round time, less one."""
        return self.predicted_step_s / self.measured_step_s - 1

    @property
    def energy_error(self) -> float:
        """Predicted over measured joules per sample, less one."""
        return self.predicted_j / self.measured_j - 1


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.lab", description=_ABOUT)
    parser.add_argument("--rounds", type=int, default=40, help="rounds per plan")
    parser.add_argument("--quotas", default="60,40,25,15", help="CPU quota of each node, percent of a core")
    parser.add_argument("--bandwidth", default="100Mbit")
    parser.add_argument("--model", default="digits-cnn")
    options = parser.parse_args(argv)
    name = f"bench{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as text:
        folder = Path(text)
        try:
            _greentrain(
                folder, "lab", "up", "--name", name, "--quotas", options.quotas, "--bandwidth", options.bandwidth
            )
            rows = _measure_plans(folder, name, options.model, options.rounds)
        except GreentrainError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.exit_code
        finally:
            subprocess.run([*_COMMAND, "lab", "down", "--name", name], cwd=folder, capture_output=True, check=False)
    sys.stdout.write(table(rows))
    return 0


_COMMAND = [sys.executable, "-m", "greentrain.cli"]


def _measure_plans(folder: Path, name: str, model: str, rounds: int) -> list[Row]:
    measure = ["greentrain", "measure", "--device", "jetson", "--model", model]
    _greentrain(folder, "lab", "exec", "--name", name, "--all", "--", *measure)
    _greentrain(folder, "cluster", "init", "--lab", name, "--force")
    rows: list[Row] = []
    for number, (title, choice) in enumerate(_PLANS.items()):
        sys.stderr.write(f"{title} …\n")
        _greentrain(folder, "schedule", *choice, "--model", model, "-o", "plan.json")
        _greentrain(folder, "train", "plan.json", "--run", f"run{number}", "--rounds", str(rounds))
        summary = read_json(folder / "runs" / f"run{number}" / "summary.json", Summary, schema=SUMMARY_SCHEMA)
        rows.append(_row(title, summary))
    return rows


def _row(title: str, summary: Summary) -> Row:
    predicted, measured = summary.predicted, summary.measured
    seconds = summary.duration_s / summary.rounds
    if predicted.step_s is None or predicted.joules_per_sample is None or measured.joules_per_sample is None:
        raise RunError(f"{summary.run}: the summary lacks a figure.", hint="Run the benchmark again.")
    return Row(
        plan=title,
        parallelism=summary.parallelism,
        devices=", ".join(summary.devices),
        predicted_step_s=predicted.step_s,
        measured_step_s=seconds,
        predicted_j=predicted.joules_per_sample,
        measured_j=measured.joules_per_sample,
        samples_per_s=summary.samples / summary.duration_s,
    )


def table(rows: list[Row]) -> str:
    """The rows as text, the last one being the yardstick of the last two columns."""
    lines = [
        f"{'plan':21} {'parallelism':11} {'round s: pred':>13} {'meas':>7} {'diff':>6} "
        f"{'J/sample: pred':>14} {'meas':>7} {'diff':>6} {'samples/s':>9} {'× speed':>7} {'× energy':>8}  devices"
    ]
    yardstick = rows[-1]
    lines += [
        f"{row.plan:21} {row.parallelism:11} {row.predicted_step_s:>13.3f} {row.measured_step_s:>7.3f} "
        f"{row.step_error:>+6.0%} {row.predicted_j:>14.4f} {row.measured_j:>7.4f} {row.energy_error:>+6.0%} "
        f"{row.samples_per_s:>9.1f} {row.samples_per_s / yardstick.samples_per_s:>7.2f} "
        f"{row.measured_j / yardstick.measured_j:>8.2f}  {row.devices}"
        for row in rows
    ]
    lines.append(f"(× speed and × energy against {yardstick.plan}; joules source=modelled from real CPU time)")
    return "\n".join(lines) + "\n"


def _greentrain(folder: Path, *arguments: str) -> None:
    done = subprocess.run([*_COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        reason = last[-1].removeprefix("Error: ") if last else done.stderr[-200:]
        raise RunError(f"greentrain {arguments[0]}: exit status {done.returncode}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
