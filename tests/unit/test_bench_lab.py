"""Tables of the lab's benchmark."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from greentrain.errors import RunError, UsageError
from greentrain.ledger import LedgerRow
from greentrain_harness.bench import lab
from greentrain_harness.bench._lab_table import Row, agreement_table, plans_table, ratios_table
from greentrain_harness.bench._machine_pace import machine_pace_s
from greentrain_harness.bench._row_files import read_rows, write_rows

ROW = Row(
    model="net", batch=20, quotas="60,40", bandwidth="100Mbit", plan="time-optimal",
    parallelism="pipeline", devices="a b", rounds=4, predicted_step_s=0.9, measured_step_s=1.0,
    predicted_j_per_sample=0.11, measured_j_per_sample=0.1, samples_per_s=20.0, memory_error=None,
)  # fmt: skip
SLOW = msgspec.structs.replace(ROW, plan="data-equal", predicted_step_s=8.0, measured_step_s=10.0, samples_per_s=2.0)


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert read_rows(path, Row) == []
    write_rows(path, [ROW, SLOW])
    assert read_rows(path, Row) == [ROW, SLOW]


def test_another_file_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no table of this benchmark"):
        read_rows(path, Row)


def test_median_and_worst_error_are_of_the_plans() -> None:
    table = agreement_table([ROW, SLOW]).splitlines()
    assert table[1].split()[-3:] == ["2", "15.0%", "-20.0%"]
    assert "peak memory" not in "".join(table)


def test_ratios_are_by_case() -> None:
    lines = ratios_table([ROW, SLOW, msgspec.structs.replace(SLOW, bandwidth="1Gbit")]).splitlines()
    assert lines[0].split()[-1] == "data-equal"
    assert lines[1].split()[-1] == "10.00"
    assert len(lines) == 2  # No plan for the least energy, and none of another cluster.
    energy = [
        msgspec.structs.replace(ROW, plan="energy-optimal"),
        msgspec.structs.replace(SLOW, measured_j_per_sample=0.25),
    ]
    assert ratios_table(energy).splitlines()[1].split()[-1] == "2.50"


def _step(step: int, device: str, duration_s: float, energy_j: float | None) -> LedgerRow:
    return LedgerRow(
        run="r", device=device, rank=0, step=step, action="step", t_start_s=0.0, duration_s=duration_s,
        energy_j=energy_j, error_j=None, bytes=0, source="modelled", meter="m",
    )  # fmt: skip


def test_a_usual_round_is_the_median_without_the_first_and_without_unknown_joules() -> None:
    rows = [
        _step(step, device, seconds * (1 + (device == "b")), 2.0 * seconds)
        for step, seconds in enumerate((9.0, 1.0, 2.0, 4.0))
        for device in ("a", "b")
    ]
    assert lab.usual_round(rows) == (4.0, 8.0)
    # Its seconds are known.
    unknown = [_step(4, "a", 5.0, 1.0), _step(4, "b", 5.0, None)]
    assert lab.usual_round([*rows, *unknown]) == (4.5, 8.0)
    with pytest.raises(RunError, match="lacks the joules"):
        lab.usual_round(unknown)


def test_the_pace_of_the_machine_stands_beside_a_row() -> None:
    assert "-20%" not in plans_table([ROW])
    assert "-20%" in plans_table([msgspec.structs.replace(ROW, slower=1.25)])


def test_the_pace_of_the_machine_is_some_milliseconds() -> None:
    assert 1e-4 < machine_pace_s() < 10


def test_its_help_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lab.main(["--help"])
    assert ended.value.code == 0
    assert "percent of a core" in capsys.readouterr().out
