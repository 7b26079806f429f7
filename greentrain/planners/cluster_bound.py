"""What no plan on a large cluster beats: windows of round lengths, bounded twice.

A quick bound lets every row of every stage run on its cheapest device. Where all links are alike a dear one follows:
every device may take any other's place, so that only their number counts, with gradient sums, cuts and the way of a
micro-batch through the stages (:class:`greentrain.planners.search_space.SearchSpace`). The window whose bound is
least is looked at next, until it is narrow or the time is over.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import NamedTuple

import numpy as np

from greentrain.cost import CostTables
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Problem
from greentrain.planners.candidate import lower_bound
from greentrain.planners.cuts import least_cut_j_S
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.goal import BestGoal, minimising_time
from greentrain.planners.options import Window
from greentrain.planners.search_space import SearchSpace, all_span_tables
from greentrain.planners.span_tables import SpanTables, counted_w

__all__ = ["ClusterBound"]

# Windows of round lengths are split until they are this narrow.
_NARROW = 1.003
# Wider ones are not worth the dear bound.
_WIDEST_POOLED = 1.35


class _Open(NamedTuple):
    """A window that may hold a better plan; the heap gives the one with the least bound."""

    value: float
    order: int
    micro_batch: int
    window: Window
    pooled: bool


@dataclass
class ClusterBound:
    """Looks for a value that no plan on the whole cluster beats.

    Attributes:
        problem: Model, cluster and objective.
        types: Device types.
        value: The objective of the best plan known; infinite without one.
        stop_at_s: Monotonic time at which the bound is taken as it is.
    """

    problem: Problem
    types: DeviceTypes
    value: float
    stop_at_s: float
    _goal: BestGoal = field(init=False)
    _spans_of: dict[int, list[SpanTables]] = field(init=False)
    _heap: list[_Open] = field(default_factory=list[_Open])
    _order: int = 0

    def __post_init__(self) -> None:
        self._goal = BestGoal(self.problem)
        self._goal.value = self.value
        tables = CostTables(self.problem)
        self._spans_of = {
            size: all_span_tables(self.problem, self.types, size, tables, by_energy=self._goal.by_energy)
            for size in self.problem.micro_batches
        }

    def find(self) -> float:
        """The bound; the value of the best plan where nothing is open below it."""
        shortest_s = 0.5 * lower_bound(minimising_time(self.problem)) * self.problem.batch
        longest_s = min(self._goal.limit_s(), 1e6 * shortest_s)
        for size in self.problem.micro_batches:
            self._push(0.0, size, Window(shortest_s, longest_s), pooled=False)
        while self._heap:
            least = heapq.heappop(self._heap)
            window = least.window
            if time.monotonic() > self.stop_at_s or window.high_s < window.low_s * _NARROW:
                return least.value
            if not least.pooled and window.high_s < window.low_s * _WIDEST_POOLED and self._pool is not None:
                self._push(least.value, least.micro_batch, window, pooled=True)
                continue
            middle_s = sqrt(window.low_s * window.high_s)
            for part in (Window(window.low_s, middle_s), Window(middle_s, window.high_s)):
                self._push(least.value, least.micro_batch, part, pooled=False)
        return self.value

    @cached_property
    def _pool(self) -> SearchSpace | None:
        """The space in which every device may take any other's place; None where links differ or all is too large."""
        if not self.types.uniform:
            return None
        try:
            return SearchSpace(self.problem, self._goal, pooled=True)
        except (NotSupportedError, InfeasibleError):
            return None

    def _push(self, at_least: float, size: int, window: Window, *, pooled: bool) -> None:
        if pooled:
            assert self._pool is not None
            round_j = self._pool.bounds(size, window).joules.plan_j
        else:
            round_j = _least_round_j(self.problem, self._spans_of[size], window)
        round_j += counted_w(self.problem) * window.low_s
        value = max(at_least, self._goal.least_value(window.low_s, round_j))
        if value < self.value:
            self._order += 1
            heapq.heappush(self._heap, _Open(value, self._order, size, window, pooled))


def _least_round_j(problem: Problem, tables: Sequence[SpanTables], window: Window) -> float:
    """Joules of a round of the window at least: every unit of every stage on its cheapest device."""
    spans = tables[0]
    stage_j_S = np.min([_least_stage_j(own, window) for own in tables], axis=0) + least_cut_j_S(problem, spans)
    least_j_L = np.full(spans.span_LL.shape[0], np.inf)
    least_j_L[0] = 0.0
    for stop in range(1, len(least_j_L)):
        least_j_L[stop] = (least_j_L[:stop] + stage_j_S[spans.span_LL[:stop, stop]]).min()
    return float(least_j_L[-1])


def _least_stage_j(spans: SpanTables, window: Window) -> np.ndarray:
    time_s_PSR = (spans.forward_s_PSR + spans.backward_s_PSR)[:, :, 1:]
    busy_s_PSR = time_s_PSR * spans.micro_batches_n + spans.update_s_PSR[:, :, 1:]
    wait_j_P = np.minimum(spans.more_w_P * window.low_s, spans.more_w_P * window.high_s)
    cost_PSR = busy_s_PSR * spans.rise_w_P[:, None, None] + wait_j_P[:, None, None]
    per_unit_PSR = np.where(busy_s_PSR <= window.high_s, cost_PSR / np.arange(1, spans.units + 1), np.inf)
    return np.where(spans.shared_S, spans.units * per_unit_PSR.min(axis=(0, 2)), np.inf)
