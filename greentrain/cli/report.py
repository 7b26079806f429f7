"""``greentrain report``: CSV files and one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import emit_json, json_option, say

if TYPE_CHECKING:
    from greentrain_reports.report import ReportFiles
    from greentrain_reports.tables import RunReport

__all__ = ["command"]

_FOLDER = click.Path(path_type=Path)


@click.command("report")
@click.argument("runs", metavar="RUN_DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option("--against", metavar="RUN_DIR", type=_FOLDER, help="Compare with this run.")
@click.option("--country", metavar="CODE", help="ISO 3166 alpha-3 country of the electricity, such as FRA.")
@click.option("--kg-per-kwh", type=float, help="Your own carbon intensity, kg CO2e per kWh; wins over --country.")
@click.option("-o", "--output", metavar="DIR", type=_FOLDER, help="Where to write [default: the first RUN_DIR].")
@json_option
def command(
    runs: tuple[Path, ...],
    against: Path | None,
    country: str | None,
    kg_per_kwh: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """CSV and one self-contained HTML of a run: energy, carbon, predicted beside measured.

    Several RUN_DIRs are shown side by side; the first one in full.
    """
    from greentrain_datasets.carbon import intensity
    from greentrain_reports.report import write_report

    files = write_report(
        runs, intensity=intensity(country=country, kg_per_kwh=kg_per_kwh), against=against, output=output
    )
    for report in files.reports:
        for remark in report.remarks:
            say(f"Note on {report.run.name}: {remark}")
    if as_json:
        emit_json(_facts(files))
    else:
        _print(files)


def _facts(files: ReportFiles) -> dict[str, object]:
    return {
        "html": str(files.html),
        "csv": {name: str(path) for name, path in files.csv.items()},
        "runs": [_run_facts(report) for report in files.reports],
    }


def _run_facts(report: RunReport) -> dict[str, object]:
    return {
        "run": report.run.name,
        "headline": report.headline,
        "intensity": report.intensity,
        "energy_j_by_device": {device.device: device.energy_j for device in report.devices},
        "source_by_device": {device.device: device.source for device in report.devices},
        "saving": report.saving,
        "remarks": report.remarks,
    }


def _print(files: ReportFiles) -> None:
    from greentrain_reports.words import carbon_mass, energy, number, percent, with_error

    for report in files.reports:
        head, place = report.headline, report.intensity
        shown, unit = with_error(head.joules_per_sample, head.error_j_per_sample)
        mass, mass_unit = carbon_mass(head.co2e_kg)
        lines = [
            (f"run {report.run.name}", ""),
            ("  energy per sample", f"{shown} {unit}/sample, {head.source or 'no source'}" if unit else shown),
            ("  energy", f"{energy(head.energy_j)}{'' if head.complete else ' (incomplete)'}"),
            ("  speed", f"{number(head.samples_per_s)}{' samples/s' if head.samples_per_s is not None else ''}"),
            ("  CO2e", f"{mass} {mass_unit} at {place.kg_per_kwh:g} kg/kWh ({place.place}, {place.source})"),
            ("  accuracy", percent(head.accuracy)),
        ]
        for name, text in lines:
            click.echo(f"{name:<22}{text}".rstrip())
    click.echo(f"page      {files.html}")
    for path in files.csv.values():
        click.echo(f"table     {path}")
