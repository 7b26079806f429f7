"""Fine-tuning methods side by side: seconds, joules per sample, memory, accuracy, and when a cache has paid.

    python -m greentrain_harness.bench.finetune [--quick] [--model minilm] [--epochs 1,3] [-o DIR]

One process per method, epoch count and seed, on this machine: the movie reviews in two classes, the same tokens, head,
batch and order for all. ``full``, ``lora`` and ``ia3`` are trained through the whole backbone (the latter two by the
library peft); ``parallel-adapters`` with and without its cache. Joules are those of this machine's meter, modelled
where it has none, and say so. A method whose package is missing is left out with a line.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greentrain.errors import RunError
from greentrain.files import write_csv
from greentrain.parallel.adapters import break_even_epochs
from greentrain_datasets.reviews import split_snippets
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
_PEFT = ("lora", "ia3")
_COLUMNS = (
    "model", "method", "epochs", "seeds", "seconds", "first_epoch_s", "last_epoch_s", "j_per_sample_first",
    "j_per_sample_last", "energy_j", "source", "peak_bytes_backbone", "peak_bytes_cached", "accuracy",
    "accuracy_spread", "faster_than_full", "less_memory_than_full", "break_even_epochs_j", "break_even_epochs_s",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is swept.

    Attributes:
        model: The backbone.
        epochs: Epochs of a run.
        seeds: Seeds of each method.
        texts: Reviews, the held-out ones included.
        tokens: Tokens of a text.
    """

    model: str
    epochs: int
    seeds: tuple[int, ...]
    texts: int
    tokens: int


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.finetune")
    parser.add_argument("--quick", action="store_true", help="200 texts, one seed, 2 epochs, three methods")
    parser.add_argument("--model", action="append", help="minilm, smollm2 or a folder [minilm]")
    parser.add_argument("--epochs", default="1,3", help="epoch counts, with commas [1,3]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=2500)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--cluster", help="cluster.toml, such as a lab's; else this machine alone")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-finetune"))
    asked = parser.parse_args(argv)
    counts = [2] if asked.quick else [int(text) for text in asked.epochs.split(",")]
    methods = [one for one in _METHODS if not asked.quick or one[0] in ("full", _METHODS[3][0], _METHODS[4][0])]
    if importlib.util.find_spec("peft") is None and not asked.quick:
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
    _print(rows)
    print(f"written: {asked.output / 'finetune.csv'}")


def _compared(
    setting: Setting, methods: Sequence[tuple[str, str, tuple[str, ...]]], output: Path, cluster: str | None
) -> list[dict[str, Any]]:
    data = _reviews(output, setting.texts)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, method, options in methods:
        for seed in setting.seeds:
            extra = (*options, *(("--cluster", str(Path(cluster).absolute())) if cluster else ()))
            found[name].append(_run(setting, name, method, extra, seed, data, output))
            last = found[name][-1]
            print(
                f"{setting.model} {name}, {setting.epochs} epochs, seed {seed}: {last['duration_s']:.1f} s, "
                f"accuracy {last['accuracy']:.3f}", flush=True,
            )  # fmt: skip
    rows = [_row(setting, name, runs) for name, runs in found.items()]
    return _beside(rows)


def _run(
    setting: Setting, name: str, method: str, options: Sequence[str], seed: int, data: Path, output: Path
) -> dict[str, Any]:
    short = "-".join(name.replace(",", "").split())
    run = f"{Path(setting.model).name}-{short}-{setting.epochs}-{setting.texts}-{seed}"
    done = output / "runs" / run / "finetune_summary.json"
    if not done.exists():
        command = [
            sys.executable, "-m", "greentrain.cli", "finetune", "--model", setting.model, "--data", str(data),
            "--text", "text", "--label", "label", "--tokens", str(setting.tokens), "--epochs", str(setting.epochs),
            "--method", method, "--seed", str(seed), "--run", run, "--json", *options,
        ]  # fmt: skip
        ended = subprocess.run(command, cwd=output, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RunError(f"{name}: {ended.stderr.strip().splitlines()[-1] if ended.stderr else 'failed'}")
    return json.loads(done.read_text())


def _reviews(output: Path, texts: int) -> Path:
    """The reviews as the CSV that a person would have."""
    train, test, train_classes, test_classes = split_snippets()
    words = [*train, *test]
    classes = [*train_classes.tolist(), *test_classes.tolist()]
    path = (output / f"reviews-{texts}.csv").absolute()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(zip(words[:texts], ("good" if one else "bad" for one in classes), strict=False))
    return path


def _row(setting: Setting, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None

    first, last = [run["epochs"][0] for run in runs], [run["epochs"][-1] for run in runs]
    accuracy = [run["accuracy"] for run in runs]
    return {
        "model": setting.model, "method": name, "epochs": setting.epochs, "seeds": len(runs),
        "seconds": mean([sum(epoch["duration_s"] for epoch in run["epochs"]) + run["moved_s"] for run in runs]),
        "first_epoch_s": mean([epoch["duration_s"] for epoch in first]),
        "last_epoch_s": mean([epoch["duration_s"] for epoch in last]),
        "j_per_sample_first": mean([epoch["joules_per_sample"] for epoch in first]),
        "j_per_sample_last": mean([epoch["joules_per_sample"] for epoch in last]),
        "energy_j": mean([run["energy_j"] for run in runs]), "source": runs[0]["source"],
        "peak_bytes_backbone": mean([run["peak_bytes"].get("backbone") for run in runs]),
        "peak_bytes_cached": mean([run["peak_bytes"].get("cached") for run in runs]),
        "accuracy": statistics.fmean(accuracy),
        "accuracy_spread": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
        "faster_than_full": None, "less_memory_than_full": None, "break_even_epochs_j": None,
        "break_even_epochs_s": None,
    }  # fmt: skip


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


def _print(rows: Sequence[dict[str, Any]]) -> None:
    def shown(value: object) -> str:
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [list(_COLUMNS), *([shown(row[name]) for name in _COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
