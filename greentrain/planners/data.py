"""Data parallelism over all devices, with shares that end together and fit each memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greentrain.cost import CostTables, most_rows
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.parallel.data import allocate_shares, equal_shares
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of

__all__ = ["candidates", "group_shares", "plan"]


def plan(problem: Problem) -> Plan:
    """All devices at their default operating point share the rows of every micro-batch.

    Raises:
        InfeasibleError: The whole model does not fit every device, or there are fewer rows than devices.
    """
    return best_of(candidates(problem, CostTables(problem)), problem, "data")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size."""
    devices = problem.cluster.devices
    layers = len(problem.model.layers)
    for micro_batch in problem.micro_batches:
        if micro_batch < len(devices):
            continue
        shares = group_shares(problem, tables, devices, (0, layers), micro_batch, in_flight=1)
        # Where no shares fit, equal ones say which device lacks how many bytes.
        shares = shares or equal_shares(micro_batch, len(devices))
        names = tuple(device.id for device in devices)
        points = tuple(device.points[0].name for device in devices)
        yield assemble(problem, "data", micro_batch, [Part(0, layers, names, shares, points)], tables)


def group_shares(
    problem: Problem,
    tables: CostTables,
    devices: Sequence[Device],
    span: tuple[int, int],
    micro_batch: int,
    *,
    in_flight: int,
) -> tuple[int, ...] | None:
    """Shares of a group at the default points so that the slowest device is as fast as possible."""
    times = [
        [sum(tables.compute_s(device, device.points[0].name, *span, rows)) for rows in range(micro_batch + 1)]
        for device in devices
    ]
    limits = [most_rows(device, *span, in_flight, problem) for device in devices]
    return allocate_shares(micro_batch, times, limits)
