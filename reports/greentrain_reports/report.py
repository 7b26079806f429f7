"""From run folders to files: the one call behind ``greentrain report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from greentrain.carbon import Intensity
from greentrain.files import write_text
from greentrain_reports.carbon_account import CarbonBasis
from greentrain_reports.csv_files import write_csv_files
from greentrain_reports.json_file import write_report_json
from greentrain_reports.page import render_page
from greentrain_reports.run_folder import RunFolder, load_run
from greentrain_reports.tables import RunReport, build_report

__all__ = ["FORMATS", "Format", "ReportFiles", "write_report"]

Format = Literal["html", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)


class ReportFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and the tables it shows.

    Attributes:
        html: The page; None when it was not asked for.
        csv: The CSV files by name; empty when they were not asked for.
        json: ``report.json``; None when it was not asked for.
        reports: One per run, in the order given; the run that was compared with comes last.
    """

    html: Path | None
    csv: dict[str, Path]
    json: Path | None
    reports: tuple[RunReport, ...]


def write_report(
    folders: Sequence[Path],
    *,
    basis: CarbonBasis | Intensity,
    against: Path | None = None,
    output: Path | None = None,
    formats: Collection[Format] = FORMATS,
) -> ReportFiles:
    """Read run folders and write the page, the CSV files and the JSON file.

    Args:
        folders: At least one run folder; the first is shown in full.
        basis: What carbon is computed with, or just the intensity of the grid.
        against: Run folder to compare with.
        output: Where to write; the first run folder when not given.
        formats: What to write.

    Raises:
        UsageError: A folder is no run folder, or one of its files is damaged.
        UnavailableError: The output folder may not be written.
        RunError: The disk is full.
    """
    carbon = CarbonBasis(grid=basis) if isinstance(basis, Intensity) else basis
    others = [] if against is None or any(_same(against, folder) for folder in folders) else [against]
    beside = [build_report(run, carbon) for run in _told_apart([load_run(it) for it in (*folders, *others)])]
    reports = beside[: len(folders)]
    base = next((report for report in beside if against is not None and _same(report.run.path, against)), None)
    page = render_page(reports, against=base) if "html" in formats else None
    target = folders[0] if output is None else output
    written = write_csv_files(target, beside) if "csv" in formats else {}
    html, facts = target / "report.html", target / "report.json"
    if page is not None:
        write_text(html, page)
    if "json" in formats:
        write_report_json(facts, beside)
    return ReportFiles(
        html=html if page is not None else None,
        csv=written,
        json=facts if "json" in formats else None,
        reports=tuple(beside),
    )


def _same(folder: Path, other: Path) -> bool:
    return folder.resolve() == other.resolve()


def _told_apart(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs of one name get their folder's added: every row must say whose it is."""
    names = Counter(run.name for run in runs)
    return [
        msgspec.structs.replace(run, name=f"{run.name} ({run.path.resolve().name})") if names[run.name] > 1 else run
        for run in runs
    ]
