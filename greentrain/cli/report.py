"""``greentrain report``: one self-contained HTML page, CSV files and JSON of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import emit_json, json_option, say
from greentrain.errors import UsageError

if TYPE_CHECKING:
    from greentrain_reports.carbon_account import CarbonBasis
    from greentrain_reports.report import Format, ReportFiles

__all__ = ["command"]

_FOLDER = click.Path(path_type=Path)
# Written out, so that --help loads no report.
_FORMATS = ("html", "csv", "json")


@click.command("report")
@click.argument("runs", metavar="RUN_DIR...", nargs=-1, required=True, type=_FOLDER)
@click.option("--against", metavar="RUN_DIR", type=_FOLDER, help="Compare with this run.")
@click.option(
    "--format",
    "formats",
    metavar="LIST",
    default=",".join(_FORMATS),
    show_default=True,
    help="What to write: html, csv, json, separated by commas.",
)
@click.option("--country", metavar="CODE", help="ISO 3166 alpha-3 country of the electricity, such as FRA.")
@click.option("--locate", is_flag=True, help="Look the country up over the network; never done otherwise.")
@click.option("--kg-per-kwh", type=float, help="Your own carbon intensity, kg CO2e per kWh; wins over --country.")
@click.option(
    "--intensity-series",
    metavar="FILE",
    type=_FOLDER,
    help="Hourly intensity: CSV with time and g_per_kwh; each round takes that of its time.",
)
@click.option(
    "--embodied",
    metavar="DEVICE=KG[/YEARS]",
    multiple=True,
    help="What making a device (or kind) emitted, kg CO2e, spread over 4 years or as said.",
)
@click.option("--tokens-per-sample", metavar="N", type=click.IntRange(min=1), help="Also give figures per token.")
@click.option(
    "--to",
    "targets",
    metavar="KIND=WHERE",
    multiple=True,
    help="Also to tensorboard=DIR, mlflow=URI, wandb=PROJECT or openmetrics=FILE.",
)
@click.option("-o", "--output", metavar="DIR", type=_FOLDER, help="Where to write [default: the first RUN_DIR].")
@json_option
def command(
    runs: tuple[Path, ...], against: Path | None, formats: str, country: str | None, locate: bool,
    kg_per_kwh: float | None, intensity_series: Path | None, embodied: tuple[str, ...], tokens_per_sample: int | None,
    targets: tuple[str, ...], output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """What runs cost: energy, carbon, predicted beside measured, as a page, CSV and JSON.

    Several RUN_DIRs are shown side by side; the first one in full.
    """
    from greentrain_reports.report import write_report

    chosen = _formats(formats)
    sinks = [_target(text) for text in targets]
    basis = _basis(country, locate, kg_per_kwh, intensity_series, embodied, tokens_per_sample)
    files = write_report(runs, basis=basis, against=against, output=output, formats=chosen)
    for report in files.reports:
        for remark in report.remarks:
            say(f"Note on {report.run.name}: {remark}")
    for kind, where in sinks:
        _send(files, kind, where)
    if as_json:
        emit_json(_facts(files))
    else:
        _print(files)


def _formats(text: str) -> tuple[Format, ...]:
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in asked if part not in _FORMATS]
    if unknown or not asked:
        raise UsageError(
            f"--format is {text!r}, expected some of {', '.join(_FORMATS)}.", hint="Such as --format html,csv."
        )
    return tuple(name for name in _FORMATS if name in asked)


def _basis(
    country: str | None, locate: bool, kg_per_kwh: float | None, series: Path | None, embodied: tuple[str, ...],
    tokens_per_sample: int | None,
) -> CarbonBasis:  # fmt: skip
    from greentrain_datasets import carbon
    from greentrain_reports.carbon_account import CarbonBasis

    if series is not None and (kg_per_kwh is not None or country is not None or locate):
        raise click.UsageError("--intensity-series says what --kg-per-kwh, --country and --locate say; give one.")
    if locate and country is not None:
        raise click.UsageError("--locate and --country exclude each other.")
    if locate:
        country = carbon.locate()
        say(f"Country of this machine's public address: {country}")
    own = dict(map(carbon.embodied_of_text, embodied))
    return CarbonBasis(
        grid=carbon.intensity_series(series)
        if series is not None
        else carbon.intensity(country=country, kg_per_kwh=kg_per_kwh),
        embodied={**carbon.embodied_catalogue(), **own},
        tokens_per_sample=tokens_per_sample,
    )


def _target(text: str) -> tuple[str, str]:
    from greentrain_harness.trackers import TRACKERS

    kind, _, where = text.partition("=")
    if kind not in TRACKERS or not where:
        raise UsageError(f"--to is {text!r}, expected KIND=WHERE with one of {', '.join(TRACKERS)}.")
    return kind, where


def _send(files: ReportFiles, kind: str, where: str) -> None:
    from greentrain_harness.trackers import open_tracker
    from greentrain_reports.metrics import run_metrics

    with open_tracker(kind, where) as tracker:
        for report in files.reports:
            tracker.log_run(run_metrics(report))


def _facts(files: ReportFiles) -> dict[str, object]:
    from greentrain_reports.json_file import run_facts

    return {
        "html": None if files.html is None else str(files.html),
        "csv": {name: str(path) for name, path in files.csv.items()},
        "json": None if files.json is None else str(files.json),
        "runs": [run_facts(report) for report in files.reports],
    }


def _print(files: ReportFiles) -> None:
    from greentrain_reports.words import carbon_mass, energy, number, percent, with_error

    for report in files.reports:
        head, place = report.headline, report.carbon.intensity
        shown, unit = with_error(head.joules_per_sample, head.error_j_per_sample)
        mass, mass_unit = carbon_mass(head.co2e_kg)
        grid = f"at {place.kg_per_kwh:.4g} kg/kWh ({place.place}, {place.source})" if place is not None else ""
        lines = [
            (f"run {report.run.name}", ""),
            ("  energy per sample", f"{shown} {unit}/sample, {head.source or 'no source'}" if unit else shown),
            ("  energy", f"{energy(head.energy_j)}{'' if head.complete else ' (incomplete)'}"),
            *((f"  against {saving.other}", _saved(saving.energy_percent)) for saving in report.savings),
            ("  speed", f"{number(head.samples_per_s)}{' samples/s' if head.samples_per_s is not None else ''}"),
            ("  CO2e", f"{mass} {mass_unit} {grid}".rstrip()),
            ("  accuracy", percent(head.accuracy)),
        ]
        width = max(len(name) for name, _ in lines) + 2
        for name, text in lines:
            click.echo(f"{name:<{width}}{text}".rstrip())
    for name, path in (("page", files.html), *(("table", path) for path in files.csv.values()), ("json", files.json)):
        if path is not None:
            click.echo(f"{name:<10}{path}")


def _saved(energy_percent: float) -> str:
    return f"{abs(energy_percent):.1f} % {'less' if energy_percent >= 0 else 'more'} energy (predicted)"
