from __future__ import annotations

import random
from collections.abc import Sequence
from typing import get_args

import msgspec
import pytest
from problems import make_problem, plan_of, random_parts, random_plan, with_heads, with_random_network

from greentrain.cluster import Link, Medium
from greentrain.cost import estimate, stage_traffic
from greentrain.ledger import ACTION_CAUSES, LedgerRow
from greentrain.objective import Objective, Problem
from greentrain.plan import Estimate, Plan, Sharing
from greentrain.planners.candidate import Part
from greentrain.simulator import simulate, to_estimate


def _end_s(rows: Sequence[LedgerRow]) -> float:
    return max(row.t_start_s + row.duration_s for row in rows)


def _energy_j(rows: Sequence[LedgerRow]) -> float:
    return sum(row.energy_j or 0.0 for row in rows)


def _groups(count: int) -> list[tuple[Problem, Plan, Estimate, list[LedgerRow]]]:
    """Random plans of one stage: a single device or a group."""
    rng = random.Random(11)
    found: list[tuple[Problem, Plan, Estimate, list[LedgerRow]]] = []
    for seed in range(count):
        objective = Objective(count_idle_of_unused=seed % 3 == 0)
        problem = make_problem(seed, devices=3, points=1 + seed % 2, batch=12, micro_batches=(4,), objective=objective)
        if seed % 2:
            problem = with_random_network(problem, rng)
        names = tuple(rng.sample([device.id for device in problem.cluster.devices], rng.randint(1, 3)))
        points = tuple(rng.choice(problem.cluster.device(name).points).name for name in names)
        plan = plan_of(problem, 4, [Part(0, 4, names, random_parts(4, len(names), rng), points)])
        found.append((problem, plan, estimate(plan, problem), simulate(plan, problem)))
    return found


def test_formula_and_simulator_agree_exactly_on_one_stage() -> None:
    for problem, plan, price, rows in _groups(60):
        assert _end_s(rows) == pytest.approx(price.step_s, rel=1e-9)
        # The bytes of a ring's part are whole in the rows.
        slack_j = 2e-7 * len(plan.devices)
        assert _energy_j(rows) == pytest.approx(price.round_energy_j, rel=1e-9, abs=slack_j)
        again = to_estimate(rows, plan, problem)
        assert again.method == "simulator"
        for device, causes in price.energy_j.items():
            for cause, joules in causes.items():
                # Whole microjoules per row.
                assert again.energy_j[device].get(cause, 0.0) == pytest.approx(joules, rel=1e-6, abs=1e-5)


def _pipelines(count: int, *, networks: bool = False) -> list[tuple[Problem, Plan]]:
    rng = random.Random(5)
    found: list[tuple[Problem, Plan]] = []
    for seed in range(count):
        problem = make_problem(seed, devices=4, layers=6, batch=rng.choice([8, 16, 32]), micro_batches=(2, 4))
        problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))
        if networks and seed % 3 == 0:
            problem = with_random_network(problem, rng)
        plan = random_plan(problem, rng, largest_group=1 if seed % 2 else 3)
        if len(plan.stages) > 1:
            found.append((problem, plan))
    return found


def test_formula_and_simulator_are_near_on_pipelines() -> None:
    errors = [
        estimate(plan, problem).step_s / _end_s(simulate(plan, problem)) - 1
        for problem, plan in _pipelines(400, networks=True)
    ]
    absolute = sorted(abs(error) for error in errors)
    mean = sum(absolute) / len(absolute)
    beyond_n = sum(error > 0.1 for error in absolute)
    said = f"{len(errors)} pipelines: mean error {mean:.1%}, worst {absolute[-1]:.1%}, {beyond_n} beyond 10 %"
    print(said)
    assert len(errors) > 200
    assert mean <= 0.015, said
    assert beyond_n <= 0.02 * len(errors), said


def test_a_round_holds_together() -> None:
    rng = random.Random(8)
    for problem, plan in _pipelines(40):
        problem = with_random_network(problem, rng)
        rows = simulate(plan, problem)
        end_s = _end_s(rows)
        for rank, device in enumerate(plan.devices):
            own = [row for row in rows if row.device == device]
            assert {row.rank for row in own} == {rank}
            now_s = 0.0
            for row in own:
                if row.duration_s == 0:  # A message costs joules, but the device does not wait for it.
                    continue
                assert row.t_start_s == pytest.approx(now_s, abs=1e-9), "rows follow one another without a gap"
                now_s = row.t_start_s + row.duration_s
            assert now_s == pytest.approx(end_s)
            count = {name: sum(row.action == name for row in own) for name in ("forward", "backward", "update")}
            assert count == {"forward": plan.micro_batches_n, "backward": plan.micro_batches_n, "update": 1}
        assert {row.source for row in rows} == {"modelled"}
        assert {row.meter for row in rows} == {"simulator"}
        assert {row.action for row in rows} <= set(ACTION_CAUSES)
        price = to_estimate(rows, plan, problem)
        assert price.step_s == pytest.approx(end_s)
        assert price.round_energy_j == pytest.approx(_energy_j(rows), abs=1e-6 * len(rows))
        assert price.energy_j_per_sample * plan.batch == pytest.approx(price.round_energy_j)


def test_bytes_sent_are_bytes_predicted() -> None:
    for problem, plan in _pipelines(40):
        rows = simulate(plan, problem)
        for index, stage in enumerate(plan.stages):
            for device, traffic in zip(stage.devices, stage_traffic(plan, index, problem.cluster), strict=True):
                for action, predicted in (("send", traffic.sent_bytes), ("receive", traffic.received_bytes)):
                    moved = sum(row.bytes for row in rows if row.device == device and row.action == action)
                    assert moved == pytest.approx(predicted, abs=0.5)
                    joules = traffic.sent_j if action == "send" else traffic.received_j
                    spent = sum(row.energy_j or 0 for row in rows if row.device == device and row.action == action)
                    assert spent == pytest.approx(joules, rel=1e-9, abs=1e-7)


def test_unused_devices_idle_only_when_counted() -> None:
    for counted in (False, True):
        problem = make_problem(2, devices=3, objective=Objective(count_idle_of_unused=counted))
        plan = plan_of(problem, 4, [Part(0, 4, ("d1",), (4,), ("p0",))])
        idle = [row for row in simulate(plan, problem) if row.action == "idle"]
        assert [row.device for row in idle] == (["d0", "d2"] if counted else [])
        assert all(row.rank == -1 for row in idle)


def test_a_middle_stage_shares_one_port_between_its_links() -> None:
    """Each link alone would need 4 × 1 s; through the middle device's port pass two messages per micro-batch."""
    problem = make_problem(2, devices=3, layers=3, batch=32, micro_batches=(2,))
    size = int(problem.cluster.default_link.bandwidth_bytes_per_s / 2)
    layers = tuple(
        msgspec.structs.replace(layer, activation_bytes=size, gradient_bytes=size) for layer in problem.model.layers
    )
    wire = msgspec.structs.replace(problem.cluster.default_link, latency_s=0.0)
    problem = msgspec.structs.replace(
        problem,
        model=msgspec.structs.replace(problem.model, layers=layers),
        cluster=msgspec.structs.replace(problem.cluster, default_link=wire, links=()),
    )
    plan = plan_of(problem, 2, [Part(index, index + 1, (f"d{index}",), (2,), ("p0",)) for index in range(3)])
    assert _end_s(simulate(plan, problem)) > 2 * 16
    assert estimate(plan, problem).step_s == pytest.approx(_end_s(simulate(plan, problem)), rel=0.1)


def _wired(problem: Problem, *, medium: str | None) -> Problem:
    """One kind of link, 1 MB/s without latency."""
    link = Link(src="*", dst="*", bandwidth_bytes_per_s=1e6, medium=medium)
    media = (Medium(name="air", bandwidth_bytes_per_s=1e6),) if medium else ()
    cluster = msgspec.structs.replace(problem.cluster, default_link=link, links=(), media=media)
    layers = tuple(msgspec.structs.replace(layer, param_bytes=1_000_000) for layer in problem.model.layers)
    model = msgspec.structs.replace(problem.model, layers=layers)
    return msgspec.structs.replace(problem, cluster=cluster, model=model)


@pytest.mark.parametrize(("medium", "sums_overlap"), [(None, True), ("air", False)])
def test_gradient_sums_share_a_medium_but_not_a_switch(medium: str | None, sums_overlap: bool) -> None:
    problem = _wired(make_problem(2, devices=4, layers=2, batch=4, micro_batches=(4,)), medium=medium)
    pairs = [Part(0, 1, ("d0", "d1"), (2, 2), ("p0", "p0")), Part(1, 2, ("d2", "d3"), (2, 2), ("p0", "p0"))]
    plan = plan_of(problem, 4, pairs)
    rows = simulate(plan, problem)
    sums = {row.device: (row.t_start_s, row.t_start_s + row.duration_s) for row in rows if row.action == "sum"}
    assert sums["d0"] == sums["d1"]
    assert sums["d2"] == sums["d3"]
    assert sums["d2"][1] - sums["d2"][0] == pytest.approx(2.0 if medium else 1.0)
    assert (sums["d0"][0] < sums["d2"][1]) == sums_overlap
    assert estimate(plan, problem).step_s == pytest.approx(_end_s(rows), rel=0.05)


def test_a_stream_of_messages_does_not_hold_up_those_of_others() -> None:
    """Two senders of three messages each to one receiver: its way in serves them in turn."""
    problem = _wired(make_problem(2, devices=3, layers=2, batch=12, micro_batches=(4,)), medium=None)
    layers = tuple(msgspec.structs.replace(layer, activation_bytes=500_000) for layer in problem.model.layers)
    problem = msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=layers))
    plan = plan_of(problem, 4, [Part(0, 1, ("d0", "d1"), (2, 2), ("p0", "p0")), Part(1, 2, ("d2",), (4,), ("p0",))])
    forwards = [row for row in simulate(plan, problem) if row.device == "d2" and row.action == "forward"]
    starts_s = [row.t_start_s for row in forwards]
    assert starts_s[1] - starts_s[0] == pytest.approx(2.0, rel=0.05)
    assert starts_s[2] - starts_s[1] == pytest.approx(2.0, rel=0.05)


def _shared_inside(count: int) -> list[tuple[Problem, Plan]]:
    """Random plans with groups that share heads and tokens."""
    rng = random.Random(2)
    found: list[tuple[Problem, Plan]] = []
    for seed in range(count):
        problem = make_problem(seed, devices=4, layers=5, batch=rng.choice([8, 16, 32]), micro_batches=(2, 4, 8))
        problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))
        if seed % 4 == 0:
            problem = with_random_network(problem, rng)
        problem = with_heads(problem, heads=6, sequence=12, plain_layers=seed % 2)
        plan = random_plan(problem, rng, sharings=get_args(Sharing))
        if any(stage.sharing != "samples" for stage in plan.stages):
            found.append((problem, plan))
    return found


def test_formula_and_simulator_agree_on_sharing_inside_a_sample() -> None:
    errors: list[float] = []
    for problem, plan in _shared_inside(200):
        price, rows = estimate(plan, problem), simulate(plan, problem)
        errors.append(price.step_s / _end_s(rows) - 1)
        if len(plan.stages) == 1:
            assert errors[-1] == pytest.approx(0, abs=1e-9)
            assert _energy_j(rows) == pytest.approx(price.round_energy_j, rel=1e-9, abs=1e-6)
        for device, busy_s in price.busy_s.items():
            computed = [row for row in rows if row.device == device and ACTION_CAUSES[row.action] == "compute"]
            assert sum(row.duration_s for row in computed) == pytest.approx(busy_s)
        for index, stage in enumerate(plan.stages):
            for device, traffic in zip(stage.devices, stage_traffic(plan, index, problem.cluster), strict=True):
                for action, predicted in (("send", traffic.sent_bytes), ("receive", traffic.received_bytes)):
                    moved = sum(row.bytes for row in rows if row.device == device and row.action == action)
                    assert moved == pytest.approx(predicted, abs=0.5)
    absolute = sorted(abs(error) for error in errors)
    said = f"{len(errors)} plans: mean error {sum(absolute) / len(absolute):.1%}, worst {absolute[-1]:.1%}"
    print(said)
    assert len(errors) > 80
    assert sum(absolute) / len(absolute) <= 0.03, said


def test_the_passes_of_a_group_begin_and_end_together() -> None:
    problem = with_heads(make_problem(2, devices=2, layers=2, batch=8, micro_batches=(4,)))
    plan = plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), (1, 3), ("p0", "p0"), "tensor_sequence")])
    rows = simulate(plan, problem)
    begun = {
        device: [row.t_start_s for row in rows if row.device == device and row.action in ("forward", "backward")]
        for device in plan.devices
    }
    assert begun["d0"] == pytest.approx(begun["d1"])
    # The device that is done first waits; nothing is summed.
    assert any(row.action == "wait" for row in rows)
    assert all(row.action != "sum" for row in rows)
