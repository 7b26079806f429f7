"""Intensity of the grid, and energy to CO2e. The value always travels with its year and source."""

from __future__ import annotations

import msgspec
import numpy as np

from greentrain._checks import require, require_non_negative, require_positive
from greentrain.errors import InfeasibleError, UsageError
from greentrain.units import format_quantity

__all__ = ["J_PER_KWH", "YEAR_S", "Embodied", "Intensity", "IntensitySeries", "cleanest_start_s", "co2e_kg"]

J_PER_KWH = 3.6e6
YEAR_S = 365.25 * 86400.0


class Intensity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Carbon intensity of electricity.

    Attributes:
        kg_per_kwh: Kilograms of CO2e per kilowatt-hour.
        place: ISO 3166 alpha-3 country, or ``world``.
        year: Year of the figure; None when the source does not say.
        source: Who says so.
    """

    kg_per_kwh: float
    place: str
    year: int | None
    source: str

    def __post_init__(self) -> None:
        require_non_negative(kg_per_kwh=self.kg_per_kwh)


class Embodied(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What making a device emitted, and over how long it is spread.

    Attributes:
        kg: Kilograms of CO2e of making, transport and end of life, without use.
        life_s: Seconds of service over which they are spread.
        year: Year of the figure; None when the source does not say.
        source: Who says so.
    """

    kg: float
    life_s: float
    year: int | None
    source: str

    def __post_init__(self) -> None:
        require_non_negative(kg=self.kg)
        require_positive(life_s=self.life_s)

    def share_kg(self, duration_s: float) -> float:
        """Part of it that falls on some seconds of service, in which the device does nothing else.

        M of the Software Carbon Intensity (ISO/IEC 21031): embodied emissions × time share × resource share (1 here).
        """
        return self.kg * duration_s / self.life_s


class IntensitySeries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Carbon intensity over time, constant from one instant to the next. Axis N: intervals.

    Attributes:
        edge_s: Seconds since 1970 UTC at which the intervals begin, and at which the last one ends (N + 1), rising.
        kg_per_kwh_N: Kilograms of CO2e per kilowatt-hour of each interval.
        source: Who says so.
    """

    edge_s: tuple[float, ...]
    kg_per_kwh_N: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        require(len(self.kg_per_kwh_N) > 0, "a series needs at least one interval")
        require(len(self.edge_s) == len(self.kg_per_kwh_N) + 1, "a series needs one edge more than values")
        require(bool(np.all(np.diff(self.edge_s) > 0)), "the times of a series must rise")
        for value in self.kg_per_kwh_N:
            require_non_negative(kg_per_kwh=value)

    def mean(self, start_s: float, stop_s: float) -> Intensity:
        """Mean intensity between two instants, for a load that is constant.

        Raises:
            UsageError: The series does not cover them.
        """
        if not self.edge_s[0] <= start_s < stop_s <= self.edge_s[-1]:
            raise UsageError(
                f"{self.source}: does not cover the {format_quantity(stop_s - start_s, 'time')} of the job.",
                hint="Give a longer series, or an earlier deadline.",
            )
        area = self.area(np.array([start_s, stop_s]))
        value = float((area[1] - area[0]) / (stop_s - start_s))
        return Intensity(kg_per_kwh=value, place="given", year=None, source=self.source)

    def mean_of_load(self, start_s: np.ndarray, duration_s: np.ndarray, energy_j: np.ndarray) -> Intensity:
        """Mean intensity of a load that is known piece by piece, each of constant power. Axis: pieces.

        Args:
            start_s: Seconds since 1970 UTC.
            duration_s: Seconds.
            energy_j: Joules.

        Raises:
            UsageError: The series does not cover the pieces, or they have no energy.
        """
        stop_s = start_s + duration_s
        total_j = float(energy_j.sum())
        if total_j <= 0:
            raise UsageError(f"{self.source}: a load without energy has no mean intensity.")
        if start_s.min() < self.edge_s[0] or stop_s.max() > self.edge_s[-1]:
            raise UsageError(
                f"{self.source}: does not cover the run's "
                f"{format_quantity(float(stop_s.max() - start_s.min()), 'time')}.",
                hint="Give a series of the hours in which it ran.",
            )
        long = duration_s > 0
        length_s = np.where(long, duration_s, 1.0)
        # Of a piece without length the value at its instant.
        value = np.where(
            long,
            (self.area(stop_s) - self.area(start_s)) / length_s,
            np.asarray(self.kg_per_kwh_N)[np.searchsorted(self.edge_s[1:-1], start_s, side="right")],
        )
        mean = float((value * energy_j).sum() / total_j)
        return Intensity(kg_per_kwh=mean, place="given", year=None, source=self.source)

    def area(self, time_s: np.ndarray) -> np.ndarray:
        """Integral of the intensity from the first edge, kg·s/kWh; linear between edges."""
        edge_s = np.asarray(self.edge_s)
        area = np.concatenate([[0.0], np.cumsum(np.asarray(self.kg_per_kwh_N) * np.diff(edge_s))])
        return np.interp(time_s, edge_s, area)


def cleanest_start_s(series: IntensitySeries, duration_s: float, *, earliest_s: float, deadline_s: float) -> float:
    """When a job of constant power emits least; the earliest of equally clean starts.

    Between two instants at which its start or its end crosses an edge the emission is linear in the start, so
    trying those instants and both ends is exact.

    Args:
        series: Intensity over time.
        duration_s: Length of the job.
        earliest_s: Seconds since 1970 UTC before which it cannot start.
        deadline_s: Seconds since 1970 UTC at which it must have ended.

    Raises:
        InfeasibleError: The job is longer than the time until the deadline.
        UsageError: The series covers less than the job.
    """
    late_s = earliest_s + duration_s - deadline_s
    if late_s > 0:
        raise InfeasibleError(
            f"the deadline is missed by {format_quantity(late_s, 'time')} even when started at once.",
            hint="Give a later deadline.",
        )
    latest_s = min(deadline_s, series.edge_s[-1]) - duration_s
    series.mean(earliest_s, earliest_s + duration_s)
    edge_s = np.asarray(series.edge_s)
    starts_s = np.concatenate([[earliest_s, latest_s], edge_s, edge_s - duration_s])
    starts_s = np.unique(starts_s[(starts_s >= earliest_s) & (starts_s <= latest_s)])
    area = series.area(starts_s + duration_s) - series.area(starts_s)
    return float(starts_s[np.flatnonzero(area <= area.min() * (1 + 1e-12))[0]])


def co2e_kg(energy_j: float, intensity: Intensity) -> float:
    """Kilograms of CO2e of an energy in joules."""
    return energy_j / J_PER_KWH * intensity.kg_per_kwh
