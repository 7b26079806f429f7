"""``report.json``: the same figures for machines. None is what was not recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from greentrain.carbon import Intensity
from greentrain.files import write_json
from greentrain_reports.carbon_account import CarbonAccount
from greentrain_reports.comparison import ComparisonRow
from greentrain_reports.energy import DeviceEnergy
from greentrain_reports.savings import Saving
from greentrain_reports.tables import Headline, RunReport

__all__ = ["REPORT_SCHEMA", "RunFacts", "run_facts", "write_report_json"]

REPORT_SCHEMA = "greentrain.report/1"


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a report.

    Attributes:
        run: Its name.
        parallelism: single, data, pipeline or hybrid.
        headline: First figures.
        intensity: Of the grid.
        carbon: What it emitted.
        devices: Energy by device and cause.
        energy_j_by_device: The devices' joules once more, by id.
        source_by_device: Where they come from, by id.
        comparison: Predicted beside measured.
        savings: Against the time-optimal plan and against one device.
        remarks: What a reader must know.
        sha256: Hash of every file behind it.
    """

    run: str
    parallelism: str | None
    headline: Headline
    intensity: Intensity | None
    carbon: CarbonAccount
    devices: tuple[DeviceEnergy, ...]
    energy_j_by_device: dict[str, float | None]
    source_by_device: dict[str, str | None]
    comparison: tuple[ComparisonRow, ...]
    savings: tuple[Saving, ...]
    remarks: tuple[str, ...]
    sha256: dict[str, str]


class _ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    runs: tuple[RunFacts, ...]


def run_facts(report: RunReport) -> RunFacts:
    """What a report says of one run, for machines."""
    return RunFacts(
        run=report.run.name,
        parallelism=report.parallelism,
        headline=report.headline,
        intensity=report.carbon.intensity,
        carbon=report.carbon,
        devices=report.devices,
        energy_j_by_device={device.device: device.energy_j for device in report.devices},
        source_by_device={device.device: device.source for device in report.devices},
        comparison=report.comparison,
        savings=report.savings,
        remarks=report.remarks,
        sha256=report.run.sha256,
    )


def write_report_json(path: Path, reports: Sequence[RunReport]) -> None:
    """Write ``report.json``."""
    write_json(path, _ReportFile(runs=tuple(map(run_facts, reports))), schema=REPORT_SCHEMA)
