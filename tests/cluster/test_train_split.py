"""``greentrain train`` of a plan whose devices share every sample: the run is that of one device."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from crew import Crew
from safetensors.torch import load_file
from torch import Tensor
from work_folder import Training, make_work_folder

from greentrain.cli import main
from greentrain.ledger import read_ledger
from greentrain.runtime.network import free_port
from greentrain.workloads import load_workload

DEVICES = ("a", "b", "c")
ROUNDS = 40


def scheduled(planner: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", planner, "--batch", "32", "--micro-batch", "16", "-o", f"{planner}.json"])
    assert ended.value.code == 0


def trained(
    folder: Path, planner: str, *arguments: str, run: str | None = None, rounds: int = 3
) -> dict[str, object]:  # fmt: skip
    scheduled(planner)
    words = ("--rounds", str(rounds), "--checkpoint-every", "2", "--run", run or planner, "--json", *arguments)
    with Training(folder, f"{planner}.json", *words) as training:
        code, out, err = training.end()
    assert code == 0, err
    return json.loads(out)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def test_a_shared_sample_trains_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, model="digits-vit")
    whole, split = trained(tmp_path, "single"), trained(tmp_path, "tensor-sequence")
    assert split["parallelism"] == "tensor+sequence"
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    runs = tmp_path / "runs"
    one, both = (weights(runs / name) for name in ("single", "tensor-sequence"))
    assert {name: tensor.shape for name, tensor in both.items()} == {name: one[name].shape for name in one}
    fresh = {f"{i}.{n}": p for i, b in enumerate(load_workload("digits-vit").build(0)) for n, p in b.named_parameters()}

    def assert_near(found: dict[str, Tensor]) -> None:
        for name, tensor in found.items():
            moved = (one[name] - fresh[name]).norm()
            assert (tensor - one[name]).norm() <= 0.02 * moved, name

    assert_near(both)
    # Either goes on from the other's checkpoint.
    for planner, before in (("single", "tensor-sequence"), ("tensor-sequence", "single")):
        resumed = trained(tmp_path, planner, "--resume", f"runs/{before}", run=f"{planner}-on")
        assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert_near(weights(runs / f"{planner}-on"))
    # Each device's rings are in the ledger: as much is received as is sent.
    rows = read_ledger(runs / "tensor-sequence" / "ledger.csv")
    sent, received = (sum(row.bytes for row in rows if row.action == action) for action in ("send", "receive"))
    assert sent == received > 0


def test_a_device_with_parts_of_layers_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, model="digits-vit", devices=DEVICES)
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(re.sub(r'cpus = "\d"', "threads = 1", cluster.read_text()))
    whole = trained(tmp_path, "single", rounds=ROUNDS)
    scheduled("tensor-sequence")
    crew = Crew(tmp_path, "tensor-sequence", free_port(), ROUNDS)
    try:
        for device in DEVICES:
            crew.start(device, "--losses-per-hour", "20000")
        crew.come_to(12)
        crew.signal("b", signal.SIGKILL)
        summary = crew.end("a", "c")
    finally:
        crew.close()
    (lost,) = summary.recoveries
    assert lost.lost == ("b",)
    assert 0 < lost.redone_rounds < lost.round  # From a copy, not from the start.
    assert (summary.status, summary.rounds) == ("finished", ROUNDS)
    assert summary.loss == pytest.approx(whole["loss"], rel=1e-3)
    rows = read_ledger(tmp_path / "runs" / "tensor-sequence" / "ledger.csv")
    assert any(row.action == "copy" and row.bytes > 0 for row in rows)
