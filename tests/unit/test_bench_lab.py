"""Tables of the lab's benchmark."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from greentrain.errors import UsageError
from greentrain_harness.bench import lab
from greentrain_harness.bench._lab_table import Row, agreement_table, ratios_table, read_rows, write_rows

ROW = Row(
    model="net", quotas="60,40", bandwidth="100Mbit", plan="time-optimal", parallelism="pipeline", devices="a b",
    predicted_step_s=0.9, measured_step_s=1.0, predicted_j_per_sample=0.11, measured_j_per_sample=0.1,
    samples_per_s=20.0, memory_error=None,
)  # fmt: skip
SLOW = msgspec.structs.replace(ROW, plan="data-equal", predicted_step_s=8.0, measured_step_s=10.0, samples_per_s=2.0)


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert read_rows(path) == []
    write_rows(path, [ROW, SLOW])
    assert read_rows(path) == [ROW, SLOW]


def test_another_file_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no table of this benchmark"):
        read_rows(path)


def test_median_and_worst_error_are_of_the_plans() -> None:
    table = agreement_table([ROW, SLOW]).splitlines()
    assert table[1].split()[-3:] == ["2", "15.0%", "-20.0%"]
    assert "peak memory" not in "".join(table)


def test_ratios_are_by_case() -> None:
    lines = ratios_table([ROW, SLOW, msgspec.structs.replace(SLOW, bandwidth="1Gbit")]).splitlines()
    assert lines[0].split()[-1] == "data-equal"
    assert lines[1].split()[-1] == "10.00"
    assert len(lines) == 2


def test_its_help_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lab.main(["--help"])
    assert ended.value.code == 0
    assert "percent of a core" in capsys.readouterr().out
