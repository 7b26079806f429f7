"""The exact search against brute force: whole frontiers, wishes, and shares that are cheapest within a limit."""

from __future__ import annotations

import random
from collections import Counter
from math import inf
from typing import Literal

import msgspec
import pytest
from brute_force import all_plans, best_value
from problems import (
    make_problem,
    with_busy_network,
    with_heads,
    with_memory,
    with_random_network,
    with_slow_updates,
    with_transformer,
)

from greentrain.cluster import Link
from greentrain.cost import estimate
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Objective, ObjectiveKind, Parallelism, Problem
from greentrain.plan import Plan, Sharing, parallelism_name
from greentrain.planners import beam, exact, load_planner, search_space
from greentrain.planners.candidate import objective_value
from greentrain.planners.span_tables import share_step

KINDS: tuple[ObjectiveKind, ...] = ("energy", "time", "edp", "carbon")


def _problem(seed: int, **objective: object) -> Problem:
    rng = random.Random(seed)
    problem = make_problem(
        seed,
        devices=rng.choice([2, 3]),
        layers=3,
        points=rng.choice([1, 2]),
        batch=6,
        micro_batches=rng.choice([(2,), (1, 3), (2, 3)]),
        objective=Objective(
            minimise=KINDS[seed % 4], count_idle_of_unused=rng.random() < 0.3, **objective  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    if rng.random() < 0.5:
        problem = with_random_network(problem, rng)
    return with_slow_updates(problem, rng) if rng.random() < 0.4 else problem


def _with_twins(problem: Problem) -> Problem:
    """The last device becomes a second one of the first kind, so that types are counted."""
    first, *others = problem.cluster.devices
    twin = msgspec.structs.replace(first, id=others[-1].id)
    cluster = msgspec.structs.replace(problem.cluster, devices=(first, *others[:-1], twin), links=())
    return msgspec.structs.replace(problem, cluster=cluster)


def _bound(plan: Plan) -> float:
    assert plan.certificate is not None
    assert plan.certificate.lower_bound is not None
    return plan.certificate.lower_bound


@pytest.mark.parametrize("twins", [False, True])
def test_the_optimum_is_that_of_brute_force(twins: bool) -> None:
    for seed in range(60):
        problem = _with_twins(_problem(seed)) if twins else _problem(seed)
        found = exact.plan(problem)
        assert objective_value(found) == pytest.approx(best_value(problem, list(all_plans(problem))), rel=1e-9), seed
        assert found.estimate == estimate(found, problem)
        assert found.certificate is not None
        assert found.certificate.gap_ratio == 0


def _with_heavy_weights(problem: Problem) -> Problem:
    """Large weights and small activations: gradient sums cost more than rings."""
    link = Link(src="*", dst="*", bandwidth_bytes_per_s=2e8, latency_s=1e-6)
    layers = tuple(
        msgspec.structs.replace(
            layer, param_bytes=100 * layer.param_bytes, activation_bytes=layer.activation_bytes // 50 + 1,
            gradient_bytes=layer.gradient_bytes // 50 + 1,
        )
        for layer in problem.model.layers
    )  # fmt: skip
    return msgspec.structs.replace(
        problem,
        model=msgspec.structs.replace(problem.model, layers=layers),
        cluster=msgspec.structs.replace(problem.cluster, default_link=link, links=()),
        micro_batches=(problem.batch,),
    )


def test_the_optimum_over_both_ways_to_share_is_that_of_brute_force() -> None:
    used: Counter[str] = Counter()
    for seed in range(60):
        problem = with_heads(_problem(seed), heads=2 + seed % 3, plain_layers=seed % 2)
        if seed % 3:
            problem = _with_heavy_weights(problem)
        found = exact.plan(problem)
        assert objective_value(found) == pytest.approx(best_value(problem, list(all_plans(problem))), rel=1e-9), seed
        used.update({stage.sharing for stage in found.stages})
    assert used["tensor_sequence"] >= 2, used


def test_the_optimum_is_that_of_brute_force_with_layers_that_every_device_computes_whole() -> None:
    """Replicated layers among split ones, other tensors in the cuts, gradients that end halfway."""
    used: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        problem = with_transformer(_with_heavy_weights(_problem(seed)), rng, heads=2 + seed % 3, sequence=5 + seed % 4)
        if seed % 2:
            problem = with_random_network(problem, rng)
        sharing: Sharing = ("tensor_sequence", "tensor", "tensor_sequence", "sequence", "tensor_sequence")[seed % 5]
        parallelism: Literal["tensor", "sequence", "hybrid", "any"] = "hybrid" if seed % 5 == 0 else "any"
        if sharing in ("tensor", "sequence"):
            parallelism = sharing
        problem = msgspec.structs.replace(problem, parallelism=parallelism)
        plans = [
            plan
            for plan in all_plans(problem, sharings=("samples", sharing))
            if parallelism in ("any", parallelism_name(plan))
        ]
        if not plans:
            continue
        if seed % 4 < 2:
            peaks = sorted(max(estimate(plan, problem).peak_bytes.values()) for plan in plans)
            problem = with_memory(problem, peaks[len(peaks) // 8])
        found = exact.plan(problem)
        assert objective_value(found) == pytest.approx(best_value(problem, plans), rel=1e-9), seed
        used.update({stage.sharing for stage in found.stages})
    assert all(used[sharing] >= 5 for sharing in ("tensor_sequence", "tensor", "sequence")), used


def test_the_optimum_is_that_of_brute_force_where_messages_keep_processors_busy() -> None:
    used: Counter[str] = Counter()
    for seed in range(32):
        rng = random.Random(seed)
        problem = with_busy_network(_problem(seed), rng)
        if seed % 2:
            problem = with_transformer(_with_heavy_weights(problem), rng, heads=2 + seed % 3, sequence=6)
            problem = msgspec.structs.replace(problem, parallelism=("tensor+sequence", "hybrid")[seed // 2 % 2])
        plans = [plan for plan in all_plans(problem) if problem.parallelism in ("any", parallelism_name(plan))]
        if not plans:
            continue
        found = exact.plan(problem)
        assert objective_value(found) == pytest.approx(best_value(problem, plans), rel=1e-9), seed
        used.update({stage.sharing for stage in found.stages})
    assert used["tensor_sequence"] >= 5, used


@pytest.mark.parametrize(
    "parallelism", ["single", "data", "pipeline", "tensor", "sequence", "tensor+sequence", "hybrid"]
)
def test_a_parallelism_restricts_the_space(parallelism: Parallelism) -> None:
    sharings: tuple[Sharing, ...] = ("samples", "tensor_sequence", "tensor", "sequence")
    for seed in range(8):
        problem = with_heads(_with_heavy_weights(_problem(seed)), heads=3, sequence=6)
        problem = msgspec.structs.replace(problem, parallelism=parallelism)
        ways = sharings if parallelism in ("tensor", "sequence") else sharings[:2]
        plans = [plan for plan in all_plans(problem, sharings=ways) if parallelism_name(plan) == parallelism]
        if not plans:
            with pytest.raises(InfeasibleError):
                exact.plan(problem)
            continue
        found = exact.plan(problem)
        assert parallelism_name(found) == parallelism
        assert objective_value(found) == pytest.approx(best_value(problem, plans), rel=1e-9), seed


def test_cheapest_shares_within_limits_lose_nothing_where_passes_are_proportional(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backward takes twice the forward here, so one limit per device bounds both."""
    monkeypatch.setattr(search_space, "_MOST_ALLOCATIONS", 0)
    for seed in range(40):
        problem = _problem(seed)
        uniform = msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))
        expected = best_value(uniform, list(all_plans(uniform)))
        assert objective_value(exact.plan(uniform)) <= expected * (1 + 2e-3), seed


def test_the_frontier_is_that_of_all_plans() -> None:
    for seed in range(30):
        problem = _problem(seed)
        prices = sorted({(p.step_s, p.round_energy_j) for p in (estimate(q, problem) for q in all_plans(problem))})
        expected: list[tuple[float, float]] = []
        for step_s, round_j in prices:
            if not expected or round_j < expected[-1][1] * (1 - 1e-9):
                expected.append((step_s, round_j))
        plans, whole = exact.frontier(problem)
        assert whole
        found = [plan.estimate for plan in plans]
        assert len(found) == len(expected), seed
        for price, (step_s, round_j) in zip(found, expected, strict=True):
            assert price is not None
            assert price.step_s == pytest.approx(step_s, rel=1e-9)
            assert price.round_energy_j == pytest.approx(round_j, rel=1e-9)


@pytest.mark.parametrize("wish", ["must_use", "must_avoid"])
def test_wishes_are_kept_at_the_least_cost(wish: str) -> None:
    for seed in range(30):
        problem = _problem(seed)
        device = problem.cluster.devices[-1].id
        plans = [plan for plan in all_plans(problem) if (device in plan.devices) == (wish == "must_use")]
        found = exact.plan(problem, **{wish: device})  # type: ignore[arg-type]
        assert (device in found.devices) == (wish == "must_use")
        assert objective_value(found) == pytest.approx(best_value(problem, plans), rel=1e-9), seed


def test_no_plan_within_a_deadline_names_what_is_missed() -> None:
    problem = _problem(3)
    objective = msgspec.structs.replace(problem.objective, deadline_s=1e-6, job_samples=600)
    with pytest.raises(InfeasibleError, match="deadline is missed by"):
        exact.plan(msgspec.structs.replace(problem, objective=objective))


def test_when_the_time_is_over_the_bound_still_holds() -> None:
    problem = make_problem(4, devices=4, layers=8, points=2, batch=16, micro_batches=(4, 8))
    problem = msgspec.structs.replace(problem, objective=Objective(minimise="time"))
    best = objective_value(exact.plan(problem))
    hurried = exact.plan(problem, time_limit_s=0.0)
    assert _bound(hurried) <= best * (1 + 1e-12)
    assert objective_value(hurried) >= best * (1 - 1e-12)
    assert hurried.certificate is not None
    assert hurried.certificate.gap_ratio is not None
    assert hurried.certificate.gap_ratio > 0


def test_a_gap_that_is_good_enough_is_no_proof_of_less() -> None:
    for seed in range(12):
        problem = _problem(seed)
        best = objective_value(exact.plan(problem))
        found = exact.plan(problem, gap_ratio=0.3)
        assert _bound(found) <= best * (1 + 1e-9), seed
        assert objective_value(found) <= 1.3 * best * (1 + 1e-9), seed


def test_a_frontier_that_ran_out_of_time_does_not_call_itself_whole() -> None:
    problem = make_problem(4, devices=4, layers=8, points=2, batch=16, micro_batches=(4, 8))
    assert not exact.frontier(problem, time_limit_s=0.0).whole


def test_a_search_that_is_stuck_in_one_window_is_no_worse_than_plain_planners(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []

    def stuck(search: object, window: object) -> None:
        looks.append(window)
        raise search_space.OutOfTimeError

    monkeypatch.setattr(exact._Search, "_look", stuck)
    better = 0
    for seed in range(12):
        problem = msgspec.structs.replace(_problem(seed), objective=Objective(minimise="time"))
        values = {
            name: objective_value(found)
            for name in ("pipeline", "dapple", "data-equal", "data", "asteroid", "single")
            if (found := _planned(name, problem)) is not None
        }
        found = exact.plan(problem, time_limit_s=60.0)
        assert objective_value(found) <= min(values.values()) * (1 + 1e-12), values
        assert found.certificate is not None
        assert found.certificate.lower_bound is not None
        assert found.certificate.lower_bound <= objective_value(found)
        better += min(values.values()) < values.get("single", inf)
    assert better > 0
    assert looks


def _planned(name: str, problem: Problem) -> Plan | None:
    try:
        return load_planner(name)(problem)
    except (InfeasibleError, NotSupportedError):
        return None


def test_a_beam_is_never_better_than_the_optimum_nor_below_its_bound() -> None:
    equal = 0
    for seed in range(24):
        problem = make_problem(
            seed, devices=4, layers=5, points=2, batch=8, micro_batches=(2, 4),
            objective=Objective(minimise=KINDS[seed % 3]),
        )  # fmt: skip
        best = objective_value(exact.plan(problem))
        found = beam.plan(problem)
        assert objective_value(found) >= best * (1 - 1e-9)
        assert _bound(found) <= best * (1 + 1e-9)
        equal += objective_value(found) <= best * (1 + 1e-9)
    assert equal >= 12, f"only {equal} of 24 beams found the optimum"


def test_an_interrupted_search_returns_the_best_plan_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(4, devices=4, layers=8, points=2, batch=16, micro_batches=(4, 8))
    best = objective_value(exact.plan(problem))

    class Interrupted:
        def __init__(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(exact, "WindowSearch", Interrupted)
    found = exact.plan(problem)
    assert _bound(found) <= best < inf
    assert objective_value(found) >= best * (1 - 1e-12)


@pytest.mark.parametrize(("total", "units"), [(1, 1), (16, 16), (32, 32), (48, 24), (128, 32), (197, 197)])
def test_shares_come_in_whole_units_that_are_few_or_single(total: int, units: int) -> None:
    assert total // share_step(total) == units
    assert total % share_step(total) == 0
