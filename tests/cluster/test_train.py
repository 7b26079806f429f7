"""``greentrain train`` with real workers: what a finished run leaves, and workers that are started by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors.torch import load_file
from work_folder import Training, make_work_folder, unreadable

from greentrain.cli import main
from greentrain.ledger import energy_uj, read_ledger
from greentrain.runtime.network import free_port
from greentrain.workloads import load_workload


def schedule(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", *arguments])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    """Three rounds of digits-cnn on two local workers: the run's folder, the printed summary, standard error."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_work_folder(folder, model="digits-cnn")
        schedule("--planner", "data")
        with Training(folder, "plan.json", "--rounds", "3", "--run", "r", "--json") as training:
            code, out, err = training.end()
    assert code == 0, err
    return folder / "runs" / "r", json.loads(out), err


def test_the_summary_says_what_it_cost_and_reached(finished: tuple[Path, dict[str, object], str]) -> None:
    run, printed, err = finished
    summary = json.loads((run / "summary.json").read_text())
    assert {name: summary[name] for name in printed} == printed
    assert (summary["status"], summary["rounds"], summary["devices"]) == ("finished", 3, ["a", "b"])
    assert summary["samples"] == 3 * json.loads((run / "plan.json").read_text())["batch"]
    assert 0 <= summary["accuracy"] <= 1
    assert summary["accuracy_baseline"] > 0
    for side in ("predicted", "measured"):
        assert summary[side]["joules_per_sample"] > 0
        assert summary[side]["samples_per_s"] > 0
        assert set(summary[side]["energy_j"]) == {"a", "b"}
    assert not unreadable(err)
    assert [path.read_text() for path in sorted((run / "logs").iterdir())] == ["", ""]


def test_ranks_and_devices_add_up_to_the_same_microjoule(finished: tuple[Path, dict[str, object], str]) -> None:
    run, printed, _ = finished
    rows = read_ledger(run / "ledger.csv")
    by_rank: defaultdict[int, int] = defaultdict(int)
    by_device: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        if row.energy_j is not None:
            by_rank[row.rank] += energy_uj(row.energy_j)
            by_device[row.device] += energy_uj(row.energy_j)
    assert by_rank == {0: by_device["a"], 1: by_device["b"]}
    assert sum(by_rank.values()) / 1e6 == printed["energy_j"]
    assert {device: joules / 1e6 for device, joules in by_device.items()} == printed["energy_j_by_device"]


def test_modelled_stays_modelled_up_to_the_report(
    finished: tuple[Path, dict[str, object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, printed, _ = finished
    assert printed["source"] == "modelled"
    assert {row.source for row in read_ledger(run / "ledger.csv")} == {"modelled"}
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--json"])
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["runs"][0]["headline"]["source"] == "modelled"
    assert set(facts["runs"][0]["source_by_device"].values()) == {"modelled"}


def test_the_whole_model_is_kept(finished: tuple[Path, dict[str, object], str]) -> None:
    run, _, _ = finished
    blocks = load_workload("digits-cnn").build(0)
    shapes = {f"{i}.{name}": p.shape for i, block in enumerate(blocks) for name, p in block.named_parameters()}
    assert {name: tensor.shape for name, tensor in load_file(run / "model.safetensors").items()} == shapes


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path)
    schedule("--planner", "pipeline", "--micro-batch", "8")
    return tmp_path


def start_by_hand(folder: Path, device: str, port: int, *arguments: str) -> Training:
    return Training(folder, "plan.json", "--as", device, "--coordinator", f"127.0.0.1:{port}", *arguments)


def test_workers_that_are_started_by_hand(by_hand: Path) -> None:
    port = free_port()
    plan = json.loads((by_hand / "plan.json").read_text())
    first, second = (device for stage in plan["stages"] for device in stage["devices"])
    with (
        start_by_hand(by_hand, first, port, "--run", "h", "--rounds", "3") as one,
        start_by_hand(by_hand, second, port, "--run", "h", "--rounds", "3", "--json") as two,
    ):
        leader, follower = one.end(), two.end()
    assert (leader[0], follower[0]) == (0, 0), leader[2] + follower[2]
    assert "3 rounds" in leader[1]
    assert follower[1] == ""  # One object or none: the summary is the first device's.
    summary = json.loads((by_hand / "runs" / "h" / "summary.json").read_text())
    assert (summary["status"], summary["parallelism"], summary["rounds"]) == ("finished", "pipeline", 3)


def test_workers_with_other_seeds_refuse_to_train(by_hand: Path) -> None:
    port = free_port()
    with start_by_hand(by_hand, "a", port) as one, start_by_hand(by_hand, "b", port, "--seed", "1") as two:
        ends = (one.end(), two.end())
    for code, out, err in ends:
        assert code == 2
        assert out == ""
        sentence = next(line for line in err.splitlines() if line.startswith("Error: "))
        assert "a has settings seed 0" in sentence
        assert "b has settings seed 1" in sentence
        assert not unreadable(err)
    assert not (by_hand / "runs").exists()
