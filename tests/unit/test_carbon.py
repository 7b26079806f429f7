from __future__ import annotations

import logging
import random
import socket
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from greentrain.carbon import IntensitySeries, cleanest_start_s, co2e_kg
from greentrain.errors import InfeasibleError, UsageError
from greentrain_datasets.carbon import WORLD_AVERAGE, intensity, intensity_series, parse_utc


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a table look-up must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(("country", "kg_per_kwh"), [("FRA", 0.056), ("USA", 0.369), ("IND", 0.713)])
def test_countries_come_from_codecarbons_tables(country: str, kg_per_kwh: float) -> None:
    found = intensity(country=country, kg_per_kwh=None)
    assert found.kg_per_kwh == pytest.approx(kg_per_kwh, abs=0.02)
    assert found.place == country
    assert found.year is not None
    assert found.year >= 2020
    assert "codecarbon" in found.source
    assert co2e_kg(3.6e6, found) == pytest.approx(found.kg_per_kwh)


def test_lower_case_is_the_same_country() -> None:
    assert intensity(country="fra", kg_per_kwh=None) == intensity(country="FRA", kg_per_kwh=None)


def test_the_users_value_wins() -> None:
    found = intensity(country="FRA", kg_per_kwh=0.25)
    assert (found.kg_per_kwh, found.place, found.year) == (0.25, "FRA", None)
    assert "user" in found.source
    assert intensity(country=None, kg_per_kwh=0.0).kg_per_kwh == 0.0


def test_without_a_place_the_world_average_is_used_and_named() -> None:
    found = intensity(country=None, kg_per_kwh=None)
    assert found == WORLD_AVERAGE
    assert found.place == "world"
    assert "IEA" in found.source


@pytest.mark.parametrize("country", ["ZZZ", "France", ""])
def test_an_unknown_code_is_refused(country: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match="alpha-3") as raised:
        intensity(country=country, kg_per_kwh=None)
    assert "--kg-per-kwh" in (raised.value.hint or "")
    assert not caplog.records


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_value_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="kg/kWh"):
        intensity(country=None, kg_per_kwh=value)


def _series(*g_per_kwh: float) -> IntensitySeries:
    edges = tuple(3600.0 * hour for hour in range(len(g_per_kwh) + 1))
    return IntensitySeries(edge_s=edges, kg_per_kwh_N=tuple(g / 1e3 for g in g_per_kwh), source="test")


def test_the_mean_of_a_series_is_over_time() -> None:
    series = _series(100, 300)
    assert series.mean(0, 3600).kg_per_kwh == pytest.approx(0.1)
    assert series.mean(1800, 5400).kg_per_kwh == pytest.approx(0.2)
    with pytest.raises(UsageError, match=r"test: does not cover the 3 h of the job"):
        series.mean(0, 3 * 3600)


def test_no_start_on_a_fine_grid_is_cleaner() -> None:
    rng = random.Random(0)
    for _ in range(40):
        series = _series(*(rng.uniform(20, 600) for _ in range(rng.randint(3, 12))))
        end_s = series.edge_s[-1]
        duration_s = rng.uniform(0.05, 0.9) * end_s
        earliest_s = rng.uniform(0, end_s - duration_s)
        deadline_s = rng.uniform(earliest_s + duration_s, end_s)
        found_s = cleanest_start_s(series, duration_s, earliest_s=earliest_s, deadline_s=deadline_s)
        assert earliest_s <= found_s <= deadline_s - duration_s + 1e-6
        best = series.mean(found_s, found_s + duration_s).kg_per_kwh
        for start_s in np.linspace(earliest_s, deadline_s - duration_s, 300):
            assert best <= series.mean(float(start_s), float(start_s) + duration_s).kg_per_kwh * (1 + 1e-9)


def test_of_equally_clean_starts_the_earliest_is_taken() -> None:
    assert cleanest_start_s(_series(100, 100, 100), 3600, earliest_s=600, deadline_s=9000) == 600


def test_a_job_that_ends_too_late_anyway() -> None:
    with pytest.raises(InfeasibleError, match=r"the deadline is missed by 30 min even when started at once"):
        cleanest_start_s(_series(100, 100, 100), 5400, earliest_s=0, deadline_s=3600)


def test_a_series_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(
        "Datetime (UTC),Zone,Carbon intensity gCO2eq/kWh\n2026-05-01 00:00,FR,56\n2026-05-01T01:00Z,FR,30\n"
    )
    found = intensity_series(path)
    first_s = parse_utc("2026-05-01T02:00+02:00", where="test")
    assert found.edge_s == (first_s, first_s + 3600, first_s + 7200)
    assert found.kg_per_kwh_N == (0.056, 0.03)
    assert found.source == "grid.csv, column 'Carbon intensity gCO2eq/kWh'"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("hour,value\n1,2\n", "columns are hour, value, expected a time and grams"),
        ("time,g_per_kwh\nsoon,2\n", "line 2: 'soon' is not an instant"),
        (
            "time,g_per_kwh\n2026-05-01T00:00Z,many\n",
            "line 2 is '2026-05-01T00:00Z,many', expected a time and a number",
        ),
        ("time,g_per_kwh\n2026-05-01T00:00Z,1\n", "has 1 rows, expected at least two"),
        ("time,g_per_kwh\n2026-05-01T01:00Z,1\n2026-05-01T00:00Z,1\n", "the times of a series must rise"),
        ("time,g_per_kwh\n2026-05-01T01:00Z,1\n2026-05-01T02:00Z,-1\n", "kg_per_kwh is -0.001, expected"),
    ],
)
def test_a_file_that_is_no_series(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "grid.csv").write_text(content)
    with pytest.raises(UsageError) as raised:
        intensity_series(tmp_path / "grid.csv")
    assert sentence in raised.value.message
