"""What a run lacks is a gap in the report: cut ledgers, dead ranks, other versions, recoveries."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from report_runs import BASIS, GRID, html_of, ledger_rows, make_run, page_of

from greentrain.errors import UsageError
from greentrain.files import read_json, write_json
from greentrain.ledger import LEDGER_COLUMNS, LedgerRow, read_ledger, total_energy_j, write_ledger
from greentrain.summary import SUMMARY_SCHEMA, Recovery, Summary
from greentrain_reports.ledger_table import LedgerTable, Words, read_table, table_of_rows
from greentrain_reports.report import write_report
from greentrain_reports.run_folder import load_run
from greentrain_reports.sections import recoveries_section
from greentrain_reports.tables import build_report


def _plain(table: LedgerTable) -> list[object]:
    """The columns as lists."""
    return [
        (part.listed, part.index_N.tolist())
        if isinstance(part, Words)
        else part.tolist()
        if isinstance(part, np.ndarray)
        else part
        for part in table
    ]


def test_columns_and_rows_of_a_ledger_are_the_same(tmp_path: Path) -> None:
    rows = [
        msgspec.structs.replace(row, device={"fast": 'odd "name", x', "slow": "机器"}[row.device], meter="a, b")
        for row in ledger_rows()
    ]
    write_ledger(tmp_path / "ledger.csv", rows)
    read = read_table(tmp_path / "ledger.csv")
    assert _plain(read) == _plain(table_of_rows(read_ledger(tmp_path / "ledger.csv")))


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("energy_j", "-1"), ("energy_j", "inf"), ("duration_s", "nan"), ("rank", "first"), ("step", "1.5"),
        ("source", "guessed"), ("bytes", ""), ("step", "-1"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_named_with_its_line(tmp_path: Path, column: str, cell: str) -> None:
    folder = make_run(tmp_path / "demo")
    lines = (folder / "ledger.csv").read_text().splitlines()
    cells = lines[3].split(",")
    cells[LEDGER_COLUMNS.index(column)] = cell
    lines[3] = ",".join(cells)
    (folder / "ledger.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"ledger\.csv: line 4"):
        load_run(folder)


def test_a_line_with_too_few_cells_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    lines = (folder / "ledger.csv").read_text().splitlines()
    lines[5] = lines[5].rpartition(",")[0]
    (folder / "ledger.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"ledger\.csv: line 6"):
        load_run(folder)


def test_a_dead_ranks_ledger_ends_early(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "summary.json").unlink()
    rows = [row for row in ledger_rows() if row.rank == 0 or row.step < 1]
    write_ledger(folder / "ledger.csv", rows)
    files = write_report([folder], basis=GRID)
    head = files.reports[0].headline
    assert (head.rounds, head.samples, head.complete) == (1, 16, False)
    assert head.energy_j == total_energy_j(rows), "joules that were spent count, though their rounds did not end"
    seen = [row for row in rows if row.step == 0 and row.action == "step"]
    assert head.joules_per_sample == pytest.approx(sum(row.energy_j or 0 for row in seen) / 16)
    assert "Rank 1 (slow) recorded 1 of 3 rounds" in page_of(files)


def test_ledgers_of_ranks_that_nobody_joined(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    for name in ("summary.json", "ledger.csv"):
        (folder / name).unlink()
    for rank in (0, 1):
        path = folder / f"rank-{rank}.ledger.csv"
        write_ledger(path, [row for row in ledger_rows() if row.rank == rank])
        if rank == 1:
            path.write_bytes(path.read_bytes()[:-9])
    (folder / "rank-2.ledger.csv").write_text("")
    report = build_report(load_run(folder), BASIS)
    assert report.headline.energy_j == total_energy_j(ledger_rows())
    remarks = " ".join(report.remarks)
    assert "No ledger.csv: the rows are those of rank-0.ledger.csv, rank-1.ledger.csv" in remarks
    assert "rank-1.ledger.csv is cut short in its last line" in remarks
    assert "rank-1.ledger.csv" in report.run.sha256


def test_a_run_without_any_joules(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "summary.json").unlink()
    write_ledger(
        folder / "ledger.csv", [msgspec.structs.replace(row, energy_j=None, error_j=None) for row in ledger_rows()]
    )
    files = write_report([folder], basis=GRID)
    head = files.reports[0].headline
    assert (head.energy_j, head.joules_per_sample, head.co2e_kg, head.complete) == (None, None, None, False)
    with files.csv["runs.csv"].open() as stream:
        row = next(csv.DictReader(stream))
    assert (row["energy_j"], row["co2e_kg"], row["sci_kg_per_sample"]) == ("", "", "")
    with files.csv["emissions.csv"].open() as stream:
        row = next(csv.DictReader(stream))
    assert (row["emissions"], row["energy_consumed"]) == ("", "")
    page = page_of(files)
    assert "Single rounds have no recorded joules" in page
    assert page.count("not recorded") > 3


@pytest.mark.parametrize("name", ["summary.json", "plan.json", "cluster.json", "time_optimal.plan.json"])
def test_a_file_of_another_version_is_a_gap(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "demo")
    content = json.loads((folder / name).read_text())
    noun = content["schema"].partition("/")[0]
    (folder / name).write_text(json.dumps({**content, "schema": f"{noun}/0", "unknown": 1}))
    report = build_report(load_run(folder), BASIS)
    assert any(f"{name} has the schema {noun}/0" in remark for remark in report.remarks)
    assert report.headline.energy_j == total_energy_j(ledger_rows())


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "plan.json").write_text((folder / "summary.json").read_text())
    with pytest.raises(UsageError, match="schema"):
        load_run(folder)


def test_a_ledger_of_an_older_version_lacks_columns(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "summary.json").unlink()
    lacking = ("error_j", "bytes", "meter")
    with (folder / "ledger.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "ledger.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [name for name in rows[0] if name not in lacking], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    files = write_report([folder], basis=GRID, formats=["csv"])
    report = files.reports[0]
    assert report.headline.energy_j == total_energy_j(ledger_rows())
    assert report.headline.error_j is None
    assert all(device.meter is None for device in report.devices)
    with files.csv["rounds.csv"].open() as stream:
        rounds = list(csv.DictReader(stream))
    assert {(row["sent_bytes"], row["error_j"], row["meter"]) for row in rounds} == {("", "", "")}
    assert any("written by an older version, without error_j, bytes, meter" in remark for remark in report.remarks)


def test_recoveries_are_shown_and_their_joules_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    summary = read_json(folder / "summary.json", Summary, schema=SUMMARY_SCHEMA)
    lost = Recovery(
        round=1, lost=("slow",), joined=(), detected_s=0.8, repaired_s=1.5, redone_rounds=1, moved_bytes=4096,
        energy_j=2.5,
    )  # fmt: skip
    write_json(folder / "summary.json", msgspec.structs.replace(summary, recoveries=(lost,)), schema=SUMMARY_SCHEMA)
    extra = LedgerRow(
        run="demo", device="fast", rank=0, step=1, action="recovery", t_start_s=0.2, duration_s=1.5, energy_j=2.5,
        error_j=0.1, bytes=4096, source="measured", meter="ina3221",
    )  # fmt: skip
    write_ledger(folder / "ledger.csv", [*ledger_rows(), extra])
    files = write_report([folder], basis=GRID)
    whole_j = total_energy_j([*ledger_rows(), extra])
    assert files.reports[0].headline.energy_j == whole_j
    page = page_of(files)
    assert "Devices lost and back" in page
    assert "slow lost" in page, "the power picture marks it"
    assert html_of(files).stat().st_size < 1_500_000


def test_without_recoveries_there_is_no_such_section(tmp_path: Path) -> None:
    assert recoveries_section(build_report(load_run(make_run(tmp_path / "demo")), BASIS)) == ""


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = write_report([make_run(tmp_path / "one"), make_run(tmp_path / "two")], basis=GRID, formats=["csv"])
    assert [report.run.name for report in files.reports] == ["demo (one)", "demo (two)"]


def test_rounds_without_joules_do_not_lower_the_joules_of_a_round(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", rounds_s=[0.1] * 10)
    (folder / "summary.json").unlink()
    rows = [
        msgspec.structs.replace(row, energy_j=None, error_j=None) if row.device == "slow" and row.step < 5 else row
        for row in ledger_rows([0.1] * 10)
    ]
    write_ledger(folder / "ledger.csv", rows)
    report = build_report(load_run(folder), BASIS)
    slow = next(device for device in report.devices if device.device == "slow")
    assert slow.energy_j_per_round == pytest.approx(0.57, rel=1e-4)
    row = next(row for row in report.comparison if (row.quantity, row.device) == ("energy_j_per_round", "slow"))
    assert row.measured == slow.energy_j_per_round
