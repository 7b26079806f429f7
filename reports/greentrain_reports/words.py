"""How figures are written for people: a few digits, the readable unit, gaps as words."""

from __future__ import annotations

import math
from collections.abc import Callable

from greentrain.units import Dimension, format_quantity

__all__ = [
    "GAP",
    "carbon_mass",
    "column_of_energies",
    "count",
    "energy",
    "joules_per_sample",
    "number",
    "percent",
    "power",
    "seconds",
    "signed_percent",
    "size",
    "with_error",
]

GAP = "not recorded"

_ENERGY_UNITS = (("MJ", 1e6), ("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6))
_MASS_UNITS = (("t", 1e3), ("kg", 1.0), ("g", 1e-3), ("mg", 1e-6), ("µg", 1e-9))


def number(value: float | None) -> str:
    """Three digits, without an exponent where a person would not expect one."""
    if value is None:
        return GAP
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.2e}"


def count(value: int | None) -> str:
    """A whole number with thin spaces between thousands."""
    return GAP if value is None else f"{value:,}".replace(",", "\u202f")


def energy(value_j: float | None) -> str:
    """An energy with the unit a person reads most easily."""
    return _quantity(value_j, "energy")


def power(value_w: float | None) -> str:
    """A power likewise."""
    return _quantity(value_w, "power")


def seconds(value_s: float | None) -> str:
    """A time likewise."""
    return _quantity(value_s, "time")


def size(value_bytes: float | None) -> str:
    """A number of bytes likewise."""
    return _quantity(value_bytes, "bytes")


def joules_per_sample(value_j: float | None) -> str:
    """Joules per sample, with its unit."""
    return GAP if value_j is None else f"{energy(value_j)}/sample"


def with_error(value_j: float | None, error_j: float | None) -> tuple[str, str]:
    """Number and unit of an energy with its ±, such as ``("12.3 ± 0.4", "mJ")``."""
    if value_j is None:
        return GAP, ""
    unit, factor = _unit(value_j, _ENERGY_UNITS)
    if error_j is None:
        return number(value_j / factor), unit
    return f"{number(value_j / factor)} ± {error_j / factor:.2g}", unit


def column_of_energies(largest_j: float) -> tuple[str, Callable[[float], str]]:
    """Unit and format of a column of energies, so that its cells can be compared and added up by eye.

    Args:
        largest_j: The largest energy of the column; it gets about five digits.
    """
    unit, factor = _unit(largest_j / 10, _ENERGY_UNITS)
    decimals = max(4 - math.floor(math.log10(largest_j / factor)), 0) if largest_j > 0 else 0
    return unit, lambda value_j: f"{value_j / factor:.{decimals}f}"


def carbon_mass(value_kg: float | None) -> tuple[str, str]:
    """Number and unit of a mass of CO2e."""
    if value_kg is None:
        return GAP, ""
    unit, factor = _unit(value_kg, _MASS_UNITS)
    return number(value_kg / factor), unit


def percent(ratio: float | None) -> str:
    """A ratio as percent with one decimal."""
    return GAP if ratio is None else f"{ratio * 100:.1f} %"


def signed_percent(value_percent: float | None) -> str:
    """A difference in percent with its sign; an en dash where there is none."""
    if value_percent is None:
        return "–"
    rounded = round(value_percent, 1)
    return "0.0 %" if rounded == 0 else f"{rounded:+.1f} %".replace("-", "−")


def _quantity(value: float | None, dimension: Dimension) -> str:
    return GAP if value is None else format_quantity(value, dimension)


def _unit(value: float, units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    return next(((unit, factor) for unit, factor in units if abs(value) >= factor), units[-1] if value else units[2])
