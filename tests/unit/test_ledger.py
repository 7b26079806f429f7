from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.errors import RunError, UsageError
from greentrain.ledger import (
    LEDGER_COLUMNS,
    LedgerRow,
    LedgerWriter,
    energy_uj,
    read_ledger,
    split_energy_j,
    total_energy_j,
    totals_j,
    write_ledger,
)


def _row(**changes: object) -> LedgerRow:
    row = LedgerRow(
        run="demo", device="a", rank=0, step=0, action="step", t_start_s=0.5, duration_s=0.25,
        energy_j=1.5, error_j=0.01, bytes=0, source="measured", meter="ina3221",
    )  # fmt: skip
    return msgspec.structs.replace(row, **changes)


_MICRO = st.integers(0, 10**12).map(lambda whole: whole / 1e6)
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
_ROWS = st.lists(
    st.builds(
        LedgerRow,
        run=_TEXT, device=_TEXT, rank=st.integers(-1, 9), step=st.integers(0, 99), action=_TEXT,
        t_start_s=_MICRO, duration_s=_MICRO, energy_j=st.none() | _MICRO, error_j=st.none() | _MICRO,
        bytes=st.integers(0, 10**12), source=st.sampled_from(("measured", "modelled")), meter=_TEXT,
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=25)
@given(rows=_ROWS)
def test_both_writers_read_back(rows: list[LedgerRow], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    write_ledger(folder / "whole.csv", rows)
    writer = LedgerWriter(folder / "grown.csv")
    for row in rows:
        writer.append([row])
    writer.close()
    writer.close()
    assert read_ledger(folder / "whole.csv") == read_ledger(folder / "grown.csv") == rows
    assert (folder / "whole.csv").read_bytes() == (folder / "grown.csv").read_bytes()


@given(energy_j=st.floats(0, 1e8), weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_a_split_is_exact_fair_and_never_negative(energy_j: float, weights: list[float]) -> None:
    parts = split_energy_j(energy_j, weights)
    assert sum(energy_uj(part) for part in parts) == energy_uj(energy_j)
    assert min(parts) >= 0
    scale = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        share = weight / scale if scale > 0 else 1 / len(weights)
        assert part == pytest.approx(energy_uj(energy_j) / 1e6 * share, abs=1.1e-6, rel=1e-12)


def test_no_weight_means_equal_parts() -> None:
    assert split_energy_j(0.000005, (0.0, 0.0)) == (0.000003, 0.000002)


@given(seed=st.integers(0, 10**6))
def test_sums_agree_to_the_last_digit_in_any_order_and_grouping(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        _row(device=f"d{rank // 2}", rank=rank, step=step, energy_j=rng.choice([None, rng.uniform(0, 50)]))
        for rank in range(5)
        for step in range(4)
    ]
    total = total_energy_j(rows)
    rng.shuffle(rows)
    assert total_energy_j(rows) == total
    by_rank = totals_j(rows, lambda row: f"rank {row.rank}")
    by_device = totals_j(rows, lambda row: row.device)
    for sums in (by_rank, by_device):
        assert sum(energy_uj(part) for part in sums.values()) == energy_uj(total or 0.0)


def test_missing_is_none_never_zero() -> None:
    rows = [_row(energy_j=None), _row(device="b", energy_j=0.0)]
    assert totals_j(rows, lambda row: row.device) == {"b": 0.0}
    assert total_energy_j(rows[:1]) is None
    assert total_energy_j([]) is None


def _lines(tmp_path: Path, change: dict[str, str], line: int = 1) -> Path:
    path = tmp_path / "ledger.csv"
    write_ledger(path, [_row(step=step) for step in range(3)])
    rows = [text.split(",") for text in path.read_text().splitlines()]
    for name, cell in change.items():
        rows[line][LEDGER_COLUMNS.index(name)] = cell
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("column", "cell", "sentence"),
    [
        ("step", "x", "line 3: field step: Expected `int`"),
        ("step", "-1", "line 3: step must be at least 0"),
        ("duration_s", "", "line 3: field duration_s: Expected `float`"),
        ("duration_s", "-1", "line 3: duration_s is -1.0"),
        ("energy_j", "nan", "line 3: energy_j is nan"),
        ("energy_j", "much", "line 3: field energy_j: Expected `float | null`"),
        ("t_start_s", "inf", "line 3: t_start_s is inf"),
        ("source", "guessed", "line 3: field source: Invalid enum value 'guessed'"),
        ("bytes", "1.5", "line 3: field bytes: Expected `int`"),
        ("meter", "x,y", "line 3 has 13 cells, expected 12"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path: Path, column: str, cell: str, sentence: str) -> None:
    path = _lines(tmp_path, {column: cell}, line=2)
    with pytest.raises(UsageError) as caught:
        read_ledger(path)
    assert caught.value.message.startswith(f"{path}: {sentence}")
    with pytest.raises(UsageError):
        read_ledger(path, allow_cut=True)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("run,device\nx,y\n")
    with pytest.raises(UsageError, match=r"other\.csv: columns rank, step, .* are missing"):
        read_ledger(path)


def test_a_cut_last_line_is_dropped_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    rows = [_row(step=step, device="µ-board") for step in range(3)]
    write_ledger(path, rows)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        assert read_ledger(path, allow_cut=True) == rows[:2], f"cut after {whole[last:size]!r}"
    path.write_bytes(whole)
    assert read_ledger(path, allow_cut=True) == rows


def test_a_row_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "new" / "ledger.csv")
    writer.append([_row(), _row(step=1)])
    assert read_ledger(tmp_path / "new" / "ledger.csv") == [_row(), _row(step=1)]
    writer.close()


def test_a_ledger_is_never_seen_without_its_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def killed(source: str, target: Path) -> None:
        assert read_ledger(Path(source)) == []
        assert not target.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            LedgerWriter(tmp_path / "ledger.csv")
    assert list(tmp_path.iterdir()) == []
    LedgerWriter(tmp_path / "ledger.csv").close()
    assert read_ledger(tmp_path / "ledger.csv") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    with pytest.raises(RunError, match="the disk is full"):
        LedgerWriter(Path("/dev/full"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"step": -1}, "step must be"),
        ({"duration_s": float("nan")}, "duration_s is nan"),
        ({"t_start_s": float("nan")}, "t_start_s is nan"),
        ({"energy_j": -1.0}, "energy_j is -1.0"),
        ({"error_j": float("inf")}, "error_j is inf"),
        ({"bytes": -1}, "bytes is -1"),
    ],
)
def test_rows_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _row(**changes)
