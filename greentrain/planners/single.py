"""The best single device, at its best operating point and micro-batch size."""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """The best plan on one device.

    Raises:
        InfeasibleError: The model fits no device, or a limit cannot be met by one.
    """
    return best_of(candidates(problem, CostTables(problem)), problem, "single")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """Every device × operating point × micro-batch size."""
    layers = len(problem.model.layers)
    for micro_batch in problem.micro_batches:
        for device in problem.cluster.devices:
            for point in device.points:
                part = Part(0, layers, (device.id,), (micro_batch,), (point.name,))
                yield assemble(problem, "single", micro_batch, [part], tables)
