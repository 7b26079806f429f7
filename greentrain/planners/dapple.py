"""A hybrid pipeline in the manner of DAPPLE (PPoPP'21, arXiv 2007.01045), which takes all devices for alike.

Every device counts as the average one, in seconds and in memory; so the same dynamic programme as Asteroid's
gives equal shares inside a group and stages balanced over the groups. The plan is then priced as it truly is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from greentrain.cost import CostTables
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners.asteroid import fastest_of, fastest_parts
from greentrain.planners.candidate import assemble
from greentrain.profile import LayerTimes

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """The fastest hybrid pipeline if all devices were alike, at its true price.

    Raises:
        InfeasibleError: It fits no memory or limit, or there are too few rows and layers for all devices.
    """
    return fastest_of(candidates(problem, CostTables(problem)), problem, "dapple")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size."""
    alike = _alike(problem, tables)
    alike_tables = CostTables(alike)
    for micro_batch in problem.micro_batches:
        parts = fastest_parts(alike, alike_tables, micro_batch)
        if parts:
            yield assemble(problem, "dapple", micro_batch, parts, tables)


def _alike(problem: Problem, tables: CostTables) -> Problem:
    """The problem with the average of its devices in place of each."""
    devices = problem.cluster.devices
    memory_bytes = sum(device.memory_bytes for device in devices) // len(devices)
    members = tuple(
        msgspec.structs.replace(device, kind="average", memory_bytes=memory_bytes, points=device.points[:1])
        for device in devices
    )
    names = dict.fromkeys(device.points[0].name for device in devices)
    average = _average_times(problem, tables)
    times = tuple(msgspec.structs.replace(average, point=name) for name in names)
    return msgspec.structs.replace(
        problem,
        model=problem.model.with_times(times),
        cluster=msgspec.structs.replace(problem.cluster, devices=members),
    )


def _average_times(problem: Problem, tables: CostTables) -> LayerTimes:
    """Mean seconds over all devices at their default points, for every number of rows."""
    devices = problem.cluster.devices
    layers = range(len(problem.model.layers))
    rows_B = tuple(range(1, max(problem.micro_batches) + 1))

    def mean_s(way: int, layer: int, rows: int) -> float:
        own_s = [tables.compute_s(device, _point(device), layer, layer + 1, rows)[way] for device in devices]
        return max(sum(own_s), 0.0) / len(devices)

    update_s_L = (sum(tables.update_s(device, _point(device), n, n + 1) for device in devices) for n in layers)
    first = problem.model.times_of(devices[0].kind, _point(devices[0]))
    return LayerTimes(
        model=problem.model.model,
        kind="average",
        point=first.point,
        batch_B=rows_B,
        forward_s_LB=tuple(tuple(mean_s(0, layer, rows) for rows in rows_B) for layer in layers),
        backward_s_LB=tuple(tuple(mean_s(1, layer, rows) for rows in rows_B) for layer in layers),
        update_s_L=tuple(total_s / len(devices) for total_s in update_s_L),
        provenance=first.provenance,
    )


def _point(device: Device) -> str:
    return device.points[0].name
