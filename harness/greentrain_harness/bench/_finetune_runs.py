"""Runs of ``greentrain finetune`` for the benchmarks, and their rows."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greentrain.errors import RunError
from greentrain_datasets.reviews import split_snippets

__all__ = ["Setting", "method_row", "print_rows", "run_method", "write_reviews"]


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


def run_method(
    setting: Setting, name: str, method: str, options: Sequence[str], seed: int, data: Path, output: Path
) -> dict[str, Any]:
    """The summary of a method's run; one that is there already is not run again.

    Raises:
        RunError: It failed.
    """
    short = "-".join(name.replace(",", "").split())
    run = f"{Path(setting.model).name}-{short}-{setting.epochs}-{setting.texts}-{setting.tokens}-{seed}"
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


def write_reviews(output: Path, texts: int) -> Path:
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


def method_row(setting: Setting, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of a method; ``seconds`` are those of all epochs and of the redistribution."""

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


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print the columns side by side."""

    def shown(value: object) -> str:
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [list(columns), *([shown(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
