"""Shares of a stage: how many units of a micro-batch each device of a group takes, for many stages at once.

Axis legend: N rows (a span with the slots that serve it), S spans, P slots (type at a point), R share units,
G places in a group, T device types, V groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Allocation", "StageRows", "least_by_counts", "least_of_many"]

_CHUNK = 40_000


class StageRows(NamedTuple):
    """Spans with the slots that serve them, all groups of one size."""

    span_N: np.ndarray
    group_N: np.ndarray
    slot_NG: np.ndarray

    def picked(self, keep_N: np.ndarray) -> StageRows:
        """Some of the rows."""
        return StageRows(self.span_N[keep_N], self.group_N[keep_N], self.slot_NG[keep_N])


class Allocation(NamedTuple):
    """Shares for many spans and groups of one size at once."""

    time_s_PSR: np.ndarray
    busy_j_PSR: np.ndarray
    rows: StageRows
    limit_s_N: np.ndarray
    spare_j_N: np.ndarray
    cap_NG: np.ndarray

    def all_units(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """Every allocation within the limits: row number and units, shapes (n,) and (n, G)."""
        size = self.rows.slot_NG.shape[1]
        units_CG = _compositions(units, size)
        own = (self.rows.slot_NG[:, None, :], self.rows.span_N[:, None, None], units_CG[None])
        in_time_NC = self.time_s_PSR[own].max(axis=2) <= self.limit_s_N[:, None]
        in_memory_NC = (units_CG[None] <= self.cap_NG[:, None, :]).all(axis=2)
        cheap_NC = self.busy_j_PSR[own].sum(axis=2) < self.spare_j_N[:, None]
        row_n, choice_n = np.nonzero(in_time_NC & in_memory_NC & cheap_NC)
        return row_n, units_CG[choice_n]

    def fastest_units(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """The allocation within the tightest limit; what is too much is taken from the largest shares."""
        everyone_N = np.arange(len(self.rows.span_N))
        sorted_NE, tightest_N = self._limits(everyone_N, units)
        time_NGR = self.time_s_PSR[self.rows.slot_NG, self.rows.span_N[:, None]]
        units_NG = (time_NGR[:, :, 1:] <= tightest_N[:, None, None]).sum(axis=2)
        units_NG = np.minimum(units_NG, self.cap_NG)
        open_N = np.flatnonzero((tightest_N <= self.limit_s_N) & np.isfinite(sorted_NE[:, units - 1]))
        units_NG = units_NG[open_N]
        while True:
            over_n = np.flatnonzero(units_NG.sum(axis=1) > units)
            if len(over_n) == 0:
                return open_N, units_NG
            units_NG[over_n, units_NG[over_n].argmax(axis=1)] -= 1

    def cheapest_units(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """The cheapest allocation within every limit that changes it."""
        open_N, units_NG = self.loosest_units(units)
        if self.rows.slot_NG.shape[1] == 1 or len(open_N) == 0:
            return open_N, units_NG
        return self._at_every_limit(open_N, units)

    def loosest_units(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """The cheapest allocation within the loosest limit."""
        least_N, units_NG = _cheapest(self._cost(self.limit_s_N), units)
        open_N = np.flatnonzero(least_N < self.spare_j_N)
        return open_N, units_NG[open_N]

    def _cost(self, limit_s_N: np.ndarray, pick_N: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Joules of every place and number of units, infinite beyond the limit or the memory."""
        slot_NG, span_N = self.rows.slot_NG[pick_N], self.rows.span_N[pick_N]
        time_NGR = self.time_s_PSR[slot_NG, span_N[:, None]]
        cost_NGR = self.busy_j_PSR[slot_NG, span_N[:, None]]
        units_R = np.arange(time_NGR.shape[2])
        open_NGR = (time_NGR <= limit_s_N[:, None, None]) & (units_R <= self.cap_NG[pick_N][:, :, None]) & (units_R > 0)
        return np.where(open_NGR, cost_NGR, np.inf)

    def _limits(self, part_N: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
        """All limits at which the shares can change, rising, and the tightest one that leaves room for all units."""
        time_NGR = self.time_s_PSR[self.rows.slot_NG[part_N], self.rows.span_N[part_N][:, None]]
        units_R = np.arange(units + 1)
        usable_NGR = (units_R > 0) & (units_R <= self.cap_NG[part_N][:, :, None])
        sorted_NE = np.sort(np.where(usable_NGR, time_NGR, np.inf).reshape(len(part_N), -1), axis=1)
        return sorted_NE, np.maximum(sorted_NE[:, units - 1], time_NGR[:, :, 1].max(axis=1))

    def _at_every_limit(self, open_N: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
        """From the tightest limit that leaves room for all units to the loosest, where the joules fall."""
        picked: list[np.ndarray] = []
        found: list[np.ndarray] = []
        places_n = self.rows.slot_NG.shape[1]
        for part_N in np.array_split(open_N, max(len(open_N) * places_n * units // _CHUNK, 1)):
            sorted_NE, tightest_N = self._limits(part_N, units)
            in_use_NE = (sorted_NE >= tightest_N[:, None]) & (sorted_NE <= self.limit_s_N[part_N][:, None])
            in_use_NE[:, 1:] &= sorted_NE[:, 1:] > sorted_NE[:, :-1]
            row_n, limit_n = np.nonzero(in_use_NE)
            own_n = part_N[row_n]
            least_n, units_nG = _cheapest(self._cost(sorted_NE[row_n, limit_n], own_n), units)
            # Limits rise within a row: a looser one is of use only where it is cheaper than every tighter one.
            better_n = least_n < self.spare_j_N[own_n]
            better_n[1:] &= (row_n[1:] != row_n[:-1]) | (least_n[1:] < least_n[:-1] * (1 - 1e-12))
            picked.append(own_n[better_n])
            found.append(units_nG[better_n])
        return np.concatenate(picked), np.concatenate(found)


def _cheapest(cost_NGR: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Share all units over the places with the least joules: joules and units, shapes (n,) and (n, G)."""
    rows_n, places_n, _ = cost_NGR.shape
    total_NR = cost_NGR[:, 0]
    taken: list[np.ndarray] = []
    for place in range(1, places_n):
        best_NR = np.full_like(total_NR, np.inf)
        own_NR = np.zeros(total_NR.shape, dtype=np.int16)
        for own in range(1, units + 1):
            sum_NR = total_NR[:, : units + 1 - own] + cost_NGR[:, place, own, None]
            better_NR = sum_NR < best_NR[:, own:]
            np.copyto(best_NR[:, own:], sum_NR, where=better_NR)
            np.copyto(own_NR[:, own:], own, where=better_NR)
        total_NR = best_NR
        taken.append(own_NR)
    left_N = np.full(rows_n, units)
    units_NG = np.zeros((rows_n, places_n), dtype=np.int64)
    for place in range(places_n - 1, 0, -1):
        units_NG[:, place] = taken[place - 1][np.arange(rows_n), left_N]
        left_N = left_N - units_NG[:, place]
    units_NG[:, 0] = left_N
    return total_NR[:, units], units_NG


def least_by_counts(counts_VT: np.ndarray, cost_TRS: np.ndarray) -> Iterator[np.ndarray]:
    """Least joules to share all units over each count vector, by min-plus convolution; one row (S,) per vector.

    The types are split in two halves, whose partial sums many vectors have in common.
    """
    half = len(cost_TRS) // 2
    sides: tuple[dict[tuple[int, ...], np.ndarray], ...] = ({}, {})
    for counts in counts_VT.tolist():
        left_RS = _side_cost(sides[0], tuple(counts[:half]), cost_TRS[:half])
        right_RS = _side_cost(sides[1], tuple(counts[half:]), cost_TRS[half:])
        yield (left_RS + right_RS[::-1]).min(axis=0)


def least_of_many(devices_n: int, cost_RS: np.ndarray) -> np.ndarray:
    """A bound on the joules to share all units over many devices of one type, shape (S,).

    On average each takes ``units / devices_n``; no mean of joules lies below the line between two numbers of units.
    """
    units = len(cost_RS) - 1
    mean = units / devices_n
    least_S = np.full(cost_RS.shape[1], np.inf)
    for fewer in range(1, int(mean) + 1):
        if fewer == mean:
            least_S = np.minimum(least_S, cost_RS[fewer])
            continue
        more_n = np.arange(int(mean) + 1, units + 1)
        part_n = (mean - fewer) / (more_n - fewer)
        between_nS = cost_RS[fewer] * (1 - part_n)[:, None] + cost_RS[more_n] * part_n[:, None]
        least_S = np.minimum(least_S, between_nS.min(axis=0, initial=np.inf))
    return devices_n * least_S


def _side_cost(known: dict[tuple[int, ...], np.ndarray], counts: tuple[int, ...], cost_TRS: np.ndarray) -> np.ndarray:
    """Joules of every number of units on some of the devices, each taking at least one unit."""
    found = known.get(counts)
    if found is not None:
        return found
    devices_n = sum(counts)
    last = max((index for index, count in enumerate(counts) if count), default=None)
    if last is None:
        found = np.full(cost_TRS.shape[1:], np.inf)
        found[0] = 0.0
    elif devices_n == 1:
        found = cost_TRS[last]
    else:
        fewer = (*counts[:last], counts[last] - 1, *counts[last + 1 :])
        found = _convolved(_side_cost(known, fewer, cost_TRS), cost_TRS[last], least=devices_n - 1)
    known[counts] = found
    return found


def _convolved(left_RS: np.ndarray, right_RS: np.ndarray, *, least: int) -> np.ndarray:
    """Min-plus convolution along the units; the left takes at least so many of them, the right one."""
    units = len(left_RS) - 1
    best_RS = np.full_like(left_RS, np.inf)
    sum_RS = np.empty_like(left_RS)
    # Whole rows lie behind one another: twice as fast as with the units along them.
    for own in range(1, units + 1 - least):
        many = slice(least, units + 1 - own)
        np.add(left_RS[many], right_RS[own], out=sum_RS[many])
        np.minimum(best_RS[least + own :], sum_RS[many], out=best_RS[least + own :])
    return best_RS


def _compositions(units: int, places_n: int) -> np.ndarray:
    """All shares of at least 1 that add up to ``units``, shape (n, places)."""
    cuts = itertools.combinations(range(1, units), places_n - 1)
    return np.array([np.diff((0, *cut, units)) for cut in cuts], dtype=np.int64).reshape(-1, places_n)
