"""PointObservation: what operating points were measured to cost, the settings behind them, and what is wrong with them.

A fit is as good as its data. What cannot be (not finite, wrong by a factor of a thousand) is refused; what is odd is
told as a warning, a sentence that starts with a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from statistics import median
from typing import NamedTuple

import numpy as np

from greentrain.device import OperatingPoint
from greentrain.errors import UsageError

__all__ = ["PointObservation", "check_observed", "log_settings", "names_of", "setting_names", "usable_sweeps"]

_SETTINGS = ("cpu_hz", "gpu_hz", "mem_hz", "cap_w")
# One device at different settings does not differ by this factor, but milliwatts and watts do.
_SLIP = 150.0
_SLOWEST_CLOCK_HZ = 1e7
_MOST_W = 3000.0
# Power above the cap by more than this is odd, not noise.
_ABOVE_CAP = 1.5
_FALL = 0.05


class PointObservation(NamedTuple):
    """What one operating point was measured to cost.

    Attributes:
        point: The operating point.
        time_s: Seconds per sample, or per unit of work (the same in every observation).
        power_w: Mean power while it worked, watts.
    """

    point: OperatingPoint
    time_s: float
    power_w: float


def setting_names(points: Sequence[OperatingPoint]) -> tuple[str, ...]:
    """The settings in which these points differ."""
    return tuple(name for name in _SETTINGS if len({_setting(point, name) for point in points} - {None}) > 1)


def log_settings(
    points: Sequence[OperatingPoint], names: Sequence[str], *, among: Sequence[OperatingPoint] = ()
) -> np.ndarray:
    """Logarithms of the settings, point by setting; a single column of zeros where nothing differs.

    A setting that is not set is not limited: it counts as the highest one among these points and ``among``.
    """
    columns: list[np.ndarray] = []
    for name in names:
        known = [value for point in (*points, *among) if (value := _setting(point, name)) is not None]
        top = max(known, default=1.0)
        columns.append(np.log([_setting(point, name) or top for point in points]))
    return np.stack(columns, axis=1) if columns else np.zeros((len(points), 1))


def names_of(points: Sequence[OperatingPoint], limit: int = 4) -> str:
    """Names of points for a sentence, the first few of many."""
    names = list(dict.fromkeys(point.name for point in points))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_observed(points: Sequence[OperatingPoint], observed: Sequence[PointObservation]) -> list[str]:
    """Warnings about what was observed.

    Raises:
        UsageError: No point, nothing observed, a value not finite or not above 0, or a unit that must be wrong.
    """
    if not points or not observed:
        raise UsageError(
            f"{len(points)} operating points and {len(observed)} observations; expected one of each or more.",
            hint="Measure at least one operating point: greentrain measure --points current.",
        )
    for seen in observed:
        for quantity, value in (("time_s", seen.time_s), ("power_w", seen.power_w)):
            if not _usable(value):
                raise UsageError(
                    f"operating point {seen.point.name!r}: {quantity} is {value}, expected a finite number above 0.",
                    hint="Measure this point again, or leave it out.",
                )
    _refuse_slips(observed, "time_s", "seconds and milliseconds")
    _refuse_slips(observed, "power_w", "watts and milliwatts")
    _refuse_setting_slips([*points, *(seen.point for seen in observed)])
    return [*_cap_warnings(observed), *_unit_warnings(points, observed), *_order_warnings(observed)]


def usable_sweeps(
    prior: Sequence[Sequence[PointObservation]],
) -> tuple[list[list[PointObservation]], list[str]]:
    """Earlier sweeps without what is not a finite number above 0, and a warning where something was left out."""
    sweeps = [[seen for seen in sweep if _usable(seen.time_s) and _usable(seen.power_w)] for sweep in prior]
    left_out = sum(len(sweep) for sweep in prior) - sum(len(sweep) for sweep in sweeps)
    warnings = []
    if left_out:
        warnings.append(
            f"earlier-sweep: {left_out} earlier observations are not finite numbers above 0 and were left out."
        )
    return [sweep for sweep in sweeps if sweep], warnings


def _usable(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _setting(point: OperatingPoint, name: str) -> float | None:
    return {"cpu_hz": point.cpu_hz, "gpu_hz": point.gpu_hz, "mem_hz": point.mem_hz, "cap_w": point.cap_w}[name]


def _refuse_slips(observed: Sequence[PointObservation], quantity: str, units: str) -> None:
    values = [seen.time_s if quantity == "time_s" else seen.power_w for seen in observed]
    for index, (seen, value) in enumerate(zip(observed, values, strict=True)):
        others = values[:index] + values[index + 1 :]
        if others and not 1 / _SLIP < value / median(others) < _SLIP:
            raise UsageError(
                f"operating point {seen.point.name!r}: {quantity} is {value:g}, the others are about "
                f"{median(others):g}; expected less than a factor {_SLIP:g} between settings of one device.",
                hint=f"Were {units} mixed? Correct the unit, or measure the point again.",
            )


def _refuse_setting_slips(points: Sequence[OperatingPoint]) -> None:
    for name in _SETTINGS:
        values = [value for point in points if (value := _setting(point, name)) is not None]
        if values and max(values) / min(values) > _SLIP:
            raise UsageError(
                f"{name} of the operating points goes from {min(values):g} to {max(values):g}; "
                f"expected less than a factor {_SLIP:g} on one device.",
                hint="Were kHz and Hz, or mW and W, mixed? Give every clock in Hz and every cap in watts.",
            )


def _cap_warnings(observed: Sequence[PointObservation]) -> list[str]:
    above: list[OperatingPoint] = []
    for seen in observed:
        cap_w = seen.point.cap_w
        if cap_w is None:
            continue
        if not 1 / _SLIP < seen.power_w / cap_w < _SLIP:
            raise UsageError(
                f"operating point {seen.point.name!r}: power_w is {seen.power_w:g} under a cap of {cap_w:g} W.",
                hint="Are both in watts? Correct the unit.",
            )
        if seen.power_w > _ABOVE_CAP * cap_w:
            above.append(seen.point)
    if not above:
        return []
    return [
        f"above-cap: {names_of(above)} drew more than {_ABOVE_CAP:g} times the cap; either the cap was not in force, "
        "or the meter sees more than the capped part."
    ]


def _unit_warnings(points: Sequence[OperatingPoint], observed: Sequence[PointObservation]) -> list[str]:
    warnings: list[str] = []
    clocks_hz = [value for point in points for name in _SETTINGS[:3] if (value := _setting(point, name)) is not None]
    if clocks_hz and min(clocks_hz) < _SLOWEST_CLOCK_HZ:
        warnings.append(f"clock-unit: a clock of {min(clocks_hz):g} Hz is hardly one; is it in kHz or MHz?")
    highest_w = max(seen.power_w for seen in observed)
    if highest_w > _MOST_W:
        warnings.append(f"power-unit: {highest_w:g} W is much for one device; is it in milliwatts?")
    return warnings


def _order_warnings(observed: Sequence[PointObservation]) -> list[str]:
    """Power that falls, or time that rises, as settings rise: the mode was not in force, or the unit is upside down."""
    points = [seen.point for seen in observed]
    log_NF = log_settings(points, setting_names(points))
    falls = rises = pairs = 0
    for low, high in permutations(range(len(observed)), 2):
        if (log_NF[low] <= log_NF[high]).all() and (log_NF[low] < log_NF[high]).any():
            pairs += 1
            falls += observed[high].power_w < observed[low].power_w * (1 - _FALL)
            rises += observed[high].time_s > observed[low].time_s * (1 + _FALL)
    warnings: list[str] = []
    if 2 * falls > pairs:
        warnings.append(
            f"falling-power: power falls as the settings rise ({falls} of {pairs} pairs); were they in force?"
        )
    if 2 * rises > pairs:
        warnings.append(
            f"rising-time: time rises with the settings ({rises} of {pairs} pairs); is it a time and not a rate?"
        )
    return warnings
