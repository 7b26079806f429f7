"""A problem is corrected by what a running job shows."""

from __future__ import annotations

import random

import msgspec
import pytest
from problems import make_problem, random_plan

from greentrain.cost import estimate
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import auto
from greentrain.planners.refit import DeviceSeen, RoundSeen, disagreements, refitted


def a_plan(seed: int) -> tuple[Plan, Problem]:
    problem = make_problem(seed, devices=3, layers=5, points=2)
    return random_plan(problem, random.Random(seed)), problem


def seen_of(plan: Plan, problem: Problem) -> RoundSeen:
    price = estimate(plan, problem)
    return RoundSeen(
        step_s=price.step_s,
        devices={
            name: DeviceSeen(busy_s=price.busy_s[name], energy_j=sum(price.energy_j[name].values()))
            for name in plan.devices
        },
    )


def in_another_world(problem: Problem, rng: random.Random) -> Problem:
    """The same problem where devices, network and power are not as they were measured."""
    times = [
        msgspec.structs.replace(
            known,
            forward_s_LB=tuple(tuple(factor * s for s in row) for row in known.forward_s_LB),
            backward_s_LB=tuple(tuple(factor * s for s in row) for row in known.backward_s_LB),
            update_s_L=tuple(factor * s for s in known.update_s_L),
        )
        for known in problem.model.times
        for factor in [rng.uniform(0.5, 3.0)]
    ]
    link = problem.cluster.default_link
    slower = rng.uniform(0.3, 5.0)
    cluster = msgspec.structs.replace(
        problem.cluster,
        default_link=msgspec.structs.replace(
            link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / slower, latency_s=link.latency_s * slower
        ),
        links=(),
    )
    return msgspec.structs.replace(problem, cluster=cluster, model=problem.model.with_times(times))


@pytest.mark.parametrize("seed", range(40))
def test_the_corrected_problem_predicts_what_was_seen(seed: int) -> None:
    plan, problem = a_plan(seed)
    problem = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))
    seen = seen_of(plan, in_another_world(problem, random.Random(seed)))
    again = estimate(plan, refitted(plan, problem, seen))
    assert again.step_s == pytest.approx(seen.step_s, rel=1e-3)
    for name, device_seen in seen.devices.items():
        assert again.busy_s[name] == pytest.approx(device_seen.busy_s, rel=1e-6)
        assert sum(again.energy_j[name].values()) == pytest.approx(device_seen.energy_j, rel=1e-3)


def test_what_was_predicted_changes_nothing() -> None:
    plan, problem = a_plan(3)
    seen = seen_of(plan, problem)
    assert disagreements(plan, problem, seen) == ()
    again = estimate(plan, refitted(plan, problem, seen))
    assert again.step_s == pytest.approx(seen.step_s, rel=1e-6)


def test_a_disagreement_is_said_with_both_figures() -> None:
    plan, problem = a_plan(4)
    seen = seen_of(plan, problem)
    name = plan.devices[0]
    twice = msgspec.structs.replace(seen.devices[name], energy_j=2 * (seen.devices[name].energy_j or 0.0))
    slow = RoundSeen(step_s=1.5 * seen.step_s, devices={**seen.devices, name: twice})
    time, energy = disagreements(plan, problem, slow)
    assert f"takes {slow.step_s:.4g} s, predicted {seen.step_s:.4g} s" in time
    assert energy.startswith(f"{name} takes ")


def test_a_silent_meter_leaves_the_power_as_it_was() -> None:
    plan, problem = a_plan(5)
    seen = seen_of(plan, problem)
    silent = {name: DeviceSeen(busy_s=device.busy_s) for name, device in seen.devices.items()}
    corrected = refitted(plan, problem, RoundSeen(step_s=seen.step_s, devices=silent))
    for name in plan.devices:
        assert corrected.cluster.device(name).power == problem.cluster.device(name).power


def test_a_throttled_device_loses_its_part_of_the_best_plan() -> None:
    # Time as objective, a network that costs nothing: all devices take part until one is 50 times slower.
    problem = make_problem(7, devices=3, layers=5)
    link = msgspec.structs.replace(problem.cluster.default_link, bandwidth_bytes_per_s=1e12, latency_s=0.0)
    objective = msgspec.structs.replace(problem.objective, minimise="time")
    cluster = msgspec.structs.replace(problem.cluster, default_link=link, links=())
    problem = msgspec.structs.replace(problem, cluster=cluster, objective=objective)
    before = auto.plan(problem)
    victim = before.devices[-1]
    seen = seen_of(before, problem)
    throttled = msgspec.structs.replace(seen.devices[victim], busy_s=50 * seen.devices[victim].busy_s)
    slow = RoundSeen(step_s=50 * seen.step_s, devices={**seen.devices, victim: throttled})
    corrected = refitted(before, problem, slow)
    after = auto.plan(corrected)
    assert len(before.devices) > 1
    assert estimate(after, corrected).step_s < 0.5 * estimate(before, corrected).step_s
