"""Pipeline parallelism, one device per stage: the cuts that balance the slowest step.

Dynamic programming over (layers covered, devices used) for the devices in order of memory, largest
first, as in PipeDream and Asteroid; every prefix of that order is tried, and both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greentrain.cost import CostTables, boundary_transfer
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of

__all__ = ["candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """The best balanced pipeline of at least two devices (one where there is only one).

    Raises:
        InfeasibleError: No such pipeline fits the memories or limits.
    """
    return best_of(candidates(problem, CostTables(problem)), problem, "pipeline")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size, number of devices and direction."""
    ordered = sorted(problem.cluster.devices, key=lambda device: (-device.memory_bytes, device.id))
    most = min(len(ordered), len(problem.model.layers))
    for micro_batch in problem.micro_batches:
        for count in range(min(2, most), most + 1):
            for devices in (ordered[:count], ordered[:count][::-1]):
                cuts = _balanced_cuts(problem, tables, devices, micro_batch)
                parts = [
                    Part(start, stop, (device.id,), (micro_batch,), (device.points[0].name,))
                    for device, start, stop in zip(devices, cuts, cuts[1:], strict=False)
                ]
                yield assemble(problem, "pipeline", micro_batch, parts, tables)


def _balanced_cuts(
    problem: Problem, tables: CostTables, devices: Sequence[Device], micro_batch: int
) -> tuple[int, ...]:
    """Cut positions (0, …, L) whose slowest step, execution or transfer, is least."""
    layers = problem.model.layers
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for index, device in enumerate(devices):
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        left = len(devices) - index - 1
        for start, (slowest_s, cuts) in best.items():
            stops = range(start + 1, len(layers) - left + 1) if left else (len(layers),)
            for stop in stops:
                execute_s = sum(tables.compute_s(device, device.points[0].name, start, stop, micro_batch))
                transfer_s = 0.0
                if left:
                    link = boundary_transfer(
                        problem.cluster, (device.id,), (devices[index + 1].id,),
                        rows_before=(micro_batch,), rows_after=(micro_batch,), layer=layers[stop - 1],
                    )  # fmt: skip
                    transfer_s = max(link.down_s, link.up_s)
                reached_s = max(slowest_s, execute_s, transfer_s)
                if stop not in following or reached_s < following[stop][0]:
                    following[stop] = (reached_s, (*cuts, stop))
        best = following
    return best[len(layers)][1]
