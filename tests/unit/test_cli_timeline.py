"""The text timeline: what takes most of a column, and nothing lost."""

from __future__ import annotations

from greentrain.cli._timeline import timeline_text
from greentrain.ledger import LedgerRow


def _row(device: str, action: str, start_s: float, duration_s: float) -> LedgerRow:
    return LedgerRow(
        run="r", device=device, rank=0, step=0, action=action, t_start_s=start_s, duration_s=duration_s,
        energy_j=0.0, error_j=None, bytes=0, source="modelled", meter="simulator",
    )  # fmt: skip


def _cells(*rows: LedgerRow, columns: int = 10, devices: tuple[str, ...] = ("a",)) -> list[str]:
    lines = timeline_text(devices, rows, 1.0, columns=columns).splitlines()
    return [line.split("|")[1] for line in lines if "|" in line]


def test_a_column_shows_what_takes_most_of_it() -> None:
    rows = (_row("a", "forward", 0.0, 0.34), _row("a", "backward", 0.34, 0.46), _row("a", "wait", 0.8, 0.2))
    assert _cells(*rows) == ["FFFBBBBB··"]


def test_what_is_nowhere_the_longest_still_shows() -> None:
    rows = (_row("a", "forward", 0.0, 0.5), _row("a", "backward", 0.5, 0.46), _row("a", "update", 0.96, 0.04))
    assert _cells(*rows) == ["FFFFFBBBBU"]


def test_messages_show_where_the_device_waits() -> None:
    rows = (
        _row("a", "receive", 0.2, 0.0), _row("a", "wait", 0.0, 0.28), _row("a", "forward", 0.28, 0.72),
        _row("a", "send", 0.55, 0.0),
    )  # fmt: skip
    assert _cells(*rows) == ["··RFFFFFFF"]


def test_devices_that_only_count_stand_below() -> None:
    rows = (_row("a", "forward", 0.0, 1.0), _row("b", "idle", 0.0, 1.0))
    assert _cells(*rows, columns=4) == ["FFFF", "----"]


def test_the_axis_ends_with_the_round() -> None:
    text = timeline_text(("a",), [_row("a", "forward", 0.0, 1.0)], 1.0, columns=20)
    drawn, axis, legend = text.splitlines()
    assert axis.rstrip().endswith("1 s")
    assert len(axis) == len(drawn) - 1
    assert "F forward" in legend
