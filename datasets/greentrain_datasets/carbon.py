"""Intensity of the grid: the user's value, then codecarbon's tables, then the world average. No network."""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager

from greentrain.carbon import Intensity
from greentrain.errors import UsageError

__all__ = ["WORLD_AVERAGE", "intensity"]

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
