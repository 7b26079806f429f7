"""Every planner of the table runs this suite."""

from __future__ import annotations

import random

import msgspec
import pytest
from problems import make_problem, with_heads, with_random_network

from greentrain.actions import lower
from greentrain.actions import validate as validate_actions
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError, UsageError
from greentrain.objective import Objective, ObjectiveKind, Parallelism, Problem
from greentrain.plan import Plan, parallelism_name, validate
from greentrain.planners import PLANNERS, auto, exact, load_planner
from greentrain.planners.candidate import objective_value

SEEDS = range(8)
KINDS: tuple[ObjectiveKind, ...] = ("energy", "time", "edp", "carbon")
# Planners that share every sample of a model with heads and tokens, and the part of the space that they are in.
INSIDE_SAMPLES: dict[str, Parallelism] = {
    "tensor": "tensor", "sequence": "sequence", "tensor-sequence": "tensor+sequence"
}  # fmt: skip

every_planner = pytest.mark.parametrize("name", list(PLANNERS))
every_seed = pytest.mark.parametrize("seed", SEEDS)


def _problem_for(name: str, seed: int, **limits: object) -> Problem:
    problem = _problem(seed, **limits)
    return with_heads(problem) if name in INSIDE_SAMPLES else problem


def _problem(seed: int, **limits: object) -> Problem:
    rng = random.Random(seed)
    objective = Objective(minimise=KINDS[seed % 4], count_idle_of_unused=seed % 3 == 0)
    problem = make_problem(
        seed, devices=2 + seed % 2, layers=4, points=1 + seed % 2, batch=8, micro_batches=(2, 4),
        objective=msgspec.structs.replace(objective, **limits),
    )  # fmt: skip
    return with_random_network(problem, rng) if seed % 2 else problem


def _with_memory(problem: Problem, memory_bytes: int) -> Problem:
    members = tuple(msgspec.structs.replace(device, memory_bytes=memory_bytes) for device in problem.cluster.devices)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=members))


def _plan(name: str, problem: Problem) -> Plan | None:
    try:
        return load_planner(name)(problem)
    except InfeasibleError:
        return None


@every_planner
@every_seed
def test_returns_a_valid_priced_and_certified_plan(name: str, seed: int) -> None:
    problem = _problem_for(name, seed)
    plan = _plan(name, problem)
    if plan is None:
        assert name.startswith("data"), "only groups larger than the micro-batch may fail here"
        assert max(problem.micro_batches) < len(problem.cluster.devices)
        return
    validate(plan, problem)
    validate_actions(lower(plan))
    assert plan.estimate is not None
    assert plan.estimate == estimate(plan, problem)
    assert not plan.estimate.violations
    certificate = plan.certificate
    assert certificate is not None
    assert certificate.unit == problem.objective.unit
    assert certificate.considered_n > 0
    assert certificate.lower_bound is not None
    assert certificate.gap_ratio is not None
    value = objective_value(plan)
    assert certificate.lower_bound <= value * (1 + 1e-12)
    assert certificate.gap_ratio == pytest.approx(value / certificate.lower_bound - 1, abs=1e-9)


@every_planner
@every_seed
def test_is_deterministic(name: str, seed: int) -> None:
    assert _plan(name, _problem_for(name, seed)) == _plan(name, _problem_for(name, seed))


@every_planner
@every_seed
def test_never_beats_the_proven_optimum_nor_its_bound(name: str, seed: int) -> None:
    problem = _problem_for(name, seed)
    within = INSIDE_SAMPLES.get(name)
    searched = msgspec.structs.replace(problem, parallelism=within) if within else problem
    optimum = objective_value(exact.plan(searched if within else problem))
    plan = _plan(name, problem)
    if plan is not None:
        assert objective_value(plan) >= optimum * (1 - 1e-12)
        assert plan.certificate is not None
        assert plan.certificate.lower_bound is not None
        assert plan.certificate.lower_bound <= optimum * (1 + 1e-12)


@every_planner
def test_too_little_memory_names_the_device_and_the_bytes(name: str) -> None:
    with pytest.raises(InfeasibleError, match=r"device d\d lacks [\d.]+ [KMG]?i?B of memory \(needs ") as caught:
        load_planner(name)(_with_memory(_problem_for(name, 1), 1000))
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None


@every_planner
def test_too_tight_a_deadline_is_named_with_what_is_lacking(name: str) -> None:
    problem = _problem_for(name, 1, deadline_s=1e-6, job_samples=800)
    with pytest.raises(InfeasibleError, match=r"the deadline is missed by [\d.]+ \w+ \(needs [\d.]+ \w+\)"):
        load_planner(name)(problem)


@every_planner
def test_too_small_a_budget_is_named_with_what_is_lacking(name: str) -> None:
    problem = _problem_for(name, 1, budget_j=1e-9, job_samples=800)
    with pytest.raises(InfeasibleError, match=r"the energy budget is exceeded by [\d.]+ \w+"):
        load_planner(name)(problem)


@every_planner
@every_seed
def test_a_slowdown_limits_the_round_against_the_fastest_plan_it_knows(name: str, seed: int) -> None:
    fastest = _plan(name, _problem_for(name, seed, minimise="time"))
    plan = _plan(name, _problem_for(name, seed, minimise="energy", max_slowdown=1.05))
    free = _plan(name, _problem_for(name, seed, minimise="energy"))
    if fastest is None or plan is None or free is None:
        assert fastest is plan is free
        return
    assert fastest.estimate is not None
    assert plan.estimate is not None
    assert plan.estimate.step_s <= 1.05 * fastest.estimate.step_s * (1 + 1e-9)
    assert objective_value(plan) >= objective_value(free) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("single", {"single"}),
        ("data", {"data"}),
        ("data-equal", {"data"}),
        ("pipeline", {"pipeline"}),
        *((name, {kind}) for name, kind in INSIDE_SAMPLES.items()),
    ],
)
def test_baselines_stay_in_their_corner_of_the_space(name: str, kinds: set[str]) -> None:
    for seed in SEEDS:
        plan = _plan(name, _problem_for(name, seed))
        assert plan is None or parallelism_name(plan) in kinds


def test_equal_shares_differ_by_one_row_at_most() -> None:
    plan = load_planner("data-equal")(_problem(1))
    assert max(plan.stages[0].shares) - min(plan.stages[0].shares) <= 1


def test_proportional_shares_are_no_slower_than_equal_ones() -> None:
    for seed in SEEDS:
        problem = _problem(seed, minimise="time")
        proportional, equal = _plan("data", problem), _plan("data-equal", problem)
        if proportional is not None and equal is not None:
            assert objective_value(proportional) <= objective_value(equal) * (1 + 1e-12)


def test_auto_is_exact_where_the_sets_of_devices_are_few_and_a_beam_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(3)
    small = load_planner("auto")(problem)
    monkeypatch.setattr(auto, "MOST_VECTORS", 3)
    large = load_planner("auto")(problem)
    assert (small.planner, large.planner) == ("exact", "beam")
    assert objective_value(small) <= objective_value(large) * (1 + 1e-12)


def test_unknown_planners_are_named() -> None:
    with pytest.raises(UsageError, match=r"unknown planner 'best'\. Known planners: auto, exact"):
        load_planner("best")
