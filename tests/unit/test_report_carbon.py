"""CO2e of runs: intensities by value, hour and country, making of devices, codecarbon's columns and figures."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from report_runs import GRID, make_run, page_of

from greentrain.carbon import J_PER_KWH, YEAR_S, Embodied, IntensitySeries, co2e_kg
from greentrain.cli import main
from greentrain.errors import UnavailableError, UsageError
from greentrain_datasets import carbon
from greentrain_datasets.carbon import embodied_catalogue, embodied_of_text, intensity, parse_utc
from greentrain_datasets.catalogue import catalogue_kinds
from greentrain_reports.carbon_account import CarbonBasis
from greentrain_reports.emissions import EMISSIONS_COLUMNS
from greentrain_reports.report import write_report
from greentrain_reports.run_folder import load_run
from greentrain_reports.tables import build_report

MAKING = Embodied(kg=40.0, life_s=4 * YEAR_S, year=2020, source="a maker")


@pytest.mark.parametrize("country", ["FRA", "USA", "IND", "POL", "NOR", "CHN", "ZAF"])
def test_co2e_is_codecarbons_for_the_same_joules_and_country(tmp_path: Path, country: str) -> None:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    report = build_report(
        load_run(make_run(tmp_path / "demo")), CarbonBasis(grid=intensity(country=country, kg_per_kwh=None))
    )
    energy_j = report.headline.energy_j
    assert energy_j is not None
    geo = GeoMetadata(country_iso_code=country, country_name=country, region=None)
    theirs_kg = Emissions(DataSource()).get_private_infra_emissions(Energy.from_energy(kWh=energy_j / J_PER_KWH), geo)
    assert report.headline.co2e_kg == pytest.approx(theirs_kg, rel=1e-12)


def test_emissions_csv_has_codecarbons_columns(tmp_path: Path) -> None:
    from codecarbon.output_methods.emissions_data import EmissionsData

    assert [name for name, _, _ in EMISSIONS_COLUMNS] == [field.name for field in dataclasses.fields(EmissionsData)]
    files = write_report(
        [make_run(tmp_path / "demo")], basis=intensity(country="FRA", kg_per_kwh=None), formats=["csv"]
    )
    with files.csv["emissions.csv"].open(newline="") as stream:
        row = next(csv.DictReader(stream))
    head = files.reports[0].headline
    assert head.energy_j is not None
    assert float(row["energy_consumed"]) == head.energy_j / J_PER_KWH
    assert float(row["emissions"]) == head.co2e_kg
    assert (row["country_iso_code"], row["tracking_mode"], row["cpu_energy"]) == ("FRA", "mixed", "")
    assert (row["experiment_id"], row["timestamp"]) == ("demo", "2026-11-21T10:00:00")
    again = write_report([make_run(tmp_path / "other")], basis=GRID, formats=["csv"])
    with again.csv["emissions.csv"].open(newline="") as stream:
        assert next(csv.DictReader(stream))["run_id"] == row["run_id"], "the same in every report of a run"


def test_software_carbon_intensity_adds_the_making_of_the_devices(tmp_path: Path) -> None:
    basis = CarbonBasis(grid=GRID, embodied={"box": MAKING}, tokens_per_sample=10)
    report = build_report(load_run(make_run(tmp_path / "demo")), basis)
    account, head = report.carbon, report.headline
    assert head.joules_per_sample is not None
    assert head.samples is not None
    making_kg = 2 * 40.0 * 0.36 / (4 * YEAR_S)
    assert account.embodied_kg == pytest.approx(making_kg)
    expected_kg = co2e_kg(head.joules_per_sample, GRID) + making_kg / head.samples
    assert account.sci_kg_per_sample == pytest.approx(expected_kg)
    assert account.sci_kg_per_token == pytest.approx(expected_kg / 10)


def test_an_unknown_making_leaves_the_intensity_open(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    files = write_report([folder], basis=CarbonBasis(grid=GRID, embodied={"fast": MAKING}))
    account = files.reports[0].carbon
    assert [share.share_kg is None for share in account.embodied] == [False, True]
    assert (account.embodied_kg, account.sci_kg_per_sample) == (None, None)
    assert account.operational_kg is not None
    assert "not known for slow" in page_of(files)


def test_the_devices_own_figure_wins_over_its_kind(tmp_path: Path) -> None:
    own = msgspec.structs.replace(MAKING, kg=10.0)
    basis = CarbonBasis(grid=GRID, embodied={"box": MAKING, "fast": own})
    account = build_report(load_run(make_run(tmp_path / "demo")), basis).carbon
    assert [share.embodied for share in account.embodied] == [own, MAKING]


def _series(start: str, *kg_per_kwh: float) -> IntensitySeries:
    first_s = parse_utc(start, where="test")
    edges = tuple(first_s + 0.12 * number for number in range(len(kg_per_kwh) + 1))
    return IntensitySeries(edge_s=edges, kg_per_kwh_N=kg_per_kwh, source="grid.csv")


def test_each_round_takes_the_intensity_of_its_time(tmp_path: Path) -> None:
    series = _series("2026-11-21T10:00:00Z", 0.1, 0.2, 0.4, 0.8)
    report = build_report(load_run(make_run(tmp_path / "demo")), CarbonBasis(grid=series))
    found, rounds = report.carbon.intensity, report.rounds
    assert found is not None
    assert rounds is not None
    assert (found.year, found.source, found.place) == (2026, "grid.csv", "given")
    # By fine steps instead of the closed form.
    total = 0.0
    for start_s, length_s, energy_uj in zip(rounds.t_start_s_G, rounds.duration_s_G, rounds.energy_uj_G, strict=True):
        at = start_s + (np.arange(10_000) + 0.5) / 10_000 * length_s
        values = np.asarray(series.kg_per_kwh_N)[(at / 0.12).astype(int)]
        total += values.mean() * energy_uj
    assert found.kg_per_kwh == pytest.approx(total / rounds.energy_uj_G.sum(), rel=1e-3)
    assert report.headline.energy_j is not None
    assert report.headline.co2e_kg == co2e_kg(report.headline.energy_j, found)


def test_a_series_of_other_hours_leaves_co2e_open(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    files = write_report([folder], basis=CarbonBasis(grid=_series("2026-11-22T10:00:00Z", 0.1, 0.2)))
    assert files.reports[0].headline.co2e_kg is None
    assert "does not cover" in page_of(files)
    (folder / "summary.json").unlink()
    report = build_report(load_run(folder), CarbonBasis(grid=_series("2026-11-21T10:00:00Z", 0.1)))
    assert report.carbon.intensity is None
    assert "When the run took place is not recorded" in report.carbon.remark


def test_published_figures_name_their_source_and_kinds_without_one_are_absent() -> None:
    found = embodied_catalogue()
    assert set(found) <= set(catalogue_kinds())
    assert all(entry.year is not None and str(entry.year) in entry.source for entry in found.values())
    assert "jetson-nano-4gb" not in found


def test_the_users_own_figure() -> None:
    name, found = embodied_of_text("nano-1=40/5")
    assert (name, found.kg, found.life_s, found.source) == ("nano-1", 40.0, 5 * YEAR_S, "given by the user")
    assert embodied_of_text("nano-1=40")[1].life_s == 4 * YEAR_S
    for wrong in ("nano-1", "=40", "nano-1=much", "nano-1=40/0", "nano-1=-1"):
        with pytest.raises(UsageError, match="DEVICE=KG"):
            embodied_of_text(wrong)


def test_without_an_answer_no_country_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(UnavailableError, match="could not be looked up"):
        carbon.locate()


def test_a_country_that_was_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    class _Answer:
        def json(self) -> dict[str, str]:
            return {
                "country_code3": "fra",
                "country": "France",
                "region": "Bretagne",
                "latitude": "48",
                "longitude": "2",
            }

    monkeypatch.setattr(requests, "get", lambda *_, **__: _Answer())  # pyright: ignore[reportUnknownLambdaType]
    assert carbon.locate() == "FRA"


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_options_reach_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "demo")
    grid = tmp_path / "grid.csv"
    grid.write_text("time,g_per_kwh\n2026-11-21T09:00Z,50\n2026-11-21T12:00Z,90\n")
    options = ("--intensity-series", str(grid), "--embodied", "box=40", "--tokens-per-sample", "8", "--format", "json")
    assert _run(str(folder), *options, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["html"] is None
    assert shown["csv"] == {}
    assert not (folder / "report.html").exists()
    account = json.loads((folder / "report.json").read_text())["runs"][0]["carbon"]
    assert account["intensity"]["kg_per_kwh"] == pytest.approx(0.05)
    assert account["sci_kg_per_token"] == pytest.approx(account["sci_kg_per_sample"] / 8)


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "pdf"), ("--format", ""), ("--embodied", "nano"), ("--country", "FRA", "--locate"),
        ("--intensity-series", "grid.csv", "--country", "FRA"), ("--tokens-per-sample", "0"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_2(tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(str(make_run(tmp_path / "demo")), *words) == 2
    assert "rror" in capsys.readouterr().err
