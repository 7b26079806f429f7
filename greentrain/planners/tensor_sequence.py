"""Tensor + sequence parallelism over all devices, planned as in Galaxy (INFOCOM'24, arXiv 2405.17245).

Heads and columns go to the devices in proportion to their capacity; what a device has above its memory then moves
to those with room, in the same proportion, until nothing overflows. Tokens are split as the heads are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from greentrain.cost import CostTables, memory_bytes
from greentrain.device import Device
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.parallel.data import equal_shares
from greentrain.plan import Plan, Sharing, Stage, in_flight_limit, shares_total, stage_bytes
from greentrain.planners.candidate import Part, assemble, best_of
from greentrain.planners.device_runs import proportional_shares
from greentrain.sharing import is_split

__all__ = ["candidates", "check_shareable", "equal_candidates", "plan"]


def plan(problem: Problem) -> Plan:
    """All devices share every sample in proportion to their capacity and within their memory.

    Raises:
        InfeasibleError: The layers cannot be shared so among all devices, or a limit is broken.
    """
    check_shareable(problem, "tensor_sequence", "tensor-sequence")
    return best_of(candidates(problem, CostTables(problem)), problem, "tensor-sequence")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """One plan per micro-batch size; none where the layers cannot be shared so."""
    heads = _units(problem, "tensor_sequence")
    devices = problem.cluster.devices
    if heads < len(devices) or len(devices) < 2:
        return
    for micro_batch in problem.micro_batches:
        capacity_D = [1 / max(_whole_s(problem, tables, device, micro_batch), 1e-12) for device in devices]
        limit_D = [_most_heads(problem, device, heads, micro_batch) for device in devices]
        if min(limit_D) < 1 or sum(limit_D) < heads:
            # No shares fit: those without limits say which device lacks how many bytes.
            limit_D = [heads] * len(devices)
        shares_D1 = proportional_shares(heads, np.array([capacity_D]).T, np.array([limit_D]).T)
        shares = tuple(int(share) for share in shares_D1[:, 0])
        yield _assembled(problem, tables, "tensor-sequence", "tensor_sequence", micro_batch, shares)


def equal_candidates(problem: Problem, tables: CostTables, planner: str, sharing: Sharing) -> Iterable[Plan]:
    """All devices with equal parts of every sample, ±1 where it does not divide: one plan per micro-batch size."""
    devices_n = len(problem.cluster.devices)
    units = _units(problem, sharing)
    if units < devices_n or devices_n < 2:
        return
    for micro_batch in problem.micro_batches:
        yield _assembled(problem, tables, planner, sharing, micro_batch, equal_shares(units, devices_n))


def check_shareable(problem: Problem, sharing: Sharing, planner: str) -> None:
    """All devices of the cluster can share the layers inside a sample.

    Raises:
        InfeasibleError: There is one device only, no layer with heads (or tokens), or too few of them.
    """
    devices_n = len(problem.cluster.devices)
    what = "tokens" if sharing == "sequence" else "heads"
    hint = "Use --planner auto, which also cuts between layers."
    if devices_n < 2:
        raise InfeasibleError(f"planner {planner!r} needs two devices, the cluster has {devices_n}.", hint=hint)
    units = _units(problem, sharing)
    if units == 0:
        split = [layer for layer in problem.model.layers if is_split(sharing, layer)]
        counts = sorted({layer.sequence if sharing == "sequence" else layer.heads for layer in split})
        seen = f"they have {counts}" if counts else "none has any"
        raise InfeasibleError(
            f"planner {planner!r} needs the same number of {what} in all layers that have some: {seen}.", hint=hint
        )
    if units < devices_n:
        raise InfeasibleError(
            f"planner {planner!r} cannot share {units} {what} among {devices_n} devices.", hint="Leave devices out."
        )


def _units(problem: Problem, sharing: Sharing) -> int:
    """Heads or tokens of every layer that has some; 0 where there are none in common."""
    return shares_total(sharing, problem.model.layers, problem.micro_batches[0])


def _assembled(
    problem: Problem, tables: CostTables, planner: str, sharing: Sharing, micro_batch: int, shares: tuple[int, ...]
) -> Plan:
    devices = problem.cluster.devices
    names, points = tuple(device.id for device in devices), tuple(device.points[0].name for device in devices)
    part = Part(0, len(problem.model.layers), names, shares, points, sharing)
    return assemble(problem, planner, micro_batch, [part], tables)


def _whole_s(problem: Problem, tables: CostTables, device: Device, micro_batch: int) -> float:
    """Seconds of a micro-batch through the whole model on one device at its default point."""
    return sum(tables.compute_s(device, device.points[0].name, 0, len(problem.model.layers), micro_batch))


def _most_heads(problem: Problem, device: Device, heads: int, micro_batch: int) -> int:
    """Most heads of every layer that fit a device's memory, if another one takes at least one; 0 for none."""
    for own in range(heads - 1, 0, -1):
        stage = _whole_stage(problem, device, (own, heads - own), micro_batch)
        if memory_bytes(stage, 0, problem, micro_batch) <= device.memory_bytes:
            return own
    return 0


def _whole_stage(problem: Problem, device: Device, shares: Sequence[int], micro_batch: int) -> Stage:
    """The whole model on a device and some other one, to ask for the memory of the first."""
    layers = problem.model.layers
    return Stage(
        start=0,
        stop=len(layers),
        devices=(device.id, "others"),
        sharing="tensor_sequence",
        shares=tuple(shares),
        points=(device.points[0].name, "any"),
        in_flight=in_flight_limit(1, 0, problem.batch // micro_batch),
        **stage_bytes(layers, 0, len(layers), "tensor_sequence", None)._asdict(),
    )
