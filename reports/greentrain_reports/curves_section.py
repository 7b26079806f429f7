"""The power curves that the prediction used, with their bands, and where the run lies on them."""

from __future__ import annotations

import numpy as np

from greentrain.device import Device
from greentrain_reports.device_curves import DeviceCurves, DrawnCurve, curves_picture
from greentrain_reports.markup import Html, chip, esc, exact, figure, gap, section, table
from greentrain_reports.rounds import compute_s
from greentrain_reports.tables import RunReport
from greentrain_reports.words import power

__all__ = ["curves_section"]

# Pictures of more devices, and of more points of one, would make the page long without saying more.
_MOST_DEVICES, _MOST_POINTS = 6, 6


def curves_section(report: RunReport) -> Html:
    """A table of the curves in use, and a picture per device."""
    plan, cluster = report.run.plan, report.run.cluster
    if plan is None or cluster is None:
        return section("curves", "Device curves", Html(f"<p>{gap('Plan or cluster are not recorded.')}</p>"))
    points = {name: point for stage in plan.stages for name, point in zip(stage.devices, stage.points, strict=True)}
    used = [(device, points[device.id]) for device in cluster.devices if device.id in points and _has(device, points)]
    pictures = [curves_picture(_drawn(report, device, point)) for device, point in used[:_MOST_DEVICES]]
    return section(
        "curves",
        "Device curves",
        Html(
            "<p>Power over the share of the peak throughput at each operating point, as the plan was priced with. A "
            "band that was measured holds 95 % of what a device drew.</p>"
        ),
        _table(report, used),
        *(figure(picture) for picture in pictures),
    )


def _has(device: Device, points: dict[str, str]) -> bool:
    return any(point.name == points[device.id] for point in device.points)


def _table(report: RunReport, used: list[tuple[Device, str]]) -> Html:
    rows: list[tuple[Html, ...]] = []
    for device, point in used:
        curve = device.curve(point)
        seen = _recorded(report, device.id)
        said_w = curve.power_w(seen[0]) if seen is not None else None
        band_w = curve.band_at_w(seen[0]) if seen is not None else curve.band_w
        rows.append(
            (
                esc(device.id), esc(point), exact(curve.idle_w, power(curve.idle_w)),
                exact(curve.busy_w, power(curve.busy_w)), exact(band_w, power(band_w)), esc(curve.fit),
                esc(curve.points_n), chip(device.source_at(point)), exact(said_w, power(said_w)),
                exact(seen[1] if seen is not None else None, power(seen[1] if seen is not None else None)),
            )
        )  # fmt: skip
    heads = (
        "device", "point", "idle", "busy", "±", "fit", "windows", "source", "curve at the run's share", "run's mean",
    )  # fmt: skip
    return table("Power curves in use", heads, rows, numeric=(2, 3, 4, 6, 8, 9))


def _drawn(report: RunReport, device: Device, point: str) -> DeviceCurves:
    names = [at.name for at in device.points]
    shown = [point, *(name for name in names if name != point)][:_MOST_POINTS]
    seen = _recorded(report, device.id)
    return DeviceCurves(
        device=device.id,
        curves=tuple(
            DrawnCurve(
                point=name,
                source=device.source_at(name),
                curve=device.curve(name),
                recorded=seen if name == point else None,
            )
            for name in names
            if name in shown
        ),
    )


def _recorded(report: RunReport, device: str) -> tuple[float, float] | None:
    """Share of its rounds in which a device computed, and its mean watts; None where either is not recorded."""
    rounds = report.rounds
    if rounds is None:
        return None
    seconds_G = compute_s(rounds)
    chosen_G = rounds.device.rows_of(device) & ~np.isnan(seconds_G) & (rounds.energy_uj_G >= 0)
    total_s = float(rounds.duration_s_G[chosen_G].sum())
    if total_s <= 0:
        return None
    share = min(float(seconds_G[chosen_G].sum()) / total_s, 1.0)
    return share, float(rounds.energy_uj_G[chosen_G].sum()) / 1e6 / total_s
