"""A single rank in this process: what ends its training, and that its rounds are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from greentrain.errors import GreentrainError, RunError, UsageError
from greentrain.ledger import read_ledger
from greentrain.objective import Objective
from greentrain.plan import Plan, Stage
from greentrain.runtime.messages import Progress, rank_ledger_path
from greentrain.runtime.network import free_port
from greentrain.runtime.worker import Job, train
from greentrain.training_data import TrainingData
from greentrain.workloads.workload import Workload, block_outputs, build_seeded, structure_sha256


class Fragile(nn.Module):
    """Fails as torch does when memory runs out, in the third forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.calls = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += len(rows) > 1
        if self.calls == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] can't allocate memory\nframe #0: c10::Error")
        return self.linear(rows)


def make_workload(block: type[nn.Module] | None = None, *, learning_rate: float = 0.1) -> Workload:
    return Workload(
        name="one",
        description="for tests",
        dataset="one",
        build=lambda seed: build_seeded([block or (lambda: nn.Linear(4, 2))], seed),
        example=lambda n: (((torch.zeros(n, 4)),), torch.zeros(n, dtype=torch.int64)),
        loss=nn.functional.cross_entropy,
        optimizer="sgd",
        learning_rate=learning_rate,
        batch=4,
        micro_batches=(4,),
        epochs=1,
        target_accuracy=0.5,
    )


def make_job(folder: Path, workload: Workload, *, samples: int = 32, scale: float = 1.0) -> Job:
    blocks = workload.build(0)
    outputs = block_outputs(blocks, workload.example(1)[0])
    stage = Stage(
        start=0, stop=1, devices=("a",), sharing="samples", shares=(4,), points=("current",), in_flight=1,
        param_bytes=40, output_bytes=0, gradient_bytes=0,
    )  # fmt: skip
    plan = Plan(
        model="one", structure_sha256=structure_sha256(blocks, outputs), cluster="home", planner="test",
        objective=Objective(), batch=4, micro_batch=4, optimizer="sgd", stages=(stage,),
    )  # fmt: skip
    inputs = (np.random.default_rng(0).normal(size=(samples, 4)) * scale).astype(np.float32)
    targets = np.arange(samples, dtype=np.int64) % 2
    data = TrainingData(
        name="one", source="made up", train_inputs=(inputs,), train_targets=targets, test_inputs=(inputs,),
        test_targets=targets,
    )  # fmt: skip
    return Job(
        run="r", plan=plan, plan_sha256="0" * 64, device="a", board="pc", workload=workload, data=data, epochs=1,
        max_rounds=None, seed=0, run_dir=folder, host="127.0.0.1", port=free_port(), reach_timeout_s=5,
        join_timeout_s=5, message_timeout_s=5,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("TP_SOCKET_IFNAME", "lo")


def failed(job: Job) -> GreentrainError:
    with pytest.raises(GreentrainError) as caught:
        train(job, None, lambda progress: None)
    return caught.value


def test_a_rank_alone_trains_and_reports(tmp_path: Path) -> None:
    found: list[Progress] = []
    trained = train(make_job(tmp_path, make_workload()), None, found.append)
    assert trained is not None
    assert [progress.step for progress in found] == list(range(1, 9))
    assert set(trained.model.parameters) == {"0.weight", "0.bias"}
    assert read_ledger(rank_ledger_path(tmp_path, 0)) != []
    assert {row.energy_j for row in trained.results[0].rows} == {None}  # No meter: missing, not zero.


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_rounds(tmp_path: Path) -> None:
    error = failed(make_job(tmp_path, make_workload(learning_rate=1e30), scale=1e10))
    assert isinstance(error, RunError)
    assert error.message.startswith("a: the loss is nan after round ")
    assert "learning rate" in str(error.hint)
    assert sum(row.action == "step" for row in read_ledger(rank_ledger_path(tmp_path, 0))) >= 1


def test_a_model_that_fails_is_not_called_a_lost_peer(tmp_path: Path) -> None:
    error = failed(make_job(tmp_path, make_workload(Fragile)))
    assert isinstance(error, RunError)
    assert error.message.startswith("a: the model failed in training (")
    assert "can't allocate memory" in error.message
    assert "frame" not in error.message
    assert sum(row.action == "step" for row in read_ledger(rank_ledger_path(tmp_path, 0))) == 2


def test_a_data_set_smaller_than_the_batch(tmp_path: Path) -> None:
    error = failed(make_job(tmp_path, make_workload(), samples=3))
    assert isinstance(error, UsageError)
    assert error.message == "data set 'one' has 3 training samples, fewer than the batch of 4."


def test_a_plan_for_another_model(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_workload())
    other = replace(job, workload=make_workload(Fragile))
    error = failed(other)
    assert isinstance(error, UsageError)
    assert error.message.startswith("plan: made for a model 'one' with structure ")
