"""Large clusters: a beam over sets of devices, each searched by the exact planner, with a proven gap.

The sets grow by one device of some type at a time, from the most promising ones. The bound of the certificate
holds for every plan on the whole cluster: within a window of round lengths a row of a stage costs at least what
the cheapest device takes for it, its waiting through the window included, and the stages' bounds add up.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import NamedTuple

import msgspec
import numpy as np

from greentrain.cost import CostTables, estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Objective, Problem
from greentrain.plan import Plan
from greentrain.planners import exact
from greentrain.planners.candidate import best_of, certified, lower_bound, objective_value
from greentrain.planners.cuts import least_cut_j_S
from greentrain.planners.device_types import DeviceTypes, device_types
from greentrain.planners.goal import BestGoal, minimising_time
from greentrain.planners.options import Window
from greentrain.planners.search_space import all_span_tables
from greentrain.planners.single import candidates as single_candidates
from greentrain.planners.slowdown import slowdown_as_deadline
from greentrain.planners.span_tables import SpanTables, counted_w

__all__ = ["plan"]

DEFAULT_TIME_LIMIT_S = 25.0
_WIDTH = 3
# Sets with more count vectors are not searched any more.
_MOST_VECTORS = 200
# Windows of round lengths are split until they are this narrow.
_NARROW = 1.003


def plan(
    problem: Problem,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """The best plan found on small sets of the devices, with a gap that holds for the whole cluster.

    Raises:
        InfeasibleError: No plan that was tried satisfies the constraints.
    """
    stop_at_s = time.monotonic() + time_limit_s
    fastest: Plan | None = None
    limited = problem
    if problem.objective.max_slowdown is not None:
        fastest = plan(minimising_time(problem), time_limit_s=time_limit_s / 2, progress=progress)
        assert fastest.estimate is not None
        limited = slowdown_as_deadline(problem, fastest.estimate.step_s)
    search = _Beam(limited, stop_at_s, progress)
    search.run()
    search.best = search.best or fastest
    if search.best is None:
        return best_of(single_candidates(problem, CostTables(problem)), problem, "beam")
    searched = f"beam of {_WIDTH} over sets of devices, {search.sets_n} sets searched exactly"
    method = f"{searched}; bound: every row on its cheapest device, waiting included"
    found = msgspec.structs.replace(search.best, planner="beam", objective=problem.objective)
    bound = min(max(lower_bound(problem), _bound(problem, search)), objective_value(found))
    return certified(found, problem, bound, method, search.considered_n)


_FEASIBLE, _TOO_SLOW, _NO_ROOM = range(3)


class _Set(NamedTuple):
    """Counts of devices per type, in the order in which sets are grown.

    Attributes:
        lacks: ``_FEASIBLE``, or what its plans lack.
        value: The objective of the best plan; less is better.
        counts: Devices of each type.
    """

    lacks: int
    value: float
    counts: tuple[int, ...]

    def is_better_than(self, other: _Set) -> bool:
        """Whether it is worth growing, beside the best set of the size before."""
        return self.lacks < other.lacks or (self.lacks == other.lacks and self.value < other.value * (1 - 1e-9))


@dataclass
class _Beam:
    """The sets of devices that were looked at, and the best plan on any of them."""

    problem: Problem
    stop_at_s: float
    progress: Callable[[str], None] | None
    best: Plan | None = None
    sets_n: int = 0
    considered_n: int = 0
    types: DeviceTypes = field(init=False)
    _seen: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])

    def __post_init__(self) -> None:
        self.types = device_types(self.problem)

    def run(self) -> None:
        """Grow the sets until no larger one is better, the time is over, or somebody interrupts."""
        beam = [_Set(_NO_ROOM, inf, (0,) * len(self.types.names_T))]
        while beam and time.monotonic() < self.stop_at_s:
            try:
                grown = [self._searched(counts) for before in beam for counts in self._larger(before.counts)]
            except KeyboardInterrupt:
                if self.best is None:
                    raise
                return
            least = beam[0]
            better = sorted(entry for entry in grown if entry is not None)
            beam = [entry for entry in better if entry.is_better_than(least)][:_WIDTH]

    def _larger(self, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The sets with one device more, or twice as many of a type, that were not looked at."""
        for index, names in enumerate(self.types.names_T):
            for more in {counts[index] + 1, 2 * counts[index]}:
                larger = (*counts[:index], more, *counts[index + 1 :])
                if counts[index] < more <= len(names) and larger not in self._seen:
                    self._seen.add(larger)
                    yield larger

    def _searched(self, counts: tuple[int, ...]) -> _Set | None:
        if self.progress is not None:
            self.progress(f"{self.sets_n} sets of devices searched, this one has {sum(counts)}")
        left_s = self.stop_at_s - time.monotonic()
        if left_s <= 0 or np.prod([count + 1 for count in counts]) > _MOST_VECTORS:
            return None
        names = [name for count, own in zip(counts, self.types.names_T, strict=True) for name in own[:count]]
        smaller = msgspec.structs.replace(self.problem, cluster=self.problem.cluster.restricted_to(tuple(names)))
        try:
            found = exact.plan(smaller, time_limit_s=min(left_s, 5.0), gap_ratio=0.001)
        except InfeasibleError:
            return _infeasible(smaller, counts)
        self.sets_n += 1
        if found.certificate is not None:
            self.considered_n += found.certificate.considered_n
        found = msgspec.structs.replace(found, estimate=estimate(found, self.problem))
        value = objective_value(found)
        if self.best is None or value < objective_value(self.best):
            self.best = found
        return _Set(_FEASIBLE, value, counts)


def _infeasible(smaller: Problem, counts: tuple[int, ...]) -> _Set:
    """A set that breaks a limit: the faster the better, and the more memory where the model does not fit."""
    fastest = msgspec.structs.replace(smaller, objective=Objective(minimise="time"))
    try:
        found = exact.plan(fastest, time_limit_s=0.5, gap_ratio=0.05)
    except InfeasibleError:
        room_bytes = sum(device.memory_bytes for device in smaller.cluster.devices)
        return _Set(_NO_ROOM, 1 / room_bytes, counts)
    return _Set(_TOO_SLOW, objective_value(found), counts)


def _bound(problem: Problem, search: _Beam) -> float:
    """A value that no plan on the whole cluster beats; windows are split where the bound is least."""
    goal = BestGoal(problem)
    goal.value = objective_value(search.best) if search.best is not None else inf
    base_w = counted_w(problem)
    tables = CostTables(problem)
    shortest_s = 0.5 * lower_bound(minimising_time(problem)) * problem.batch
    longest_s = min(goal.limit_s(), 1e6 * shortest_s)
    spans_of = {
        size: all_span_tables(problem, search.types, size, tables, by_energy=goal.by_energy)
        for size in problem.micro_batches
    }
    heap: list[tuple[float, int, int, Window]] = []

    def push(size: int, window: Window) -> None:
        value = goal.least_value(window.low_s, _least_round_j(problem, spans_of[size], window) + base_w * window.low_s)
        if value < goal.value:
            heapq.heappush(heap, (value, len(heap), size, window))

    for size in problem.micro_batches:
        push(size, Window(shortest_s, longest_s))
    while heap:
        value, _, size, window = heapq.heappop(heap)
        if window.high_s < window.low_s * _NARROW:
            return value
        middle_s = sqrt(window.low_s * window.high_s)
        push(size, Window(window.low_s, middle_s))
        push(size, Window(middle_s, window.high_s))
    return goal.value


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
