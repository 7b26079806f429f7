"""Large clusters: a beam over sets of devices, each searched by the exact planner, with a proven gap.

The sets grow by one device of some type at a time, from the most promising ones; the plans of plain planners for
all devices are looked at, too. The bound of the certificate holds for every plan on the whole cluster
(:mod:`greentrain.planners.cluster_bound`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import msgspec
import numpy as np

from greentrain.cost import CostTables, estimate
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Objective, Problem
from greentrain.plan import Plan, allowed
from greentrain.planners import exact, load_planner
from greentrain.planners.candidate import best_of, certified, lower_bound, objective_value
from greentrain.planners.cluster_bound import ClusterBound
from greentrain.planners.device_types import DeviceTypes, device_types
from greentrain.planners.exact import FoundFrontier
from greentrain.planners.goal import FrontierGoal, minimising_energy, minimising_time
from greentrain.planners.single import candidates as single_candidates
from greentrain.planners.slowdown import slowdown_as_deadline

__all__ = ["frontier", "plan"]

DEFAULT_TIME_LIMIT_S = 25.0
_WIDTH = 3
# Sets with more count vectors are not searched any more.
_MOST_VECTORS = 200
# Planners for all devices: those that are looked at first where time is wanted, and those that are looked at last.
_FASTEST = ("asteroid",)
_BASELINES = ("data", "data-equal", "asteroid", "dapple")
# Parts of the time until which sets of devices are searched, the bound is looked for, and plain planners may begin.
_SEARCH_UNTIL, _BOUND_UNTIL, _BEGIN_UNTIL = 0.6, 0.95, 0.55
# Rounds between the fastest plan and the leanest one for which a frontier looks for the leanest plan.
_FRONTIER_STEPS_N = 6


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
    begun_s = time.monotonic()
    fastest: Plan | None = None
    limited = problem
    if problem.objective.max_slowdown is not None:
        fastest = plan(minimising_time(problem), time_limit_s=time_limit_s / 2, progress=progress)
        assert fastest.estimate is not None
        limited = slowdown_as_deadline(problem, fastest.estimate.step_s)
    search = _Beam(limited, begun_s + _SEARCH_UNTIL * time_limit_s, progress)
    search.run()
    search.best = search.best or fastest
    bound_until_s = begun_s + _BOUND_UNTIL * time_limit_s
    known = inf if search.best is None else objective_value(search.best)
    bound = ClusterBound(problem, search.types, known, bound_until_s).find()
    search.compare(begun_s + _BEGIN_UNTIL * time_limit_s)
    if search.best is None:
        return best_of(single_candidates(problem, CostTables(problem)), problem, "beam")
    searched = f"beam of {_WIDTH} over sets of devices, {search.sets_n} sets searched exactly"
    method = f"{searched}; bound: every device in any other's place, windows of round lengths"
    found = msgspec.structs.replace(search.best, planner="beam", objective=problem.objective)
    bound = min(max(lower_bound(problem), bound), objective_value(found))
    return certified(found, problem, bound, method, search.considered_n)


def frontier(
    problem: Problem,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[str], None] | None = None,
) -> FoundFrontier:
    """Plans that none found beats in both time and energy: the fastest, the leanest, and the leanest of rounds between.

    Never said to be whole.

    Raises:
        InfeasibleError: No plan that was tried satisfies the constraints.
    """
    begun_s = time.monotonic()
    goal = FrontierGoal(problem)
    searches_n = _FRONTIER_STEPS_N + 2

    def found_s(number: int, wanted: Problem) -> float | None:
        """Offers the plan of the search of that number; its round."""
        search = _Beam(wanted, begun_s + time_limit_s * (number + 1) / searches_n, progress)
        search.run()
        if search.best is None:
            return None
        found = msgspec.structs.replace(search.best, planner="beam", objective=problem.objective)
        price = estimate(found, problem)
        goal.offer(msgspec.structs.replace(found, estimate=price))
        return price.step_s

    shortest_s = found_s(0, minimising_time(problem))
    longest_s = found_s(1, minimising_energy(problem))
    if shortest_s is None or longest_s is None:
        best = plan(problem, time_limit_s=time_limit_s / searches_n, progress=progress)
        return FoundFrontier((best,), whole=False)
    for step in range(1, _FRONTIER_STEPS_N + 1):
        slowdown = (longest_s / shortest_s) ** (step / (_FRONTIER_STEPS_N + 1))
        leanest = minimising_energy(problem)
        objective = msgspec.structs.replace(leanest.objective, max_slowdown=max(slowdown, 1.0))
        found_s(step + 1, slowdown_as_deadline(msgspec.structs.replace(leanest, objective=objective), shortest_s))
    return FoundFrontier(goal.plans, whole=False)


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
        objective = self.problem.objective
        time_weighs = objective.minimise in ("time", "edp") or objective.count_idle_of_unused
        first = _FASTEST if time_weighs else ()
        self.compare(self.stop_at_s, first)
        self._grow()

    def _grow(self) -> None:
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

    def compare(self, until_s: float, names: tuple[str, ...] = _BASELINES) -> None:
        """Look at the plans of plain planners for all devices; none begins later than ``until_s``."""
        for name in names:
            if time.monotonic() > until_s:
                return
            try:
                found = load_planner(name)(self.problem)
            except (InfeasibleError, NotSupportedError):
                continue
            if allowed(found, self.problem):
                self._offer(found)

    def _offer(self, found: Plan) -> None:
        if self.best is None or objective_value(found) < objective_value(self.best):
            self.best = found

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
        self._offer(found)
        return _Set(_FEASIBLE, objective_value(found), counts)


def _infeasible(smaller: Problem, counts: tuple[int, ...]) -> _Set:
    """A set that breaks a limit: the faster the better, and the more memory where the model does not fit."""
    fastest = msgspec.structs.replace(smaller, objective=Objective(minimise="time"))
    try:
        found = exact.plan(fastest, time_limit_s=0.5, gap_ratio=0.05)
    except InfeasibleError:
        room_bytes = sum(device.memory_bytes for device in smaller.cluster.devices)
        return _Set(_NO_ROOM, 1 / room_bytes, counts)
    return _Set(_TOO_SLOW, objective_value(found), counts)
