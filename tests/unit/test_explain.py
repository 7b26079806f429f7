from __future__ import annotations

import re

import msgspec
import pytest
from problems import make_device, make_problem

from greentrain.explain import reasons
from greentrain.objective import Objective, ObjectiveKind, Problem
from greentrain.planners import exhaustive, load_planner
from greentrain.planners.candidate import objective_value


def _percent(sentence: str) -> float:
    found = re.search(r"\(([+-][\d.]+)% \w+\)$", sentence)
    assert found is not None, sentence
    return float(found.group(1))


@pytest.mark.parametrize("kind", ["energy", "time", "edp"])
@pytest.mark.parametrize("counted", [False, True])
def test_no_alternative_is_better_than_the_optimum(kind: ObjectiveKind, counted: bool) -> None:
    for seed in range(6):
        objective = Objective(minimise=kind, count_idle_of_unused=counted)
        problem = make_problem(seed, devices=3, layers=3, batch=4, objective=objective)
        plan = load_planner("auto")(problem)
        said = reasons(plan, problem)
        assert list(said) == ["d0", "d1", "d2"]
        for device, sentence in said.items():
            assert sentence.startswith("in: " if device in plan.devices else "out: ")
            assert _percent(sentence) >= 0


def test_a_left_out_device_that_stays_on_still_counts() -> None:
    problem = make_problem(1, devices=2, objective=Objective(count_idle_of_unused=True))
    plan = exhaustive.plan(problem)
    without = exhaustive.plan(problem, must_avoid=plan.devices[0])
    assert plan.devices[0] not in without.devices
    assert without.estimate is not None
    assert set(without.estimate.energy_j) == {"d0", "d1"}
    assert objective_value(without) >= objective_value(plan)


def test_the_only_device() -> None:
    problem = make_problem(1, devices=1)
    assert reasons(exhaustive.plan(problem), problem) == {"d0": "in: the only device"}


def test_limits_are_given_as_the_reason() -> None:
    free = make_problem(2, devices=2, layers=3, batch=4)
    fastest = exhaustive.plan(
        msgspec.structs.replace(free, objective=msgspec.structs.replace(free.objective, minimise="time"))
    )
    assert fastest.estimate is not None
    assert len(fastest.devices) == 2
    deadline = Objective(deadline_s=fastest.estimate.step_s * 1.0001, job_samples=4)
    problem = msgspec.structs.replace(free, objective=deadline)
    said = reasons(exhaustive.plan(problem), problem)
    for sentence in said.values():
        assert sentence.startswith("in: without it there is no feasible plan (")


def test_a_device_without_room_is_out() -> None:
    problem = make_problem(3, devices=2, layers=3, batch=4)
    tiny = make_device("d1", kind="kind1", points=1, memory_bytes=10, idle_w=1.0, busy_w=2.0)
    cluster = msgspec.structs.replace(problem.cluster, devices=(problem.cluster.devices[0], tiny))
    problem = msgspec.structs.replace(problem, cluster=cluster)
    assert reasons(exhaustive.plan(problem), problem)["d1"] == "out: no plan with it satisfies the limits"


def _large() -> Problem:
    return make_problem(4, devices=6, layers=4, points=2, batch=32, micro_batches=(16, 32))


def test_beyond_exhaustive_reach_the_devices_are_tried_alone() -> None:
    problem = _large()
    assert exhaustive.choices_n(problem) > exhaustive.CHOICES_LIMIT
    plan = load_planner("auto")(problem)
    for device, sentence in reasons(plan, problem).items():
        assert sentence.startswith("in: without it" if device in plan.devices else "out: no plan tried with it")
