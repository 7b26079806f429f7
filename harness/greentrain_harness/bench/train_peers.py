"""Samples per second of training, beside torch's DistributedDataParallel and 1F1B on the same emulated nodes.

Run as root: ``python -m greentrain_harness.bench.train_peers [--model digits-cnn] [--quotas 40,40] [--bandwidth 1Gbit]
[--repetitions 5]``. It sets up a lab of its own, measures and plans once, and then trains the same batch with every
method in turn, again and again: what else the machine does meets them all. The rounds of greentrain are those of the
ledger of ``greentrain train``, with metering and logging; the others do neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from greentrain.errors import GreentrainError, RunError
from greentrain.files import read_json
from greentrain.ledger import read_ledger
from greentrain.plan import PLAN_SCHEMA, Plan, parallelism_name
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_nodes
from greentrain_harness.bench._train_peer import POWERSGD_RANK
from greentrain_harness.lab import exec_argv, read_lab

__all__ = ["main", "table"]

_ABOUT = "Samples per second beside torch's DistributedDataParallel and 1F1B on the same emulated nodes."

# Method -> (planner of its plan, options of greentrain train; None: torch trains).
_METHODS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "greentrain data": ("data-equal", ()),
    "ddp": ("data-equal", None),
    "greentrain data, fp16": ("data-equal", ("--compress", "fp16")),
    "ddp-fp16": ("data-equal", None),
    "greentrain data, powersgd": ("data-equal", ("--compress", f"powersgd:{POWERSGD_RANK}")),
    "ddp-powersgd": ("data-equal", None),
    "greentrain pipeline": ("pipeline", ()),
    "1f1b": ("pipeline", None),
}
# What of greentrain does the same as each of torch's.
_COUNTERPARTS = {
    "ddp": "greentrain data",
    "ddp-fp16": "greentrain data, fp16",
    "ddp-powersgd": "greentrain data, powersgd",
    "1f1b": "greentrain pipeline",
}
# Rounds before caches are warm and buffers allocated.
_WARM_UP_N = 3
_TIMEOUT_S = 1200.0
_PORT = 29400


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A lab that stands, and what is trained on it."""

    folder: Path
    lab: str
    rounds_n: int

    def plan_path(self, planner: str) -> Path:
        return self.folder / f"{planner}.json"

    def plan(self, planner: str) -> Plan:
        return read_json(self.plan_path(planner), Plan, schema=PLAN_SCHEMA)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    methods = [name.strip() for name in options.methods.split(";")] if options.methods else list(_METHODS)
    name = f"peers{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as text:
        bench = _Bench(folder=Path(text), lab=name, rounds_n=options.rounds)
        try:
            _set_up(bench, options, {_METHODS[method][0] for method in methods})
            found: defaultdict[str, list[float]] = defaultdict(list)
            for repetition in range(options.repetitions):
                for method in methods:
                    sys.stderr.write(f"{repetition + 1}/{options.repetitions}: {method} …\n")
                    found[method].append(_samples_per_s(bench, method, repetition))
        except GreentrainError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.exit_code
        finally:
            lab_down(bench.folder, name)
        plans = {planner: bench.plan(planner) for planner in {_METHODS[method][0] for method in methods}}
    sys.stdout.write(table(found, plans, f"{options.model}, nodes of {options.quotas} %, {options.bandwidth}"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.train_peers", description=_ABOUT)
    parser.add_argument("--model", default="digits-cnn")
    parser.add_argument("--quotas", default="40,40", help="percent of a core by node, comma; as many nodes")
    parser.add_argument("--bandwidth", default="1Gbit", help="each node's link")
    parser.add_argument("--batch", help="samples per round; default: the model's")
    parser.add_argument("--data-micro-batch", help="of data parallelism; default: the batch")
    parser.add_argument("--pipeline-micro-batch", default="8")
    parser.add_argument("--rounds", type=int, default=20, help=f"per repetition, after {_WARM_UP_N} to warm up")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", help=f"of {'; '.join(_METHODS)}; default: all")
    return parser


def _set_up(bench: _Bench, options: argparse.Namespace, planners: set[str]) -> None:
    folder = bench.folder
    greentrain(
        folder, "lab", "up", "--name", bench.lab, "--quotas", options.quotas, "--bandwidth", options.bandwidth
    )  # fmt: skip
    measure_nodes(folder, bench.lab, [options.model])
    greentrain(folder, "cluster", "init", "--lab", bench.lab, "--force")
    batch = ["--batch", options.batch] if options.batch else []
    for planner in planners:
        size = options.pipeline_micro_batch if planner == "pipeline" else options.data_micro_batch or options.batch
        micro = ["--micro-batch", size] if size else []
        greentrain(
            folder, "schedule", "--planner", planner, "--model", options.model, *batch, *micro, "--no-explain",
            "-o", str(bench.plan_path(planner)),
        )  # fmt: skip


def _samples_per_s(bench: _Bench, method: str, repetition: int) -> float:
    """Samples of a round over the median of its seconds."""
    planner, options = _METHODS[method]
    if options is None:
        seconds = _train_peer(bench, method, planner, repetition)
    else:
        run = f"{method.replace(', ', '-').replace(' ', '-')}-{repetition}"
        rounds = str(bench.rounds_n + _WARM_UP_N)
        greentrain(bench.folder, "train", str(bench.plan_path(planner)), "--run", run, "--rounds", rounds, *options)
        rows = read_ledger(bench.folder / "runs" / run / "ledger.csv")
        seconds = [row.duration_s for row in rows if row.action == "step" and row.rank == 0]
    return bench.plan(planner).batch / statistics.median(seconds[_WARM_UP_N:])


def _train_peer(bench: _Bench, method: str, planner: str, repetition: int) -> list[float]:
    """Seconds of the rounds of torch's own way.

    Raises:
        RunError: A rank failed.
    """
    lab, plan = read_lab(bench.lab), bench.plan(planner)
    # A port of its own each time: the last one may still be held by the kernel.
    coordinator = f"{lab.node(plan.devices[0]).address}:{_PORT + repetition}"
    ranks: list[subprocess.Popen[str]] = []
    try:
        for device in plan.devices:
            argv = [
                sys.executable, "-W", "ignore", "-m", "greentrain_harness.bench._train_peer", method,
                str(bench.plan_path(planner)), device, coordinator, str(bench.rounds_n + _WARM_UP_N),
            ]  # fmt: skip
            inside, environment = exec_argv(lab, device, argv)
            ranks.append(
                subprocess.Popen(
                    inside, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        said = [rank.communicate(timeout=_TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for rank, (_, error) in zip(ranks, said, strict=True):
        if rank.returncode != 0:
            last = (error.strip().splitlines() or [f"exit status {rank.returncode}"])[-1]
            raise RunError(f"{method}: {last[:200]}", hint="Leave it out with --methods.")
    return json.loads(said[0][0].splitlines()[-1])


def table(found: Mapping[str, Sequence[float]], plans: Mapping[str, Plan], where: str) -> str:
    """Samples per second of each method, and greentrain's way of the same over it: medians over the repetitions."""
    lines = [f"{where}: samples/s, median (least to most) of {max(len(row) for row in found.values())} repetitions"]
    for planner, plan in plans.items():
        lines.append(
            f"{parallelism_name(plan)}, batch {plan.batch}, micro-batch {plan.micro_batch}, layers "
            + " ".join(f"{stage.start}-{stage.stop}" for stage in plan.stages)
        )
        for name, values in found.items():
            if _METHODS[name][0] == planner:
                middle = statistics.median(values)
                own = found.get(_COUNTERPARTS.get(name, ""))
                ratio = f"  greentrain × {_ratio(own, values):.3f}" if own is not None else ""
                lines.append(f"  {name:30} {middle:9.1f} ({min(values):.1f} to {max(values):.1f}){ratio}")
    return "\n".join(lines) + "\n"


def _ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """Median over the repetitions of one over the other, each pair measured one right after the other."""
    return statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
