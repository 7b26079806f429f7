"""What fitted curves say and how good they are: power curves by device and point, layer times by model and point."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from greentrain.device import DeviceProfile
from greentrain.errors import UsageError
from greentrain.power import fit_power_curve
from greentrain.profile import BatchFit, LayerTimes, ModelProfile

__all__ = ["CurveRow", "TimesRow", "Window", "curve_rows", "pass_s_B", "times_rows"]

# A measured window: share of the point's peak (0 = idle), and mean watts.
Window = tuple[float, float]

# Windows whose shares are this close belong together when one share is left out.
_SAME_SHARE = 0.1
_LEAST_SHARES = 3


class CurveRow(msgspec.Struct, frozen=True, kw_only=True):
    """A power curve.

    Attributes:
        device: Device id.
        kind: Its kind.
        point: Operating point.
        idle_w: Power at share 0, watts.
        busy_w: Power at share 1, watts.
        band_w: ± of the curve, watts; None when not known.
        fit: How the curve was found.
        points_n: Measured windows behind it; 0 for a prediction or a catalogue figure.
        loo_ratio: Median error at an inner share that was left out of the fit; None with too few shares or without
            windows.
        share_low: Lowest measured share; None where it is not known.
        share_high: Highest measured share; None likewise.
        source: ``modelled`` also for a predicted point of a measured device.
    """

    device: str
    kind: str
    point: str
    idle_w: float
    busy_w: float
    band_w: float | None
    fit: str
    points_n: int
    loo_ratio: float | None
    share_low: float | None
    share_high: float | None
    source: str


class TimesRow(msgspec.Struct, frozen=True, kw_only=True):
    """Layer times of a model on a kind at a point.

    Attributes:
        model: The model.
        kind: Device kind.
        point: Operating point.
        batch_low: Smallest batch size that was timed.
        batch_high: Largest batch size that was timed.
        batches_n: Number of batch sizes.
        sample_s: Seconds per sample of a whole pass at the largest size.
        spread_ratio: Largest spread of the trials; None for modelled times.
        fit: The fit of a whole pass over the batch size.
        loo_ratio: Its median error at an inner size that was left out; None with fewer than three sizes.
        band_ratio: Half-width of its 95 % band, as a ratio; None likewise.
        source: ``measured`` or ``modelled``.
    """

    model: str
    kind: str
    point: str
    batch_low: int
    batch_high: int
    batches_n: int
    sample_s: float
    spread_ratio: float | None
    fit: str
    loo_ratio: float | None
    band_ratio: float | None
    source: str


def curve_rows(profile: DeviceProfile, windows: Mapping[str, Sequence[Window]]) -> list[CurveRow]:
    """One row per operating point of a device.

    Args:
        profile: The device.
        windows: Measured windows by operating point, where they were kept.
    """
    device = profile.device
    rows: list[CurveRow] = []
    for point in device.points:
        curve = device.curve(point.name)
        seen = windows.get(point.name, ()) if curve.points_n > 0 else ()
        shares = curve.measured_share or tuple(share for share, _ in seen)
        rows.append(
            CurveRow(
                device=device.id,
                kind=device.kind,
                point=point.name,
                idle_w=curve.idle_w,
                busy_w=curve.busy_w,
                band_w=curve.band_w,
                fit=curve.fit,
                points_n=curve.points_n,
                loo_ratio=_curve_loo_ratio(point.name, seen),
                share_low=min(shares, default=None),
                share_high=max(shares, default=None),
                source=device.source_at(point.name),
            )
        )
    return rows


def times_rows(model: ModelProfile) -> list[TimesRow]:
    """One row per kind and point at which a model was timed."""
    return [_times_row(times, times.fit()) for times in model.times]


def _times_row(times: LayerTimes, fit: BatchFit) -> TimesRow:
    return TimesRow(
        model=times.model,
        kind=times.kind,
        point=times.point,
        batch_low=times.batch_B[0],
        batch_high=times.batch_B[-1],
        batches_n=len(times.batch_B),
        sample_s=pass_s_B(times)[-1] / times.batch_B[-1],
        spread_ratio=times.provenance.spread_ratio,
        fit=fit.name,
        loo_ratio=fit.loo_ratio,
        band_ratio=fit.band_ratio,
        source=times.provenance.source,
    )


def pass_s_B(times: LayerTimes) -> tuple[float, ...]:
    """Seconds of all layers forward and backward, by batch size."""
    rows = (*times.forward_s_LB, *times.backward_s_LB)
    return tuple(sum(row[index] for row in rows) for index in range(len(times.batch_B)))


def _curve_loo_ratio(point: str, windows: Sequence[Window]) -> float | None:
    groups = _by_share(windows)
    if len(groups) < _LEAST_SHARES:
        return None
    errors: list[float] = []
    # Without the lowest or the highest the fit would have to extrapolate, which it is not asked for.
    for left_out in groups[1:-1]:
        rest = [window for group in groups if group is not left_out for window in group]
        try:
            curve = fit_power_curve(
                point=point, share=[share for share, _ in rest], power_w=[watts for _, watts in rest]
            )
        except UsageError:
            return None
        share, power_w = (statistics.fmean(column) for column in zip(*left_out, strict=True))
        if power_w > 0:
            errors.append(abs(curve.power_w(share) / power_w - 1))
    return statistics.median(errors) if errors else None


def _by_share(windows: Sequence[Window]) -> list[list[Window]]:
    groups: list[list[Window]] = []
    for window in sorted(windows):
        if groups and window[0] - groups[-1][0][0] < _SAME_SHARE:
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups
