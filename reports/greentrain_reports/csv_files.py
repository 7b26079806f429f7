"""The tables as CSV: units in the column names, an empty cell where nothing is recorded, never 0."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from greentrain.files import write_bytes, write_csv
from greentrain_reports.emissions import EMISSIONS_COLUMNS, emissions_row
from greentrain_reports.energy import CAUSES
from greentrain_reports.tables import RunReport

__all__ = ["CSV_FILES", "write_csv_files"]

CSV_FILES: tuple[str, ...] = (
    "energy_by_device.csv",
    "rounds.csv",
    "comparison.csv",
    "runs.csv",
    "emissions.csv",
    "data_dictionary.csv",
)

# Column, unit, meaning. The order is that of the file.
_Columns = Sequence[tuple[str, str, str]]

# Rows that are turned into text at once.
_BLOCK_ROWS = 50_000

_RUN = ("run", "", "name of the run")
_SOURCE = ("source", "", "where the joules come from: measured, modelled, or mixed when both")
_METER = ("meter", "", "name of the meter that gave the joules")


def write_csv_files(folder: Path, reports: Sequence[RunReport]) -> dict[str, Path]:
    """Write every table of the runs into a folder.

    Returns:
        The written files by name; ``runs.csv`` has one row per run.
    """
    causes = _all_causes(reports)
    actions = _all_actions(reports)
    rounds = _round_columns(actions)
    tables: dict[str, tuple[_Columns, Iterable[tuple[object, ...]]]] = {
        "energy_by_device.csv": (_device_columns(causes), _device_rows(reports, causes)),
        "comparison.csv": (_COMPARISON, _comparison_rows(reports)),
        "runs.csv": (_RUNS, _run_rows(reports)),
        "emissions.csv": (EMISSIONS_COLUMNS, map(emissions_row, reports)),
    }
    written: dict[str, Path] = {}
    for name, (columns, rows) in tables.items():
        written[name] = folder / name
        write_csv(written[name], [column for column, _, _ in columns], rows)
    written["rounds.csv"] = folder / "rounds.csv"
    _write_long(written["rounds.csv"], [column for column, _, _ in rounds], _round_rows(reports, actions))
    explained = {"rounds.csv": rounds, **{name: columns for name, (columns, _) in tables.items()}}
    dictionary = [(name, *column) for name, columns in explained.items() for column in columns]
    name = "data_dictionary.csv"
    written[name] = folder / name
    write_csv(written[name], ("file", "column", "unit", "meaning"), dictionary)
    return {name: written[name] for name in CSV_FILES}


def _write_long(path: Path, columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    """Write a CSV of any length in pieces, as text takes four times the memory of the file."""
    pieces: list[bytes] = []
    rest = iter(rows)
    block: Iterable[tuple[object, ...]] = [tuple(columns)]
    while block:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(block)
        pieces.append(buffer.getvalue().encode())
        block = list(itertools.islice(rest, _BLOCK_ROWS))
    write_bytes(path, b"".join(pieces))


def _device_columns(causes: Sequence[str]) -> _Columns:
    return (
        _RUN,
        ("device", "", "device id; the rows add up to the whole run"),
        ("ranks", "", "ranks of the device, separated by spaces; empty when it took no part"),
        ("energy_j", "J", "joules of the device over the run, exact in whole microjoules; empty when not recorded"),
        ("error_j", "J", "± of energy_j, the rounds' errors added up; empty when not known"),
        *(
            (f"{cause}_j", "J", f"part of energy_j attributed to {cause}; the parts add up exactly to energy_j")
            for cause in causes
        ),
        _SOURCE,
        _METER,
        ("note", "", "what the run says of this meter"),
    )


def _device_rows(reports: Sequence[RunReport], causes: Sequence[str]) -> list[tuple[object, ...]]:
    return [
        (
            report.run.name,
            device.device,
            " ".join(map(str, device.ranks)),
            device.energy_j,
            device.error_j,
            *((device.cause_j or {}).get(cause) for cause in causes),
            device.source,
            device.meter,
            device.note,
        )
        for report in reports
        for device in report.devices
    ]


def _round_columns(actions: Sequence[str]) -> _Columns:
    return (
        _RUN,
        ("round", "", "optimizer step, from 0"),
        ("device", "", "device id"),
        ("rank", "", "rank of the process; -1 for a device that took no part"),
        ("t_start_s", "s", "start of the round since the start of the run"),
        ("duration_s", "s", "length of the round on this device"),
        ("energy_j", "J", "joules of the round; the column adds up to the energy of the run"),
        ("error_j", "J", "± of energy_j"),
        ("mean_power_w", "W", "energy_j over duration_s"),
        ("sent_bytes", "B", "payload bytes sent in the round; empty when sending is not recorded"),
        *((f"{action}_s", "s", f"time of the round spent on {action}; empty when not recorded") for action in actions),
        _SOURCE,
        _METER,
    )


def _round_rows(reports: Sequence[RunReport], actions: Sequence[str]) -> Iterator[tuple[object, ...]]:
    for report in reports:
        if report.rounds is not None:
            yield from zip(itertools.repeat(report.run.name), *report.rounds.columns(actions), strict=False)


_COMPARISON: _Columns = (
    _RUN,
    ("quantity", "", "what is compared; the name ends with its unit"),
    ("device", "", "device id, or all"),
    ("unit", "", "unit of predicted and measured"),
    ("predicted", "as in unit", "from the plan's cost model or the simulator, before the run; always modelled"),
    ("measured", "as in unit", "from the run; see measured_source before calling joules measured"),
    ("difference_percent", "%", "(measured - predicted) / predicted * 100"),
    ("predicted_source", "", "modelled, or empty without a prediction"),
    ("measured_source", "", "measured by clock, counter or sensor; modelled when no sensor was read; or mixed"),
)


def _comparison_rows(reports: Sequence[RunReport]) -> list[tuple[object, ...]]:
    return [
        (
            report.run.name,
            row.quantity,
            row.device,
            row.unit,
            row.predicted,
            row.measured,
            None if row.difference_percent is None else round(row.difference_percent, 3),
            row.predicted_source,
            row.measured_source,
        )
        for report in reports
        for row in report.comparison
    ]


_RUNS: _Columns = (
    _RUN,
    ("parallelism", "", "single, data, pipeline or hybrid"),
    ("devices", "", "devices that took part, separated by spaces"),
    ("rounds", "", "rounds completed"),
    ("samples", "", "samples trained on"),
    ("energy_j", "J", "joules of all devices, exact in whole microjoules"),
    ("error_j", "J", "± of energy_j"),
    ("energy_j_per_sample", "J/sample", "energy_j over samples"),
    ("error_j_per_sample", "J/sample", "± of energy_j_per_sample"),
    ("energy_complete", "", "false when some joules are missing, so that the totals are too small"),
    ("duration_s", "s", "training without start-up and evaluation"),
    ("samples_per_s", "samples/s", "throughput"),
    ("co2e_kg", "kg", "CO2e of the energy; operation only"),
    ("co2e_kg_per_sample", "kg/sample", "the same for one sample"),
    ("embodied_kg", "kg", "CO2e of making the devices that falls on the run; empty when not known for one of them"),
    ("sci_kg_per_sample", "kg/sample", "Software Carbon Intensity (ISO/IEC 21031): operation and making of a sample"),
    ("sci_kg_per_token", "kg/token", "the same for a token; empty when nobody said how many a sample has"),
    ("intensity_kg_per_kwh", "kg/kWh", "carbon intensity of the electricity"),
    ("intensity_place", "", "country code, or world"),
    ("intensity_year", "", "year of the intensity; empty when its source does not say"),
    ("intensity_source", "", "who states the intensity"),
    ("accuracy_ratio", "", "share of held-out samples classified rightly"),
    ("accuracy_baseline_ratio", "", "share reached by always guessing the most frequent class"),
    _SOURCE,
)


def _run_rows(reports: Sequence[RunReport]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for report in reports:
        head, account, place = report.headline, report.carbon, report.carbon.intensity
        participants = " ".join(device.device for device in report.devices if device.ranks)
        rows.append(
            (
                report.run.name, report.parallelism, participants, head.rounds, head.samples,
                head.energy_j, head.error_j, head.joules_per_sample, head.error_j_per_sample,
                "true" if head.complete else "false", head.duration_s, head.samples_per_s,
                head.co2e_kg, account.operational_kg_per_sample, account.embodied_kg, account.sci_kg_per_sample,
                account.sci_kg_per_token,
                *((place.kg_per_kwh, place.place, place.year, place.source) if place is not None else (None,) * 4),
                head.accuracy, head.accuracy_baseline, head.source,
            )
        )  # fmt: skip
    return rows


def _all_causes(reports: Iterable[RunReport]) -> list[str]:
    found = {cause for report in reports for device in report.devices for cause in (device.cause_j or {})}
    return _ordered(found)


def _all_actions(reports: Iterable[RunReport]) -> list[str]:
    return _ordered({action for report in reports if report.rounds is not None for action in report.rounds.action_s_G})


def _ordered(found: set[str]) -> list[str]:
    return [*(cause for cause in CAUSES if cause in found), *sorted(found - set(CAUSES))]
