"""``greentrain infer``: every way to share a model answers alike, and says what a request cost."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from work_folder import make_work_folder

from greentrain.cli import main
from greentrain.workloads import load_workload
from greentrain.workloads.workload import run_blocks
from greentrain_datasets.loaders import load_dataset

# Planner -> rows per request.
PLANS = {"single": 3, "pipeline": 3, "data": 6, "tensor-sequence": 3}


def answered(folder: Path, planner: str, rows: int) -> tuple[dict[str, object], list[list[int]]]:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", planner, "--batch", "16", "--micro-batch", "16", "-o", f"{planner}.json"])
    assert ended.value.code == 0
    arguments = [f"{planner}.json", "--requests", "4", "--rows", str(rows), "--run", planner, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "greentrain.cli", "infer", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (folder / "runs" / planner / "requests.csv").open() as file:
        found = [[int(word) for word in row["predictions"].split()] for row in csv.DictReader(file)]
    return json.loads(done.stdout), found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("planner", PLANS)
def test_requests_are_answered(planner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, model="digits-vit")
    rows = PLANS[planner]
    facts, found = answered(tmp_path, planner, rows)
    workload, data = load_workload("digits-vit"), load_dataset("digits")
    with torch.no_grad():
        for number, predictions in enumerate(found):
            chosen = np.arange(rows) + number * rows
            inputs = tuple(torch.from_numpy(array[chosen]) for array in data.test_inputs)
            assert run_blocks(workload.build(0), inputs)[0].argmax(1).tolist() == predictions
    assert (facts["requests"], facts["rows"], facts["source"]) == (4, rows, "modelled")
    median_s, p95_s, joules = (facts[name] for name in ("latency_median_s", "latency_p95_s", "joules_per_request"))
    assert isinstance(median_s, float)
    assert isinstance(p95_s, float)
    assert isinstance(joules, float)
    assert 0 < median_s <= p95_s
    assert joules > 0
    sent = facts["sent_bytes_per_request"]
    assert isinstance(sent, dict)
    assert (sum(sent.values()) == 0) == (planner in ("single", "data"))
