"""The ledger: one row per action or step of a run, simulated or real, in one schema.

Energy is kept in whole microjoules when it is added up, so that the sum over ranks equals the sum
over devices to the last digit, whatever the order.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import msgspec

from greentrain._checks import require, require_non_negative
from greentrain.errors import UsageError
from greentrain.files import field_message, read_csv, write_csv, writing
from greentrain.power import Source

__all__ = [
    "ACTION_CAUSES",
    "LEDGER_COLUMNS",
    "LedgerRow",
    "LedgerWriter",
    "energy_uj",
    "metered_rounds",
    "read_ledger",
    "split_energy_j",
    "total_energy_j",
    "totals_j",
    "write_ledger",
]


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One action or step of one rank.

    Attributes:
        run: Name of the run.
        device: Device id.
        rank: Rank of the process; -1 for a device that took no part.
        step: Round, from 0.
        action: ``step`` rows carry a round's energy and length; ``forward``, ``backward``, ``update``, ``send``,
            ``receive``, ``sum``, ``wait``, ``copy``, ``wake``, ``idle`` and ``sleep`` rows are its parts. Only
            simulated parts have joules. ``recovery`` rows carry what a lost device cost the others: the interrupted
            round, the repair, and rounds that were done again.
        t_start_s: Seconds since the start of the run.
        duration_s: Seconds.
        energy_j: Joules; None when not measured.
        error_j: ± joules; None when not known.
        bytes: Payload bytes moved.
        source: ``measured`` or ``modelled``.
        meter: Name of the meter, or of the simulator.
    """

    run: str
    device: str
    rank: int
    step: int
    action: str
    t_start_s: float
    duration_s: float
    energy_j: float | None
    error_j: float | None
    bytes: int
    source: Source
    meter: str

    def __post_init__(self) -> None:
        require(self.step >= 0, "step must be at least 0")
        require(math.isfinite(self.t_start_s), f"t_start_s is {self.t_start_s}, expected a finite number")
        require_non_negative(duration_s=self.duration_s, energy_j=self.energy_j, error_j=self.error_j, bytes=self.bytes)


# Action of a row -> cause of its joules. A gradient sum is waiting: its messages are rows of their own.
ACTION_CAUSES: dict[str, str] = {
    "forward": "compute", "backward": "compute", "update": "compute",
    "send": "send", "receive": "receive", "sum": "wait", "wait": "wait", "idle": "idle",
    "sleep": "sleep", "wake": "wake", "copy": "wait", "recovery": "recovery",
}  # fmt: skip

LEDGER_COLUMNS: tuple[str, ...] = LedgerRow.__struct_fields__


def energy_uj(energy_j: float) -> int:
    """Whole microjoules of an energy."""
    return round(energy_j * 1e6)


def total_energy_j(rows: Iterable[LedgerRow]) -> float | None:
    """Exact sum of the rows' joules; None when no row has any."""
    parts = [energy_uj(row.energy_j) for row in rows if row.energy_j is not None]
    return sum(parts) / 1e6 if parts else None


def totals_j(rows: Iterable[LedgerRow], key: Callable[[LedgerRow], str]) -> dict[str, float]:
    """Exact sums of the rows' joules by a key; keys without any measured row are absent."""
    sums: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        if row.energy_j is not None:
            sums[key(row)] += energy_uj(row.energy_j)
    return {name: value / 1e6 for name, value in sums.items()}


def metered_rounds(rounds: Iterable[tuple[int, float | None]], ranks_n: int) -> frozenset[int]:
    """Rounds in which every rank has joules: the only ones whose joules per sample are known.

    Args:
        rounds: (round, its joules) of every rank.
        ranks_n: How many ranks there are.
    """
    counts = Counter(number for number, energy_j in rounds if energy_j is not None)
    return frozenset(number for number, count in counts.items() if count == ranks_n)


def split_energy_j(energy_j: float, weights: Sequence[float]) -> tuple[float, ...]:
    """Split joules by weights in whole microjoules whose sum is exactly the whole.

    Largest remainders decide the last microjoules; equal weights are used when all are 0.
    """
    total_uj = energy_uj(energy_j)
    scale = sum(weights)
    shares = [weight / scale for weight in weights] if scale > 0 else [1 / len(weights)] * len(weights)
    floors = [int(total_uj * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda index: (floors[index] - total_uj * shares[index], index))
    for index in order[: total_uj - sum(floors)]:
        floors[index] += 1
    return tuple(part / 1e6 for part in floors)


def write_ledger(path: Path, rows: Iterable[LedgerRow]) -> None:
    """Write a whole ledger atomically."""
    write_csv(path, LEDGER_COLUMNS, (_cells(row) for row in rows))


class LedgerWriter:
    """Appends rows as a run goes, so that a killed run keeps what it wrote."""

    def __init__(self, path: Path) -> None:
        # Whole with its header from the first moment: a report may read it, and a process may be killed, at any time.
        write_csv(path, LEDGER_COLUMNS, ())
        with writing(path):
            # Unbuffered: on a full disk nothing is left behind to be written again.
            self._stream = path.open("ab", buffering=0)
        self._path = path

    def append(self, rows: Iterable[LedgerRow]) -> None:
        """Write rows and hand them to the operating system."""
        self._write(["" if cell is None else cell for cell in _cells(row)] for row in rows)

    def _write(self, lines: Iterable[Sequence[object]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(lines)
        data = buffer.getvalue().encode()
        with writing(self._path):
            while data:
                data = data[os.write(self._stream.fileno(), data) :]

    def close(self) -> None:
        """Flush to disk and close; a second call does nothing."""
        if not self._stream.closed:
            with writing(self._path), self._stream:
                os.fsync(self._stream.fileno())


def read_ledger(path: Path, *, allow_cut: bool = False) -> list[LedgerRow]:
    """Read a ledger.

    Args:
        path: The CSV file.
        allow_cut: Ignore a last line that was cut short, as a killed process leaves it.

    Raises:
        UsageError: A column is missing, or a cell has a wrong value; line and column are named.
    """
    header, lines = read_csv(path, allow_cut=allow_cut)
    missing = [name for name in LEDGER_COLUMNS if name not in header]
    if missing:
        raise UsageError(
            f"{path}: columns {', '.join(missing)} are missing.",
            hint="Give the ledger.csv of a greentrain run.",
        )
    rows: list[LedgerRow] = []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        if len(line) != len(header):
            raise UsageError(
                f"{path}: line {number} has {len(line)} cells, expected {len(header)}.",
                hint="The ledger is damaged there; repair or remove the line.",
            )
        record = {name: cell for name, cell in zip(header, line, strict=True) if name in LEDGER_COLUMNS}
        fields = {
            name: (None if cell == "" and name in ("energy_j", "error_j") else cell) for name, cell in record.items()
        }
        try:
            rows.append(msgspec.convert(cast("object", fields), LedgerRow, strict=False))
        except msgspec.ValidationError as error:
            raise UsageError(
                f"{path}: line {number}: {field_message(error)}",
                hint="The ledger is damaged there; repair or remove the line.",
            ) from error
    return rows


def _cells(row: LedgerRow) -> tuple[object, ...]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else energy_uj(value) / 1e6

    return (
        row.run, row.device, row.rank, row.step, row.action,
        round(row.t_start_s, 6), round(row.duration_s, 6),
        rounded(row.energy_j), rounded(row.error_j), row.bytes, row.source, row.meter,
    )  # fmt: skip
