"""Where a plan rests on more than was measured: predicted operating points, micro-batches beyond the measured sizes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.plan import Plan

__all__ = ["Finding", "is_predicted", "plan_findings"]


class Finding(msgspec.Struct, frozen=True):
    """A named warning.

    Attributes:
        name: What kind of thing it is, such as ``predicted-point``.
        where: Device, point or file.
        text: One clause without a full stop.
    """

    name: str
    where: str
    text: str

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.name}: {self.where}: {self.text}"


def is_predicted(device: Device, point: str) -> bool:
    """Whether nothing was measured at this point of a device of which other points were measured."""
    return device.power.curve(point).points_n == 0 and any(curve.points_n > 0 for curve in device.power.curves)


def plan_findings(plan: Plan, problem: Problem) -> list[Finding]:
    """What in a plan rests on a prediction or an extrapolation; nothing when all was measured."""
    return [
        finding
        for stage in plan.stages
        for finding in _stage_findings(stage.devices, stage.points, stage.shares, problem)
    ]


def _stage_findings(
    devices: tuple[str, ...], points: tuple[str, ...], shares: tuple[int, ...], problem: Problem
) -> Iterator[Finding]:
    for name, point, rows in zip(devices, points, shares, strict=True):
        device = problem.cluster.device(name)
        where = f"{name} at {point}"
        if is_predicted(device, point):
            curve = device.curve(point)
            band = f" ± {curve.band_w / curve.busy_w:.0%}" if curve.band_w is not None and curve.busy_w > 0 else ""
            yield Finding("predicted-point", where, f"{curve.busy_w:.3g} W{band} were not measured ({curve.fit})")
        times = problem.model.times_of(device.kind, point)
        timed = any(
            other.kind == device.kind and other.provenance.source == "measured" for other in problem.model.times
        )
        if times.provenance.source == "modelled" and timed:
            yield Finding("predicted-times", where, "the layer times were not measured")
        if times.extrapolated(rows):
            low, high = times.batch_B[0], times.batch_B[-1]
            yield Finding("extrapolated-batch", where, f"{rows} rows, but the layers were timed with {low} to {high}")
