"""Asteroid, DAPPLE-like and Galaxy planning: against brute force, and worked out by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest
from brute_force import compositions
from problems import make_problem, with_heads, with_slow_updates

from greentrain.cluster import Link, Medium
from greentrain.cost import CostTables, most_rows
from greentrain.device import Device
from greentrain.errors import InfeasibleError
from greentrain.objective import Objective, Problem
from greentrain.parallel.memory import PROCESS_BYTES
from greentrain.plan import Plan, in_flight_limit, validate
from greentrain.planners import asteroid, dapple, data, sequence, tensor, tensor_sequence
from greentrain.planners.candidate import Part, assemble
from greentrain.planners.device_runs import DeviceRuns, share_rows


def _shares(rows: int, time_s_GR: Sequence[Sequence[float]], limit_G: Sequence[int]) -> tuple[int, ...]:
    """Asteroid's shares of one span."""
    table = np.array(time_s_GR)
    every = np.arange(len(table))[:, None]
    found_GS = share_rows(rows, lambda rows_GS, _: table[every, rows_GS], np.array([limit_G]).T)
    return tuple(int(share) for share in found_GS[:, 0])


def _price_s(plan: Plan) -> float:
    assert plan.estimate is not None
    return plan.estimate.step_s


def _with_devices(problem: Problem, devices: Sequence[Device]) -> Problem:
    cluster = msgspec.structs.replace(problem.cluster, devices=tuple(devices))
    return msgspec.structs.replace(problem, cluster=cluster)


def _with_memory(problem: Problem, *memory_bytes: int) -> Problem:
    pairs = zip(problem.cluster.devices, itertools.cycle(memory_bytes), strict=False)
    return _with_devices(problem, [msgspec.structs.replace(device, memory_bytes=size) for device, size in pairs])


def _uniform_problem(seed: int) -> Problem:
    """A small problem on links that are all alike, every other one short of memory, some on one shared medium."""
    rng = random.Random(seed)
    problem = make_problem(
        seed, devices=rng.choice([2, 3, 4]), layers=rng.choice([4, 5]), batch=12, micro_batches=(rng.choice([2, 4, 6]),)
    )
    link = problem.cluster.default_link
    media: tuple[Medium, ...] = ()
    if seed % 3 == 0:
        media = (Medium(name="air", bandwidth_bytes_per_s=link.bandwidth_bytes_per_s),)
        link = msgspec.structs.replace(link, medium="air")
    cluster = msgspec.structs.replace(problem.cluster, links=(), default_link=link, media=media)
    problem = msgspec.structs.replace(problem, cluster=cluster)
    if seed % 2:
        problem = _with_memory(problem, *(int(rng.uniform(1.5e6, 9e6)) for _ in range(4)))
    return with_slow_updates(problem, rng) if seed % 5 == 0 else problem


def _pipelines(problem: Problem) -> Iterator[list[Part]]:
    """Every pipeline over all devices in Asteroid's order, with its shares at the true K."""
    tables, micro_batch = CostTables(problem), problem.micro_batches[0]
    devices = sorted(problem.cluster.devices, key=lambda device: (-device.memory_bytes, device.kind, device.id))
    layers_n = len(problem.model.layers)
    for stages_n in range(1, min(layers_n, len(devices)) + 1):
        for sizes, groups in itertools.product(compositions(layers_n, stages_n), compositions(len(devices), stages_n)):
            stops, lasts = (list(itertools.accumulate(counts)) for counts in (sizes, groups))
            parts: list[Part] = []
            for stage, (stop, last) in enumerate(zip(stops, lasts, strict=True)):
                start, group = stop - sizes[stage], devices[last - groups[stage] : last]
                points = tuple(device.points[0].name for device in group)
                held = in_flight_limit(stages_n, stage, problem.batch // micro_batch)
                times = [
                    [sum(tables.compute_s(d, point, start, stop, rows)) for rows in range(micro_batch + 1)]
                    for d, point in zip(group, points, strict=True)
                ]
                limits = [most_rows(d, start, stop, held, problem) for d in group]
                shares = _shares(micro_batch, times, [min(limit, micro_batch) for limit in limits])
                parts.append(Part(start, stop, tuple(device.id for device in group), shares, points))
            if all(min(part.shares) > 0 for part in parts):
                yield parts


@pytest.mark.parametrize("seed", range(60))
def test_asteroid_equals_brute_force_over_its_order_of_devices(seed: int) -> None:
    problem = _uniform_problem(seed)
    tables, micro_batch = CostTables(problem), problem.micro_batches[0]
    best_s = min(
        (_price_s(assemble(problem, "test", micro_batch, parts, tables)) for parts in _pipelines(problem)), default=inf
    )
    found = list(asteroid.candidates(problem, tables))
    if best_s == inf:
        assert all(plan.estimate is not None and plan.estimate.violations for plan in found)
        return
    assert found[0].estimate is not None
    assert not found[0].estimate.violations
    assert _price_s(found[0]) == pytest.approx(best_s, rel=1e-9)


def test_the_brute_force_instances_have_binding_memory() -> None:
    binding = 0
    for seed in range(60):
        problem = _uniform_problem(seed)
        free = asteroid.fastest_parts(_with_memory(problem, 1 << 40), CostTables(problem), problem.micro_batches[0])
        own = asteroid.fastest_parts(problem, CostTables(problem), problem.micro_batches[0])
        binding += own != free
    assert binding >= 10


def test_shares_follow_the_speeds() -> None:
    assert _shares(8, [[rows / 3 for rows in range(9)], [float(rows) for rows in range(9)]], [8, 8]) == (6, 2)


def test_what_memory_cuts_off_goes_to_the_others_in_proportion() -> None:
    times = [[rows / speed for rows in range(9)] for speed in (1, 1, 2)]
    assert _shares(8, times, [8, 8, 8]) == (2, 2, 4)
    assert _shares(8, times, [8, 8, 2]) == (3, 3, 2)
    assert _shares(8, times, [8, 2, 2]) == (4, 2, 2)


def test_rows_move_off_the_slowest_device_where_time_is_not_linear() -> None:
    # In proportion to whole micro-batches, 18 s and 16 s, both would take 4 rows: 14 s and 8 s.
    times = [[10.0 + rows for rows in range(9)], [2.0 * rows for rows in range(9)]]
    assert _shares(8, times, [8, 8]) == (2, 6)


def test_every_device_gets_a_row() -> None:
    times = [[rows / speed for rows in range(5)] for speed in (100, 1, 1)]
    assert _shares(4, times, [4, 4, 4]) == (2, 1, 1)


@pytest.mark.parametrize(("rows", "limits"), [(8, [3, 4]), (8, [8, 0]), (1, [8, 8])])
def test_no_shares_where_they_cannot_fit(rows: int, limits: list[int]) -> None:
    assert _shares(rows, [[float(count) for count in range(9)]] * 2, limits) == (0, 0)


@pytest.mark.parametrize("seed", range(40))
def test_no_other_shares_end_sooner(seed: int) -> None:
    rng = random.Random(seed)
    rows, group_n = rng.randint(3, 9), rng.choice([2, 3])
    times = [list(itertools.accumulate(rng.uniform(0, 2) for _ in range(rows + 1))) for _ in range(group_n)]
    limits = [rng.randint(1, rows) for _ in range(group_n)]
    allowed = [
        max(own[share] for own, share in zip(times, shares, strict=True))
        for shares in compositions(rows, group_n)
        if all(share <= limit for share, limit in zip(shares, limits, strict=True))
    ]
    found = _shares(rows, times, limits)
    if not allowed:
        assert set(found) == {0}
        return
    assert sum(found) == rows
    assert max(own[share] for own, share in zip(times, found, strict=True)) == min(allowed)


def test_the_true_number_of_micro_batches_in_flight_limits_the_shares() -> None:
    problem = make_problem(1, devices=2, layers=3, batch=24, micro_batches=(6,))
    first = msgspec.structs.replace(problem.model.layers[0], param_bytes=0, stash_bytes=1000, activation_bytes=100)
    model = msgspec.structs.replace(problem.model, layers=(first, *problem.model.layers[1:]), input_bytes=50)
    problem = msgspec.structs.replace(problem, model=model)
    # A row needs (K + 0.95) · 1000 bytes of stash and 2 · (50 + 100) bytes of messages: 3 fit at K = 3, 6 at K = 1.
    problem = _with_memory(problem, PROCESS_BYTES + 3 * 4500)
    runs = DeviceRuns(problem, problem.cluster.devices, 6, CostTables(problem))
    start, stop = np.array([0]), np.array([1])
    alone = runs.stages(0, 2, 1, start, stop).shares_GS[:, 0]
    held = runs.stages(0, 2, 3, start, stop).shares_GS[:, 0]
    assert max(alone) > 3
    assert list(held) == [3, 3]
    assert runs.limited(0, 2, 3, start, stop)
    assert len(runs.stages(0, 2, 4, start, stop).start_S) == 0


def test_asteroid_takes_the_fastest_plan_whatever_the_objective() -> None:
    for seed in range(6):
        steps = set[float]()
        for kind in ("energy", "time", "edp", "carbon"):
            problem = make_problem(seed, devices=3, micro_batches=(4, 8), objective=Objective(minimise=kind))
            plan = asteroid.plan(problem)
            steps.add(_price_s(plan))
            assert set(plan.devices) == {device.id for device in problem.cluster.devices}
            assert {point for stage in plan.stages for point in stage.points} == {"p0"}
        assert len(steps) == 1


def test_asteroid_on_many_devices_and_layers_is_no_slower_than_data_parallelism() -> None:
    problem = make_problem(2, devices=3, layers=40, batch=64, micro_batches=(32,), objective=Objective(minimise="time"))
    twins = [msgspec.structs.replace(d, id=f"{d.id}n{n}") for d in problem.cluster.devices for n in range(7)]
    problem = _with_devices(problem, twins)
    plan = asteroid.plan(problem)
    validate(plan, problem)
    assert len(plan.devices) == 21
    assert _price_s(plan) < _price_s(data.plan(problem))


def test_a_bounded_search_comes_near_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = 1.0
    for seed in range(4):
        problem = make_problem(seed, devices=3, layers=13, batch=24, micro_batches=(6,))
        twins = [msgspec.structs.replace(d, id=f"{d.id}n{n}") for d in problem.cluster.devices for n in range(3)]
        cluster = msgspec.structs.replace(problem.cluster, devices=tuple(twins), links=())
        problem = msgspec.structs.replace(problem, cluster=cluster)
        best_s = _price_s(asteroid.plan(problem))
        for limits in ({"_ALL_SUFFIXES": 0}, {"_ALL_SUFFIXES": 0, "_EVERY_CUT": 0, "_GRID_CUTS": 5}):
            with monkeypatch.context() as patch:
                for name, value in limits.items():
                    patch.setattr(asteroid, name, value)
                bounded_s = _price_s(asteroid.plan(problem))
            assert bounded_s >= best_s * (1 - 1e-9)
            worst = max(worst, bounded_s / best_s)
    assert worst < 1.15


def test_slow_links_count_for_whole_groups() -> None:
    problem = make_problem(4, devices=3, layers=5, batch=24, micro_batches=(6,), objective=Objective(minimise="time"))
    slow = [Link(src=a, dst=b, bandwidth_bytes_per_s=1e4) for a, b in (("d0", "d2"), ("d2", "d0"))]
    problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=tuple(slow)))
    plan = asteroid.plan(problem)
    together = [{"d0", "d2"} <= set(stage.devices) for stage in plan.stages]
    assert not any(together)


def test_dapple_does_not_see_which_device_is_fast() -> None:
    differ = 0
    for seed in range(8):
        problem = make_problem(seed, devices=4, layers=6, batch=24, micro_batches=(8,))
        problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))
        kinds = [device.kind for device in problem.cluster.devices]
        turned = [
            msgspec.structs.replace(device, kind=kind)
            for device, kind in zip(problem.cluster.devices, kinds[1:] + kinds[:1], strict=True)
        ]
        plans = [dapple.plan(own) for own in (problem, _with_devices(problem, turned))]
        one, other = ([(s.start, s.stop, s.devices, s.shares) for s in plan.stages] for plan in plans)
        assert one == other
        differ += _price_s(plans[0]) != _price_s(plans[1])
        for stage in plans[0].stages:
            assert max(stage.shares) - min(stage.shares) <= 1
    assert differ >= 4, "the true price knows the devices"


def test_dapple_and_asteroid_agree_where_all_devices_are_alike() -> None:
    for seed in range(6):
        problem = make_problem(seed, devices=4, layers=6, batch=24, micro_batches=(8,))
        one = problem.cluster.devices[0]
        problem = _with_devices(problem, [msgspec.structs.replace(one, id=f"d{n}") for n in range(4)])
        assert _price_s(dapple.plan(problem)) == pytest.approx(_price_s(asteroid.plan(problem)), rel=1e-9)


def test_dapple_overlooks_the_smallest_memory() -> None:
    problem = make_problem(3, devices=2, layers=4, batch=8, micro_batches=(4,))
    least = asteroid.plan(problem).estimate
    assert least is not None
    needs = max(least.peak_bytes.values())
    problem = _with_memory(problem, 4 * needs, needs // 8)
    with pytest.raises(InfeasibleError, match="device d1 lacks"):
        dapple.plan(problem)


def _galaxy_problem(*speeds: float) -> Problem:
    """Devices of these speeds, eight heads."""
    problem = with_heads(make_problem(1, devices=len(speeds), layers=3, batch=8, micro_batches=(4,)), heads=8)
    first = problem.model.times[0]
    times = [
        msgspec.structs.replace(
            first,
            kind=f"kind{number}",
            forward_s_LB=tuple(tuple(value / speed for value in row) for row in first.forward_s_LB),
            backward_s_LB=tuple(tuple(value / speed for value in row) for row in first.backward_s_LB),
        )
        for number, speed in enumerate(speeds)
    ]
    return msgspec.structs.replace(problem, model=problem.model.with_times(times))


def test_galaxy_shares_heads_by_speed_and_moves_what_overflows() -> None:
    problem = _galaxy_problem(2, 1, 1)
    plan = tensor_sequence.plan(problem)
    assert plan.stages[0].sharing == "tensor_sequence"
    assert plan.stages[0].shares == (4, 2, 2)
    assert plan.estimate is not None
    two_heads, four_heads = plan.estimate.peak_bytes["d1"], plan.estimate.peak_bytes["d0"]
    assert tensor_sequence.plan(_with_memory(problem, two_heads, four_heads, four_heads)).stages[0].shares == (2, 3, 3)
    # What moves off the first device overflows the second one, and moves on.
    assert tensor_sequence.plan(_with_memory(problem, two_heads, two_heads, four_heads)).stages[0].shares == (2, 2, 4)
    with pytest.raises(InfeasibleError, match=r"device d\d lacks"):
        tensor_sequence.plan(_with_memory(problem, two_heads))


def test_megatron_and_sequence_parallelism_share_equally() -> None:
    problem = _galaxy_problem(5, 1, 1)
    assert tensor.plan(problem).stages[0].shares == (3, 3, 2)
    assert sequence.plan(problem).stages[0].shares == (4, 4, 4)


@pytest.mark.parametrize(
    ("planner", "heads", "plain_layers", "message"),
    [
        (tensor, 8, 3, "the same number of heads in all layers that have some: none has any"),
        (tensor, 2, 0, "cannot share 2 heads among 3 devices"),
        (tensor_sequence, 8, 3, "heads in all layers"),
        (sequence, 8, 3, "the same number of tokens in all layers that have some: none has any"),
    ],
)
def test_models_that_cannot_be_shared_inside_a_sample_are_named(
    planner: Any, heads: int, plain_layers: int, message: str
) -> None:
    problem = with_heads(make_problem(1, devices=3, layers=3), heads=heads, plain_layers=plain_layers)
    with pytest.raises(InfeasibleError, match=message):
        planner.plan(problem)
    assert list(planner.candidates(problem, CostTables(problem))) == []


def test_one_device_cannot_share_a_sample() -> None:
    with pytest.raises(InfeasibleError, match="needs two devices, the cluster has 1"):
        tensor.plan(with_heads(make_problem(1, devices=1)))
