"""The provably best plan: every stage, group, share, operating point and micro-batch size, by bounds and dominance.

The round's length couples all stages: every device that waits pays for it. So the search looks at one window of
round lengths after another. Inside a window waiting is bounded from below by the window's short end, joules add up
over the stages, and shortest paths over (layers, devices left) bound every plan (:mod:`.stage_bounds`), as they
bound the way of a micro-batch through the stages (:mod:`.round_bounds`). Windows
that cannot beat the best plan known are closed; wide ones are split; in narrow ones pipelines are built from the
last stage, as labels that are dropped when another is better in everything that can matter (:mod:`.labels`).
What remains of the bounds when the search ends is the certificate.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import NamedTuple

import msgspec

from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import load_planner
from greentrain.planners.candidate import best_of, certified, lower_bound
from greentrain.planners.goal import BestGoal, FrontierGoal, minimising_energy, minimising_time
from greentrain.planners.options import Window
from greentrain.planners.round_bounds import Reach
from greentrain.planners.search_space import OutOfTimeError, SearchSpace
from greentrain.planners.single import candidates as single_candidates
from greentrain.planners.window_search import TooManyError, WindowSearch

__all__ = ["FoundFrontier", "finalists", "frontier", "plan"]

DEFAULT_TIME_LIMIT_S = 30.0

# Windows wider than this are split unless only few ways to run a stage are left in them.
_WIDEST_WINDOW = 1.25
_WIDEST_IN_TIME = 1.05
_ROUNDING = 1 + 1e-9
_NARROWEST_WINDOW = 1.002
# Where time weighs as much as joules the fastest plan is looked for first, in this part of the time, this close.
_PART_FOR_FASTEST, _NEARLY_FASTEST = 0.3, 0.01
# No round is looked for below a limit that no plan can keep; the limit rises in steps that become smaller.
_FIRST_STEP = 2.0
_LAST_STEP = 1.2
_FEW_CONFIGURATIONS = 2_000
_MOST_CONFIGURATIONS = 150_000
# Windows with more ways to run a stage are looked at quickly first.
_QUICK_LOOK = 3_000
# A search that takes longer than this part of its time looks at the plans of these planners too, the last one first,
# and at the others later by such parts. A window that takes long is left in time to look at all of them.
_BASELINES_AFTER, _BASELINES_APART = 0.2, 0.1
_SEARCH_UNTIL = 0.9
_BASELINES = ("pipeline", "dapple", "data-equal", "data", "asteroid")


def plan(
    problem: Problem,
    *,
    must_use: str | None = None,
    must_avoid: str | None = None,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    gap_ratio: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """The best plan under the cost model, with the gap that is left when the time runs out.

    Args:
        problem: Model, cluster and objective.
        must_use: Only plans with this device count; for explanations.
        must_avoid: Only plans without this device count. Unlike in a smaller cluster it stays on.
        time_limit_s: Seconds after which the best plan so far is returned with its gap.
        gap_ratio: A gap that is good enough; 0 for the optimum.
        progress: Told how far the search is.

    Raises:
        InfeasibleError: No plan satisfies the constraints.
        NotSupportedError: The cluster has too many devices of too many types.
    """
    return finalists(
        problem, must_use=must_use, must_avoid=must_avoid, time_limit_s=time_limit_s, gap_ratio=gap_ratio,
        progress=progress,
    )[0]  # fmt: skip


def finalists(
    problem: Problem,
    *,
    must_use: str | None = None,
    must_avoid: str | None = None,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    gap_ratio: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> tuple[Plan, ...]:
    """The best plan under the cost model and some that are nearly as good, best first; see :func:`plan`."""
    goal = BestGoal(problem, gap_ratio=gap_ratio)
    stop_at_s = time.monotonic() + time_limit_s
    space = SearchSpace(problem, goal, must_use=must_use, must_avoid=must_avoid, stop_at_s=stop_at_s)
    search = _Search(space, progress)
    bound = search.run()
    if goal.plan is None:
        if must_use is None and must_avoid is None:
            return (best_of(single_candidates(problem, space.cost_tables), problem, "exact"),)
        wish = f"uses device {must_use!r}" if must_use is not None else f"goes without device {must_avoid!r}"
        raise InfeasibleError(f"no feasible plan {wish}.", hint="Relax the limits.")
    bound = min(bound, goal.proven)
    # The plan known first comes from the single devices.
    named = (msgspec.structs.replace(found, planner="exact") for found in goal.finalists)
    return tuple(certified(found, problem, bound, search.method(), space.considered_n) for found in named)


class FoundFrontier(NamedTuple):
    """Plans that no other beats in both time and energy.

    Attributes:
        plans: The plans, fastest first.
        whole: Whether these are proven to be all; not when the time was over or a window held too much.
    """

    plans: tuple[Plan, ...]
    whole: bool


def frontier(
    problem: Problem,
    *,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[str], None] | None = None,
) -> FoundFrontier:
    """Every plan that no other beats in both time and energy.

    Args:
        problem: Model, cluster and limits.
        time_limit_s: Seconds after which the plans found so far are returned.
        progress: Told how far the search is.

    Raises:
        InfeasibleError: No plan satisfies the constraints.
    """
    stop_at_s = time.monotonic() + time_limit_s
    goal = FrontierGoal(problem)
    fastest = plan(minimising_time(problem), time_limit_s=time_limit_s / 4, progress=progress)
    leanest = plan(minimising_energy(problem), time_limit_s=time_limit_s / 4, progress=progress)
    for end in (fastest, leanest):
        goal.offer(end)
    assert fastest.certificate is not None
    # No round is shorter than the fastest plan's bound, so nothing in front of it is looked at.
    shortest_s = (fastest.certificate.lower_bound or 0.0) * problem.batch
    space = SearchSpace(problem, goal, stop_at_s=stop_at_s)
    left_open = _Search(space, progress, shortest_s=shortest_s * (1 - 1e-9)).run()
    plans = tuple(msgspec.structs.replace(found, planner="exact") for found in goal.plans)
    return FoundFrontier(plans, whole=left_open == inf)


class _OpenWindow(NamedTuple):
    """A window that may still hold a better plan; the heap gives the one with the least bound."""

    bound: float
    order: int
    micro_batch: int
    window: Window
    wider: Reach | None


@dataclass
class _Search:
    """Best-first over windows of round lengths.

    Attributes:
        space: The plans.
        progress: Told how far the search is.
        shortest_s: No round is known to be shorter.
    """

    space: SearchSpace
    progress: Callable[[str], None] | None
    shortest_s: float = 0.0
    _heap: list[_OpenWindow] = field(default_factory=list[_OpenWindow])
    _order: int = 0
    _given_up: float = inf

    def run(self) -> float:
        """Search; returns a bound on the objective that no plan of the space beats."""
        begun_s, stop_at_s = time.monotonic(), self.space.stop_at_s
        self._start()
        baselines, hurried = list(_BASELINES), False
        self.space.stop_at_s = begun_s + _SEARCH_UNTIL * (stop_at_s - begun_s)
        while self._heap:
            least = self._heap[0]
            if self.space.goal.closes(least.bound):
                heapq.heappop(self._heap)
                continue
            now_s = time.monotonic()
            part = _BASELINES_AFTER + _BASELINES_APART * (len(_BASELINES) - len(baselines))
            due = hurried or now_s > begun_s + part * (stop_at_s - begun_s)
            try:
                if baselines and due and now_s < stop_at_s:
                    self._offer_baseline(baselines.pop())
                    if not baselines:
                        self.space.stop_at_s = stop_at_s
                else:
                    self.space.check_time()
                    self._look(least)
            except OutOfTimeError:
                if hurried or not baselines:
                    break
                hurried = True  # The window that was left waits where it was.
            except KeyboardInterrupt:
                # What was interrupted stays open, so the bound holds.
                if not self.space.goal.found:
                    raise
                break
        return min([self._given_up, *(waiting.bound for waiting in self._heap)])

    def _offer_baseline(self, name: str) -> None:
        """A search that takes long is never worse than the plain planners."""
        try:
            self.space.offer(load_planner(name)(self.space.problem))
        except (InfeasibleError, NotSupportedError):
            return

    def method(self) -> str:
        """How the certificate was found."""
        which = (
            "all shares" if self.space.all_shares else "shares that are cheapest within a limit on the slowest device"
        )
        return f"branch and bound over round lengths, dominance over stages, devices and operating points; {which}"

    def _start(self) -> None:
        """The best single device as the first plan known, and one window per micro-batch size."""
        space = self.space
        slowdown = space.problem.objective.max_slowdown
        if slowdown is not None and isinstance(space.goal, BestGoal):
            space.goal.slowest_s = slowdown * self._fastest_s()
        for found in single_candidates(space.problem, space.cost_tables):
            space.offer(found)
        fluid_s = 0.5 * lower_bound(minimising_time(space.problem)) * space.problem.batch
        shortest_s = max(self.shortest_s, fluid_s)
        if isinstance(space.goal, BestGoal) and space.goal.by_energy and self._time_weighs:
            shortest_s = max(shortest_s, self._offer_fastest())
        for micro_batch in space.tables_of:
            possible_s = self._shortest_s(micro_batch, shortest_s)
            self._push(micro_batch, Window(possible_s, space.longest_round_s(micro_batch)))

    @property
    def _time_weighs(self) -> bool:
        """Whether fast plans are good ones: all devices wait for the round, or its length is a factor."""
        minimise = self.space.problem.objective.minimise
        return minimise == "edp" or (self.space.base_w > 0 and minimise != "time")

    def _offer_fastest(self) -> float:
        """Take the fastest plan into account; no round is shorter than what is returned."""
        problem = self.space.problem
        left_s = max(self.space.stop_at_s - time.monotonic(), 0.0)
        try:
            fastest = plan(minimising_time(problem), time_limit_s=_PART_FOR_FASTEST * left_s, gap_ratio=_NEARLY_FASTEST)
        except InfeasibleError:
            return 0.0
        assert fastest.certificate is not None
        self.space.offer(msgspec.structs.replace(fastest, objective=problem.objective, planner="exact"))
        return (fastest.certificate.lower_bound or 0.0) * problem.batch * (1 - 1e-9)

    def _shortest_s(self, micro_batch: int, shortest_s: float) -> float:
        """A limit within which no round of this micro-batch size can end, but perhaps within a slightly longer one."""
        rounds = self.space.tables_of[micro_batch].rounds
        longest_s = self.space.longest_round_s(micro_batch)
        step = _FIRST_STEP
        while shortest_s < longest_s and step > _LAST_STEP and time.monotonic() < self.space.stop_at_s:
            if rounds.within(step * shortest_s).possible:
                step = sqrt(step)
            else:
                shortest_s *= step
        return shortest_s

    def _fastest_s(self) -> float:
        left_s = max(self.space.stop_at_s - time.monotonic(), 0.1) / 2
        fastest = plan(minimising_time(self.space.problem), time_limit_s=left_s, progress=self.progress)
        assert fastest.estimate is not None
        return fastest.estimate.step_s

    def _push(self, micro_batch: int, window: Window, wider: Reach | None = None) -> None:
        space = self.space
        window = Window(window.low_s, min(window.high_s, space.goal.limit_s()))
        if window.high_s < window.low_s:
            return
        plan_j = 0.0
        if space.goal.by_energy or window.high_s <= _WIDEST_IN_TIME * _ROUNDING * window.low_s:
            bounds = space.bounds(micro_batch, window, wider)
            plan_j, wider = bounds.joules.plan_j, bounds.reach
        bound = space.goal.least_value(window.low_s, plan_j + space.base_w * window.low_s)
        if not space.goal.closes(bound):
            self._order += 1
            heapq.heappush(self._heap, _OpenWindow(bound, self._order, micro_batch, window, wider))

    def _look(self, least: _OpenWindow) -> None:
        """Build the window's pipelines, or split it; either way it is done with."""
        goal = self.space.goal
        window = Window(least.window.low_s, min(least.window.high_s, goal.limit_s()))
        ratio = window.high_s / window.low_s
        if not goal.by_energy and ratio > _WIDEST_IN_TIME * _ROUNDING:
            self._replace(least, _split(window, _WIDEST_IN_TIME * window.low_s), None)
            return
        # Joules tell most plans apart even in a wide window; seconds alone do not.
        wide = ratio > _WIDEST_WINDOW
        # Of a frontier every plan is wanted, so joules prune little where the window is wide.
        few = 0 if isinstance(goal, FrontierGoal) else _FEW_CONFIGURATIONS
        most = few if wide else _MOST_CONFIGURATIONS
        shares = "all" if self.space.all_shares else "cheapest"
        bounds = self.space.bounds(least.micro_batch, window, least.wider)
        parts: tuple[Window, ...] = ()
        search = WindowSearch(self.space, least.micro_batch, window, bounds, most, shares)
        try:
            if shares == "cheapest" and goal.by_energy and _QUICK_LOOK < search.configurations_n <= most:
                # A good plan soon leaves less to look at.
                WindowSearch(self.space, least.micro_batch, window, bounds, most, "ends").run()
            search.run()
        except TooManyError:
            if ratio < _NARROWEST_WINDOW:
                self._given_up = min(self._given_up, least.bound)  # Its bound stays part of the certificate.
            else:
                parts = _split(window, sqrt(window.low_s * window.high_s))
        self._replace(least, parts, bounds.reach)

    def _replace(self, least: _OpenWindow, parts: tuple[Window, ...], wider: Reach | None) -> None:
        """Open the parts of a window in its place."""
        for part in parts:
            self._push(least.micro_batch, part, wider)
        self._heap = [waiting for waiting in self._heap if waiting.order != least.order]
        heapq.heapify(self._heap)
        if self.progress is not None:
            self.progress(f"{len(self._heap)} windows open, {self.space.considered_n} pairs of stages considered")


def _split(window: Window, middle_s: float) -> tuple[Window, Window]:
    return Window(window.low_s, middle_s), Window(middle_s, window.high_s)
