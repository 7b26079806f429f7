"""Intensity of the grid, and energy to CO2e. The value always travels with its year and source."""

from __future__ import annotations

import msgspec

from greentrain._checks import require_non_negative

__all__ = ["J_PER_KWH", "Intensity", "co2e_kg"]

J_PER_KWH = 3.6e6


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


def co2e_kg(energy_j: float, intensity: Intensity) -> float:
    """Kilograms of CO2e of an energy in joules."""
    return energy_j / J_PER_KWH * intensity.kg_per_kwh
