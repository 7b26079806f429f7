"""Plans of the faults' benchmark, made by hand so that every device of the cluster takes part in each.

``data``: one group of all. ``pipeline``: a stage per device. ``hybrid``: the first two devices share the first stage,
each of the others has one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

from greentrain.plan import Plan, Stage, in_flight_limit, stage_bytes
from greentrain.profile import ModelProfile

__all__ = ["PLANS", "Victim", "hand_plan", "single_plan", "victims"]

PLANS = ("data", "pipeline", "hybrid")
_MICRO_BATCHES_N = 4


class Victim(NamedTuple):
    """A device to lose; ``role`` is its place in the plan, ``grouped`` whether others hold the same layers."""

    device: str
    role: str
    grouped: bool


def hand_plan(name: str, base: Plan, model: ModelProfile) -> Plan:
    """A plan of :data:`PLANS`.

    Args:
        name: Which.
        base: A plan of data parallelism over all devices; its shares say how much each device can do.
        model: The model's layers and their times.
    """
    (whole,) = base.stages
    capacity = dict(zip(whole.devices, whole.shares, strict=True))
    if name == "data":
        return _plan(base, model, [whole.devices], [len(model.layers)], base.batch)
    groups = [(device,) for device in whole.devices]
    if name == "hybrid":
        groups = [whole.devices[:2], *groups[2:]]
    cuts = _cuts(model, [sum(capacity[device] for device in group) for group in groups])
    return _plan(base, model, groups, cuts, base.batch // _MICRO_BATCHES_N)


def single_plan(plan: Plan, model: ModelProfile) -> Plan:
    """The same rounds on the plan's first device alone."""
    return _plan(plan, model, [plan.devices[:1]], [len(model.layers)], plan.batch)


def _plan(
    base: Plan, model: ModelProfile, groups: Sequence[Sequence[str]], cuts: Sequence[int], micro_batch: int
) -> Plan:  # fmt: skip
    rows = dict(zip(base.stages[0].devices, base.stages[0].shares, strict=True))
    points = {device: point for stage in base.stages for device, point in zip(stage.devices, stage.points, strict=True)}
    stages: list[Stage] = []
    for index, (group, stop) in enumerate(zip(groups, cuts, strict=True)):
        start = cuts[index - 1] if index else 0
        after = "samples" if index + 1 < len(groups) else None
        stages.append(
            Stage(
                start=start, stop=stop, devices=tuple(group), sharing="samples",
                shares=_shared(micro_batch, [rows.get(device, 1) for device in group]),
                points=tuple(points[device] for device in group),
                in_flight=in_flight_limit(len(groups), index, base.batch // micro_batch),
                **stage_bytes(model.layers, start, stop, "samples", after)._asdict(),
            )
        )  # fmt: skip
    return msgspec.structs.replace(
        base,
        stages=tuple(stages),
        micro_batch=micro_batch,
        planner="hand",
        estimate=None,
        certificate=None,
        origin=None,
    )


def _shared(rows_n: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Whole rows in proportion to the weights, one at least."""
    total = sum(weights)
    shares = [max(rows_n * weight // total, 1) for weight in weights]
    shares[shares.index(max(shares))] += rows_n - sum(shares)
    return tuple(shares)


def _cuts(model: ModelProfile, capacities: Sequence[int]) -> list[int]:
    """Where stages end, so that each has about its capacity's part of the time of all layers, and one layer at least.

    Layer times are those of the first device that was measured.
    """
    times = model.times[0]
    costs = [forward[-1] + backward[-1] for forward, backward in zip(
        times.forward_s_LB, times.backward_s_LB, strict=True)]  # fmt: skip
    reached = [0.0, *accumulate(costs)]
    layers_n, stages_n = len(costs), len(capacities)
    found: list[int] = []
    for index, part in enumerate(accumulate(capacities)):
        wanted_s = reached[-1] * part / sum(capacities)
        least, most = (found[-1] if found else 0) + 1, layers_n - (stages_n - 1 - index)
        found.append(min(range(least, most + 1), key=lambda stop: abs(reached[stop] - wanted_s)))
    found[-1] = layers_n
    return found


def victims(plan: Plan) -> list[Victim]:
    """One device for every place that a plan has: coordinator, group member, first, middle and last stage."""
    found: dict[str, Victim] = {}
    last = len(plan.stages) - 1
    for index, stage in enumerate(plan.stages):
        place = "" if last == 0 else " first" if index == 0 else " last" if index == last else " middle"
        for number, device in enumerate(stage.devices[:2]):
            grouped = len(stage.devices) > 1
            role = "coordinator" if index == number == 0 else ""
            role += place + (" member" if grouped else " stage")
            found.setdefault(role.strip(), Victim(device, role.strip(), grouped))
    return list(found.values())
