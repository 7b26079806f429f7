"""From run folders to files: the one call behind ``greentrain report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from greentrain.carbon import Intensity
from greentrain.files import write_text
from greentrain_reports.csv_files import write_csv_files
from greentrain_reports.page import render_page
from greentrain_reports.run_folder import load_run
from greentrain_reports.tables import RunReport, build_report

__all__ = ["ReportFiles", "write_report"]


class ReportFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and the tables it shows.

    Attributes:
        html: The page.
        csv: The CSV files by name.
        reports: One per run, in the order given; the run that was compared with comes last.
    """

    html: Path
    csv: dict[str, Path]
    reports: tuple[RunReport, ...]


def write_report(
    folders: Sequence[Path], *, intensity: Intensity, against: Path | None = None, output: Path | None = None
) -> ReportFiles:
    """Read run folders and write the page and the CSV files.

    Args:
        folders: At least one run folder; the first is shown in full.
        intensity: Carbon intensity of the grid.
        against: Run folder to compare with.
        output: Where to write; the first run folder when not given.

    Raises:
        UsageError: A folder is no run folder, or one of its files is damaged.
        UnavailableError: The output folder may not be written.
        RunError: The disk is full.
    """
    reports = [build_report(load_run(folder), intensity) for folder in folders]
    base = None
    if against is not None:
        same = [report for report in reports if report.run.path.resolve() == against.resolve()]
        base = same[0] if same else build_report(load_run(against), intensity)
    beside = reports if base is None or base in reports else [*reports, base]
    page = render_page(reports, against=base)
    target = folders[0] if output is None else output
    written = write_csv_files(target, beside)
    html = target / "report.html"
    write_text(html, page)
    return ReportFiles(html=html, csv=written, reports=tuple(beside))
