"""Data parallelism over all devices with equal shares: what stock DDP does."""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.parallel.data import equal_shares
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """All devices at their default operating point take equally many rows (±1 where it does not divide).

    Raises:
        InfeasibleError: A device lacks memory, or there are fewer rows than devices.
    """
    return best_of(candidates(problem, CostTables(problem)), problem, "data-equal")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size that gives every device at least one row."""
    devices = problem.cluster.devices
    layers = len(problem.model.layers)
    names = tuple(device.id for device in devices)
    points = tuple(device.points[0].name for device in devices)
    for micro_batch in problem.micro_batches:
        if micro_batch >= len(devices):
            shares = equal_shares(micro_batch, len(devices))
            yield assemble(problem, "data-equal", micro_batch, [Part(0, layers, names, shares, points)], tables)
