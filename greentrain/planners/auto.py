"""Exhaustive where the space is small enough, else the best of the baselines over the likely groups.

The certificate says which: proven optimal, or the gap to a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from greentrain.cost import CostTables, estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import data, data_equal, exhaustive, pipeline, single
from greentrain.planners.candidate import best_of

__all__ = ["plan"]


def plan(problem: Problem) -> Plan:
    """The proven optimum of a small problem, else the best baseline with its gap.

    Raises:
        InfeasibleError: No plan that was tried satisfies the constraints.
    """
    if exhaustive.choices_n(problem) <= exhaustive.CHOICES_LIMIT:
        return exhaustive.plan(problem)
    return best_of(_candidates(problem), problem, "auto")


def _candidates(problem: Problem) -> Iterable[Plan]:
    """Baselines over the k most efficient and the k fastest devices, for every k."""
    yield from single.candidates(problem, CostTables(problem))
    tried: set[tuple[str, ...]] = set()
    for order in _orders(problem):
        for count in range(2, len(order) + 1):
            chosen = tuple(sorted(order[:count]))
            if chosen in tried:
                continue
            tried.add(chosen)
            # Unused devices still count when asked for: the cluster is only restricted for choosing.
            smaller = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(chosen))
            tables = CostTables(smaller)
            for planner in (data, data_equal, pipeline):
                for found in planner.candidates(smaller, tables):
                    yield _repriced(found, problem)


def _repriced(found: Plan, problem: Problem) -> Plan:
    if not problem.objective.count_idle_of_unused:
        return found
    return msgspec.structs.replace(found, estimate=estimate(found, problem))


def _orders(problem: Problem) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Devices by joules per sample alone, and by seconds per sample alone."""
    energy_j: dict[str, float] = {}
    time_s: dict[str, float] = {}
    for found in single.candidates(problem, CostTables(problem)):
        price = found.estimate
        assert price is not None
        name = found.devices[0]
        energy_j[name] = min(energy_j.get(name, float("inf")), price.energy_j_per_sample)
        time_s[name] = min(time_s.get(name, float("inf")), price.step_s)
    if not energy_j:
        raise InfeasibleError("the cluster has no device with layer times for this model.", hint="Measure one first.")
    return (
        tuple(sorted(energy_j, key=lambda name: (energy_j[name], name))),
        tuple(sorted(time_s, key=lambda name: (time_s[name], name))),
    )
