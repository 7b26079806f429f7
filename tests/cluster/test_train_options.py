"""``greentrain train`` with what a run may be told beside its plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from work_folder import Training, make_work_folder

from greentrain.cli import main
from greentrain.ledger import read_ledger
from greentrain.runtime.network import free_port


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of two devices that share samples and compute activations again."""
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["schedule", "--planner", "data", "--recompute", "--no-explain"])
    assert ended.value.code == 0
    return tmp_path


def test_the_ledger_counts_what_was_sent(folder: Path) -> None:
    options = ("--compress", "fp16", "--rounds", "2", "--run", "r", "--json")
    with Training(folder, "plan.json", *options) as training:
        code, out, err = training.end()
    assert code == 0, err
    assert json.loads(out)["status"] == "finished"
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["recompute"]
    sent = [row.bytes for row in read_ledger(folder / "runs" / "r" / "ledger.csv") if row.action == "send"]
    # A ring over two devices sends each gradient once; halves are half of it.
    assert sent == [plan["stages"][0]["param_bytes"] // 2] * 4


def test_workers_with_other_options_refuse_to_train(folder: Path) -> None:
    common = ("plan.json", "--coordinator", f"127.0.0.1:{free_port()}", "--as")
    with (
        Training(folder, *common, "a", "--compress", "powersgd:2") as one,
        Training(folder, *common, "b") as two,
    ):
        ends = (one.end(within_s=55), two.end(within_s=55))
    for code, _, err in ends:
        assert code == 2
        assert "gradients as powersgd of rank 2" in err
    assert not (folder / "runs").exists()


def test_options_that_exclude_each_other(folder: Path) -> None:
    with Training(folder, "plan.json", "--compress", "powersgd", "--precision", "fp16") as training:
        code, _, err = training.end()
    assert code == 2
    assert "exclude each other" in err
