"""The actions of one round, for drawing."""

from __future__ import annotations

import statistics
from collections import defaultdict

import msgspec
import numpy as np

from greentrain_reports.ledger_table import UNKNOWN, LedgerTable
from greentrain_reports.rounds import RoundTable

__all__ = ["TimelineBar", "timeline", "typical_round"]


class TimelineBar(msgspec.Struct, frozen=True, kw_only=True):
    """One action in a drawing of one round; ``start_s`` counts from the round's first action.

    Attributes:
        lane: The device, with its rank where it has several.
        action: What it does.
        start_s: Seconds since the round's first action.
        duration_s: Seconds.
        bytes: Payload bytes; None where they are not recorded.
        energy_j: Joules; None where only the whole round has any.
    """

    lane: str
    action: str
    start_s: float
    duration_s: float
    bytes: int | None = None
    energy_j: float | None = None


def typical_round(rounds: RoundTable) -> int | None:
    """The round of median duration (of its slowest rank); None when there are none."""
    steps, slowest_s = rounds.slowest_s()
    if not len(steps):
        return None
    median_s = statistics.median_low(slowest_s.tolist())
    return int(steps[np.argmax(slowest_s == median_s)])


def timeline(table: LedgerTable, number: int) -> tuple[TimelineBar, ...]:
    """The actions of one round on every device; empty when the run did not record when they ran."""
    chosen_N = (table.step_N == number) & ~table.action.rows_of("step") & (table.duration_s_N > 0)
    at = np.flatnonzero(chosen_N).tolist()
    if not at:
        return ()
    lanes = [(table.device.listed[table.device.index_N[row]], int(table.rank_N[row])) for row in at]
    starts: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for lane, row in zip(lanes, at, strict=True):
        starts[lane].append(float(table.t_start_s_N[row]))
    # Rows that only add up seconds all start with their round: they say nothing about the order.
    if all(len(found) > 1 and len(set(found)) == 1 for found in starts.values()):
        return ()
    ranks_n: defaultdict[str, int] = defaultdict(int)
    for device, _ in starts:
        ranks_n[device] += 1
    zero_s = min(map(min, starts.values()))
    return tuple(
        TimelineBar(
            lane=device if ranks_n[device] == 1 else f"{device} #{rank}",
            action=table.action.listed[table.action.index_N[row]],
            start_s=float(table.t_start_s_N[row]) - zero_s,
            duration_s=float(table.duration_s_N[row]),
            bytes=None if table.bytes_N[row] == UNKNOWN else int(table.bytes_N[row]),
            energy_j=None if table.energy_uj_N[row] == UNKNOWN else int(table.energy_uj_N[row]) / 1e6,
        )
        for (device, rank), row in zip(lanes, at, strict=True)
    )
