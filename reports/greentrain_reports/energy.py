"""Joules and seconds out of ledger rows: every joule is counted once, in whole microjoules."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from greentrain.ledger import ACTION_CAUSES, LedgerRow, energy_uj, split_energy_j, total_energy_j

__all__ = [
    "CAUSES",
    "DeviceEnergy",
    "RoundRow",
    "TimelineBar",
    "counted_rows",
    "device_energy",
    "round_rows",
    "source_of",
    "timeline",
    "total_error_j",
    "typical_round",
]

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
        error_j: ± joules, the rounds' errors added up; None when not known.
        cause_j: Joules by cause, which add up exactly to ``energy_j``; None when not attributed.
        source: ``measured``, ``modelled`` or ``mixed``; None when nothing was recorded.
        meter: Name of the meter, or of the simulator.
        note: What the run says of this meter.
    """

    device: str
    ranks: tuple[int, ...]
    energy_j: float | None
    error_j: float | None
    cause_j: dict[str, float] | None
    source: str | None
    meter: str | None
    note: str


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one rank.

    Attributes:
        round: From 0.
        device: Device id.
        rank: Rank; -1 for a device that took no part.
        t_start_s: Seconds since the start of the run.
        duration_s: Seconds.
        energy_j: Joules; None when not recorded.
        error_j: ± joules; None when not known.
        bytes_sent: Payload bytes sent.
        action_s: Seconds by action.
        source: ``measured`` or ``modelled`` joules.
        meter: Name of the meter.
    """

    round: int
    device: str
    rank: int
    t_start_s: float
    duration_s: float
    energy_j: float | None
    error_j: float | None
    bytes_sent: int
    action_s: dict[str, float]
    source: str
    meter: str

    @property
    def mean_w(self) -> float | None:
        """Mean power over the round, watts; None when the energy is not recorded."""
        return self.energy_j / self.duration_s if self.energy_j is not None and self.duration_s > 0 else None


class TimelineBar(msgspec.Struct, frozen=True, kw_only=True):
    """One action in a drawing of one round; ``start_s`` counts from the round's first action."""

    lane: str
    action: str
    start_s: float
    duration_s: float


def counted_rows(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """The rows whose joules count: a round's ``step`` row where it has any, else the round's parts."""
    known = [row for row in rows if row.energy_j is not None]
    stepped = {(row.device, row.rank, row.step) for row in known if row.action == "step"}
    return [row for row in known if row.action == "step" or (row.device, row.rank, row.step) not in stepped]


def total_error_j(rows: Iterable[LedgerRow]) -> float | None:
    """± of the rows together, joules: added up, as errors of one sensor do not cancel. None if one is unknown."""
    errors_j = [row.error_j for row in rows]
    known_j = [error_j for error_j in errors_j if error_j is not None]
    return sum(map(energy_uj, known_j)) / 1e6 if known_j and len(known_j) == len(errors_j) else None


def source_of(sources: Iterable[str]) -> str | None:
    """The one source of several figures, ``mixed`` when they differ, None when there are none."""
    found = set(sources)
    return found.pop() if len(found) == 1 else ("mixed" if found else None)


def device_energy(
    device: str, rows: Sequence[LedgerRow], *, causes_j: Mapping[str, float] | None, note: str
) -> DeviceEnergy:
    """Add up the rows of one device.

    Args:
        device: Its id.
        rows: Ledger rows of this device only.
        causes_j: Attribution to causes as the run states it. Its shares are applied to the exact total,
            so that the parts add up to the ledger to the last microjoule. Without it the ledger's own
            parts are used, where they carry joules.
        note: What the run says of the meter.
    """
    counted = counted_rows(rows)
    energy_j = total_energy_j(counted)
    if causes_j is None and counted and all(row.action != "step" for row in counted):
        own_j: defaultdict[str, float] = defaultdict(float)
        for row in counted:
            own_j[ACTION_CAUSES.get(row.action, row.action)] += row.energy_j or 0.0
        causes_j = own_j
    cause_j = None
    if energy_j is not None and causes_j and sum(causes_j.values()) > 0:
        cause_j = dict(zip(causes_j, split_energy_j(energy_j, tuple(causes_j.values())), strict=True))
    return DeviceEnergy(
        device=device,
        ranks=tuple(sorted({row.rank for row in rows if row.rank >= 0})),
        energy_j=energy_j,
        error_j=total_error_j(counted),
        cause_j=cause_j,
        source=source_of(row.source for row in counted),
        # The first row's: in a ledger that was cut short the last one may lack letters.
        meter=rows[0].meter if rows else None,
        note=note,
    )


def round_rows(rows: Iterable[LedgerRow]) -> tuple[RoundRow, ...]:
    """One row per round and rank, in the order of rounds."""
    groups: defaultdict[tuple[int, int, str], list[LedgerRow]] = defaultdict(list)
    for row in rows:
        groups[row.step, row.rank, row.device].append(row)
    return tuple(_round_row(groups[key]) for key in sorted(groups))


def _round_row(rows: Sequence[LedgerRow]) -> RoundRow:
    whole = next((row for row in rows if row.action == "step"), None)
    counted = counted_rows(rows)
    action_s: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        if row.action != "step":
            action_s[row.action] += row.duration_s
    start_s = whole.t_start_s if whole else min(row.t_start_s for row in rows)
    stop_s = max(row.t_start_s + row.duration_s for row in rows)
    return RoundRow(
        round=rows[0].step,
        device=rows[0].device,
        rank=rows[0].rank,
        t_start_s=start_s,
        duration_s=whole.duration_s if whole else round(stop_s - start_s, 6),
        energy_j=total_energy_j(counted),
        error_j=total_error_j(counted),
        bytes_sent=sum(row.bytes for row in rows if row.action == "send"),
        action_s={action: round(seconds, 6) for action, seconds in action_s.items()},
        source=(whole or rows[0]).source,
        meter=(whole or rows[0]).meter,
    )


def typical_round(rounds: Sequence[RoundRow]) -> int | None:
    """The round of median duration (of its slowest rank); None when there are none."""
    slowest_s: dict[int, float] = {}
    for row in rounds:
        slowest_s[row.round] = max(row.duration_s, slowest_s.get(row.round, 0.0))
    if not slowest_s:
        return None
    median_s = statistics.median_low(slowest_s.values())
    return next(number for number, seconds in slowest_s.items() if seconds == median_s)


def timeline(rows: Iterable[LedgerRow], number: int) -> tuple[TimelineBar, ...]:
    """The actions of one round on every device; empty when the run did not record when they ran."""
    actions = [row for row in rows if row.step == number and row.action != "step" and row.duration_s > 0]
    # Rows that only add up seconds all start with their round: they say nothing about the order.
    starts: defaultdict[tuple[str, int], set[float]] = defaultdict(set)
    for row in actions:
        starts[row.device, row.rank].add(row.t_start_s)
    counts: defaultdict[tuple[str, int], int] = defaultdict(int)
    for row in actions:
        counts[row.device, row.rank] += 1
    if not actions or all(len(starts[key]) == 1 < count for key, count in counts.items()):
        return ()
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    for row in actions:
        ranks[row.device].add(row.rank)
    zero_s = min(row.t_start_s for row in actions)
    return tuple(
        TimelineBar(
            lane=row.device if len(ranks[row.device]) == 1 else f"{row.device} #{row.rank}",
            action=row.action,
            start_s=row.t_start_s - zero_s,
            duration_s=row.duration_s,
        )
        for row in actions
    )
