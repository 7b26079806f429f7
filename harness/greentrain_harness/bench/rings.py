"""Rings over uneven shards beside gloo's collectives, what their overlap hides, and what a shared layer gains.

Run as root: ``python -m greentrain_harness.bench.rings [--tables rings,overlap,layers] [--quick] [-o DIR]``. It sets up
labs of its own (network namespaces on shaped links, CPU quotas) and takes them down. Times are the slowest node's in
the best of several trials; a machine with other work to do makes them longer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import msgspec

from greentrain.errors import GreentrainError, RunError
from greentrain.runtime.network import free_port
from greentrain_harness.bench._lab_commands import greentrain, lab_down
from greentrain_harness.bench._rings_peer import Task
from greentrain_harness.lab import exec_argv, read_lab

__all__ = ["hidden_ratio", "layers_lines", "main", "overlap_lines", "rings_lines"]

_ABOUT = "Rings over uneven shards beside gloo's collectives, what their overlap hides, what a shared layer gains."
_TIMEOUT_S = 900.0

Case = dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(argv)
    tables = {"rings": _rings, "overlap": _overlap, "layers": _layers}
    with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as text:
        try:
            for name in options.tables.split(","):
                sys.stdout.write("\n".join([*tables[name](Path(text), options), "", ""]))
                sys.stdout.flush()
        except GreentrainError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.rings", description=_ABOUT)
    parser.add_argument("--tables", default="rings,overlap,layers", help="of rings, overlap, layers; comma")
    parser.add_argument("--trials", type=int, default=9, help="trials per case")
    parser.add_argument("--quick", action="store_true", help="few cases and trials: whether it works at all")
    parser.add_argument("--quotas", default="60,30", help="layers: percent of a core by node; the shares are the same")
    parser.add_argument("--bandwidths", default="10Mbit,50Mbit,100Mbit,250Mbit,1Gbit", help="layers: links; comma")
    parser.add_argument("--tokens", default="64,128,256,512", help="layers: tokens of the sample; comma")
    return parser


def _rings(folder: Path, options: argparse.Namespace) -> list[str]:
    shares = [(4, 3, 2, 1)] if options.quick else [(4, 3, 2, 1), (8, 1, 1, 1), (3, 2, 1), (3, 1)]
    sizes = (1 << 20,) if options.quick else (1 << 16, 1 << 18, 1 << 20, 1 << 22)
    lines = ["Own rings beside gloo at 100 Mbit/s, milliseconds; gain over gloo's best way"]
    for chosen in shares:
        task = Task(kind="rings", shares=chosen, sizes=sizes, trials_n=_trials(options))
        with _lab(folder, ",".join(["40"] * len(chosen)), "100Mbit") as lab:
            lines += rings_lines(chosen, _run(lab, task), header=chosen == shares[0])
    return lines


def rings_lines(shares: Sequence[int], cases: Sequence[Case], *, header: bool) -> list[str]:
    """Rows of the table of rings."""
    names = ("own", "gloo", "other way")
    columns = {
        "reduce_scatter": ("own reduce_scatter", "gloo reduce_scatter", "gloo all_to_all + sum"),
        "all_gather": ("own all_gather", "gloo padded all_gather", "gloo all_to_all"),
    }
    lines: list[str] = []
    if header:
        head = "".join(f"  {kind:>14} {names[0]:>7} {names[1]:>7} {names[2]:>9} {'gain':>6}" for kind in columns)
        lines.append(f"{'shares':10} {'KiB':>6}{head}")
    for case in cases:
        line = f"{':'.join(map(str, shares)):10} {case['size'] / 1024:6.0f}"
        for own, stock, other in columns.values():
            best_s = min(case[stock], case[other])
            line += f"  {'':14} {1e3 * case[own]:7.1f} {1e3 * case[stock]:7.1f} {1e3 * case[other]:9.1f}"
            line += f" {best_s / case[own]:5.2f}x"
        lines.append(line)
    return lines


def _overlap(folder: Path, options: argparse.Namespace) -> list[str]:
    lines = ["A product and its ring at 100 Mbit/s, milliseconds; hidden: part of the shorter that takes no time"]
    sizes = (1024,) if options.quick else (512, 1024, 2048, 4096)
    for shares in ((1, 1), (2, 1)):
        task = Task(kind="overlap", shares=shares, sizes=sizes, trials_n=_trials(options))
        with _lab(folder, "100,100", "100Mbit") as lab:
            lines += overlap_lines(shares, _run(lab, task), header=shares == (1, 1))
    return lines


def hidden_ratio(product_s: float, ring_s: float, together_s: float) -> float:
    """How much of the shorter of computing and sending takes no time of its own."""
    return (product_s + ring_s - together_s) / min(product_s, ring_s)


def overlap_lines(shares: Sequence[int], cases: Sequence[Case], *, header: bool) -> list[str]:
    """Rows of the table of overlap."""
    lines = [f"{'shares':7} {'columns':>7}  ring       product    ring   apart together  hidden"] if header else []
    for case in cases:
        for kind, ring in (("gather", "AllGather"), ("scatter", "RedScatter")):
            product_s, ring_s, apart_s, together_s = (
                case[f"{kind}: {part}"] for part in ("product", "ring", "apart", "together")
            )
            hidden = hidden_ratio(product_s, ring_s, together_s)
            lines.append(
                f"{':'.join(map(str, shares)):7} {case['size']:7.0f}  {ring:10} {1e3 * product_s:7.1f} "
                f"{1e3 * ring_s:7.1f} {1e3 * apart_s:7.1f} {1e3 * together_s:8.1f} {hidden:7.0%}"
            )
    return lines


def _layers(folder: Path, options: argparse.Namespace) -> list[str]:
    quotas = tuple(int(quota) for quota in options.quotas.split(","))
    bandwidths = ["100Mbit"] if options.quick else options.bandwidths.split(",")
    tokens = (128,) if options.quick else tuple(int(count) for count in options.tokens.split(","))
    lines = [f"Forward pass of one sample through two MiniLM layers, milliseconds, nodes of {options.quotas} %"]
    for bandwidth in bandwidths:
        task = Task(kind="layers", shares=quotas, sizes=tokens, trials_n=_trials(options))
        with _lab(folder, options.quotas, bandwidth) as lab:
            lines += layers_lines(bandwidth, _run(lab, task), header=bandwidth == bandwidths[0])
    return lines


_WAYS = {
    "tensor, even shares, gloo": "even",
    "tensor, gloo": "tensor",
    "tensor": "own ring",
    "sequence": "sequence",
    "tensor+sequence, no overlap": "t+s apart",
    "tensor+sequence": "t+s",
}


def layers_lines(bandwidth: str, cases: Sequence[Case], *, header: bool) -> list[str]:
    """Rows of the table of layers; gains of tensor+sequence over AllReduce with even and with the same shares."""
    lines: list[str] = []
    if header:
        lines.append(
            f"{'link':8} {'tokens':>6}"
            + "".join(f" {short:>9}" for short in _WAYS.values())
            + "   over even  over tensor"
        )
    for case in cases:
        times = "".join(f" {1e3 * case[way]:9.1f}" for way in _WAYS)
        gains = [case[way] / case["tensor+sequence"] for way in ("tensor, even shares, gloo", "tensor, gloo")]
        lines.append(f"{bandwidth:8} {case['size']:6.0f}{times} {gains[0]:10.2f}x {gains[1]:11.2f}x")
    return lines


def _trials(options: argparse.Namespace) -> int:
    return 2 if options.quick else options.trials


@contextlib.contextmanager
def _lab(folder: Path, quotas: str, bandwidth: str) -> Generator[str, None, None]:
    name = f"rings{os.getpid()}"
    sys.stderr.write(f"{quotas} %, {bandwidth} …\n")
    try:
        greentrain(folder, "lab", "up", "--name", name, "--quotas", quotas, "--bandwidth", bandwidth)
        yield name
    finally:
        lab_down(folder, name)


def _run(name: str, task: Task) -> list[Case]:
    """Run the peers of a task on the nodes of a lab.

    Raises:
        RunError: One failed.
    """
    lab = read_lab(name)
    address = f"{lab.nodes[0].address}:{free_port()}"
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank, node in enumerate(lab.nodes):
            words = [msgspec.json.encode(task).decode(), str(rank), address]
            argv, env = exec_argv(
                lab, node.name, [sys.executable, "-m", "greentrain_harness.bench._rings_peer", *words]
            )
            processes.append(
                subprocess.Popen(
                    argv, env={**os.environ, **env, "TORCH_CPP_LOG_LEVEL": "FATAL"}, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        ends = [process.communicate(timeout=_TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, err) in zip(processes, ends, strict=True):
        if process.returncode != 0:
            raise RunError(f"a node of the benchmark failed: {err.strip().splitlines()[-1][:300] if err else ''}.")
    return [msgspec.json.decode(line, type=Case) for line in ends[0][0].splitlines()]


if __name__ == "__main__":
    sys.exit(main())
