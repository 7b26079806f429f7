from __future__ import annotations

import base64
import csv
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from report_runs import BASIS, GRID, html_of, ledger_row, ledger_rows, make_run, page_of

from greentrain.carbon import co2e_kg
from greentrain.errors import UsageError
from greentrain.ledger import energy_uj, read_ledger, total_energy_j, write_ledger
from greentrain_reports.page import render_page
from greentrain_reports.report import ReportFiles, write_report
from greentrain_reports.run_folder import load_run
from greentrain_reports.tables import build_report, measured_saving


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report([make_run(tmp_path_factory.mktemp("runs") / "demo")], basis=GRID)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _sum_uj(path: Path, column: str = "energy_j") -> int:
    return sum(energy_uj(float(row[column])) for row in _table(path) if row[column])


def test_totals_agree_to_the_last_digit_everywhere(written: ReportFiles) -> None:
    report = written.reports[0]
    ledger_j = total_energy_j(read_ledger(html_of(written).parent / "ledger.csv"))
    assert ledger_j is not None
    total_j = report.headline.energy_j
    assert total_j == ledger_j
    assert report.remarks == ()
    total_uj = energy_uj(ledger_j)
    assert sum(energy_uj(device.energy_j or 0) for device in report.devices) == total_uj
    assert _sum_uj(written.csv["energy_by_device.csv"]) == total_uj
    assert _sum_uj(written.csv["rounds.csv"]) == total_uj
    assert _sum_uj(written.csv["runs.csv"]) == total_uj
    page = page_of(written)
    assert f"<strong>{ledger_j} J</strong>" in page
    assert f'<data value="{ledger_j}">' in page


def test_causes_add_up_exactly_to_their_device(written: ReportFiles) -> None:
    rows = _table(written.csv["energy_by_device.csv"])
    parts = [name for name in rows[0] if name.endswith("_j") and name not in ("energy_j", "error_j")]
    assert parts == ["compute_j", "send_j", "sum_j", "update_j", "wait_j"]
    for row in rows:
        assert sum(energy_uj(float(row[name])) for name in parts if row[name]) == energy_uj(float(row["energy_j"]))
    assert rows[1]["send_j"] == ""  # a cause that the run did not state is empty, not 0


def test_modelled_joules_say_so(written: ReportFiles) -> None:
    sources = {row["device"]: row["source"] for row in _table(written.csv["energy_by_device.csv"])}
    assert sources == {"fast": "measured", "slow": "modelled"}
    assert {row["source"] for row in _table(written.csv["rounds.csv"]) if row["device"] == "slow"} == {"modelled"}
    assert _table(written.csv["runs.csv"])[0]["source"] == "mixed"
    predicted = [row for row in _table(written.csv["comparison.csv"]) if row["predicted"]]
    assert predicted
    assert {row["predicted_source"] for row in predicted} == {"modelled"}
    page = page_of(written)
    assert '<span class="chip mixed">mixed</span>' in page
    assert '<span class="chip modelled">modelled</span>' in page
    assert "The others are modelled" in page


def test_a_fully_modelled_run_is_called_an_estimate(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    rows = [msgspec.structs.replace(row, source="modelled") for row in ledger_rows()]
    write_ledger(folder / "ledger.csv", rows)
    report = build_report(load_run(folder), BASIS)
    assert report.headline.source == "modelled"
    assert "estimates, not as measurements" in render_page([report])


def test_predicted_stands_beside_measured(written: ReportFiles) -> None:
    rows = {(row["quantity"], row["device"]): row for row in _table(written.csv["comparison.csv"])}
    round_s = rows["round_s", "all"]
    assert (round_s["predicted"], round_s["measured"], round_s["difference_percent"]) == ("0.1", "0.12", "20.0")
    # Computing and the update, as the cost model counts busy seconds.
    assert float(rows["compute_s_per_round", "fast"]["measured"]) == pytest.approx(0.078)
    assert float(rows["energy_j_per_round", "slow"]["predicted"]) == pytest.approx(0.48)
    assert rows["sent_bytes_per_round", "fast"]["difference_percent"] == "0.0"
    assert rows["peak_memory_bytes", "slow"]["measured"] == ""


def test_what_was_saved_against_the_fastest_plan(written: ReportFiles) -> None:
    saving, single = written.reports[0].savings
    assert (single.other, single.basis) == ("one device, fast", "predicted")
    assert single.energy_percent == pytest.approx(20)
    assert single.slower_percent == pytest.approx(-50)
    assert saving.other == "the fastest plan"
    assert saving.basis == "predicted"
    assert not saving.same_plan
    assert saving.energy_percent == pytest.approx(20)
    assert saving.slower_percent == pytest.approx(25)
    assert "both predicted by the cost model" in page_of(written)


def test_carbon_travels_with_its_year_and_source(written: ReportFiles) -> None:
    report = written.reports[0]
    assert report.headline.energy_j is not None
    assert report.headline.co2e_kg == co2e_kg(report.headline.energy_j, GRID)
    page = page_of(written)
    assert "0.056&nbsp;kg/kWh · FRA, 2023 · a table" in page
    row = _table(written.csv["runs.csv"])[0]
    assert (row["intensity_year"], row["intensity_source"]) == ("2023", "a table")


def test_reasons_name_devices_that_were_left_out(written: ReportFiles) -> None:
    page = page_of(written)
    assert "its idle power costs more than it saves" in page
    assert "Proven best under the cost model" in page


class _Fetches(HTMLParser):
    """Collects everything that a browser would fetch, and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("link", "iframe", "object", "embed", "img", "image", "base"):
            self.found.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "href", "xlink:href", "poster") and not (value or "").startswith("#"):
                self.found.append(f"{name}={value}")
            if name.startswith("on"):
                self.found.append(name)


def test_the_page_fetches_nothing_and_is_small(written: ReportFiles) -> None:
    page = page_of(written)
    seen = _Fetches()
    seen.feed(page)
    assert seen.found == []
    assert page.count("<script") == 1
    (allowed,) = re.findall(r"script-src '(sha256-[^']+)'", page)
    script = page[page.index("<script>") + 8 : page.index("</script>")]
    assert allowed == f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    assert not re.search(r"url\((?!#)|@import", page)
    assert html_of(written).stat().st_size < 1_500_000


def test_ids_are_unique_and_references_resolve(written: ReportFiles) -> None:
    page = page_of(written)
    identities = re.findall(r' id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    used = set(re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^")]+)', page))
    assert used <= set(identities)


def test_markup_in_files_becomes_letters(written: ReportFiles) -> None:
    page = page_of(written)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page


def test_every_picture_has_words(written: ReportFiles) -> None:
    page = page_of(written)
    labels = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 8
    assert all(len(label) > 60 for label in labels)
    assert "fast measured" in labels[0]
    assert page.count('<svg viewBox="') == 16  # wide and narrow


def test_odd_names_survive_the_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    rows = [
        msgspec.structs.replace(row, device={"fast": "_<b>$x^$</b>", "slow": "机器"}[row.device])
        for row in ledger_rows()
    ]
    write_ledger(folder / "ledger.csv", rows)
    page = render_page([build_report(load_run(folder), BASIS)])
    assert "<b>" not in page
    assert "机器" in page


def test_missing_pieces_are_gaps_not_zeros(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    for name in ("summary.json", "predicted.csv", "time_optimal.plan.json", "cluster.json", "plan.json"):
        (folder / name).unlink()
    files = write_report([folder], basis=GRID)
    head = files.reports[0].headline
    assert head.energy_j is not None
    assert (head.joules_per_sample, head.accuracy, head.samples) == (None, None, None)
    page = page_of(files)
    assert page.count("not recorded") > 5
    assert "The plan of this run is not recorded." in page
    row = _table(files.csv["runs.csv"])[0]
    assert (row["energy_j_per_sample"], row["accuracy_ratio"]) == ("", "")
    assert any("summary.json" in remark for remark in files.reports[0].remarks)


def test_a_run_without_its_ledger_uses_the_summary(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "ledger.csv").unlink()
    report = build_report(load_run(folder), BASIS)
    assert report.run.summary is not None
    assert report.headline.energy_j == report.run.summary.energy_j
    assert report.rounds is None
    assert "single rounds are not recorded" in " ".join(report.remarks)
    assert "Single rounds have no recorded joules" in render_page([report])


def test_lost_joules_make_the_total_incomplete(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    rows = [
        msgspec.structs.replace(row, energy_j=None, error_j=None) if row.device == "slow" and row.step == 1 else row
        for row in ledger_rows()
    ]
    write_ledger(folder / "ledger.csv", rows)
    files = write_report([folder], basis=GRID)
    assert not files.reports[0].headline.complete
    remarks = " ".join(files.reports[0].remarks)
    assert "1 of 3 rounds of slow have no joules" in remarks
    assert "the report shows the ledger" in remarks  # the summary still states the larger total
    assert "incomplete, see the remarks" in page_of(files)
    assert _table(files.csv["runs.csv"])[0]["energy_complete"] == "false"


def test_a_ledger_cut_in_its_last_line_still_reports(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "summary.json").unlink()
    ledger = folder / "ledger.csv"
    text = ledger.read_text().rstrip("\n")
    ledger.write_text(text[: text.rindex("\n") + 12])
    files = write_report([folder], basis=GRID)
    assert any("cut short" in remark for remark in files.reports[0].remarks)
    assert files.reports[0].headline.samples == 48
    assert "cut short" in page_of(files)


def test_a_corrupt_ledger_names_file_and_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    ledger = folder / "ledger.csv"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace(",0,0,", ",0,zero,", 1)
    ledger.write_text("".join(lines))
    with pytest.raises(UsageError, match=r"ledger\.csv: line 5"):
        load_run(folder)


def test_step_rows_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    rows = [
        ledger_row("fast", 0, 0, "step", 0.0, 1.0, energy_j=3.0),
        ledger_row("fast", 0, 0, "compute", 0.0, 0.5, energy_j=2.0),
        ledger_row("fast", 0, 0, "wait", 0.5, 0.5, energy_j=1.0),
        ledger_row("third", -1, 0, "idle", 0.0, 1.0, energy_j=0.5),
    ]
    write_ledger(folder / "ledger.csv", rows)
    report = build_report(load_run(folder), BASIS)
    assert report.headline.energy_j == 3.5
    assert {device.device: device.energy_j for device in report.devices} == {"fast": 3.0, "third": 0.5}
    assert report.devices[1].cause_j == {"idle": 0.5}
    assert report.headline.round_s == 1.0


def test_two_ranks_on_one_device_are_one_device(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    rows = [ledger_row("box", rank, 0, "step", 0.0, 1.0, energy_j=1.25) for rank in (0, 1)]
    write_ledger(folder / "ledger.csv", rows)
    report = build_report(load_run(folder), BASIS)
    assert [(device.device, device.ranks, device.energy_j) for device in report.devices] == [("box", (0, 1), 2.5)]


def test_runs_side_by_side(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "one"), make_run(tmp_path / "two", rounds_s=(0.2, 0.24, 0.28))
    files = write_report([first], basis=GRID, against=second, output=tmp_path / "out")
    assert files.html == tmp_path / "out" / "report.html"
    assert len(_table(files.csv["runs.csv"])) == 2
    page = page_of(files)
    assert "Runs side by side" in page
    assert "as both runs recorded" in page
    assert '<td class="n">base</td>' in page
    saving = measured_saving(files.reports[0], files.reports[1])
    assert saving is not None
    assert saving.energy_percent == pytest.approx(50, abs=0.1)


def test_the_base_may_be_one_of_the_runs(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "one"), make_run(tmp_path / "two", rounds_s=(0.2, 0.24, 0.28))
    files = write_report([first, second], basis=GRID, against=tmp_path / "one" / ".." / "two")
    assert len(files.reports) == 2
    assert page_of(files).count(">base<") == 1


def test_columns_carry_units_and_are_explained(written: ReportFiles) -> None:
    explained = {(row["file"], row["column"]) for row in _table(written.csv["data_dictionary.csv"])}
    for name, path in written.csv.items():
        if name != "data_dictionary.csv":
            columns = path.read_text().splitlines()[0].split(",")
            assert {(name, column) for column in columns} <= explained
    assert {"duration_s", "mean_power_w", "sent_bytes", "wait_s"} <= set(_table(written.csv["rounds.csv"])[0])


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"neither ledger\.csv nor summary\.json"):
        load_run(tmp_path)


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", rounds_s=[0.1 + 0.001 * (step % 7) for step in range(3000)])
    report = build_report(load_run(folder), BASIS)
    assert len(render_page([report]).encode()) < 1_500_000


def test_joules_per_sample_are_of_the_rounds_that_every_meter_saw(tmp_path: Path) -> None:
    whole = build_report(load_run(make_run(tmp_path / "whole")), BASIS).headline
    folder = make_run(tmp_path / "silent")
    last = max(row.step for row in ledger_rows())
    rows = [
        msgspec.structs.replace(row, energy_j=None, error_j=None) if row.step == last and row.rank == 1 else row
        for row in ledger_rows()
    ]
    write_ledger(folder / "ledger.csv", rows)
    silent = build_report(load_run(folder), BASIS).headline
    assert whole.joules_per_sample is not None
    assert silent.joules_per_sample is not None
    assert whole.complete
    assert not silent.complete
    seen = [row for row in ledger_rows() if row.action == "step" and row.step != last]
    samples = 16 * len({row.step for row in seen})
    assert silent.joules_per_sample == pytest.approx(sum(row.energy_j or 0.0 for row in seen) / samples)
    assert silent.joules_per_sample > 0.9 * whole.joules_per_sample
