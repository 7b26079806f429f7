"""Parse and format quantities. Inside the program everything is SI; conversion happens only here."""

from __future__ import annotations

import math
import re
from typing import Literal

from greentrain.errors import UsageError

__all__ = ["Dimension", "format_quantity", "parse_quantity"]

Dimension = Literal["time", "energy", "power", "bandwidth", "bytes", "frequency", "energy_per_byte"]

_UNITS: dict[Dimension, dict[str, float]] = {
    "time": {
        "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
    },
    "energy": {
        "uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "mWh": 3.6, "Wh": 3600.0, "kWh": 3.6e6,
    },
    "power": {"uW": 1e-6, "µW": 1e-6, "mW": 1e-3, "W": 1.0, "kW": 1e3},
    # Network rates are named in bits by everybody; inside they are bytes per second.
    "bandwidth": {
        "bit": 1 / 8, "kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8,
        "bit/s": 1 / 8, "kbit/s": 1e3 / 8, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8,
        "B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9,
    },
    "bytes": {
        "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
    },
    "frequency": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "energy_per_byte": {"pJ/B": 1e-12, "nJ/B": 1e-9, "uJ/B": 1e-6, "µJ/B": 1e-6, "mJ/B": 1e-3, "J/B": 1.0},
}  # fmt: skip

_EXAMPLES: dict[Dimension, str] = {
    "time": "2h",
    "energy": "40Wh",
    "power": "7.5W",
    "bandwidth": "100Mbit",
    "bytes": "4GiB",
    "frequency": "918MHz",
    "energy_per_byte": "5nJ/B",
}

# The units a person reads most easily, smallest first.
_DISPLAY: dict[Dimension, tuple[str, ...]] = {
    "time": ("us", "ms", "s", "min", "h"),
    "energy": ("uJ", "mJ", "J", "kJ", "MJ"),
    "power": ("uW", "mW", "W", "kW"),
    "bandwidth": ("kbit/s", "Mbit/s", "Gbit/s"),
    "bytes": ("B", "KiB", "MiB", "GiB", "TiB"),
    "frequency": ("Hz", "kHz", "MHz", "GHz"),
    "energy_per_byte": ("pJ/B", "nJ/B", "uJ/B", "mJ/B", "J/B"),
}

_NUMBER_UNIT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s].*?)?\s*")


def parse_quantity(text: str, dimension: Dimension, *, where: str, minimum: float = 0.0) -> float:
    """Convert a quantity such as ``"100Mbit"`` to its SI value.

    Args:
        text: A number followed by a unit.
        dimension: The kind of quantity that is expected.
        where: File and field, or option name, for the error message.
        minimum: The smallest value allowed, in SI units.

    Returns:
        The value in SI units (bytes per second for bandwidth).

    Raises:
        UsageError: The text is no number with a known unit, or is below the minimum.
    """
    units = _UNITS[dimension]
    match = _NUMBER_UNIT.fullmatch(text)
    unit = match.group(2) if match else None
    if match is None or unit is None or unit not in units:
        raise UsageError(
            f"{where}: {text!r} is not a {dimension.replace('_', ' ')}.",
            hint=f"Write a number with a unit, such as {_EXAMPLES[dimension]!r} (units: {', '.join(units)}).",
        )
    value = float(match.group(1)) * units[unit]
    if not math.isfinite(value):
        raise UsageError(f"{where}: {text!r} is too large.", hint=f"Write a value such as {_EXAMPLES[dimension]!r}.")
    if value < minimum:
        raise UsageError(
            f"{where}: {text!r} must not be below {format_quantity(minimum, dimension)}.",
            hint=f"Write a value such as {_EXAMPLES[dimension]!r}.",
        )
    return value


def format_quantity(value: float | None, dimension: Dimension, *, digits: int = 3) -> str:
    """Write an SI value with the unit a person reads most easily; ``None`` becomes ``"unknown"``."""
    if value is None:
        return "unknown"
    units = _UNITS[dimension]
    chosen = _DISPLAY[dimension][0]
    for unit in _DISPLAY[dimension]:
        if abs(value) >= units[unit]:
            chosen = unit
    if value == 0:
        chosen = {"time": "s", "energy": "J", "power": "W", "bytes": "B"}.get(dimension, chosen)
    number = f"{value / units[chosen]:.{digits}g}"
    if "e" in number:
        number = f"{value / units[chosen]:.0f}"
    return f"{number} {chosen}"
