"""Fine-tuning methods on an emulated cluster: parallel adapters beside data and pipeline parallelism of the others.

Run as root: ``python -m greentrain_harness.bench.finetune_lab [--model minilm] [--quotas 40,40,40,40] [--bandwidths
100Mbit,1000Mbit] [--epochs 3] [-o DIR]``. For every bandwidth it sets up a lab of its own, measures every node with
every method, trains each from start to end on the movie reviews, and takes the lab down. Full fine-tuning and, with the
library peft, LoRA run under plans that share samples over all nodes and that cut the model into one stage per node;
parallel adapters under the plan that is best in energy and in time. Runs that lie in DIR are not run again. Joules are
modelled from the nodes' real CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from greentrain.errors import GreentrainError
from greentrain.files import write_csv
from greentrain.workloads.adapters.named import workload_name
from greentrain.workloads.adapters.task import Method
from greentrain_harness.bench._finetune_runs import Setting, method_row, print_rows, run_method, write_reviews
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_links, measure_nodes
from greentrain_harness.environment import host_description

__all__ = ["main"]


class _Way(NamedTuple):
    """A method under a plan."""

    name: str
    method: Method
    options: tuple[str, ...]


_WAYS = (
    _Way("full, data", "full", ("--planner", "data")),
    _Way("full, pipeline", "full", ("--planner", "pipeline")),
    _Way("full, best in time", "full", ("--objective", "time")),
    _Way("lora, data", "lora", ("--planner", "data")),
    _Way("lora, pipeline", "lora", ("--planner", "pipeline")),
    _Way("parallel adapters, best in time", "parallel-adapters", ("--objective", "time")),
    _Way("parallel adapters, best in energy", "parallel-adapters", ("--objective", "energy")),
)
_COLUMNS = (
    "model", "quotas", "bandwidth", "method", "epochs", "texts", "devices", "seconds", "with_start_s", "first_epoch_s",
    "last_epoch_s", "j_per_sample", "source", "peak_bytes_backbone", "peak_bytes_cached", "accuracy",
    "faster_than_full_data", "faster_than_full_pipeline", "less_memory_than_full_data", "less_j_than_full_data",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.finetune_lab")
    parser.add_argument("--model", default="minilm", help="minilm or smollm2 [minilm]")
    parser.add_argument("--quotas", default="40,40,40,40", help="percent of a core by node, comma [40,40,40,40]")
    parser.add_argument("--bandwidths", default="100Mbit,1000Mbit", help="links of all nodes, comma")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--texts", type=int, default=400, help="a fifth of them is held out [400]")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ways", default="", help=f"of: {'; '.join(way.name for way in _WAYS)}; with semicolons [all]")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-finetune-lab"))
    asked = parser.parse_args(argv)
    known = {way.name: way for way in _WAYS}
    chosen = [name.strip() for name in asked.ways.split(";")] if asked.ways else list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--ways: {', '.join(unknown)} is none of: {'; '.join(known)}")
    ways = [known[name] for name in chosen]
    if importlib.util.find_spec("peft") is None:
        sys.stdout.write("left out: lora (the package peft is not installed)\n")
        ways = [way for way in ways if way.method != "lora"]
    rows: list[dict[str, Any]] = []
    try:
        for bandwidth in asked.bandwidths.split(","):
            for row in _on_cluster(asked, bandwidth, ways):
                rows.append(row)
                _beside([one for one in rows if one["bandwidth"] == bandwidth])
                cells = [[one[name] for name in _COLUMNS] for one in rows]
                write_csv(asked.output / "finetune_lab.csv", _COLUMNS, cells)
    except GreentrainError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    finally:
        sys.stdout.write(f"host: {host_description()}; load average {os.getloadavg()[0]:.1f}\n")
        print_rows(rows, _COLUMNS)
    return 0


def _on_cluster(asked: argparse.Namespace, bandwidth: str, ways: Sequence[_Way]) -> Iterator[dict[str, Any]]:
    """A row for every way on one cluster; profiles of the nodes stay in the folder, for the next bandwidth."""
    folder: Path = asked.output / asked.quotas.replace(",", "-")
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(model=asked.model, epochs=asked.epochs, seeds=(0,), texts=asked.texts, tokens=asked.tokens)
    data = write_reviews(folder, setting.texts)
    models = dict.fromkeys(
        workload_name(asked.model, way.method, cached=cached)
        for way in ways
        for cached in ((False, True) if way.method == "parallel-adapters" else (False,))
    )
    lab = f"finetune{os.getpid()}"
    try:
        greentrain(folder, "lab", "up", "--name", lab, "--quotas", asked.quotas, "--bandwidth", bandwidth)
        measure_nodes(folder, lab, list(models))
        measure_links(folder, lab, bandwidth)
        greentrain(folder, "cluster", "init", "--lab", lab, "--force")
        for way in ways:
            options = (*way.options, "--cluster", "cluster.toml")
            found = run_method(setting, f"{bandwidth} {way.name}", way.method, options, 0, data, folder)
            row = method_row(setting, way.name, [found])
            sys.stdout.write(f"{bandwidth}, {way.name}: {row['seconds']:.1f} s\n")
            sys.stdout.flush()
            yield {
                **row, "quotas": asked.quotas, "bandwidth": bandwidth, "texts": asked.texts,
                "devices": len(found["devices"]), "with_start_s": found["duration_s"], "j_per_sample": _epochs_j(found),
                "faster_than_full_data": None, "faster_than_full_pipeline": None, "less_memory_than_full_data": None,
                "less_j_than_full_data": None,
            }  # fmt: skip
    finally:
        lab_down(folder, lab)


def _epochs_j(found: dict[str, Any]) -> float | None:
    """Joules of all epochs per sample and epoch."""
    joules = [epoch["joules_per_sample"] for epoch in found["epochs"]]
    return None if None in joules else sum(joules) / len(joules)


def _beside(rows: Sequence[dict[str, Any]]) -> None:
    """Ratios against full fine-tuning on the same cluster: of the whole run, and of the memory of the last epochs."""
    by_name = {row["method"]: row for row in rows}
    data, pipeline = by_name.get("full, data"), by_name.get("full, pipeline")
    for row in rows:
        if pipeline is not None:
            row["faster_than_full_pipeline"] = pipeline["seconds"] / row["seconds"]
        if data is None:
            continue
        row["faster_than_full_data"] = data["seconds"] / row["seconds"]
        peak = row["peak_bytes_cached"] or row["peak_bytes_backbone"]
        if peak is not None and data["peak_bytes_backbone"]:
            row["less_memory_than_full_data"] = 1 - peak / data["peak_bytes_backbone"]
        if row["j_per_sample"] is not None and data["j_per_sample"]:
            row["less_j_than_full_data"] = 1 - row["j_per_sample"] / data["j_per_sample"]


if __name__ == "__main__":
    sys.exit(main())
