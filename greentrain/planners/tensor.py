"""Tensor parallelism over all devices with equal shares and AllReduces: Megatron (arXiv 1909.08053)."""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners.candidate import best_of
from greentrain.planners.tensor_sequence import check_shareable, equal_candidates

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """All devices at their default operating point take equally many heads of every layer.

    Raises:
        InfeasibleError: The layers cannot be shared so among all devices, or a limit is broken.
    """
    check_shareable(problem, "tensor", "tensor")
    return best_of(candidates(problem, CostTables(problem)), problem, "tensor")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size."""
    return equal_candidates(problem, tables, "tensor", "tensor")
