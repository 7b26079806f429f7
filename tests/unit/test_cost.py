from __future__ import annotations

import random
from math import ceil

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, random_plan, with_random_network

from greentrain.cluster import Link, Medium
from greentrain.cost import (
    CostTables,
    boundary_transfer,
    device_compute_s,
    estimate,
    memory_bytes,
    most_rows,
    stage_price,
    stage_traffic,
)
from greentrain.objective import Objective, Problem
from greentrain.parallel.data import (
    allocate_shares,
    exposed_sum_s,
    gradient_sum_air_s,
    gradient_sum_bytes,
    gradient_sum_s,
)
from greentrain.parallel.memory import PROCESS_BYTES
from greentrain.parallel.pipeline import (
    DOMINANCE_FIELDS,
    Pipe,
    Step,
    Transfer,
    last_stage,
    prepended,
    round_s,
)
from greentrain.planners.candidate import Part
from greentrain.profile import interpolate_batch_s
from greentrain.simulator import simulate, to_estimate
from greentrain.units import format_quantity


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
        PROCESS_BYTES
        + 4 * sum(layer.param_bytes for layer in layers)
        + ceil(1.2 * max(layer.param_bytes for layer in layers))
        + 4 * ceil(1.25 * sum(layer.stash_bytes for layer in layers))
        + 4 * ceil(0.7 * max(layer.stash_bytes for layer in layers))
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
_STEP = st.tuples(*[_SECONDS] * 8)
_TRANSFER = st.tuples(*[_SECONDS] * 8)


def _step(values: tuple[float, ...]) -> Step:
    forward_s, backward_s, both, first_forward, first_backward, *rest = values
    # A device that is slowest in both together is no slower than the slowest in each; the fastest is no slower either.
    both_s = max(forward_s, backward_s) + both / 3 * min(forward_s, backward_s)
    return Step(forward_s, backward_s, both_s, first_forward / 3 * forward_s, first_backward / 3 * backward_s, *rest)


def _slower_step(step: Step, more: tuple[float, ...]) -> Step:
    extra = _step(more)
    return Step(*(old + new for old, new in zip(step, extra, strict=True)))


@given(
    steps=st.lists(_STEP, min_size=1, max_size=4),
    links=st.lists(_TRANSFER, min_size=3, max_size=3),
    micro_batches_n=st.integers(1, 12),
    where=st.integers(0, 3),
    more=_STEP,
    more_link=_TRANSFER,
)
def test_nothing_slower_makes_a_round_shorter(
    steps: list[tuple[float, ...]],
    links: list[tuple[float, ...]],
    micro_batches_n: int,
    where: int,
    more: tuple[float, ...],
    more_link: tuple[float, ...],
) -> None:
    stages = [_step(values) for values in steps]
    transfers = [Transfer(*values) for values in links[: len(stages) - 1]]
    before_s = round_s(stages, transfers, micro_batches_n)
    for step in stages:
        assert before_s >= (micro_batches_n * step.both_s + step.sum_s + step.update_s) * (1 - 1e-12)
    slower = list(stages)
    slower[where % len(stages)] = _slower_step(stages[where % len(stages)], more)
    assert round_s(slower, transfers, micro_batches_n) >= before_s * (1 - 1e-12)
    if transfers:
        old = transfers[where % len(transfers)]
        transfers[where % len(transfers)] = Transfer(*(a + b for a, b in zip(old, more_link, strict=True)))
        assert round_s(stages, transfers, micro_batches_n) >= before_s * (1 - 1e-12)


@given(
    pipe=st.tuples(*[_SECONDS] * len(DOMINANCE_FIELDS)),
    more=st.tuples(*[_SECONDS] * len(DOMINANCE_FIELDS)),
    stages_n=st.integers(1, 5),
    micro_batches_n=st.integers(1, 40),
    head=_STEP,
    link=_TRANSFER,
)
def test_a_pipe_worse_in_every_coordinate_stays_worse(
    pipe: tuple[float, ...],
    more: tuple[float, ...],
    stages_n: int,
    micro_batches_n: int,
    head: tuple[float, ...],
    link: tuple[float, ...],
) -> None:
    better = Pipe(stages_n, *pipe)
    worse = Pipe(stages_n, *(old + new for old, new in zip(pipe, more, strict=True)))
    after = [prepended(_step(head), Transfer(*link), each, micro_batches_n) for each in (better, worse)]
    for name in DOMINANCE_FIELDS:
        assert getattr(after[1], name) >= getattr(after[0], name) * (1 - 1e-12), name


def test_arrays_are_priced_entry_by_entry() -> None:
    rng = np.random.default_rng(3)
    heads = [_step(tuple(values)) for values in rng.uniform(0, 3, (20, 8))]
    tails = [_step(tuple(values)) for values in rng.uniform(0, 3, (20, 8))]
    links = [Transfer(*values) for values in rng.uniform(0, 3, (20, 8))]
    for micro_batches_n in (1, 2, 9):
        one_by_one = []
        for head, link, tail in zip(heads, links, tails, strict=True):
            pipe = prepended(tail, link, last_stage(tail, micro_batches_n), micro_batches_n)
            one_by_one.append(prepended(head, link, pipe, micro_batches_n))
        head, tail = (Step(*np.array(steps).T) for steps in (heads, tails))
        link = Transfer(*np.array(links).T)
        pipe = prepended(tail, link, last_stage(tail, micro_batches_n), micro_batches_n)
        together = prepended(head, link, pipe, micro_batches_n)
        assert together.stages_n == 3
        for name in DOMINANCE_FIELDS:
            assert getattr(together, name) == pytest.approx([getattr(each, name) for each in one_by_one])


def test_rounds_by_hand() -> None:
    stage = Step(1.0, 2.0, 3.0, 1.0, 2.0, 0.25, 0.25)
    free = Transfer()
    assert round_s([stage], [], 4) == 12.5
    # Balanced, free links: the last stage ends (M + 1)·E − E_b after the start, the first one M·E + E.
    assert round_s([stage, stage], [free], 4) == 15.5
    # A slow last stage dominates: fill with the first stage's micro-batch, then M times the slow one.
    quick, slow = Step(0.1, 0.2, 0.3, 0.1, 0.2), Step(1.0, 2.0, 3.0, 1.0, 2.0, 9.0, 0.0)
    assert round_s([quick, slow], [free], 4) == pytest.approx(21.1)
    # Only the wire takes time: 8 activations down, the last gradient back; latency counts twice, not 16 times.
    nothing = Step(0.0, 0.0, 0.0, 0.0, 0.0)
    wire = Transfer(1.0, 1.0, 1.0, 1.0, 0.25, 0.25)
    assert round_s([nothing, nothing], [wire], 8) == pytest.approx(8 + 1 + 0.5)
    # The head is at most three micro-batches ahead, so a long latency is paid once per three.
    far = wire._replace(forward_latency_s=5.0, backward_latency_s=5.0)
    assert round_s([nothing, nothing], [far], 7) == pytest.approx(3 * 12)
    # On a shared medium both directions follow one another.
    air = Transfer(down_air_s=1.0, up_air_s=1.0)
    assert round_s([nothing, nothing], [air], 8) == pytest.approx(16.0)
    # The slow device's rows are on their way long after the fast one's, which keep the port busy: no waiting twice.
    mixed = Step(4.0, 0.0, 4.0, 1.0, 0.0)
    port = Transfer(left_out_s=0.5, right_in_s=5.0)
    assert round_s([mixed, nothing], [port], 1) == pytest.approx(1.0 + 5.0)
    # Four forwards are held up by the second stage and turn at the third, their backwards by the first.
    slow_down, slow_up, even = (Step(*both, sum(both), *both) for both in ((3.0, 1.0), (1.0, 3.0), (1.0, 1.0)))
    assert round_s([slow_up, slow_down, even, even, even], [free] * 4, 4) == pytest.approx(
        1 + 4 * 3 + 1 + 1 + 1 + 4 * 3
    )
    # Both gradient sums go through the same air, the head's last backward meanwhile.
    sums = Step(1.0, 1.0, 2.0, 1.0, 1.0, 5.0, 0.5, 5.0)
    assert round_s([sums, sums], [air], 1) == pytest.approx(5.0 + 10.0 + 0.5)


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
    assert gradient_sum_air_s(air, ("d0", "d1", "d2"), 3_000_000) == pytest.approx(3 * 8.0)
    assert gradient_sum_air_s(cluster, ("d0", "d1", "d2"), 3_000_000) == 0


def test_transfers_by_hand() -> None:
    problem = _problem(2)
    wire = Link(src="*", dst="*", bandwidth_bytes_per_s=1e6, latency_s=0.01)
    cluster = msgspec.structs.replace(problem.cluster, default_link=wire, links=())
    layer = msgspec.structs.replace(problem.model.layers[0], activation_bytes=1000, gradient_bytes=500)
    found = boundary_transfer(cluster, ("d0", "d1"), ("d2",), rows_before=(3, 1), rows_after=(4,), layer=layer)
    assert found == pytest.approx(Transfer(0.003, 0.004, 0.002, 0.0015, 0.01, 0.01))
    assert found.down_s == pytest.approx(0.004)
    # The pair with the slow link moves just the rows that both hold.
    slow = Link(src="d1", dst="d2", bandwidth_bytes_per_s=1e5, latency_s=0.05)
    uneven = msgspec.structs.replace(cluster, links=(slow,))
    found = boundary_transfer(uneven, ("d0", "d1"), ("d2",), rows_before=(3, 1), rows_after=(4,), layer=layer)
    assert found == pytest.approx(Transfer(0.01, 0.013, 0.002, 0.0015, 0.05, 0.01))
    air = msgspec.structs.replace(
        cluster,
        default_link=msgspec.structs.replace(wire, medium="air"),
        media=(Medium(name="air", bandwidth_bytes_per_s=0.5e6),),
    )
    found = boundary_transfer(air, ("d0",), ("d1", "d2"), rows_before=(4,), rows_after=(3, 1), layer=layer)
    assert found == pytest.approx(Transfer(0, 0, 0, 0, 0.01, 0.01, 0.008, 0.004))
    frozen = msgspec.structs.replace(layer, gradient_bytes=0)
    nothing_back = boundary_transfer(cluster, ("d0",), ("d1",), rows_before=(4,), rows_after=(4,), layer=frozen)
    assert nothing_back == pytest.approx(Transfer(0.004, 0.004, forward_latency_s=0.01))


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

    def needed_bytes(rows: int) -> int:
        return memory_bytes(msgspec.structs.replace(stage, shares=(rows,)), 0, problem, rows)

    assert needed_bytes(rows + 1) > memory
    if rows > 0:
        assert needed_bytes(rows) <= memory


_HIDDEN = st.lists(st.tuples(_SECONDS, st.lists(_SECONDS, min_size=2, max_size=2)), min_size=1, max_size=6)


@given(layers=_HIDDEN, busy_s=_SECONDS)
def test_what_a_backward_hides_of_a_sum(layers: list[tuple[float, list[float]]], busy_s: float) -> None:
    """Against a clock: layers end from the last to the first, the wire takes their gradients one after another."""
    wire_s_L = np.cumsum([wire_s for wire_s, _ in layers]).tolist()
    backward_s_DL = np.cumsum([own_s_D for _, own_s_D in reversed(layers)], axis=0)[::-1].T.tolist()
    free_s, ready_s_D = 0.0, [0.0, 0.0]
    for wire_s, own_s_D in reversed(layers):
        ready_s_D = [ready_s + own_s for ready_s, own_s in zip(ready_s_D, own_s_D, strict=True)]
        free_s = max(free_s, *ready_s_D) + wire_s
    expected_s = max(free_s - max(ready_s_D), busy_s)
    ready_s_L = [max(seconds) for seconds in zip(*backward_s_DL, strict=True)]
    assert exposed_sum_s(ready_s_L, wire_s_L, busy_s) == pytest.approx(expected_s, abs=1e-9)


def test_only_the_first_stage_hides_its_sum_and_only_on_a_switched_network() -> None:
    problem = make_problem(2, devices=4)
    tables = CostTables(problem)
    halves = ((2, 2), ("p0", "p0"))
    first, second = plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), *halves), Part(2, 4, ("d2", "d3"), *halves)]).stages
    for stage, hidden in ((first, True), (second, False)):
        price = stage_price(stage, tables, 4)
        whole_s = gradient_sum_s(problem.cluster, stage.devices, stage.sum_bytes)
        backward_s = max(device_compute_s(stage, position, tables, 4)[1] for position in (0, 1))
        assert (price.sum_s < whole_s) == hidden
        assert price.sum_s >= whole_s - backward_s
    air = msgspec.structs.replace(problem.cluster.default_link, medium="air")
    wireless = msgspec.structs.replace(
        problem.cluster, default_link=air, links=(), media=(Medium(name="air", bandwidth_bytes_per_s=1e6),)
    )
    on_air = msgspec.structs.replace(problem, cluster=wireless)
    expected_s = gradient_sum_s(wireless, first.devices, first.sum_bytes)
    assert stage_price(first, CostTables(on_air), 4).sum_s == expected_s


def test_a_gradient_sum_needs_no_room_of_its_own() -> None:
    problem = _problem()
    bare = tuple(
        msgspec.structs.replace(layer, stash_bytes=0, activation_bytes=1, gradient_bytes=1)
        for layer in problem.model.layers
    )
    problem = msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=bare))
    weights = sum(layer.param_bytes for layer in bare)
    for who in ((("d0",), (4,), ("p0",)), (("d0", "d1"), (3, 1), ("p0", "p0"))):
        peak = estimate(plan_of(problem, 4, [Part(0, 4, *who)]), problem).peak_bytes["d0"]
        largest = max(layer.param_bytes for layer in bare)
        assert peak == pytest.approx(PROCESS_BYTES + 4 * weights + 1.2 * largest, abs=10_000)


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


def test_caps_and_batteries_are_named() -> None:
    base = make_problem(1, devices=2, points=2)
    d0 = base.cluster.device("d0")
    low, high = sorted(curve.busy_w for curve in d0.power.curves)
    middle = (low + high) / 2
    objective = Objective(power_cap_w={"d0": middle}, device_budget_j={"d1": 1e-3}, job_samples=8000)
    problem = msgspec.structs.replace(base, objective=objective)
    found: list[tuple[str, ...]] = []
    for point in ("p0", "p1"):
        plan = plan_of(problem, 4, [Part(0, 2, ("d0",), (4,), (point,)), Part(2, 4, ("d1",), (4,), ("p0",))])
        price = estimate(plan, problem)
        found.append(price.violations)
        over_j = 1000 * sum(price.energy_j["d1"].values()) - 1e-3
        assert price.violations[-1].startswith("device d1 exceeds its energy budget of ")
        assert price.violations[-1].endswith(format_quantity(over_j, "energy"))
    assert [len(violations) for violations in found] == [2, 1]
    assert found[0][0] == (
        f"device d0 draws {format_quantity(high, 'power')} at p0, its cap is {format_quantity(middle, 'power')}"
    )
    with pytest.raises(ValueError, match="power_cap_w of 'd0' is 0"):
        Objective(power_cap_w={"d0": 0.0})
    with pytest.raises(ValueError, match="needs job_samples"):
        Objective(device_budget_j={"d0": 5.0})


def test_only_the_wanted_parallelism_is_allowed() -> None:
    problem = _problem(parallelism="data")
    plan = plan_of(problem, 4, [Part(0, 2, ("d0",), (4,), ("p0",)), Part(2, 4, ("d1",), (4,), ("p0",))])
    assert estimate(plan, problem).violations == ("the parallelism is 'pipeline', only 'data' is wanted",)
    assert estimate(plan, msgspec.structs.replace(problem, parallelism="pipeline")).violations == ()


def test_sleeping_and_waking() -> None:
    objective = Objective(count_idle_of_unused=True, job_samples=80, deadline_s=1000.0)
    base = make_problem(1, devices=3, objective=objective)
    d0, d1, d2 = base.cluster.devices
    members = (
        msgspec.structs.replace(d0, wake_j=50.0, wake_s=999.0),
        msgspec.structs.replace(d1, power=msgspec.structs.replace(d1.power, sleep_w=0.25)),
        msgspec.structs.replace(d2, wake_j=70.0),
    )
    problem = msgspec.structs.replace(base, cluster=msgspec.structs.replace(base.cluster, devices=members))
    plan = plan_of(problem, 4, [Part(0, 4, ("d0",), (4,), ("p0",))])
    price = estimate(plan, problem)
    # Ten rounds in the job; who takes no part is not woken.
    assert price.energy_j["d0"]["wake"] == pytest.approx(5.0)
    assert price.energy_j["d1"] == {"sleep": pytest.approx(0.25 * price.step_s)}
    assert price.energy_j["d2"] == {"idle": pytest.approx(d2.power.idle_w * price.step_s)}
    slow = msgspec.structs.replace(problem, objective=msgspec.structs.replace(objective, deadline_s=999.0))
    assert price.violations == ()
    (missed,) = estimate(plan, slow).violations
    assert missed.startswith(f"the deadline is missed by {format_quantity(10 * price.step_s, 'time')}")
    # Without a job nobody knows how long waking lasts.
    no_job = msgspec.structs.replace(problem, objective=Objective())
    assert "wake" not in estimate(plan, no_job).energy_j["d0"]
    rows = simulate(plan, problem)
    assert {row.action for row in rows if row.rank == -1} == {"sleep", "idle"}
    assert to_estimate(rows, plan, problem).energy_j["d0"]["wake"] == pytest.approx(5.0)
    assert to_estimate(rows, plan, problem).round_energy_j == pytest.approx(price.round_energy_j, rel=1e-6)


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
