"""Messages keep processors busy: they lengthen passes and sums, and change no bytes."""

from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest
from problems import make_problem, plan_of, random_plan, with_busy_network, with_heads, with_transformer

from greentrain.cluster import Link
from greentrain.cost import CostTables, estimate, inside_energy_j, stage_price, stage_traffic
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_s
from greentrain.parallel.network import Handled, handled_bytes, handling_s
from greentrain.plan import Plan, Sharing
from greentrain.planners.candidate import Part
from greentrain.planners.device_types import device_types
from greentrain.sharing import Direction
from greentrain.simulator import simulate

_WAYS: tuple[Direction, ...] = ("forward", "backward")
PROBLEM = make_problem(2, devices=2, layers=2, batch=8, micro_batches=(4,))


def _replaced(problem: Problem, name: str, **changes: float) -> Problem:
    devices = tuple(
        msgspec.structs.replace(device, **changes) if device.id == name else device
        for device in problem.cluster.devices
    )
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=devices))


def _busy(problem: Problem, **seconds: float) -> Problem:
    devices = tuple(
        msgspec.structs.replace(device, network_s_per_byte=seconds.get(device.id)) for device in problem.cluster.devices
    )
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=devices))


def test_bytes_that_a_device_handles() -> None:
    first, second = PROBLEM.model.layers
    assert handled_bytes((first, second), 0, 1, "samples", "forward") == Handled(first.activation_bytes, 0)
    assert handled_bytes((first, second), 1, 2, "samples", "backward") == Handled(first.gradient_bytes, 0)
    assert handled_bytes((first, second), 0, 2, "samples", "forward") == Handled(0, 0)
    split = with_heads(PROBLEM, plain_layers=1).model.layers
    # The first layer is computed whole and hands its hidden state to the second, split one; four rings in that one,
    # and whole tokens in front of the loss: of each ring a device sends and receives all but its own part.
    rings = 2 * (4 * second.activation_bytes + second.activation_bytes)
    assert handled_bytes(split, 0, 2, "tensor_sequence", "forward") == Handled(0, 0, rings)
    entering = first.activation_bytes
    assert handled_bytes(split, 1, 2, "tensor_sequence", "forward") == Handled(entering, 0, rings)
    assert handled_bytes(split, 1, 2, "tensor", "forward") == Handled(0, entering, 2 * 4 * second.activation_bytes)
    device = PROBLEM.cluster.devices[0]
    assert handling_s(device, Handled(1, 1, 1), 4, 8) == 0
    device = msgspec.structs.replace(device, network_s_per_byte=1.0)
    assert handling_s(device, Handled(10, 100, 1000), 4, 8) == 40 + 800 + 4000
    assert handling_s(msgspec.structs.replace(device, duplex_s_per_byte=3.0), Handled(10, 100, 1000), 4, 8) == 12840


def test_bytes_handled_by_a_group_are_its_traffic() -> None:
    """Of first stages: what enters a stage may have been sent to several of its devices, and is handled once."""
    rng = random.Random(3)
    seen: set[str] = set()
    for seed in range(60):
        problem = make_problem(seed, devices=4, layers=5, batch=16, micro_batches=(4,))
        problem = with_transformer(problem, rng, heads=6, sequence=12)
        plan = random_plan(problem, rng, sharings=get_args(Sharing))
        if any(stage.sharing != "samples" for stage in plan.stages[1:]):
            continue
        stage = plan.stages[0]
        seen.add(stage.sharing)
        rows = [stage.work_rows(at, plan.micro_batch) for at in range(len(stage.devices))]
        handled = sum(
            found.own * own + found.all * plan.micro_batch + found.rings * (plan.micro_batch - own)
            for own in rows
            for way in _WAYS
            for found in [handled_bytes(problem.model.layers, stage.start, stage.stop, stage.sharing, way)]
        )
        traffic = stage_traffic(plan, 0, problem.cluster)
        summed = 4 * (len(rows) - 1) * stage.sum_bytes
        moved = (sum(one.sent_bytes + one.received_bytes for one in traffic) - summed) / plan.micro_batches_n
        assert handled == pytest.approx(moved, rel=1e-9, abs=1e-3)
    assert seen == set(get_args(Sharing))


def _group(problem: Problem) -> Plan:
    return plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"))])


def test_the_busiest_processor_can_hold_up_a_sum() -> None:
    whole = sum(layer.param_bytes for layer in PROBLEM.model.layers)
    wire_s = gradient_sum_s(PROBLEM.cluster, ("d0", "d1"), whole)
    assert gradient_sum_s(_busy(PROBLEM, d0=1e-12).cluster, ("d0", "d1"), whole) == wire_s
    slow = _busy(PROBLEM, d0=1e-9, d1=1e-3)
    # Each of two devices sends the whole sum once and receives it once.
    assert gradient_sum_s(slow.cluster, ("d0", "d1"), whole) == pytest.approx(2 * whole * 1e-3)
    before, after = estimate(_group(PROBLEM), PROBLEM), estimate(_group(slow), slow)
    hidden_s = stage_price(_group(PROBLEM).stages[0], CostTables(PROBLEM), 4).sum_s
    assert hidden_s < wire_s
    assert after.step_s - before.step_s == pytest.approx(2 * whole * 1e-3 - hidden_s)
    assert after.busy_s == before.busy_s


def test_sums_cost_what_bytes_cost_both_ways_at_once() -> None:
    whole = sum(layer.param_bytes for layer in PROBLEM.model.layers)
    slow = _busy(PROBLEM, d0=1e-3)
    slower = _replaced(slow, "d0", duplex_s_per_byte=3e-3)
    assert gradient_sum_s(slower.cluster, ("d0", "d1"), whole) == pytest.approx(2 * whole * 3e-3)
    links = tuple(
        Link(
            src=src, dst=dst, bandwidth_bytes_per_s=1e6, tx_j_per_byte=1e-8, rx_j_per_byte=2e-8, duplex_j_per_byte=both
        )
        for src, dst, both in (("d0", "d1", 5e-8), ("d1", "d0", None))
    )
    dear = msgspec.structs.replace(PROBLEM, cluster=msgspec.structs.replace(PROBLEM.cluster, links=links))
    # A device that was not measured both ways pays as one way.
    prices = {"d0": (5e-8, 5e-8), "d1": (1e-8, 2e-8)}
    assert {name: inside_energy_j(dear.cluster, ("d0", "d1"), name) for name in prices} == prices
    found = estimate(_group(dear), dear).energy_j
    for name, (tx_j, rx_j) in prices.items():
        assert found[name]["send"] == pytest.approx(whole * tx_j)
        assert found[name]["receive"] == pytest.approx(whole * rx_j)
    # Messages between stages go one way.
    parts = [Part(0, 1, ("d0",), (4,), ("p0",)), Part(1, 2, ("d1",), (4,), ("p0",))]
    (first,) = stage_traffic(plan_of(dear, 4, parts), 0, dear.cluster)
    layer = PROBLEM.model.layers[0]
    assert first.sent_j == pytest.approx(8 * layer.activation_bytes * 1e-8)
    assert first.received_j == pytest.approx(8 * layer.gradient_bytes * 2e-8)


def test_devices_that_differ_in_their_network_are_no_twins() -> None:
    first = PROBLEM.cluster.devices[0]
    members = (first, msgspec.structs.replace(first, id="d1"))
    twins = msgspec.structs.replace(PROBLEM, cluster=msgspec.structs.replace(PROBLEM.cluster, devices=members))
    assert len(device_types(twins).names_T) == 1
    assert len(device_types(_replaced(twins, "d0", duplex_s_per_byte=1e-9)).names_T) == 2
    assert len(device_types(_busy(twins, d1=1e-9)).names_T) == 2


def test_passes_take_longer_but_compute_no_more() -> None:
    parts = [Part(0, 1, ("d0",), (4,), ("p0",)), Part(1, 2, ("d1",), (4,), ("p0",))]
    slow = _busy(PROBLEM, d0=1e-6)
    before, after = (estimate(plan_of(problem, 4, parts), problem) for problem in (PROBLEM, slow))
    layer = PROBLEM.model.layers[0]
    # Two micro-batches of four rows; at most all of it is waited for.
    most_s = 8 * (layer.activation_bytes + layer.gradient_bytes) * 1e-6
    assert 0 < after.step_s - before.step_s <= most_s * (1 + 1e-9)
    assert after.busy_s == before.busy_s
    assert after.energy_j["d0"]["compute"] == before.energy_j["d0"]["compute"]


def test_formula_and_simulator_agree() -> None:
    rng = random.Random(5)
    errors: list[float] = []
    for seed in range(120):
        problem = make_problem(seed, devices=4, layers=5, batch=16, micro_batches=(4, 8))
        problem = with_busy_network(with_heads(problem, heads=6, sequence=12, plain_layers=seed % 2), rng)
        plan = random_plan(problem, rng, sharings=get_args(Sharing))
        rows = simulate(plan, problem)
        end_s = max(row.t_start_s + row.duration_s for row in rows)
        errors.append(abs(estimate(plan, problem).step_s / end_s - 1))
        if len(plan.stages) == 1:
            assert errors[-1] == pytest.approx(0, abs=1e-9)
    assert sum(errors) / len(errors) <= 0.02, sum(errors) / len(errors)
