from __future__ import annotations

import random
from math import isinf

import msgspec
import pytest
from brute_force import all_plans, best_value
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_problem, with_random_network, with_sleep, with_slow_updates

from greentrain.cluster import Link
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Objective, ObjectiveKind, Problem
from greentrain.plan import Plan
from greentrain.planners import exact
from greentrain.planners.candidate import objective_value

KINDS: tuple[ObjectiveKind, ...] = ("energy", "time", "edp", "carbon")
LIMITS = (
    "none", "memory", "deadline", "budget", "slowdown", "idle", "several", "cap", "battery", "sleep", "parallelism",
)  # fmt: skip


def _random_problem(seed: int) -> Problem:
    rng = random.Random(seed)
    devices = rng.choice([2, 3, 3])
    problem = make_problem(
        seed,
        devices=devices,
        layers=rng.choice([3, 4]) if devices == 2 else 3,
        points=rng.choice([1, 2]),
        batch=(batch := rng.choice([4, 6])),
        micro_batches=rng.choice([(1, 2), (2,)]) if batch == 4 or devices == 3 else rng.choice([(1, 3), (2, 6)]),
        objective=Objective(minimise=KINDS[seed % len(KINDS)]),
    )
    if rng.random() < 0.6:
        problem = with_random_network(problem, rng)
    return with_slow_updates(problem, rng) if rng.random() < 0.4 else problem


def _limited(problem: Problem, plans: list[Plan], limit: str, rng: random.Random) -> Problem:
    """The problem with a limit that cuts through the middle of what its plans need."""
    some = [estimate(plan, problem) for plan in rng.sample(plans, min(len(plans), 60))]

    def binding(values: list[float]) -> float:
        return sorted(values)[rng.randrange(len(values) // 2 + 1)] * 1.000001

    if limit in ("sleep", "battery"):
        problem = with_sleep(problem, rng)
        some = [estimate(plan, problem) for plan in plans[:: max(len(plans) // 60, 1)]]
    if limit == "parallelism":
        return msgspec.structs.replace(problem, parallelism=rng.choice(["single", "data", "pipeline", "hybrid"]))
    objective = problem.objective
    if limit == "cap":
        watts = [curve.busy_w for device in problem.cluster.devices for curve in device.power.curves]
        caps = {device.id: rng.choice(watts) * 1.000001 for device in problem.cluster.devices[1:]}
        objective = msgspec.structs.replace(objective, power_cap_w=caps)
    if limit == "battery":
        held = [sum(price.energy_j["d0"].values()) for price in some if "d0" in price.energy_j]
        battery = {"device_budget_j": {"d0": 10 * binding(held)}, "job_samples": 10 * problem.batch}
        objective = msgspec.structs.replace(objective, **battery)
    if limit == "sleep":
        job = {"count_idle_of_unused": True, "job_samples": 10 * problem.batch}
        objective = msgspec.structs.replace(objective, **job, deadline_s=10 + 10 * binding([p.step_s for p in some]))
    if limit in ("memory", "several"):
        room = int(binding([max(price.peak_bytes.values()) for price in some])) + 1
        members = tuple(msgspec.structs.replace(d, memory_bytes=room) for d in problem.cluster.devices)
        problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=members))
    if limit in ("deadline", "several"):
        job = {"deadline_s": 10 * binding([price.step_s for price in some]), "job_samples": 10 * problem.batch}
        objective = msgspec.structs.replace(objective, **job)
    if limit == "budget":
        budget_j = 10 * binding([price.round_energy_j for price in some])
        objective = msgspec.structs.replace(objective, budget_j=budget_j, job_samples=10 * problem.batch)
    if limit in ("slowdown", "several"):
        objective = msgspec.structs.replace(objective, max_slowdown=rng.choice([1.0, 1.05, 1.5]))
    if limit == "idle" or rng.random() < 0.2:
        objective = msgspec.structs.replace(objective, count_idle_of_unused=True)
    return msgspec.structs.replace(problem, objective=objective)


@pytest.mark.parametrize("limit", LIMITS)
def test_exact_equals_brute_force(limit: str) -> None:
    infeasible = 0
    for seed in range(40):
        problem = _random_problem(1000 * LIMITS.index(limit) + seed)
        plans = list(all_plans(problem))
        problem = _limited(problem, plans, limit, random.Random(seed))
        expected = best_value(problem, plans)
        if isinf(expected):
            infeasible += 1
            with pytest.raises(InfeasibleError):
                exact.plan(problem)
            continue
        found = exact.plan(problem)
        assert objective_value(found) == pytest.approx(expected, rel=1e-9), f"seed {seed}, {problem.objective}"
        assert found.estimate == estimate(found, problem)
        assert found.certificate is not None
        assert found.certificate.gap_ratio == 0
    assert infeasible < 20, "most of the limited problems must still have a plan"


def test_a_slow_middle_stage_is_no_shortcut() -> None:
    """The middle device may idle along at p1; a cost that falls with its backward would make p1 'optimal'."""
    problem = make_problem(
        2, devices=3, layers=3, points=2, batch=8, micro_batches=(2,), objective=Objective(minimise="time")
    )
    seconds = {"p0": (1.0, 0.01, 0.01), "p1": (1.0, 0.7, 0.01)}
    times = [
        msgspec.structs.replace(
            entry,
            forward_s_LB=tuple((value / 3,) * len(entry.batch_B) for value in seconds[entry.point]),
            backward_s_LB=tuple((value * 2 / 3,) * len(entry.batch_B) for value in seconds[entry.point]),
            update_s_L=(0.0, 0.0, 3.0),
        )
        for entry in problem.model.times
    ]
    wire = Link(src="*", dst="*", bandwidth_bytes_per_s=1e12)
    problem = msgspec.structs.replace(
        problem,
        model=problem.model.with_times(times),
        cluster=msgspec.structs.replace(problem.cluster, default_link=wire),
    )
    assert objective_value(exact.plan(problem)) == pytest.approx(
        best_value(problem, list(all_plans(problem))), rel=1e-9
    )


def _optimum(problem: Problem) -> float:
    try:
        return objective_value(exact.plan(problem))
    except InfeasibleError:
        return float("inf")


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), network=st.booleans())
def test_a_device_more_never_worsens_the_optimum(seed: int, kind: ObjectiveKind, network: bool) -> None:
    whole = make_problem(seed, devices=3, layers=3, batch=4, objective=Objective(minimise=kind))
    if network:
        whole = with_random_network(whole, random.Random(seed))
    fewer = msgspec.structs.replace(whole, cluster=whole.cluster.restricted_to(("d0", "d2")))
    assert _optimum(whole) <= _optimum(fewer) * (1 + 1e-12)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    rooms=st.tuples(*[st.integers(200_000, 12_000_000)] * 3),
    more=st.tuples(*[st.integers(0, 4_000_000)] * 3),
)
def test_more_memory_never_worsens_the_optimum(
    seed: int, kind: ObjectiveKind, rooms: tuple[int, int, int], more: tuple[int, int, int]
) -> None:
    problem = make_problem(seed, devices=3, layers=3, batch=4, objective=Objective(minimise=kind))

    def with_memory(memories: list[int]) -> Problem:
        members = [
            msgspec.structs.replace(device, memory_bytes=memory)
            for device, memory in zip(problem.cluster.devices, memories, strict=True)
        ]
        return msgspec.structs.replace(
            problem, cluster=msgspec.structs.replace(problem.cluster, devices=tuple(members))
        )

    before = _optimum(with_memory(list(rooms)))
    assert _optimum(with_memory([room + add for room, add in zip(rooms, more, strict=True)])) <= before * (1 + 1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_an_operating_point_more_never_worsens_the_optimum(seed: int, kind: ObjectiveKind) -> None:
    whole = make_problem(seed, devices=2, layers=3, points=2, batch=4, objective=Objective(minimise=kind))
    first = whole.cluster.devices[0]
    fewer_points = msgspec.structs.replace(first, points=first.points[:1])
    cluster = msgspec.structs.replace(whole.cluster, devices=(fewer_points, *whole.cluster.devices[1:]))
    assert _optimum(whole) <= _optimum(msgspec.structs.replace(whole, cluster=cluster)) * (1 + 1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), tight=st.floats(1.0, 3.0), more=st.floats(1.0, 2.0))
def test_more_time_never_raises_the_energy(seed: int, tight: float, more: float) -> None:
    problem = make_problem(seed, devices=3, layers=3, points=2, batch=4)
    fastest = exact.plan(msgspec.structs.replace(problem, objective=Objective(minimise="time"))).estimate
    assert fastest is not None

    def within(factor: float) -> Problem:
        limited = Objective(deadline_s=factor * fastest.step_s * 1000, job_samples=1000 * problem.batch)
        return msgspec.structs.replace(problem, objective=limited)

    assert _optimum(within(tight * more)) <= _optimum(within(tight)) * (1 + 1e-12)
