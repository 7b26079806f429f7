"""Large clusters: bounds over devices in one another's place, plain planners' plans, and frontiers of a beam."""

from __future__ import annotations

import itertools
import time
from math import comb

import numpy as np
import pytest
from problems import make_problem

from greentrain.objective import Objective, ObjectiveKind, Problem
from greentrain.planners import beam, exact, load_planner
from greentrain.planners.candidate import objective_value
from greentrain.planners.cluster_bound import ClusterBound
from greentrain.planners.device_types import device_types
from greentrain.planners.share_units import least_of_many


def _problem(seed: int, kind: ObjectiveKind) -> Problem:
    return make_problem(
        seed, devices=3, layers=4, points=2, batch=8, micro_batches=(2, 4),
        objective=Objective(minimise=kind, count_idle_of_unused=seed % 2 == 1),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["energy", "time", "edp"])
def test_the_bound_of_a_cluster_is_below_its_optimum(kind: ObjectiveKind) -> None:
    above_zero = 0
    for seed in range(5):
        problem = _problem(seed, kind)
        best = objective_value(exact.plan(problem))
        bound = ClusterBound(problem, device_types(problem), 2 * best, time.monotonic() + 60).find()
        assert bound <= best * (1 + 1e-12)
        above_zero += bound > 0.5 * best
    assert above_zero >= 3, "a bound must say something"


def test_a_bound_whose_time_is_over_still_holds() -> None:
    problem = _problem(2, "time")
    best = objective_value(exact.plan(problem))
    assert ClusterBound(problem, device_types(problem), 2 * best, time.monotonic()).find() <= best


def test_the_joules_of_many_devices_are_never_below_the_bound() -> None:
    rng = np.random.default_rng(5)
    for devices_n, units in ((3, 7), (4, 8), (5, 5), (6, 4)):
        cost_SR = rng.uniform(1, 9, (4, units + 1))
        cost_SR[:, 0] = np.inf
        cost_SR[1, 2] = np.inf
        least_SR = cost_SR
        for _ in range(devices_n - 1):
            least_SR = np.stack(
                [
                    np.min([least_SR[:, own] + cost_SR[:, whole - own] for own in range(whole + 1)], axis=0)
                    for whole in range(units + 1)
                ],
                axis=1,
            )
        assert np.isfinite(least_SR[0, units]) == (comb(units - 1, devices_n - 1) > 0)
        assert (least_of_many(devices_n, np.ascontiguousarray(cost_SR.T)) <= least_SR[:, units] * (1 + 1e-12)).all()


def test_a_beam_is_no_worse_than_the_plain_planners() -> None:
    for seed in range(3):
        problem = _problem(seed, "time")
        found = objective_value(beam.plan(problem))
        for name in ("data", "asteroid", "dapple"):
            assert found <= objective_value(load_planner(name)(problem)) * (1 + 1e-12)


def test_a_frontier_of_a_beam_falls_and_never_calls_itself_whole() -> None:
    problem = make_problem(0, devices=3, layers=5, points=2, batch=8, micro_batches=(2, 4))
    plans, whole = beam.frontier(problem, time_limit_s=60.0)
    assert not whole
    prices = [plan.estimate for plan in plans]
    assert len(prices) >= 3
    for faster, slower in itertools.pairwise(prices):
        assert faster is not None
        assert slower is not None
        assert faster.step_s < slower.step_s
        assert faster.round_energy_j > slower.round_energy_j
    assert all(plan.planner == "beam" and plan.objective == problem.objective for plan in plans)
