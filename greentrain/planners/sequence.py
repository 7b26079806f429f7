"""Sequence parallelism over all devices: equally many tokens of every sample, replicated weights."""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners.candidate import best_of
from greentrain.planners.tensor_sequence import check_shareable, equal_candidates

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """All devices at their default operating point take equally many tokens of every sample.

    Raises:
        InfeasibleError: The layers cannot be shared so among all devices, or a limit is broken.
    """
    check_shareable(problem, "sequence", "sequence")
    return best_of(candidates(problem, CostTables(problem)), problem, "sequence")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size."""
    return equal_candidates(problem, tables, "sequence", "sequence")
