"""Intensity of the grid: the user's value or series, codecarbon's tables, the world average; making of devices.

Nothing here uses the network but :func:`locate`, which nobody calls unless asked.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.resources
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from greentrain.carbon import YEAR_S, Embodied, Intensity, IntensitySeries
from greentrain.errors import UnavailableError, UsageError
from greentrain.files import read_csv, read_toml

__all__ = [
    "WORLD_AVERAGE",
    "embodied_catalogue",
    "embodied_of_text",
    "intensity",
    "intensity_series",
    "locate",
    "parse_utc",
]

# Seconds of service where nobody says otherwise; the Software Carbon Intensity's own example takes as many.
_LIFE_S = 4 * YEAR_S

WORLD_AVERAGE = Intensity(
    kg_per_kwh=0.475,
    place="world",
    year=2018,
    source="world average of electricity, IEA Global Energy & CO2 Status Report (2019)",
)


def intensity(*, country: str | None, kg_per_kwh: float | None) -> Intensity:
    """Carbon intensity of electricity with its year and source.

    Args:
        country: ISO 3166 alpha-3 code in either case, such as ``FRA``; None when not known.
        kg_per_kwh: The user's own value, which wins over every table; None when not given.

    Raises:
        UsageError: The code is unknown to the tables, or the value is negative or not finite.
    """
    code = None if country is None else country.strip().upper()
    if kg_per_kwh is not None:
        if not (math.isfinite(kg_per_kwh) and kg_per_kwh >= 0):
            raise UsageError(
                f"carbon intensity is {kg_per_kwh} kg/kWh, expected a finite number of at least 0.",
                hint="Give kilograms of CO2e per kilowatt-hour, such as 0.25.",
            )
        return Intensity(kg_per_kwh=kg_per_kwh, place=code or "given", year=None, source="given by the user")
    return WORLD_AVERAGE if code is None else _of_country(code)


def _of_country(code: str) -> Intensity:
    # codecarbon's internal interface, pinned by tests: its tracker is not needed, our joules are measured.
    with _quiet("codecarbon"):
        from codecarbon.core.emissions import Emissions
        from codecarbon.core.units import Energy
        from codecarbon.external.geography import GeoMetadata
        from codecarbon.input import DataSource

        tables = DataSource()
        mixes: dict[str, dict[str, object]] = tables.get_global_energy_mix_data()
        if code not in mixes:
            # Asked about a code it does not know, codecarbon answers with the world average; we refuse.
            near = difflib.get_close_matches(code, mixes, n=3, cutoff=0.6)
            meant = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"no carbon intensity for country code {code!r}, expected an ISO 3166 alpha-3 code such as 'FRA'.",
                hint=f"{meant}Or give your own value with --kg-per-kwh.",
            )
        mix = mixes[code]
        name = str(mix.get("country_name", code))
        geo = GeoMetadata(country_iso_code=code, country_name=name, region=None)
        kg_per_kwh = float(Emissions(tables).get_private_infra_emissions(Energy.from_energy(kWh=1.0), geo))
    year = mix.get("year")
    version = importlib.metadata.version("codecarbon")
    return Intensity(
        kg_per_kwh=kg_per_kwh,
        place=code,
        year=year if isinstance(year, int) else None,
        source=f"codecarbon {version}, table of countries ({name}; Our World in Data)",
    )


@contextmanager
def _quiet(name: str) -> Generator[None, None, None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def intensity_series(path: Path) -> IntensitySeries:
    """A user's series of grid intensity, such as an hourly one of a grid operator.

    The first column whose name starts with ``time`` or ``date`` holds ISO 8601 instants (UTC where no zone is
    given), the first one whose name has ``intensity``, ``co2`` or ``kwh`` grams of CO2e per kilowatt-hour. A value
    holds until the next row; the last one as long as the one before.

    Raises:
        UsageError: No such file or columns, a cell is no instant or number, or the times do not rise.
    """
    header, rows = read_csv(path)
    names = [name.strip().lower() for name in header]
    at = next((index for index, name in enumerate(names) if name.startswith(("time", "date"))), None)
    signs = ("intensity", "co2", "co₂", "kwh")
    value = next((index for index, name in enumerate(names) if any(sign in name for sign in signs)), None)
    if at is None or value is None or at == value:
        raise UsageError(
            f"{path}: columns are {', '.join(header)}, expected a time and grams of CO2e per kWh.",
            hint="Write the header: time,g_per_kwh",
        )
    edge_s: list[float] = []
    kg_per_kwh: list[float] = []
    for number, row in enumerate(rows, start=2):
        try:
            edge_s.append(parse_utc(row[at], where=f"{path}: line {number}"))
            kg_per_kwh.append(float(row[value]) / 1e3)
        except (IndexError, ValueError) as error:
            raise UsageError(f"{path}: line {number} is {','.join(row)!r}, expected a time and a number.") from error
    if len(edge_s) < 2:
        raise UsageError(f"{path}: has {len(edge_s)} rows, expected at least two.")
    try:
        return IntensitySeries(
            edge_s=(*edge_s, 2 * edge_s[-1] - edge_s[-2]), kg_per_kwh_N=tuple(kg_per_kwh),
            source=f"{path.name}, column {header[value].strip()!r}",
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{path}: {error}.", hint="Sort the rows by time.") from error


def parse_utc(text: str, *, where: str) -> float:
    """Seconds since 1970 of an ISO 8601 instant; UTC where it names no zone.

    Raises:
        UsageError: It is none.
    """
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise UsageError(f"{where}: {text!r} is not an instant.", hint="Write it as 2026-05-01T14:00Z.") from error
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def locate() -> str:
    """Country of this machine's public address, ISO 3166 alpha-3, by codecarbon's look-up over the network.

    Raises:
        UnavailableError: There is no network, or no answer.
    """
    with _quiet("codecarbon"):
        from codecarbon.external.geography import GeoMetadata
        from codecarbon.input import DataSource

        found = GeoMetadata.from_geo_js(DataSource().geo_js_url)
    # Without an answer codecarbon takes Quebec, which is no answer to us.
    if not found.country_iso_code or (found.country_iso_code, found.latitude) == ("CAN", 46.8):
        raise UnavailableError("the country could not be looked up.", hint="Name it with --country.")
    return found.country_iso_code.upper()


class _EmbodiedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kg: float
    life_years: float
    year: int
    source: str


class _EmbodiedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: list[_EmbodiedEntry]


@functools.cache
def embodied_catalogue() -> dict[str, Embodied]:
    """What making a device emitted, by kind of the device catalogue; kinds without a published figure are absent."""
    with importlib.resources.as_file(importlib.resources.files("greentrain_datasets") / "embodied.toml") as path:
        file = read_toml(path, _EmbodiedFile)
    return {
        entry.name: Embodied(kg=entry.kg, life_s=entry.life_years * YEAR_S, year=entry.year, source=entry.source)
        for entry in file.kind
    }


def embodied_of_text(text: str) -> tuple[str, Embodied]:
    """The user's own figure, ``DEVICE=KG`` or ``DEVICE=KG/YEARS``.

    Returns:
        Device id, or its kind, and the figure.

    Raises:
        UsageError: It is neither.
    """
    name, separator, rest = text.partition("=")
    kg, _, years = rest.partition("/")
    try:
        if not (name and separator):
            raise ValueError
        found = Embodied(
            kg=float(kg), life_s=float(years) * YEAR_S if years else _LIFE_S, year=None, source="given by the user"
        )
    except ValueError as error:
        raise UsageError(
            f"embodied carbon is {text!r}, expected DEVICE=KG or DEVICE=KG/YEARS.",
            hint="Such as nano-1=40/5: 40 kg CO2e to make it, used for 5 years.",
        ) from error
    return name, found
