"""``greentrain models``: the fitted power and time models of a profiles folder, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from greentrain.cli._common import CLUSTER_FILE, PROFILES_DIR, emit_json, json_option, table_lines
from greentrain.cli._models import ModelsFolder, drawn, read_models_folder
from greentrain.cli._models_check import folder_findings
from greentrain.cli._models_plan import Finding, plan_findings
from greentrain.cli._problem import load_plan, problem_of_plan
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from greentrain_reports.curve_tables import CurveRow, TimesRow

__all__ = ["command"]


_profiles_option = click.option(
    "--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True, help="Folder of profiles."
)
_device_option = click.option("--device", metavar="ID", help="Only this device.")


class _Check(msgspec.Struct, frozen=True, kw_only=True):
    """``models check --json``."""

    fine: bool
    findings: tuple[Finding, ...]


@click.group(name="models")
def command() -> None:
    """Show and check the power and time models that profiles/ holds."""


@command.command(name="show")
@_profiles_option
@_device_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="Pictures as a page."
)
@json_option
def show(profiles: Path, device: str | None, output: Path | None, as_json: bool) -> None:
    """Every curve with its band, fit, errors, measured range and source."""
    from greentrain_reports.curve_tables import curve_rows, times_rows

    folder = read_models_folder(profiles, device)
    curves = [row for it in folder.devices for row in curve_rows(it.profile, it.windows)]
    times = [row for model in folder.models for row in times_rows(model)]
    if output is not None:
        _write_page(output, folder, curves, times)
    if as_json:
        emit_json({"curves": curves, "times": times, "html": None if output is None else str(output)})
        return
    _print_table(_curve_cells(curves))
    if times:
        click.echo()
        _print_table(_times_cells(times))
    if output is not None:
        click.echo(f"\nwrote {output}")


@command.command(name="check")
@_profiles_option
@_device_option
@click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="Also what this plan rests on.")
@click.option("--cluster", "cluster_path", type=click.Path(path_type=Path), default=CLUSTER_FILE, show_default=True)
@json_option
def check(profiles: Path, device: str | None, plan_path: Path | None, cluster_path: Path, as_json: bool) -> None:
    """Named warnings about the models; they do not change the exit status, --json says whether all is fine."""
    findings = folder_findings(read_models_folder(profiles, device))
    if plan_path is not None:
        plan = load_plan(plan_path)
        _, problem = problem_of_plan(plan, plan_path, cluster_path, profiles)
        findings += [
            msgspec.structs.replace(finding, where=f"{plan_path}: {finding.where}")
            for finding in plan_findings(plan, problem)
        ]
    if as_json:
        emit_json(_Check(fine=not findings, findings=tuple(findings)))
    elif not findings:
        click.echo("all models are fine")
    else:
        for finding in findings:
            click.echo(finding.line)


def _write_page(output: Path, folder: ModelsFolder, curves: list[CurveRow], times: list[TimesRow]) -> None:
    from greentrain.files import write_text
    from greentrain_reports.device_curves import curves_page

    write_text(output, curves_page(tuple(drawn(folder)), curves, times, models=folder.models))


def _curve_cells(rows: Sequence[CurveRow]) -> list[tuple[str, ...]]:
    head = ("device", "point", "idle", "busy", "±", "fit", "windows", "left-out error", "shares", "source")
    return [head] + [
        (
            row.device, row.point, format_quantity(row.idle_w, "power"), format_quantity(row.busy_w, "power"),
            "?" if row.band_w is None else format_quantity(row.band_w, "power"), row.fit, str(row.points_n),
            _percent(row.loo_ratio),
            "–" if row.share_low is None else f"{row.share_low:.2f}-{row.share_high:.2f}", row.source,
        )
        for row in rows
    ]  # fmt: skip


def _times_cells(rows: Sequence[TimesRow]) -> list[tuple[str, ...]]:
    head = ("model", "kind", "point", "batch", "per sample", "±", "fit", "left-out error", "spread", "source")
    return [head] + [
        (
            row.model, row.kind, row.point, f"{row.batch_low}-{row.batch_high} ({row.batches_n})",
            format_quantity(row.sample_s, "time"), _percent(row.band_ratio), row.fit, _percent(row.loo_ratio),
            _percent(row.spread_ratio), row.source,
        )
        for row in rows
    ]  # fmt: skip


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1%}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    click.echo("\n".join(table_lines(rows)))
