"""``greentrain train`` of a plan whose devices share every sample: the run is that of one device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from work_folder import Training, make_work_folder

from greentrain.cli import main
from greentrain.ledger import read_ledger
from greentrain.workloads import load_workload


def trained(folder: Path, planner: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", planner, "--batch", "32", "--micro-batch", "16", "-o", f"{planner}.json"])
    assert ended.value.code == 0
    with Training(folder, f"{planner}.json", "--rounds", "3", "--run", planner, "--json") as training:
        code, out, err = training.end()
    assert code == 0, err
    return json.loads(out)


def test_a_shared_sample_trains_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, model="digits-vit")
    whole, split = trained(tmp_path, "single"), trained(tmp_path, "tensor-sequence")
    assert split["parallelism"] == "tensor+sequence"
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    runs = tmp_path / "runs"
    one, both = (load_file(runs / name / "model.safetensors") for name in ("single", "tensor-sequence"))
    assert {name: tensor.shape for name, tensor in both.items()} == {name: one[name].shape for name in one}
    fresh = {f"{i}.{n}": p for i, b in enumerate(load_workload("digits-vit").build(0)) for n, p in b.named_parameters()}
    for name, tensor in both.items():
        moved = (one[name] - fresh[name]).norm()
        assert (tensor - one[name]).norm() <= 0.02 * moved, name
    # Each device's rings are in the ledger: as much is received as is sent.
    rows = read_ledger(runs / "tensor-sequence" / "ledger.csv")
    sent, received = (sum(row.bytes for row in rows if row.action == action) for action in ("send", "receive"))
    assert sent == received > 0
