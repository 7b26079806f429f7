"""``emissions.csv`` in codecarbon's columns, so that what reads its files reads ours."""

from __future__ import annotations

import hashlib

from greentrain.carbon import J_PER_KWH
from greentrain_reports.tables import RunReport

__all__ = ["EMISSIONS_COLUMNS", "emissions_row", "run_id"]

# codecarbon 3's columns, each with the unit that it has there and what stands in it here.
EMISSIONS_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("timestamp", "", "start of the run, UTC; empty when not recorded"),
    ("project_name", "", "model that was trained"),
    ("run_id", "", "made from name, start and plan of the run, the same in every report of it"),
    ("experiment_id", "", "name of the run"),
    ("duration", "s", "seconds of training"),
    ("emissions", "kg", "CO2e of the energy"),
    ("emissions_rate", "kg/s", "emissions over duration"),
    ("cpu_power", "W", "empty: meters here are of whole boards"),
    ("gpu_power", "W", "empty likewise"),
    ("ram_power", "W", "empty likewise"),
    ("cpu_energy", "kWh", "empty likewise"),
    ("gpu_energy", "kWh", "empty likewise"),
    ("ram_energy", "kWh", "empty likewise"),
    ("energy_consumed", "kWh", "energy of all devices"),
    ("water_consumed", "L", "empty: not recorded"),
    ("country_name", "", "empty: see country_iso_code"),
    ("country_iso_code", "", "ISO 3166 alpha-3; empty when no country was named"),
    ("region", "", "empty: intensities are of countries"),
    ("cloud_provider", "", "empty: not a cloud"),
    ("cloud_region", "", "empty: not a cloud"),
    ("os", "", "machine that launched the run, in words"),
    ("python_version", "", "Python of the run"),
    ("codecarbon_version", "", "codecarbon whose tables gave the intensity; empty otherwise"),
    ("cpu_count", "", "empty: several machines"),
    ("cpu_model", "", "empty likewise"),
    ("gpu_count", "", "empty likewise"),
    ("gpu_model", "", "empty likewise"),
    ("longitude", "", "empty: never looked up"),
    ("latitude", "", "empty: never looked up"),
    ("ram_total_size", "GB", "empty: several machines"),
    ("tracking_mode", "", "measured, modelled or mixed joules"),
    ("cpu_utilization_percent", "%", "empty: not recorded"),
    ("gpu_utilization_percent", "%", "empty likewise"),
    ("ram_utilization_percent", "%", "empty likewise"),
    ("ram_used_gb", "GB", "empty likewise"),
    ("on_cloud", "", "N"),
    ("pue", "", "empty: what cools the room is not counted"),
    ("wue", "L/kWh", "empty: not counted"),
)


def emissions_row(report: RunReport) -> tuple[object, ...]:
    """One run in the order of the columns; None where codecarbon would write a figure that was not recorded."""
    run, head, summary = report.run, report.headline, report.run.summary
    place = report.carbon.intensity
    kg = report.carbon.operational_kg
    country = place.place if place is not None and len(place.place) == 3 and place.place.isupper() else None
    tables = place is not None and place.source.startswith("codecarbon ")
    versions = summary.versions if summary is not None else {}
    known: dict[str, object] = {
        "timestamp": summary.started_utc.removesuffix("Z") if summary is not None else None,
        "project_name": summary.model if summary is not None else run.plan.model if run.plan is not None else None,
        "run_id": run_id(report),
        "experiment_id": run.name,
        "duration": head.duration_s,
        "emissions": kg,
        "emissions_rate": kg / head.duration_s if kg is not None and head.duration_s else None,
        "energy_consumed": head.energy_j / J_PER_KWH if head.energy_j is not None else None,
        "country_iso_code": country,
        "os": summary.host if summary is not None else None,
        "python_version": versions.get("python"),
        "codecarbon_version": place.source.split()[1].rstrip(",") if place is not None and tables else None,
        "tracking_mode": head.source,
        "on_cloud": "N",
    }
    return tuple(known.get(column) for column, _, _ in EMISSIONS_COLUMNS)


def run_id(report: RunReport) -> str:
    """Name, start and plan of a run as one word, the same in every report of it."""
    summary, rows = report.run.summary, report.run.rows
    name = summary.run if summary is not None else rows.run if rows is not None else report.run.name
    said = (name, *((summary.started_utc, summary.plan_sha256) if summary is not None else ()))
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
