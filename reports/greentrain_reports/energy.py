"""Joules of devices out of a ledger: every joule is counted once, in whole microjoules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from greentrain.ledger import ACTION_CAUSES, split_energy_j
from greentrain_reports.ledger_table import UNKNOWN, LedgerTable

__all__ = ["CAUSES", "DeviceEnergy", "cause_totals_j", "device_energy", "source_of", "total_error_j", "total_j"]

# Causes of energy and actions of time, in the order of tables and pictures.
CAUSES: tuple[str, ...] = (
    "compute",
    "forward",
    "backward",
    "send",
    "receive",
    "sum",
    "update",
    "wait",
    "recovery",
    "wake",
    "idle",
    "sleep",
)


class DeviceEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """What one device took over the run.

    Attributes:
        device: Its id.
        ranks: Its ranks; empty when it took no part.
        energy_j: Joules; None when not recorded.
        energy_j_per_round: Joules of a round, mean over the rounds that have any; None when none has.
        error_j: ± joules, the rounds' errors added up; None when not known.
        cause_j: Joules by cause, which add up exactly to ``energy_j``; None when not attributed.
        source: ``measured``, ``modelled`` or ``mixed``; None when nothing was recorded.
        meter: Name of the meter, or of the simulator.
        note: What the run says of this meter.
    """

    device: str
    ranks: tuple[int, ...]
    energy_j: float | None
    energy_j_per_round: float | None
    error_j: float | None
    cause_j: dict[str, float] | None
    source: str | None
    meter: str | None
    note: str


def total_j(table: LedgerTable, chosen_N: np.ndarray) -> float | None:
    """Exact joules of the chosen rows that have any; None when none has."""
    known_N = chosen_N & (table.energy_uj_N >= 0)
    return int(table.energy_uj_N[known_N].sum()) / 1e6 if known_N.any() else None


def total_error_j(table: LedgerTable, chosen_N: np.ndarray) -> float | None:
    """± of the chosen rows, joules: added up, as errors of one sensor do not cancel. None if one is unknown."""
    if not chosen_N.any() or (table.error_uj_N[chosen_N] == UNKNOWN).any():
        return None
    return int(table.error_uj_N[chosen_N].sum()) / 1e6


def cause_totals_j(table: LedgerTable, chosen_N: np.ndarray) -> dict[str, float]:
    """Exact joules of the chosen rows by cause."""
    found_uj: dict[str, int] = {}
    for index, action in enumerate(table.action.listed):
        rows_N = chosen_N & (table.action.index_N == index)
        if rows_N.any():
            cause = ACTION_CAUSES.get(action, action)
            found_uj[cause] = found_uj.get(cause, 0) + int(table.energy_uj_N[rows_N].sum())
    return {cause: energy_uj / 1e6 for cause, energy_uj in found_uj.items()}


def source_of(sources: Iterable[str]) -> str | None:
    """The one source of several figures, ``mixed`` when they differ, None when there are none."""
    found = set(sources)
    return found.pop() if len(found) == 1 else ("mixed" if found else None)


def device_energy(
    device: str, table: LedgerTable, counted_N: np.ndarray, *, causes_j: Mapping[str, float] | None, note: str
) -> DeviceEnergy:
    """Add up the rows of one device.

    Args:
        device: Its id.
        table: The ledger.
        counted_N: Which rows' joules count.
        causes_j: Attribution to causes as the run states it. Its shares are applied to the exact total,
            so that the parts add up to the ledger to the last microjoule. Without it the ledger's own
            parts are used, where they carry joules.
        note: What the run says of the meter.
    """
    own_N = table.device.rows_of(device)
    chosen_N = own_N & counted_N
    energy_j = total_j(table, chosen_N)
    if causes_j is None and chosen_N.any() and not (chosen_N & table.action.rows_of("step")).any():
        causes_j = cause_totals_j(table, chosen_N)
    cause_j = None
    if energy_j is not None and causes_j and sum(causes_j.values()) > 0:
        cause_j = dict(zip(causes_j, split_energy_j(energy_j, tuple(causes_j.values())), strict=True))
    first = int(np.argmax(own_N)) if own_N.any() else None
    seen_n = len(np.unique(table.step_N[chosen_N]))
    return DeviceEnergy(
        device=device,
        ranks=tuple(int(rank) for rank in np.unique(table.rank_N[own_N & (table.rank_N >= 0)])),
        energy_j=energy_j,
        energy_j_per_round=energy_j / seen_n if energy_j is not None else None,
        error_j=total_error_j(table, chosen_N),
        cause_j=cause_j,
        source=source_of(table.source.listed[int(index)] for index in np.unique(table.source.index_N[chosen_N])),
        meter=None if first is None else table.meter.listed[int(table.meter.index_N[first])] or None,
        note=note,
    )
