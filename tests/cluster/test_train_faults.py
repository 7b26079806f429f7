"""Devices that are lost while a run goes on: the losses are those of an undisturbed run, whoever it is."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from crew import Crew
from work_folder import make_work_folder, until

from greentrain.cli._problem import load_plan, problem_of_plan
from greentrain.cost import CostTables
from greentrain.files import canonical_sha256, read_json, write_json
from greentrain.ledger import energy_uj, read_ledger
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.planners.candidate import Part, assemble
from greentrain.runtime.network import free_port
from greentrain.runtime.worker import Job, train
from greentrain.summary import Recovery, Summary
from greentrain.training_data import TrainingData
from greentrain.workloads import load_workload
from greentrain_datasets.loaders import load_dataset

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="recovery needs Linux"),
    # Three processes that import torch; on a busy machine that alone takes most of a minute.
    pytest.mark.timeout(180),
]

ROUNDS = 80
# Of a forward pass: long enough that a worker comes back before the run is over.
PAUSE_S = 0.15
DEVICES = ("a", "b", "c")
ONE = ("current",)
PLANS: dict[str, list[Part]] = {
    "single": [Part(0, 4, ("a",), (8,), ONE)],
    "data": [Part(0, 4, DEVICES, (4, 2, 2), ONE * 3)],
    "pipeline": [Part(0, 2, ("a",), (8,), ONE), Part(2, 3, ("b",), (8,), ONE), Part(3, 4, ("c",), (8,), ONE)],
    "hybrid": [Part(0, 2, ("a", "b"), (5, 3), ONE * 2), Part(2, 4, ("c",), (8,), ONE)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with plans for three workers on one machine."""
    found = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        make_work_folder(found, devices=DEVICES)
        cluster = found / "cluster.toml"
        cluster.write_text(re.sub(r'cpus = "\d"', "threads = 1", cluster.read_text()))
        subprocess.run(
            [sys.executable, "-m", "greentrain.cli", "schedule", "--planner", "data", "-o", "base.json"],
            check=True, capture_output=True,
        )  # fmt: skip
        base = load_plan(Path("base.json"))
        _, problem = problem_of_plan(base, Path("base.json"), cluster, Path("profiles"))
        for name, parts in PLANS.items():
            plan = assemble(problem, "hand", 8, parts, CostTables(problem))
            write_json(found / f"{name}.json", plan, schema=PLAN_SCHEMA)
    return found


def make_job(folder: Path, run: str, **changes: object) -> Job:
    """A job for one device in this process."""
    plan = read_json(folder / "single.json", Plan, schema=PLAN_SCHEMA)
    workload = load_workload("net.py:workload")
    data: TrainingData = load_dataset(workload.dataset)
    fields: dict[str, object] = {
        "run": run, "plan": plan, "plan_sha256": canonical_sha256(plan), "device": "a", "board": "pc",
        "workload": workload, "data": data, "epochs": 100, "max_rounds": ROUNDS, "seed": 0, "host": "127.0.0.1",
        "run_dir": folder / "runs" / run, "port": free_port(), "reach_timeout_s": 5.0, "join_timeout_s": 5.0,
        "message_timeout_s": 5.0,
    }  # fmt: skip
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[float, ...]:
    """Loss of every round on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        trained = train(make_job(folder, "undisturbed"), None, lambda progress: None)
    assert trained is not None
    net = folder / "net.py"
    net.write_text(net.read_text().replace("PAUSE_S = 0.0", f"PAUSE_S = {PAUSE_S}"))
    return trained.losses


@pytest.fixture
def crew(folder: Path) -> Iterator[Callable[..., Crew]]:
    made: list[Crew] = []

    def make(plan: str, *arguments: str, devices: Sequence[str] = DEVICES) -> Crew:
        found = Crew(folder, plan, free_port(), ROUNDS)
        made.append(found)
        for device in devices:
            found.start(device, *arguments)
        return found

    yield make
    for found in made:
        found.close()


def check_losses(summary: Summary, undisturbed: tuple[float, ...]) -> None:
    """Nothing was lost: every epoch's loss is that of an undisturbed run."""
    epochs = [undisturbed[first : first + 10] for first in range(0, ROUNDS, 10)]
    assert summary.loss_by_epoch == pytest.approx([sum(epoch) / len(epoch) for epoch in epochs], rel=2e-5)
    assert summary.loss == pytest.approx(undisturbed[-1], rel=2e-5)
    assert (summary.status, summary.rounds) == ("finished", ROUNDS)


def check_joules(folder: Path, run: str, summary: Summary) -> None:
    """The ledger's joules are the summary's, and what the recoveries cost is among them."""
    rows = read_ledger(folder / "runs" / run / "ledger.csv")
    counted = [row for row in rows if row.action in ("step", "recovery") and row.energy_j is not None]
    assert summary.energy_j == sum(energy_uj(row.energy_j or 0.0) for row in counted) / 1e6
    assert sum(causes.get("recovery", 0.0) for causes in summary.measured.energy_j.values()) > 0
    per_round = {(row.device, row.step) for row in rows if row.action == "step"}
    assert len(per_round) == sum(row.action == "step" for row in rows)


def check_recovery(recovery: Recovery, *, lost: tuple[str, ...], detected_within_s: float) -> None:
    assert recovery.lost == lost
    assert recovery.detected_s is not None
    assert recovery.detected_s < detected_within_s
    assert recovery.energy_j is not None
    assert recovery.energy_j > 0


def test_the_coordinator_is_killed_and_comes_back(
    crew: Callable[..., Crew], folder: Path, undisturbed: tuple[float, ...]
) -> None:
    run = crew("data")
    run.come_to(5)
    run.signal("a", signal.SIGKILL)
    run.processes["a"].wait()
    run.start("a")
    summary = run.end("b", "c", "a")
    lost, *others = summary.recoveries
    # A busy machine is no failure: the limits of the runtime itself are a third of these.
    check_recovery(lost, lost=("a",), detected_within_s=3)
    assert lost.redone_rounds == 0
    assert [recovery.joined for recovery in others] == [("a",)]
    check_losses(summary, undisturbed)
    check_joules(folder, "data", summary)


def test_layers_move_when_the_middle_of_a_pipeline_is_killed(
    crew: Callable[..., Crew], folder: Path, undisturbed: tuple[float, ...]
) -> None:
    run = crew("pipeline", "--losses-per-hour", "20000")
    run.come_to(12)
    run.signal("b", signal.SIGKILL)
    summary = run.end("a", "c")
    (recovery,) = summary.recoveries
    check_recovery(recovery, lost=("b",), detected_within_s=3)
    assert 0 < recovery.redone_rounds < recovery.round  # From a copy, not from the start.
    check_losses(summary, undisturbed)
    check_joules(folder, "pipeline", summary)


def test_a_frozen_device_is_left_behind_and_returns_by_itself(
    crew: Callable[..., Crew], folder: Path, undisturbed: tuple[float, ...]
) -> None:
    run = crew("hybrid", "--losses-per-hour", "20000")
    run.come_to(4)
    run.signal("c", signal.SIGSTOP)
    until(lambda: "c lost" in run.said("a"), within_s=20)
    run.signal("c", signal.SIGCONT)
    summary = run.end("a", "b", "c")
    check_recovery(summary.recoveries[0], lost=("c",), detected_within_s=6)
    assert [recovery.joined for recovery in summary.recoveries] == [(), ("c",)]
    check_losses(summary, undisturbed)
    check_joules(folder, "hybrid", summary)


def test_a_run_goes_on_from_its_checkpoint(
    folder: Path, undisturbed: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from greentrain.runtime.checkpoints import open_checkpoint

    monkeypatch.chdir(folder)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    first = make_job(folder, "first", max_rounds=13, checkpoint_rounds=5)
    assert train(first, None, lambda progress: None) is not None
    kept = sorted(path.name for path in (folder / "runs" / "first" / "checkpoints").iterdir())
    assert kept == ["round-10", "round-5"]
    resumed = open_checkpoint(
        folder / "runs" / "first", structure_sha256=first.plan.structure_sha256, batch=first.plan.batch, seed=0,
        layers_n=4,
    )  # fmt: skip
    second = train(make_job(folder, "second", max_rounds=16, resumed=resumed), None, lambda progress: None)
    assert second is not None
    assert second.losses == pytest.approx(undisturbed[10:16], rel=1e-6)
    assert json.loads((folder / "runs" / "first" / "checkpoints" / "round-10" / "layers-0-4.json").read_text())[
        "schema"
    ] == ("greentrain.checkpoint/1")
