from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.errors import UsageError
from greentrain.units import Dimension, format_quantity, parse_quantity

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("2h", "time", 7200.0),
        (" 1.5 min ", "time", 90.0),
        ("3m", "time", 180.0),
        ("5µs", "time", 5e-6),
        ("40Wh", "energy", 144_000.0),
        ("1e3mJ", "energy", 1.0),
        ("7.5W", "power", 7.5),
        ("+.5kW", "power", 500.0),
        ("100Mbit", "bandwidth", 12.5e6),
        ("100Mbit/s", "bandwidth", 12.5e6),
        ("1GB/s", "bandwidth", 1e9),
        ("4GiB", "bytes", 4 * 2.0**30),
        ("4GB", "bytes", 4e9),
        ("918MHz", "frequency", 918e6),
        ("5nJ/B", "energy_per_byte", 5e-9),
        ("0W", "power", 0.0),
    ],
)
def test_parse(text: str, dimension: Dimension, value: float) -> None:
    assert parse_quantity(text, dimension, where="here") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "dimension", "sentence"),
    [
        ("100", "bandwidth", "--x: '100' is not a bandwidth."),
        ("fast", "time", "--x: 'fast' is not a time."),
        ("", "time", "--x: '' is not a time."),
        ("5 h 3 min", "time", "--x: '5 h 3 min' is not a time."),
        ("1,5W", "power", "--x: '1,5W' is not a power."),
        ("5mw", "power", "--x: '5mw' is not a power."),
        ("nanW", "power", "--x: 'nanW' is not a power."),
        ("3 J", "energy_per_byte", "--x: '3 J' is not a energy per byte."),
        ("-1W", "power", "--x: '-1W' must not be below 0 W."),
        ("1e400s", "time", "--x: '1e400s' is too large."),
    ],
)
def test_parse_says_what_was_seen_and_what_to_write(text: str, dimension: Dimension, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_quantity(text, dimension, where="--x")
    assert caught.value.message == sentence
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Write a")


def test_minimum_is_shown_in_units() -> None:
    with pytest.raises(UsageError, match=r"must not be below 1 ms"):
        parse_quantity("10us", "time", where="--deadline", minimum=1e-3)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (None, "energy", "unknown"),
        (0.0, "energy", "0 J"),
        (0.0, "bandwidth", "0 kbit/s"),
        (90.0, "time", "1.5 min"),
        (1234.0, "power", "1.23 kW"),
        (999.9, "power", "1000 W"),
        (-0.002, "time", "-2 ms"),
        (12.5e6, "bandwidth", "100 Mbit/s"),
        (3 * 2.0**30, "bytes", "3 GiB"),
        (1.0e10, "time", "2777778 h"),
    ],
)
def test_format(value: float | None, dimension: Dimension, text: str) -> None:
    assert format_quantity(value, dimension) == text


@given(
    dimension=st.sampled_from(DIMENSIONS),
    mantissa=st.floats(1.0, 9.999, allow_nan=False),
    exponent=st.integers(-5, 9),
)
def test_what_is_written_reads_back(dimension: Dimension, mantissa: float, exponent: int) -> None:
    scale = {"bandwidth": 1e3, "bytes": 1e5, "frequency": 1e5, "energy_per_byte": 1e-7}.get(dimension, 1.0)
    value = mantissa * 10.0**exponent * scale
    back = parse_quantity(format_quantity(value, dimension, digits=12), dimension, where="text")
    assert back == pytest.approx(value, rel=1e-6 if math.log10(value) < 6 else 1e-3)


@given(dimension=st.sampled_from(DIMENSIONS), text=st.text(max_size=12))
def test_any_text_is_a_number_or_a_usage_error(dimension: Dimension, text: str) -> None:
    try:
        value = parse_quantity(text, dimension, where="text")
    except UsageError:
        return
    assert math.isfinite(value)
    assert value >= 0
