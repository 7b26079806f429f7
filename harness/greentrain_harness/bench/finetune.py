"""Fine-tuning methods side by side: seconds, joules per sample, memory, accuracy, and when a cache has paid.

    python -m greentrain_harness.bench.finetune [--quick] [--model minilm] [--epochs 1,3] [-o DIR]

One process per method, epoch count and seed, on this machine: the movie reviews in two classes, the same tokens, head,
batch and order for all. ``full``, ``lora`` and ``ia3`` are trained through the whole backbone (the latter two by the
library peft); ``parallel-adapters`` with and without its cache. Joules are those of this machine's meter, modelled
where it has none, and say so. A method whose package is missing is left out with a line.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greentrain.files import write_csv
from greentrain.parallel.adapters import break_even_epochs
from greentrain_harness.bench._finetune_runs import Setting, method_row, print_rows, run_method, write_reviews
from greentrain_harness.environment import host_description

__all__ = ["main"]

_METHODS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("full", "full", ()),
    ("lora", "lora", ()),
    ("ia3", "ia3", ()),
    ("parallel adapters, no cache", "parallel-adapters", ("--cache", "none")),
    ("parallel adapters, float16 cache", "parallel-adapters", ("--cache-dtype", "float16")),
    ("parallel adapters, int8 cache", "parallel-adapters", ("--cache-dtype", "int8")),
)
_NAMES = [name for name, _, _ in _METHODS]
_QUICK = ["full", "parallel adapters, no cache", "parallel adapters, float16 cache"]
_PEFT = ("lora", "ia3")
_COLUMNS = (
    "model", "method", "epochs", "seeds", "seconds", "first_epoch_s", "last_epoch_s", "j_per_sample_first",
    "j_per_sample_last", "energy_j", "source", "peak_bytes_backbone", "peak_bytes_cached", "accuracy",
    "accuracy_spread", "faster_than_full", "less_memory_than_full", "break_even_epochs_j", "break_even_epochs_s",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.finetune")
    parser.add_argument("--quick", action="store_true", help="200 texts, one seed, 2 epochs, three methods")
    parser.add_argument("--model", action="append", help="minilm, smollm2 or a folder [minilm]")
    parser.add_argument("--epochs", default="1,3", help="epoch counts, with commas [1,3]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=2500)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--methods", default="", help=f"of: {'; '.join(_NAMES)}; with semicolons [all]")
    parser.add_argument("--cluster", help="cluster.toml, such as a lab's; else this machine alone")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-finetune"))
    asked = parser.parse_args(argv)
    counts = [2] if asked.quick else [int(text) for text in asked.epochs.split(",")]
    chosen = [name.strip() for name in asked.methods.split(";")] if asked.methods else _QUICK if asked.quick else _NAMES
    if unknown := [name for name in chosen if name not in _NAMES]:
        parser.error(f"--methods: {', '.join(unknown)} is none of: {'; '.join(_NAMES)}")
    methods = [one for one in _METHODS if one[0] in chosen]
    if importlib.util.find_spec("peft") is None and any(one[1] in _PEFT for one in methods):
        print(f"left out: {', '.join(_PEFT)} (the package peft is not installed)")
        methods = [one for one in methods if one[1] not in _PEFT]
    asked.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for model in asked.model or ["minilm"]:
        for epochs in counts:
            setting = Setting(
                model=model, epochs=epochs, seeds=(0,) if asked.quick else tuple(range(asked.seeds)),
                texts=200 if asked.quick else asked.texts, tokens=asked.tokens,
            )  # fmt: skip
            rows += _compared(setting, methods, asked.output, asked.cluster)
            # After every setting, so that a sweep that is cut short has its table.
            write_csv(asked.output / "finetune.csv", _COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])
    print(f"host: {host_description()}; load average {os.getloadavg()[0]:.1f}")
    print_rows(rows, _COLUMNS)
    print(f"written: {asked.output / 'finetune.csv'}")


def _compared(
    setting: Setting, methods: Sequence[tuple[str, str, tuple[str, ...]]], output: Path, cluster: str | None
) -> list[dict[str, Any]]:
    data = write_reviews(output, setting.texts)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, method, options in methods:
        for seed in setting.seeds:
            extra = (*options, *(("--cluster", str(Path(cluster).absolute())) if cluster else ()))
            found[name].append(run_method(setting, name, method, extra, seed, data, output))
            last = found[name][-1]
            print(
                f"{setting.model} {name}, {setting.epochs} epochs, seed {seed}: {last['duration_s']:.1f} s, "
                f"accuracy {last['accuracy']:.3f}", flush=True,
            )  # fmt: skip
    rows = [method_row(setting, name, runs) for name, runs in found.items()]
    return _beside(rows)


def _beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios against full fine-tuning, and break-even against parallel adapters without a cache."""
    by_name = {row["method"]: row for row in rows}
    full, plain = by_name.get("full"), by_name.get("parallel adapters, no cache")
    for row in rows:
        if full is not None:
            # Of the last epoch: what every further epoch gains.
            row["faster_than_full"] = full["last_epoch_s"] / row["last_epoch_s"]
            peak = row["peak_bytes_cached"] or row["peak_bytes_backbone"]
            if peak is not None and full["peak_bytes_backbone"]:
                row["less_memory_than_full"] = 1 - peak / full["peak_bytes_backbone"]
        if plain is not None and "cache" in row["method"] and row is not plain and row["epochs"] > 1:
            for unit, first, last in (("j", "j_per_sample_first", "j_per_sample_last"),
                                      ("s", "first_epoch_s", "last_epoch_s")):  # fmt: skip
                if None not in (row[first], row[last], plain[first]):
                    row[f"break_even_epochs_{unit}"] = break_even_epochs(
                        once=max(row[first] - plain[first], 0.0), uncached_epoch=plain[last], cached_epoch=row[last]
                    )
    return rows


if __name__ == "__main__":
    main()
