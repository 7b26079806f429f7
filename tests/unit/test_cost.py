from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, random_plan, with_random_network

from greentrain.cluster import Link, Medium
from greentrain.cost import CostTables, estimate, memory_bytes, most_rows, stage_traffic
from greentrain.objective import Objective, Problem
from greentrain.parallel.data import allocate_shares, gradient_sum_bytes, gradient_sum_s
from greentrain.parallel.pipeline import Step, boundary_s, round_s
from greentrain.planners.candidate import Part
from greentrain.profile import interpolate_batch_s


def _problem(seed: int = 1, **more: object) -> Problem:
    return msgspec.structs.replace(make_problem(seed, devices=3, layers=4), **more)


def test_one_device_by_hand() -> None:
    problem = _problem()
    plan = plan_of(problem, 4, [Part(0, 4, ("d0",), (4,), ("p0",))])
    price = estimate(plan, problem)
    times = problem.model.times_of("kind0", "p0")
    forward_s = sum(interpolate_batch_s(times.batch_B, row, 4) for row in times.forward_s_LB)
    backward_s = sum(interpolate_batch_s(times.batch_B, row, 4) for row in times.backward_s_LB)
    busy_s = 2 * (forward_s + backward_s) + sum(times.update_s_L)
    busy_w = problem.cluster.device("d0").curve("p0").busy_w
    assert price.step_s == pytest.approx(busy_s)
    assert price.energy_j == {
        "d0": {
            "compute": pytest.approx(busy_w * busy_s),
            "wait": pytest.approx(0.0, abs=1e-12),
            "send": 0,
            "receive": 0,
        }
    }
    assert price.samples_per_s == pytest.approx(8 / busy_s)
    assert price.energy_j_per_sample == pytest.approx(busy_w * busy_s / 8)
    layers = problem.model.layers
    assert price.peak_bytes["d0"] == (
        4 * sum(layer.param_bytes for layer in layers)
        + 4 * sum(layer.stash_bytes for layer in layers)
        + 2 * 4 * problem.model.input_bytes
    )


def test_causes_add_up_and_stay_non_negative() -> None:
    rng = random.Random(3)
    for seed in range(40):
        objective = Objective(count_idle_of_unused=seed % 2 == 0)
        problem = with_random_network(_problem(seed, objective=objective), rng)
        plan = random_plan(problem, rng)
        price = estimate(plan, problem)
        counted = {device.id for device in problem.cluster.devices} if seed % 2 == 0 else set(plan.devices)
        assert set(price.energy_j) == counted
        causes = [joules for device in price.energy_j.values() for joules in device.values()]
        assert min(causes) >= 0
        assert sum(causes) == pytest.approx(price.round_energy_j, rel=1e-12)
        assert price.energy_j_per_sample * plan.batch == pytest.approx(price.round_energy_j, rel=1e-12)
        assert all(busy_s <= price.step_s * (1 + 1e-12) for busy_s in price.busy_s.values())
        assert price.source == "modelled"


def test_what_is_sent_is_received() -> None:
    rng = random.Random(4)
    for seed in range(30):
        problem = _problem(seed)
        plan = random_plan(problem, rng)
        traffic = [found for index in range(len(plan.stages)) for found in stage_traffic(plan, index, problem.cluster)]
        assert sum(one.sent_bytes for one in traffic) == pytest.approx(sum(one.received_bytes for one in traffic))


_SECONDS = st.floats(0, 3)


@given(
    values=st.lists(st.tuples(_SECONDS, _SECONDS, _SECONDS, st.booleans()), min_size=7, max_size=7),
    stages_n=st.integers(1, 4),
    micro_batches_n=st.integers(1, 12),
    where=st.integers(0, 6),
    more=st.tuples(_SECONDS, _SECONDS, _SECONDS),
)
def test_nothing_slower_makes_a_round_shorter(
    values: list[tuple[float, float, float, bool]],
    stages_n: int,
    micro_batches_n: int,
    where: int,
    more: tuple[float, float, float],
) -> None:
    steps = [
        Step(forward_s, backward_s, 0.0 if index % 2 else tail_s, duplex and index % 2 == 1)
        for index, (forward_s, backward_s, tail_s, duplex) in enumerate(values[: 2 * stages_n - 1])
    ]
    where %= len(steps)
    slower = list(steps)
    slower[where] = steps[where]._replace(
        forward_s=steps[where].forward_s + more[0],
        backward_s=steps[where].backward_s + more[1],
        tail_s=0.0 if where % 2 else steps[where].tail_s + more[2],
    )
    before_s = round_s(steps, micro_batches_n)
    assert round_s(slower, micro_batches_n) >= before_s * (1 - 1e-12)
    for index in range(0, len(steps), 2):
        assert before_s >= (micro_batches_n * steps[index].total_s + steps[index].tail_s) * (1 - 1e-12)


def test_rounds_by_hand() -> None:
    stage = Step(1.0, 2.0, 0.5)
    assert round_s([stage], 4) == 12.5
    # Balanced, free links: the last stage ends (M + 1)·E − E_b after the start, the first one M·E + E.
    assert round_s([stage, Step(0.0, 0.0, duplex=True), stage], 4) == 15.5
    # A slow last stage dominates: fill with the first stage's micro-batch, then M times the slow one.
    assert round_s([Step(0.1, 0.2), Step(0.0, 0.0, duplex=True), Step(1.0, 2.0, 9.0)], 4) == pytest.approx(21.1)


def test_gradient_sum_by_hand() -> None:
    problem = _problem(2)
    wire = Link(src="*", dst="*", bandwidth_bytes_per_s=1e6, latency_s=0.01)
    cluster = msgspec.structs.replace(problem.cluster, default_link=wire, links=())
    assert gradient_sum_bytes(1, 300) == 0
    assert gradient_sum_bytes(3, 300) == 400
    assert gradient_sum_s(cluster, ("d0", "d1", "d2"), 3_000_000) == pytest.approx(4.0 + 4 * 0.01)
    assert gradient_sum_s(cluster, ("d0", "d1"), 0) == 0
    air = msgspec.structs.replace(
        cluster,
        default_link=msgspec.structs.replace(wire, medium="air"),
        media=(Medium(name="air", bandwidth_bytes_per_s=0.5e6),),
    )
    assert gradient_sum_s(air, ("d0", "d1", "d2"), 3_000_000) == pytest.approx(3 * 8.0 + 4 * 0.01)
    sent = boundary_s(air, ("d0",), ("d1", "d2"), sent_rows=(4,), received_rows=(3, 1), bytes_per_row=1000)
    assert sent == pytest.approx(0.01 + 4000 / 0.5e6)
    switched = boundary_s(cluster, ("d0", "d1"), ("d2",), sent_rows=(3, 1), received_rows=(4,), bytes_per_row=1000)
    assert switched == pytest.approx(0.01 + 4000 / 1e6)
    assert boundary_s(cluster, ("d0",), ("d1",), sent_rows=(4,), received_rows=(4,), bytes_per_row=0) == 0


@given(
    seed=st.integers(0, 10**6), start=st.integers(0, 3), length=st.integers(1, 4), in_flight=st.integers(1, 5),
    memory=st.integers(1, 40_000_000),
)  # fmt: skip
def test_most_rows_is_exactly_what_fits(seed: int, start: int, length: int, in_flight: int, memory: int) -> None:
    problem = make_problem(seed, devices=2, layers=4, memory_bytes=memory)
    stop = min(start + length, 4)
    rows = most_rows(problem.cluster.devices[0], start, stop, in_flight, problem)
    parts = [Part(start, stop, ("d0",), (4,), ("p0",))]
    if start:
        parts.insert(0, Part(0, start, ("d1",), (4,), ("p0",)))
    stages = plan_of(problem, 4, [*parts, Part(stop, 4, ("d9",), (4,), ("p0",))] if stop < 4 else parts).stages
    stage = msgspec.structs.replace(stages[1 if start else 0], in_flight=in_flight)
    assert memory_bytes(stage, rows + 1, problem) > memory
    if rows > 0:
        assert memory_bytes(stage, rows, problem) <= memory


def test_layers_that_keep_nothing_fit_any_rows() -> None:
    problem = _problem()
    bare = tuple(
        msgspec.structs.replace(layer, stash_bytes=0, activation_bytes=0, gradient_bytes=0)
        for layer in problem.model.layers
    )
    model = msgspec.structs.replace(problem.model, layers=bare)
    bare_problem = msgspec.structs.replace(problem, model=model)
    assert most_rows(problem.cluster.devices[0], 1, 3, 1, bare_problem) > 1000


def test_violations_say_what_is_lacking() -> None:
    objective = Objective(deadline_s=1.0, budget_j=1.0, job_samples=8000)
    problem = make_problem(1, objective=objective, memory_bytes=100_000)
    plan = plan_of(problem, 4, [Part(0, 4, ("d0",), (4,), ("p0",))])
    memory, deadline, budget = estimate(plan, problem).violations
    assert memory.startswith("device d0 lacks ")
    assert deadline.startswith("the deadline is missed by ")
    assert budget.startswith("the energy budget is exceeded by ")


def test_shared_tables_change_nothing() -> None:
    problem = _problem()
    tables = CostTables(problem)
    rng = random.Random(9)
    for _ in range(20):
        plan = random_plan(problem, rng)
        assert estimate(plan, problem, tables=tables) == estimate(plan, problem)


@given(
    rows=st.integers(1, 8),
    speeds=st.lists(st.floats(0.1, 10), min_size=1, max_size=3),
    limits=st.lists(st.integers(0, 8), min_size=3, max_size=3),
)
def test_shares_minimise_the_slowest_device(rows: int, speeds: list[float], limits: list[int]) -> None:
    times = [[count / speed for count in range(rows + 1)] for speed in speeds]
    limits = limits[: len(speeds)]

    def every(left: int, index: int) -> list[tuple[int, ...]]:
        if index == len(speeds):
            return [()] if left == 0 else []
        return [
            (count, *rest)
            for count in range(1, min(left, limits[index]) + 1)
            for rest in every(left - count, index + 1)
        ]

    possible = every(rows, 0)
    shares = allocate_shares(rows, times, limits)
    if not possible:
        assert shares is None
        return
    assert shares in possible

    def slowest_s(chosen: tuple[int, ...]) -> float:
        return max(times[index][count] for index, count in enumerate(chosen))

    assert slowest_s(shares) == pytest.approx(min(slowest_s(one) for one in possible))
