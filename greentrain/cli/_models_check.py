"""Named warnings about the models of a profiles folder: what a plan should not rest on without a second look."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from greentrain.cli._models import KnownDevice, ModelsFolder, fitted
from greentrain.cli._models_plan import Finding, is_predicted
from greentrain.device import Device
from greentrain.errors import UsageError
from greentrain.power import PowerCurve
from greentrain.profile import LayerTimes, ModelProfile

__all__ = ["folder_findings"]

# Half-width of a band over the busy watts.
_WIDE_RATIO = 0.25
_WIDE_SPREAD_RATIO = 0.25
_LEAST_SHARES = 3
# Shares that were meant to be different are at least this far apart.
_SHARE_STEP = 0.1
_NEAR_FULL = 0.95
_FALL_RATIO = 0.02
# Beyond these a unit has slipped: no board idles below a milliwatt, no board of a home draws more.
_LEAST_W, _MOST_W = 1e-3, 3000.0
_LEAST_MEMORY_BYTES = 1 << 24
_LEAST_PASS_S, _MOST_PASS_S = 1e-7, 3600.0


def folder_findings(folder: ModelsFolder) -> list[Finding]:
    """All warnings, devices first; nothing when all is fine."""
    found = [finding for device in folder.devices for finding in _device_findings(device)]
    found += [finding for model in folder.models for finding in _model_findings(model)]
    # The same fault can show in a curve and in its windows: told once.
    return list({(finding.name, finding.where): finding for finding in found}.values())


def _device_findings(known: KnownDevice) -> Iterator[Finding]:
    device = known.profile.device
    if all(curve.points_n == 0 for curve in device.power.curves):
        yield Finding("modelled-only", device.id, "nothing was measured; every figure is a model's")
    elif device.power.source == "modelled":
        yield Finding(
            "modelled-only", device.id, f"the sensor's joules are modelled ({known.profile.provenance.meter})"
        )
    if device.memory_bytes < _LEAST_MEMORY_BYTES:
        yield Finding("memory-unit", device.id, f"{device.memory_bytes} bytes of memory are hardly a device's")
    for point in device.points:
        where = f"{device.id} at {point.name}"
        curve = device.curve(point.name)
        yield from _curve_findings(device, curve, where)
        if curve.points_n > 0:
            yield from _share_findings(curve, [share for share, _ in known.windows.get(point.name, ())], where)
    yield from _fit_findings(known)


def _curve_findings(device: Device, curve: PowerCurve, where: str) -> Iterator[Finding]:
    if is_predicted(device, curve.point):
        yield Finding("predicted-point", where, f"{curve.busy_w:.3g} W busy were not measured ({curve.fit})")
    elif 0 < curve.points_n < _LEAST_SHARES:
        yield Finding("few-points", where, f"{curve.points_n} measured windows; the band is not known")
    if curve.band_w is not None and curve.band_w > _WIDE_RATIO * curve.busy_w:
        yield Finding("wide-band", where, f"± {curve.band_w:.3g} W on {curve.busy_w:.3g} W")
    pairs = itertools.pairwise(curve.power_w_X)
    if any(after < before * (1 - _FALL_RATIO) for before, after in pairs):
        yield Finding("falling-power", where, "power falls as the load rises; was something else running?")
    yield from (_finding(warning, where) for warning in curve.warnings)
    if not (_LEAST_W < curve.busy_w < _MOST_W) or curve.idle_w > _MOST_W:
        yield Finding("power-unit", where, f"{curve.idle_w:g} W idle and {curve.busy_w:g} W busy; is a unit wrong?")


def _share_findings(curve: PowerCurve, shares: list[float], where: str) -> Iterator[Finding]:
    """What the measured shares do not cover."""
    rising = sorted(shares)
    different = 1 + sum(after - before > _SHARE_STEP for before, after in itertools.pairwise(rising))
    if rising and different < _LEAST_SHARES:
        yield Finding("few-points", where, f"{different} different shares of the peak were measured")
    low, high = curve.measured_share or (min(shares, default=0.0), max(shares, default=1.0))
    if low > 0 or high < _NEAR_FULL:
        yield Finding("extrapolated-share", where, f"measured from {low:.2f} to {high:.2f} of the peak only")


def _fit_findings(known: KnownDevice) -> Iterator[Finding]:
    """What the fit over the operating points has to say."""
    try:
        posterior = fitted(known)
    except UsageError as error:
        yield Finding("unit-slip", known.profile.device.id, error.message.rstrip("."))
        return
    if posterior is not None:
        yield from (_finding(warning, known.profile.device.id) for warning in posterior.warnings)


def _finding(warning: str, where: str) -> Finding:
    """A warning of a fit: a sentence that starts with its name."""
    name, _, text = warning.partition(": ")
    return Finding(name, where, text.rstrip("."))


def _model_findings(model: ModelProfile) -> Iterator[Finding]:
    if not model.times:
        yield Finding("modelled-only", model.model, "its layers were timed nowhere")
    for times in model.times:
        yield from _times_findings(times)


def _times_findings(times: LayerTimes) -> Iterator[Finding]:
    where = f"{times.model} on {times.kind} at {times.point}"
    if times.provenance.source == "modelled":
        predicted = times.provenance.note.startswith("predicted")
        name = "predicted-times" if predicted else "modelled-only"
        yield Finding(name, where, "the layer times were not measured")
    elif len(times.batch_B) < _LEAST_SHARES:
        sizes = ", ".join(map(str, times.batch_B))
        yield Finding("few-points", where, f"timed at batch {sizes} only; other sizes are extrapolated")
    band_ratio = times.fit().band_ratio
    if times.provenance.source == "measured" and band_ratio is not None and band_ratio > _WIDE_RATIO:
        yield Finding("wide-band", where, f"± {band_ratio:.0%} of the time over the batch size")
    spread = times.provenance.spread_ratio
    if spread is not None and spread > _WIDE_SPREAD_RATIO:
        yield Finding("wide-spread", where, f"the trials scatter by {spread:.0%}")
    longest_s = sum(row[-1] for row in (*times.forward_s_LB, *times.backward_s_LB))
    if not _LEAST_PASS_S < longest_s < _MOST_PASS_S:
        yield Finding(
            "time-unit", where, f"a pass of batch {times.batch_B[-1]} takes {longest_s:g} s; is a unit wrong?"
        )
