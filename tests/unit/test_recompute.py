"""Computing activations again: less memory, a longer backward, and plans that would not fit otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from command import Command
from problems import make_problem, plan_of, with_heads
from work_folder import make_work_folder

from greentrain.cost import CostTables, device_compute_s, estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.planners import exact
from greentrain.planners.candidate import Part
from greentrain.simulator import simulate, to_estimate

# Two stages; the first holds three micro-batches.
PARTS = (
    Part(start=0, stop=3, devices=("d0",), shares=(2,), points=("p0",)),
    Part(start=3, stop=5, devices=("d1",), shares=(2,), points=("p0",)),
)


def recomputing(problem: Problem) -> Problem:
    return msgspec.structs.replace(problem, recompute=True)


def test_the_backward_pass_takes_the_forward_pass_too() -> None:
    problem = make_problem(1, layers=5)
    plan = plan_of(problem, 2, PARTS)
    again = msgspec.structs.replace(plan, recompute=True)
    for index, stage in enumerate(plan.stages):
        forward_s, backward_s = device_compute_s(stage, 0, CostTables(problem), 2)
        both_s = device_compute_s(again.stages[index], 0, CostTables(recomputing(problem)), 2)
        assert both_s == (forward_s, pytest.approx(forward_s + backward_s))
    kept, computed = estimate(plan, problem), estimate(again, recomputing(problem))
    assert computed.step_s > kept.step_s
    simulated = to_estimate(simulate(again, recomputing(problem)), again, recomputing(problem))
    assert simulated.step_s == pytest.approx(computed.step_s, rel=0.05)


def test_layers_keep_their_inputs_and_one_of_them_all() -> None:
    problem = make_problem(1, layers=5)
    plan = plan_of(problem, 2, PARTS)
    kept = estimate(plan, problem).peak_bytes
    computed = estimate(msgspec.structs.replace(plan, recompute=True), recomputing(problem)).peak_bytes
    layers = problem.model.layers
    for (name, before), stage in zip(kept.items(), plan.stages, strict=True):
        own = layers[stage.start : stage.stop]
        entering = problem.model.input_bytes if stage.start == 0 else layers[stage.start - 1].activation_bytes
        inputs = entering + sum(layer.activation_bytes for layer in own[:-1])
        saved = stage.in_flight * (sum(layer.stash_bytes for layer in own) - inputs)
        # What the allocator keeps of a pass shrinks with its stash.
        saved += 0.25 * (sum(layer.stash_bytes for layer in own) - max(layer.stash_bytes for layer in own))
        assert before - computed[name] == pytest.approx(2 * (saved - max(layer.stash_bytes for layer in own)), abs=2)


def test_what_does_not_fit_otherwise_is_planned() -> None:
    problem = make_problem(3, devices=1, layers=6, micro_batches=(8,))
    (layers, device) = problem.model.layers, problem.cluster.devices[0]
    heavy = tuple(msgspec.structs.replace(layer, stash_bytes=40 * layer.activation_bytes) for layer in layers)
    problem = msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=heavy))
    needed = exact.plan(recomputing(problem)).estimate
    assert needed is not None
    tight = msgspec.structs.replace(device, memory_bytes=needed.peak_bytes["d0"])
    cluster = msgspec.structs.replace(problem.cluster, devices=(tight,))
    problem = msgspec.structs.replace(problem, cluster=cluster)
    with pytest.raises(InfeasibleError, match="memory"):
        exact.plan(problem)
    plan = exact.plan(recomputing(problem))
    assert plan.recompute


def test_only_stages_that_share_samples_recompute() -> None:
    problem = with_heads(make_problem(1, layers=5))
    parts = (Part(start=0, stop=5, devices=("d0", "d1"), shares=(3, 1), points=("p0", "p0"), sharing="tensor"),)
    plan = plan_of(problem, 2, parts)
    with pytest.raises(ValueError, match="only stages that share samples can recompute"):
        msgspec.structs.replace(plan, recompute=True)


def test_the_plan_file_says_so_and_is_priced_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, devices=("a", "b"))
    greentrain = Command(capsys)
    for options in ([], ["--recompute"]):
        assert greentrain("schedule", "--no-explain", *options).code == 0
        assert json.loads((tmp_path / "plan.json").read_text())["recompute"] is bool(options)
        assert greentrain("schedule", "--check", "plan.json").code == 0
        assert greentrain("simulate", "plan.json").code == 0
