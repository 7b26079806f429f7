"""RoundTable: one entry per round and rank, out of the ledger's rows; every joule is counted once.

Axis legend: N = rows of the ledger, G = rounds of a rank, in the order of round, rank and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greentrain.ledger import ACTION_CAUSES
from greentrain_reports.ledger_table import UNKNOWN, LedgerTable, Words

__all__ = ["RoundTable", "compute_s", "counted_rows", "mean_where", "round_table"]

# Time that no step covers: a run repairs itself between two rounds.
_BESIDE_STEPS = "recovery"


class RoundTable(NamedTuple):
    """Rounds of all ranks as columns; ``UNKNOWN`` and NaN stand for "not recorded" and never leave this package.

    Attributes:
        step_G: Round, from 0.
        rank_G: Rank; -1 for a device that took no part.
        device: Device ids.
        t_start_s_G: Seconds since the start of the run.
        duration_s_G: Seconds.
        energy_uj_G: Microjoules.
        error_uj_G: ± microjoules.
        sent_bytes_G: Payload bytes sent.
        action_s_G: Seconds by action; NaN where the round has no such row.
        source: ``measured`` or ``modelled``.
        meter: Name of the meter.
    """

    step_G: np.ndarray
    rank_G: np.ndarray
    device: Words
    t_start_s_G: np.ndarray
    duration_s_G: np.ndarray
    energy_uj_G: np.ndarray
    error_uj_G: np.ndarray
    sent_bytes_G: np.ndarray
    action_s_G: dict[str, np.ndarray]
    source: Words
    meter: Words

    @property
    def rounds_n(self) -> int:
        """Number of entries."""
        return len(self.step_G)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that took part."""
        return tuple(int(rank) for rank in np.unique(self.rank_G[self.rank_G >= 0]))

    def complete_steps(self) -> np.ndarray:
        """Rounds of which every rank has an entry, rising."""
        found, counts = np.unique(self.step_G[self.rank_G >= 0], return_counts=True)
        return found[counts == len(self.ranks)]

    def metered_steps(self) -> np.ndarray:
        """Rounds that every rank's meter saw, rising."""
        found, counts = np.unique(self.step_G[(self.rank_G >= 0) & (self.energy_uj_G >= 0)], return_counts=True)
        return found[counts == len(self.ranks)]

    def slowest_s(self) -> tuple[np.ndarray, np.ndarray]:
        """Rounds, rising, and the seconds of each one's slowest rank."""
        own_G = self.rank_G >= 0
        steps, place = np.unique(self.step_G[own_G], return_inverse=True)
        slowest_s = np.zeros(len(steps))
        np.maximum.at(slowest_s, place, self.duration_s_G[own_G])
        return steps, slowest_s

    def columns(self, actions: Sequence[str]) -> tuple[list[object], ...]:
        """The entries as columns for a file, None where it is not recorded.

        Round, device, rank, start, seconds, joules, ± joules, mean watts, bytes sent, seconds of each action, source,
        meter.

        Args:
            actions: Which actions.
        """
        energy_j, long = self.energy_uj_G / 1e6, self.duration_s_G > 0
        power_w = np.round(energy_j / np.where(long, self.duration_s_G, 1.0), 6)
        nothing = np.full(self.rounds_n, np.nan)
        seconds = [self.action_s_G.get(action, nothing) for action in actions]
        return (
            self.step_G.tolist(), _texts(self.device), self.rank_G.tolist(), self.t_start_s_G.tolist(),
            self.duration_s_G.tolist(), _known(energy_j, self.energy_uj_G >= 0),
            _known(self.error_uj_G / 1e6, self.error_uj_G >= 0), _known(power_w, (self.energy_uj_G >= 0) & long),
            _known(self.sent_bytes_G, self.sent_bytes_G >= 0), *(_known(s_G, ~np.isnan(s_G)) for s_G in seconds),
            _texts(self.source), _texts(self.meter),
        )  # fmt: skip


def counted_rows(table: LedgerTable) -> np.ndarray:
    """Which rows' joules count, shape (N,): a round's ``step`` row where it has any, else the round's parts.

    Recoveries lie between the rounds and count beside them.
    """
    known_N = table.energy_uj_N >= 0
    step_N = table.action.rows_of("step")
    key_N = _keys(table)
    stepped_N = np.isin(key_N, key_N[known_N & step_N])
    return known_N & (step_N | ~stepped_N | table.action.rows_of(_BESIDE_STEPS))


def round_table(table: LedgerTable) -> RoundTable:
    """One entry per round and rank."""
    names = np.argsort(np.argsort(np.array(table.device.listed, dtype=object))) if table.device.listed else np.array([])
    by_name_N = names[table.device.index_N] if table.rows_n else np.zeros(0, dtype=np.int64)
    order_N = np.lexsort((by_name_N, table.rank_N, table.step_N))
    key_N = _keys(table)[order_N]
    first_G = np.flatnonzero(np.concatenate([[True], key_N[1:] != key_N[:-1]])) if table.rows_n else np.zeros(0, int)
    group_N = np.cumsum(np.isin(np.arange(table.rows_n), first_G)) - 1
    groups_n = len(first_G)
    start_s_N, stop_s_N = table.t_start_s_N[order_N], (table.t_start_s_N + table.duration_s_N)[order_N]
    step_N = table.action.rows_of("step")[order_N]
    # The row that speaks for the round: its step row where it has one, else its first.
    speaks_G = first_G.copy()
    step_at = np.flatnonzero(step_N)[::-1]
    speaks_G[group_N[step_at]] = step_at
    whole_G = step_N[speaks_G] if groups_n else np.zeros(0, dtype=bool)
    low_s, high_s = np.full(groups_n, np.inf), np.full(groups_n, -np.inf)
    np.minimum.at(low_s, group_N, start_s_N)
    np.maximum.at(high_s, group_N, stop_s_N)
    counted_N = counted_rows(table)[order_N]
    bytes_N, sends_N = table.bytes_N[order_N], table.action.rows_of("send")[order_N]
    return RoundTable(
        step_G=table.step_N[order_N][first_G],
        rank_G=table.rank_N[order_N][first_G],
        device=Words(table.device.listed, table.device.index_N[order_N][first_G]),
        t_start_s_G=np.where(whole_G, start_s_N[speaks_G], low_s),
        duration_s_G=np.where(whole_G, table.duration_s_N[order_N][speaks_G], np.round(high_s - low_s, 6)),
        energy_uj_G=_sums(table.energy_uj_N[order_N], counted_N, group_N, groups_n),
        error_uj_G=_sums(table.error_uj_N[order_N], counted_N, group_N, groups_n),
        sent_bytes_G=_sums(bytes_N, sends_N, group_N, groups_n),
        action_s_G=_action_seconds(table, order_N, group_N, groups_n),
        source=Words(table.source.listed, table.source.index_N[order_N][speaks_G]),
        meter=Words(table.meter.listed, table.meter.index_N[order_N][speaks_G]),
    )


def mean_where(values_G: np.ndarray, chosen_G: np.ndarray) -> float | None:
    """Mean of some entries; None when there are none."""
    return float(values_G[chosen_G].mean()) if chosen_G.any() else None


def compute_s(rounds: RoundTable) -> np.ndarray:
    """Seconds in which each round computes, shape (G,); NaN where no computing row is recorded."""
    parts = [s_G for action, s_G in rounds.action_s_G.items() if ACTION_CAUSES.get(action, action) == "compute"]
    if not parts:
        return np.full(rounds.rounds_n, np.nan)
    stacked = np.stack(parts)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))


def _keys(table: LedgerTable) -> np.ndarray:
    """One number per round, rank and device, shape (N,)."""
    devices_n = len(table.device.listed) or 1
    ranks_n = int(table.rank_N.max(initial=0)) + 2
    return (table.step_N * ranks_n + table.rank_N + 1) * devices_n + table.device.index_N


def _sums(values_N: np.ndarray, chosen_N: np.ndarray, group_N: np.ndarray, groups_n: int) -> np.ndarray:
    """Exact sums of the chosen rows by group; ``UNKNOWN`` where none was chosen or one is unknown."""
    sums = np.zeros(groups_n, dtype=np.int64)
    np.add.at(sums, group_N[chosen_N], values_N[chosen_N])
    counts = np.bincount(group_N[chosen_N], minlength=groups_n)
    unknown = np.bincount(group_N[chosen_N & (values_N == UNKNOWN)], minlength=groups_n)
    return np.where((counts > 0) & (unknown == 0), sums, UNKNOWN)


def _action_seconds(
    table: LedgerTable, order_N: np.ndarray, group_N: np.ndarray, groups_n: int
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    action_N, duration_s_N = table.action.index_N[order_N], table.duration_s_N[order_N]
    for index, action in enumerate(table.action.listed):
        if action == "step":
            continue
        chosen_N = action_N == index
        seconds = np.bincount(group_N[chosen_N], weights=duration_s_N[chosen_N], minlength=groups_n)
        counts = np.bincount(group_N[chosen_N], minlength=groups_n)
        found[action] = np.where(counts > 0, np.round(seconds, 6), np.nan)
    return found


def _known(values_G: np.ndarray, known_G: np.ndarray) -> list[object]:
    listed: list[object] = values_G.tolist()
    for at in np.flatnonzero(~known_G).tolist():
        listed[at] = None
    return listed


def _texts(words: Words) -> list[object]:
    listed = words.listed
    return [listed[index] for index in words.index_N.tolist()]
