"""Explanations against the exact planner itself: what is said of devices, limits and changes is its price."""

from __future__ import annotations

import msgspec
import pytest
from problems import make_device, make_problem

from greentrain.explain import Explanation, explain
from greentrain.explain.changes import with_faster_links
from greentrain.objective import Objective, ObjectiveKind, Problem
from greentrain.plan import Plan, parallelism_name
from greentrain.planners import exact
from greentrain.planners.candidate import objective_value

# Time enough that nothing is cut short, also on a busy machine.
LONG_S = 50.0


def _explained(problem: Problem) -> tuple[Plan, Explanation]:
    plan = exact.plan(problem)
    return plan, explain(plan, problem, budget_s=LONG_S)


def _with(problem: Problem, **objective: object) -> Problem:
    return msgspec.structs.replace(problem, objective=msgspec.structs.replace(problem.objective, **objective))


def _twins(problem: Problem) -> Problem:
    """The last device becomes a second one of the first kind."""
    first, *others = problem.cluster.devices
    twin = msgspec.structs.replace(first, id=others[-1].id)
    cluster = msgspec.structs.replace(problem.cluster, devices=(first, *others[:-1], twin), links=())
    return msgspec.structs.replace(problem, cluster=cluster)


@pytest.mark.parametrize("kind", ["energy", "time", "edp"])
@pytest.mark.parametrize("counted", [False, True])
def test_a_device_is_priced_by_the_best_plan_without_or_with_it(kind: ObjectiveKind, counted: bool) -> None:
    for seed in range(3):
        objective = Objective(minimise=kind, count_idle_of_unused=counted)
        problem = make_problem(seed, devices=3, layers=3, batch=4, objective=objective)
        plan, found = _explained(problem)
        assert list(found.devices) == ["d0", "d1", "d2"]
        assert found.cut_short == ()
        assert found.whole
        for device, reason in found.devices.items():
            used = device in plan.devices
            assert reason.sentence.startswith("in: " if used else "out: ")
            other = exact.plan(problem, **{"must_avoid" if used else "must_use": device})  # type: ignore[arg-type]
            assert reason.figures is not None
            expected = objective_value(other) / objective_value(plan) - 1
            assert reason.figures.change_ratio == pytest.approx(expected, abs=2e-3)
            assert reason.figures.change_ratio >= -1e-9


def test_the_only_device() -> None:
    _, found = _explained(make_problem(1, devices=1))
    assert found.devices["d0"].sentence == "in: the only device"
    assert [reason.topic for reason in found.changes] == ["one more kind0"]


def test_of_devices_that_are_alike_some_are_enough() -> None:
    problem = _twins(make_problem(1, devices=3, layers=3, batch=4))
    plan, found = _explained(problem)
    assert plan.devices == ("d0",)
    assert found.devices["d2"].sentence == "out: of the 2 devices like it the plan needs 1 (d0)"
    assert found.devices["d0"].sentence.startswith("in: with no kind0 the best plan would take")


def test_a_deadline_that_binds_and_the_devices_it_needs() -> None:
    free = make_problem(2, devices=2, layers=3, batch=4)
    fastest = exact.plan(_with(free, minimise="time"))
    assert fastest.estimate is not None
    assert len(fastest.devices) == 2
    plan, found = _explained(_with(free, deadline_s=fastest.estimate.step_s * 1.0001, job_samples=4))
    for reason in found.devices.values():
        assert reason.sentence == "in: without it no plan keeps the limits"
    deadline, memory = found.limits
    assert deadline.matters
    assert deadline.figures is not None
    expected = objective_value(exact.plan(free)) / objective_value(plan) - 1
    assert deadline.figures.change_ratio == pytest.approx(expected, rel=1e-2)
    assert not memory.matters


def test_memory_that_binds() -> None:
    free = make_problem(3, devices=2, layers=4, batch=8)
    best = exact.plan(free)
    assert best.estimate is not None
    room = max(best.estimate.peak_bytes.values()) - 1
    members = tuple(msgspec.structs.replace(device, memory_bytes=room) for device in free.cluster.devices)
    tight = msgspec.structs.replace(free, cluster=msgspec.structs.replace(free.cluster, devices=members))
    _, found = _explained(tight)
    (memory,) = found.limits
    assert memory.matters
    assert memory.sentence.startswith("the devices' memory: without it ")


def test_a_device_without_room_is_out() -> None:
    problem = make_problem(3, devices=2, layers=3, batch=4)
    tiny = make_device("d1", kind="kind1", points=1, memory_bytes=10, idle_w=1.0, busy_w=2.0)
    cluster = msgspec.structs.replace(problem.cluster, devices=(problem.cluster.devices[0], tiny))
    _, found = _explained(msgspec.structs.replace(problem, cluster=cluster))
    assert found.devices["d1"].sentence == "out: no plan with it keeps the limits"


def test_a_power_cap_below_every_point_puts_a_device_out() -> None:
    problem = make_problem(0, devices=2, layers=3, batch=4)
    unused = next(d.id for d in problem.cluster.devices if d.id not in exact.plan(problem).devices)
    _, found = _explained(_with(problem, power_cap_w={unused: 0.1}))
    assert found.devices[unused].sentence.startswith(
        "out: its power cap of 100 mW is below every operating point (the l"
    )


def test_runners_up_differ_from_the_plan_and_from_each_other() -> None:
    for seed in range(4):
        plan, found = _explained(make_problem(seed, devices=3, layers=3, batch=4))
        assert len(found.runners_up) >= 2
        structures = {(parallelism_name(plan), tuple(sorted(plan.devices)))}
        ratios: list[float] = []
        for reason in found.runners_up:
            assert reason.figures is not None
            structures.add((reason.figures.parallelism, tuple(sorted(reason.figures.devices))))
            ratios.append(reason.figures.change_ratio)
        assert len(structures) == len(found.runners_up) + 1
        assert ratios == sorted(ratios)
        assert ratios[0] >= -1e-9


def test_a_faster_network_is_the_best_plan_on_it() -> None:
    problem = make_problem(6, devices=3, layers=3, batch=8, objective=Objective(minimise="time"))
    plan, found = _explained(problem)
    faster = found.changes[0]
    assert faster.topic == "network 10 times as fast"
    assert faster.figures is not None
    best = exact.plan(with_faster_links(problem, 10))
    expected = objective_value(best) / objective_value(plan) - 1
    assert faster.figures.change_ratio == pytest.approx(expected, abs=2e-3)


def test_what_the_time_does_not_allow_is_named() -> None:
    problem = make_problem(1, devices=3, layers=3, batch=4)
    found = explain(exact.plan(problem), problem, budget_s=0.0)
    assert found.devices == {}
    assert {"d0", "d1", "d2", "memory", "network 2 times as fast", "one more kind2"} <= set(found.cut_short)


def test_nothing_is_asked_after_an_interrupt() -> None:
    problem = make_problem(1, devices=2, layers=3, batch=4)
    assert explain(exact.plan(problem), problem, budget_s=LONG_S, stopped=lambda: True).devices == {}


def test_where_the_whole_cluster_takes_too_long_few_devices_are_asked() -> None:
    problem = make_problem(5, devices=4, layers=3, batch=4)
    plan = exact.plan(problem)
    found = explain(plan, problem, budget_s=LONG_S, planning_s=10 * LONG_S)
    assert not found.whole
    for name, reason in found.devices.items():
        assert reason.figures is not None
        assert reason.figures.at_least_ratio is None
        assert "the best plan found" in reason.sentence
        assert (name in plan.devices) != (name in reason.figures.devices)
