from __future__ import annotations

import logging
import socket
from typing import NoReturn

import pytest

from greentrain.carbon import co2e_kg
from greentrain.errors import UsageError
from greentrain_datasets.carbon import WORLD_AVERAGE, intensity


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
