"""LedgerTable: a ledger as columns, so that a report over a million rows takes seconds.

Axis N: rows of the ledger, in the order of the file. Energies are whole microjoules; ``-1`` stands for "not recorded"
inside the columns and never leaves this package.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from greentrain.errors import UsageError
from greentrain.ledger import LEDGER_COLUMNS, LedgerRow, energy_uj, read_ledger

__all__ = ["UNKNOWN", "LedgerTable", "Words", "ends_in_a_cut_line", "joined", "read_table", "table_of_rows"]

UNKNOWN = -1

# Columns that a ledger of an older version may lack; what they would say is then not recorded.
_OPTIONAL = ("run", "error_j", "bytes", "meter")


class Words(NamedTuple):
    """A column of words: each different word once, and which one stands in each row.

    Attributes:
        listed: The words in the order of their first row.
        index_N: Position in ``listed``.
    """

    listed: tuple[str, ...]
    index_N: np.ndarray

    def rows_of(self, word: str) -> np.ndarray:
        """Which rows hold a word."""
        at = self.listed.index(word) if word in self.listed else len(self.listed)
        return self.index_N == at


class LedgerTable(NamedTuple):
    """The columns of a ledger.

    Attributes:
        run: Name of the run; empty where the ledger does not say.
        device: Device ids.
        rank_N: Rank; -1 for a device that took no part.
        step_N: Round, from 0.
        action: What the row is about.
        t_start_s_N: Seconds since the start of the run.
        duration_s_N: Seconds.
        energy_uj_N: Microjoules; ``UNKNOWN`` when not recorded.
        error_uj_N: ± microjoules; ``UNKNOWN`` when not known.
        bytes_N: Payload bytes; ``UNKNOWN`` where the ledger has no such column.
        source: ``measured`` or ``modelled``.
        meter: Name of the meter; empty where the ledger has no such column.
        lacking: Columns that the file does not have.
    """

    run: str
    device: Words
    rank_N: np.ndarray
    step_N: np.ndarray
    action: Words
    t_start_s_N: np.ndarray
    duration_s_N: np.ndarray
    energy_uj_N: np.ndarray
    error_uj_N: np.ndarray
    bytes_N: np.ndarray
    source: Words
    meter: Words
    lacking: tuple[str, ...] = ()

    @property
    def rows_n(self) -> int:
        """Number of rows."""
        return len(self.rank_N)


def read_table(path: Path) -> LedgerTable:
    """Read a ledger; what stands behind its last line end is left out, and columns of newer versions may lack.

    Raises:
        UsageError: A column is missing that every version has, or a cell has a wrong value; line and column are named.
    """
    try:
        content = path.read_bytes()
    except OSError:
        # It says what is wrong with the file.
        return table_of_rows(read_ledger(path, allow_cut=True))
    content = content[: content.rfind(b"\n") + 1]
    header = content.partition(b"\n")[0].decode(errors="replace").strip().split(",")
    lacking = tuple(name for name in LEDGER_COLUMNS if name not in header)
    essential = [name for name in lacking if name not in _OPTIONAL]
    if content and essential:
        raise UsageError(
            f"{path}: columns {', '.join(essential)} are missing.", hint="Give the ledger.csv of a greentrain run."
        )
    try:
        return _parsed(content, lacking)
    except ValueError as error:
        # The careful reader names line and column.
        if not lacking:
            return table_of_rows(read_ledger(path, allow_cut=True))
        raise UsageError(f"{path}: {error}.", hint="The ledger is damaged; repair or remove the line.") from error


def table_of_rows(rows: Iterable[LedgerRow]) -> LedgerTable:
    """The same out of rows."""
    listed = list(rows)

    def integers(values: Iterable[int]) -> np.ndarray:
        return np.fromiter(values, np.int64, len(listed))

    def microjoules(values: Iterable[float | None]) -> np.ndarray:
        return integers(UNKNOWN if value is None else energy_uj(value) for value in values)

    return LedgerTable(
        run=listed[0].run if listed else "",
        device=_words([row.device for row in listed]),
        rank_N=integers(row.rank for row in listed),
        step_N=integers(row.step for row in listed),
        action=_words([row.action for row in listed]),
        t_start_s_N=np.array([row.t_start_s for row in listed], dtype=np.float64),
        duration_s_N=np.array([row.duration_s for row in listed], dtype=np.float64),
        energy_uj_N=microjoules(row.energy_j for row in listed),
        error_uj_N=microjoules(row.error_j for row in listed),
        bytes_N=integers(row.bytes for row in listed),
        source=_words([row.source for row in listed]),
        meter=_words([row.meter for row in listed]),
    )


def ends_in_a_cut_line(path: Path) -> bool:
    """Whether the file's last line has no end, as a killed process leaves it."""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        if stream.tell() == 0:
            return False
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"


def _parsed(content: bytes, lacking: tuple[str, ...]) -> LedgerTable:
    # A million rows take one second with pandas and ten as structs.
    import pandas as pd

    whole, real = ("rank", "step", "bytes"), ("t_start_s", "duration_s", "energy_j", "error_j")
    kinds = {**dict.fromkeys(LEDGER_COLUMNS, "category"), **dict.fromkeys(whole, "int64"), **dict.fromkeys(real, "f8")}
    frame = pd.read_csv(
        io.BytesIO(content), engine="c", encoding="utf-8", dtype=cast("Any", kinds), keep_default_na=False,
        na_values={"energy_j": [""], "error_j": [""]}, usecols=lambda name: name in kinds,
    )  # fmt: skip
    rows_n = len(frame)
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("a line has too many cells")

    def numbers(name: str, least: float) -> np.ndarray:
        values_N = frame[name].to_numpy()
        if not np.isfinite(values_N).all() or (values_N < least).any():
            raise ValueError(f"column {name} holds a value that is not finite, or too small")
        return values_N

    def seconds(name: str, least: float) -> np.ndarray:
        # The decimal number of the file, whatever the parser's last bit.
        return np.rint(numbers(name, least) * 1e6) / 1e6

    def microjoules(name: str) -> np.ndarray:
        if name in lacking:
            return np.full(rows_n, UNKNOWN, dtype=np.int64)
        joules_N = frame[name].to_numpy()
        known_N = ~np.isnan(joules_N)
        if not np.isfinite(joules_N[known_N]).all() or (joules_N[known_N] < 0).any():
            raise ValueError(f"column {name} holds a value that is not finite, or negative")
        return np.where(known_N, np.rint(np.where(known_N, joules_N, 0.0) * 1e6), UNKNOWN).astype(np.int64)

    def words(name: str) -> Words:
        if name in lacking:
            return Words(("",), np.zeros(rows_n, dtype=np.int64))
        column = frame[name].cat
        index_N = column.codes.to_numpy().astype(np.int64)
        listed = tuple(map(str, column.categories))
        # A line that ends early is filled up; where a cell is really empty, the careful reader takes it.
        if (index_N < 0).any() or "" in listed:
            raise ValueError(f"column {name} has an empty cell, or a line has too few")
        return _in_order(listed, index_N)

    source = words("source")
    if not set(source.listed) <= {"measured", "modelled"}:
        raise ValueError("a source is neither measured nor modelled")
    run = words("run")
    return LedgerTable(
        run=run.listed[int(run.index_N[0])] if rows_n else "",
        device=words("device"), rank_N=numbers("rank", -math.inf), step_N=numbers("step", 0), action=words("action"),
        t_start_s_N=seconds("t_start_s", -math.inf), duration_s_N=seconds("duration_s", 0.0),
        energy_uj_N=microjoules("energy_j"), error_uj_N=microjoules("error_j"),
        bytes_N=np.full(rows_n, UNKNOWN, dtype=np.int64) if "bytes" in lacking else numbers("bytes", 0),
        source=source, meter=words("meter"), lacking=lacking,
    )  # fmt: skip


def _in_order(listed: tuple[str, ...], index_N: np.ndarray) -> Words:
    """Words in the order of their first row; pandas sorts them."""
    found, first = np.unique(index_N, return_index=True)
    order = found[np.argsort(first)]
    place = np.zeros(len(listed) + 1, dtype=np.int64)
    place[order] = np.arange(len(order))
    return Words(tuple(listed[index] for index in order), place[index_N])


def _words(cells: Sequence[str]) -> Words:
    listed = tuple(dict.fromkeys(cells))
    place = {word: index for index, word in enumerate(listed)}
    return Words(listed, np.fromiter((place[cell] for cell in cells), np.int64, len(cells)))


def joined(tables: Sequence[LedgerTable]) -> LedgerTable:
    """Several ledgers of one run as one.

    Args:
        tables: At least one.
    """

    def words(columns: Sequence[Words]) -> Words:
        listed = tuple(dict.fromkeys(word for column in columns for word in column.listed))
        parts = [
            np.array([listed.index(word) for word in column.listed], dtype=np.int64)[column.index_N]
            for column in columns
        ]
        return Words(listed, np.concatenate(parts))

    def numbers(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables])

    names = ("rank_N", "step_N", "t_start_s_N", "duration_s_N", "energy_uj_N", "error_uj_N", "bytes_N")
    return LedgerTable(
        run=tables[0].run,
        device=words([table.device for table in tables]),
        action=words([table.action for table in tables]),
        source=words([table.source for table in tables]),
        meter=words([table.meter for table in tables]),
        lacking=tuple(dict.fromkeys(name for table in tables for name in table.lacking)),
        **{name: numbers(name) for name in names},
    )
