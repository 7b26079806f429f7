"""Repaired plans: near the old one, feasible, quick, and no worse than the layers where they were."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, with_transformer

from greentrain.cost import estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Objective, Problem
from greentrain.plan import Plan, validate
from greentrain.planners.candidate import Part, objective_value
from greentrain.planners.repair import repair

PROBLEM = make_problem(3, devices=4, layers=6, batch=8, micro_batches=(4,))
POINT = ("p0",)


def make_plan(*parts: Part, problem: Problem = PROBLEM) -> Plan:
    return plan_of(problem, 4, list(parts))


HYBRID = make_plan(Part(0, 3, ("d0", "d1"), (3, 1), POINT * 2), Part(3, 6, ("d2",), (4,), POINT))
PIPELINE = make_plan(
    Part(0, 2, ("d0",), (4,), POINT), Part(2, 4, ("d1",), (4,), POINT), Part(4, 6, ("d2",), (4,), POINT)
)


def repaired(plan: Plan, *lost: str, joined: tuple[str, ...] = (), problem: Problem = PROBLEM) -> Plan:
    return repair(plan, problem, frozenset(lost), frozenset(joined), home=plan)


def test_a_group_shares_its_rows_anew() -> None:
    found = repaired(HYBRID, "d1")
    assert found.devices == ("d0", "d2")
    validate(found, PROBLEM)


@pytest.mark.parametrize("lost", ["d0", "d1", "d2"])
def test_neighbours_take_the_layers_of_a_lost_stage(lost: str) -> None:
    found = repaired(PIPELINE, lost)
    left = tuple(device for device in PIPELINE.devices if device != lost)
    assert found.devices == left
    validate(found, PROBLEM)
    # No single cut between the two that are left is better than what was found by more than a move is worth.
    others = [
        make_plan(Part(0, cut, left[:1], (4,), POINT), Part(cut, 6, left[1:], (4,), POINT)) for cut in range(1, 6)
    ]
    best = min(objective_value(msgspec.structs.replace(one, estimate=estimate(one, PROBLEM))) for one in others)
    assert objective_value(found) <= best * 1.02 + 1e-12


@pytest.mark.parametrize("lost", ["d0", "d1", "d2"])
def test_a_group_that_shared_work_inside_a_sample_shares_rows_from_then_on(lost: str) -> None:
    problem = with_transformer(PROBLEM, random.Random(5))
    ring = Part(0, 4, ("d0", "d1"), (3, 1), POINT * 2, sharing="tensor_sequence")
    plan = make_plan(ring, Part(4, 6, ("d2",), (4,), POINT), problem=problem)
    found = repaired(plan, lost, problem=problem)
    assert {stage.sharing for stage in found.stages} == {"samples"}
    assert set(found.devices) == {"d0", "d1", "d2"} - {lost}
    validate(found, problem)
    # The devices that come back find no place in the group as it was.
    back = repair(found, problem, frozenset(), frozenset({lost}), home=plan)
    assert {stage.sharing for stage in back.stages} == {"samples"}
    assert set(back.devices) == {"d0", "d1", "d2"}
    validate(back, problem)


def test_a_device_of_the_first_plan_is_taken_back_to_its_place() -> None:
    alone = repaired(HYBRID, "d1")
    back = repair(alone, PROBLEM, frozenset(), frozenset({"d1"}), home=HYBRID)
    assert set(back.devices) == {"d0", "d1", "d2"}
    assert objective_value(back) <= objective_value(msgspec.structs.replace(HYBRID, estimate=estimate(HYBRID, PROBLEM)))


def test_a_new_device_is_taken_only_for_a_gain() -> None:
    for seed in range(8):
        problem = make_problem(seed, devices=3, layers=4, batch=8, micro_batches=(4,))
        plan = make_plan(Part(0, 4, ("d0", "d1"), (2, 2), POINT * 2), problem=problem)
        before = objective_value(repaired(plan, problem=problem))
        after = repaired(plan, joined=("d2",), problem=problem)
        assert objective_value(after) <= before
        assert ("d2" in after.devices) == (objective_value(after) < before)


def test_all_that_are_left_keep_a_part_even_where_fewer_would_be_cheaper() -> None:
    """Each may hold layers that only it has."""
    assert repaired(PIPELINE, "d1").devices == ("d0", "d2")


def test_what_does_not_fit_is_said_with_the_bytes() -> None:
    small = make_problem(3, devices=3, layers=6, batch=8, micro_batches=(4,), memory_bytes=3_000_000)
    plan = make_plan(
        Part(0, 2, ("d0",), (4,), POINT), Part(2, 4, ("d1",), (4,), POINT), Part(4, 6, ("d2",), (4,), POINT),
        problem=small,
    )  # fmt: skip
    with pytest.raises(InfeasibleError, match=r"without d1, d2 the model lacks .* of memory"):
        repaired(plan, "d1", "d2", problem=small)


def test_nobody_is_left() -> None:
    with pytest.raises(InfeasibleError, match="no device of the plan is left"):
        repaired(HYBRID, "d0", "d1", "d2")


@given(seed=st.integers(0, 200), lost=st.sets(st.sampled_from(["d0", "d1", "d2"]), min_size=1, max_size=2))
def test_any_loss_gives_a_valid_plan(seed: int, lost: set[str]) -> None:
    problem = make_problem(seed, devices=4, layers=5, batch=8, micro_batches=(4,), objective=Objective(minimise="time"))
    plan = make_plan(
        Part(0, 2, ("d0", "d1"), (1, 3), POINT * 2), Part(2, 3, ("d2",), (4,), POINT),
        Part(3, 5, ("d3",), (4,), POINT), problem=problem,
    )  # fmt: skip
    found = repaired(plan, *lost, problem=problem)
    assert set(found.devices) == set(plan.devices) - lost
    validate(found, problem)
    assert found.micro_batch == plan.micro_batch


def test_a_repair_of_a_deep_model_is_quick() -> None:
    problem = make_problem(5, devices=8, layers=60, batch=32, micro_batches=(8,))
    parts = [Part(start, start + 15, (f"d{start // 15 * 2}", f"d{start // 15 * 2 + 1}"), (4, 4), POINT * 2)
             for start in range(0, 60, 15)]  # fmt: skip
    plan = plan_of(problem, 8, parts)
    since_s = time.process_time()
    found = repair(plan, problem, frozenset({"d2", "d3"}), frozenset(), home=plan)
    assert time.process_time() - since_s < 2.0
    assert len(found.stages) == 3
