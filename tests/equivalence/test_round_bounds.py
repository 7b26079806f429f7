"""What is said to be out of reach of a round is part of no plan that is as fast."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from brute_force import all_plans, best_value
from problems import make_problem, with_heads, with_random_network, with_slow_updates

from greentrain.cluster import Link, Medium
from greentrain.cost import CostTables, estimate, stage_price
from greentrain.objective import Objective, ObjectiveKind, Problem
from greentrain.plan import Plan
from greentrain.planners import exact
from greentrain.planners.candidate import objective_value
from greentrain.planners.goal import BestGoal
from greentrain.planners.search_space import SearchSpace


def _problem(seed: int, network: str) -> Problem:
    """Small models on slow links, so that cuts and gradient sums weigh as much as computing."""
    rng = random.Random(seed)
    problem = make_problem(
        seed, devices=3, layers=3, points=1, batch=6, micro_batches=rng.choice([(2,), (1, 3), (2, 3)]),
        objective=Objective(minimise="time", count_idle_of_unused=rng.random() < 0.5),
    )  # fmt: skip
    if rng.random() < 0.5:
        problem = with_slow_updates(problem, rng)
    if rng.random() < 0.3:
        problem = with_heads(problem, heads=3)
    link = Link(src="*", dst="*", bandwidth_bytes_per_s=10 ** rng.uniform(5, 8), latency_s=rng.choice([0.0, 1e-3]))
    media: tuple[Medium, ...] = ()
    if network == "shared":
        link = msgspec.structs.replace(link, medium="air")
        media = (Medium(name="air", bandwidth_bytes_per_s=link.bandwidth_bytes_per_s),)
    cluster = msgspec.structs.replace(problem.cluster, default_link=link, links=(), media=media)
    problem = msgspec.structs.replace(problem, cluster=cluster)
    return with_random_network(problem, rng) if network == "unlike" else problem


def _group(space: SearchSpace, names: tuple[str, ...]) -> int:
    counts_T = [sum(name in own for name in names) for own in space.types.names_T]
    return int(np.flatnonzero((space.counts_UT == counts_T).all(axis=1))[0])


def _check_stages(space: SearchSpace, plan: Plan, tables: CostTables) -> int:
    """How many stages there are that a limit slightly below the plan's round would shut out."""
    own = space.tables_of[plan.micro_batch]
    assert plan.estimate is not None
    reach, shorter = own.rounds.within(plan.estimate.step_s), own.rounds.within(0.9 * plan.estimate.step_s)
    assert reach.possible
    shut = 0
    for stage in plan.stages:
        group, span = _group(space, stage.devices), own.spans.span_LL[stage.start, stage.stop]
        assert reach.open_US[group, span]
        shut += not shorter.open_US[group, span]
    last = plan.stages[-1]
    last_group = _group(space, last.devices)
    free = space.without_UU[-1, last_group]
    least_s = own.rounds.late_s(reach, np.array([free]), np.array([last.start]), np.array([last_group]))[0]
    works_s = plan.micro_batches_n * stage_price(last, tables, plan.micro_batch).both_s
    assert (least_s > 0) == (last.start > 0)
    assert least_s + works_s <= plan.estimate.step_s * (1 + 1e-9)
    return shut


@pytest.mark.parametrize("network", ["switched", "shared", "unlike"])
def test_no_stage_of_a_plan_is_out_of_reach_of_its_own_round(network: str) -> None:
    shut = 0
    for seed in range(12):
        problem = _problem(seed, network)
        tables = CostTables(problem)
        space = SearchSpace(problem, BestGoal(problem))
        plans = list(all_plans(problem))
        rounds = [(estimate(plan, problem, tables=tables), plan) for plan in plans]
        fastest = sorted((one for one in rounds if not one[0].violations), key=lambda one: one[0].step_s)[:10]
        for price, plan in [*fastest, *random.Random(seed).sample(rounds, 30)]:
            if not price.violations:
                shut += _check_stages(space, msgspec.structs.replace(plan, estimate=price), tables)
    assert shut > 20, "the bounds must shut something out"


@pytest.mark.parametrize("network", ["switched", "shared", "unlike"])
@pytest.mark.parametrize("kind", ["time", "edp", "energy"])
def test_the_optimum_over_slow_links_is_that_of_brute_force(network: str, kind: ObjectiveKind) -> None:
    for seed in range(100, 110):
        problem = _problem(seed, network)
        objective = msgspec.structs.replace(problem.objective, minimise=kind, count_idle_of_unused=seed % 2 == 0)
        problem = msgspec.structs.replace(problem, objective=objective)
        least = best_value(problem, list(all_plans(problem)))
        assert objective_value(exact.plan(problem)) == pytest.approx(least, rel=1e-9), seed
