"""What a sweep that measured only some points says of the others: curves and layer times, always modelled."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from greentrain.device import CURRENT_POINT, OperatingPoint, Provenance
from greentrain.point_model import PointPosterior
from greentrain.power import PowerCurve
from greentrain.profile import LayerTimes
from greentrain_harness.environment import host_description, package_versions
from greentrain_harness.profilers.device import PointFigures

__all__ = ["predicted_curves", "predicted_times"]


def predicted_curves(
    posterior: PointPosterior, names: Sequence[str], measured: Sequence[PointFigures]
) -> dict[OperatingPoint, PowerCurve]:
    """Curves of points that were not measured: busy watts of the posterior, idle watts and shape of the neighbours.

    A curve of 0 measured points is a prediction, whatever the device's other curves are.

    Args:
        posterior: Of all points.
        names: The points to predict.
        measured: What was measured, one point of the control at least.
    """
    known = sorted((seen for seen in measured if seen.point.name != CURRENT_POINT), key=lambda seen: seen.curve.busy_w)
    found: dict[OperatingPoint, PowerCurve] = {}
    for index, point in enumerate(posterior.points):
        if point.name not in names:
            continue
        busy_w = float(posterior.power_w_P[index])
        low_w, high_w = float(posterior.power_low_w_P[index]), float(posterior.power_high_w_P[index])
        idle_w = float(np.interp(busy_w, [seen.curve.busy_w for seen in known], [seen.curve.idle_w for seen in known]))
        near = min(known, key=lambda seen: abs(np.log(seen.curve.busy_w / busy_w))).curve
        found[point] = PowerCurve(
            point=point.name,
            share_X=near.share_X,
            power_w_X=_reshaped(near, min(idle_w, busy_w), busy_w),
            band_w=max(high_w - busy_w, busy_w - low_w),
            fit=f"predicted from {len(known)} points by {posterior.power_fit}",
            points_n=0,
        )
    return found


def predicted_times(
    measured: Sequence[LayerTimes], posterior: PointPosterior, names: Sequence[str], *, command: str
) -> list[LayerTimes]:
    """Layer times of points that were not measured: those of the nearest measured point, stretched.

    Args:
        measured: Times of one model on one kind at measured points.
        posterior: Of all points, fitted to the seconds per sample of this model.
        names: The points to predict.
        command: Written into the provenance.
    """
    time_s = dict(zip((point.name for point in posterior.points), posterior.time_s_P.tolist(), strict=True))
    known = [times for times in measured if times.point in time_s]
    found: list[LayerTimes] = []
    for index, point in enumerate(posterior.points):
        if point.name not in names or not known:
            continue
        near = min(known, key=lambda times: abs(np.log(time_s[times.point] / time_s[point.name])))
        low, high = (band[index] / time_s[point.name] - 1 for band in (posterior.time_low_s_P, posterior.time_high_s_P))
        note = (
            f"predicted, not measured: times at {near.point} stretched by {posterior.time_fit} fitted to "
            f"{len(known)} points; 95 % band {low:+.0%} to {high:+.0%}"
        )
        found.append(_stretched(near, point.name, time_s[point.name] / time_s[near.point], command, note))
    return found


def _reshaped(curve: PowerCurve, idle_w: float, busy_w: float) -> tuple[float, ...]:
    rise_w = curve.busy_w - curve.idle_w
    if rise_w <= 0:
        return tuple(round(idle_w + (busy_w - idle_w) * share, 6) for share in curve.share_X)
    shape_X = ((power_w - curve.idle_w) / rise_w for power_w in curve.power_w_X)
    return tuple(round(idle_w + (busy_w - idle_w) * shape, 6) for shape in shape_X)


def _stretched(times: LayerTimes, point: str, factor: float, command: str, note: str) -> LayerTimes:
    def rows(time_s_LB: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(value * factor for value in row) for row in time_s_LB)

    return msgspec.structs.replace(
        times,
        point=point,
        forward_s_LB=rows(times.forward_s_LB),
        backward_s_LB=rows(times.backward_s_LB),
        update_s_L=tuple(value * factor for value in times.update_s_L),
        provenance=Provenance(
            meter="none", source="modelled", command=command, host=host_description(), versions=package_versions(),
            trials_n=0, note=note,
        ),
    )  # fmt: skip
