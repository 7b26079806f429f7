"""Asking a planner, with what a person may set: time, gap, progress and Ctrl-C."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import click
import msgspec

from greentrain.cli._progress import Patience
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import auto, beam, exact, load_planner
from greentrain.planners.candidate import certified, lower_bound, objective_value

__all__ = ["Frontier", "Planning", "certified_on"]

_SEARCHING = ("auto", "exact", "beam")
# Looking for the relaxation of a limit may not take long.
_DIAGNOSIS_S = 3.0
_DIAGNOSIS_GAP = 1e-3


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """Plans that no other beats in both time and energy, fastest first.

    Attributes:
        plans: The plans.
        exact: Whether these are all of them.
        method: How they were found.
    """

    plans: tuple[Plan, ...]
    exact: bool
    method: str


@dataclass
class Planning:
    """A planner with its settings.

    Attributes:
        planner: Value of ``--planner``.
        patience: Progress and Ctrl-C.
        time_limit_s: Seconds for a search (None = the planner's own).
        gap_ratio: Gap that is good enough (None = 0).
        searched_s: What the last search took.
    """

    planner: str
    patience: Patience
    time_limit_s: float | None
    gap_ratio: float | None
    searched_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        wished = self.time_limit_s is not None or self.gap_ratio is not None
        if wished and self.planner not in _SEARCHING:
            raise click.UsageError(f"--time-limit and --gap go with the planners {', '.join(_SEARCHING)}.")

    @property
    def searches(self) -> bool:
        """Whether the plan is the best of a search, not what a rule gives."""
        return self.planner in _SEARCHING

    def finalists(self, problem: Problem) -> tuple[Plan, ...]:
        """The planner's plan, and where it is the exact one also those that are nearly as good; best first.

        Raises:
            InfeasibleError: No plan satisfies the constraints.
        """
        begun_s = time.monotonic()
        problem = _planned(problem)
        try:
            if self.planner == "exact" or (self.planner == "auto" and auto.is_exact(problem)):
                return exact.finalists(
                    problem,
                    time_limit_s=exact.DEFAULT_TIME_LIMIT_S if self.time_limit_s is None else self.time_limit_s,
                    gap_ratio=self.gap_ratio or 0.0,
                    progress=self.patience.report,
                )
            return (self._ask(problem, self.time_limit_s, self.gap_ratio or 0.0),)
        except InfeasibleError as error:
            if self.time_limit_s is not None and time.monotonic() - begun_s >= self.time_limit_s:
                error.hint = "The search ended with --time-limit; a longer one may find a plan."
            raise
        finally:
            self.searched_s = time.monotonic() - begun_s

    def quick(self, problem: Problem) -> Plan:
        """A plan in little time, to tell how far a limit must be relaxed.

        Raises:
            InfeasibleError: No plan satisfies the constraints.
        """
        return self._ask(problem, min(self.time_limit_s or _DIAGNOSIS_S, _DIAGNOSIS_S), _DIAGNOSIS_GAP)

    def fastest(self, problem: Problem) -> Plan | None:
        """The time-optimal plan under the same limits, in no more time than the plan took, or 2 s."""
        objective = msgspec.structs.replace(problem.objective, minimise="time", max_slowdown=None)
        limit_s = max(self.searched_s, 2.0)
        if self.time_limit_s is not None:
            limit_s = min(limit_s, self.time_limit_s)
        try:
            return self._ask(msgspec.structs.replace(problem, objective=objective), limit_s, self.gap_ratio or 0.0)
        except InfeasibleError:
            return None

    def frontier(self, problem: Problem) -> Frontier:
        """The time-energy frontier; of many devices only some of its plans.

        Raises:
            InfeasibleError: No plan satisfies the constraints.
        """
        if self.planner not in ("auto", "exact"):
            raise click.UsageError("--frontier is made by the exact planner; leave out --planner.")
        limit_s = exact.DEFAULT_TIME_LIMIT_S if self.time_limit_s is None else self.time_limit_s
        problem = _planned(problem)
        begun_s = time.monotonic()
        if self.planner == "exact" or auto.is_exact(problem):
            plans, whole = exact.frontier(problem, time_limit_s=limit_s, progress=self.patience.report)
            whole = whole and not self.patience.interrupted
            method = "branch and bound over round lengths" + ("" if whole else "; cut short, plans may be missing")
        else:
            plans, whole = beam.frontier(problem, time_limit_s=limit_s, progress=self.patience.report)
            method = "beam: the fastest, the leanest and some between; there are more"
        self.searched_s = time.monotonic() - begun_s
        plans = tuple(msgspec.structs.replace(plan, objective=problem.objective) for plan in plans)
        return Frontier(plans=_within_slowdown(plans, problem), exact=whole, method=method)

    def _ask(self, problem: Problem, time_limit_s: float | None, gap_ratio: float) -> Plan:
        report = self.patience.report
        problem = _planned(problem)
        if self.planner == "exact":
            limit_s = exact.DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
            return exact.plan(problem, time_limit_s=limit_s, gap_ratio=gap_ratio, progress=report)
        if self.planner == "beam":
            limit_s = beam.DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
            return beam.plan(problem, time_limit_s=limit_s, progress=report)
        if self.planner == "auto":
            return auto.plan(problem, time_limit_s=time_limit_s, gap_ratio=gap_ratio, progress=report)
        return load_planner(self.planner)(problem)


def _planned(problem: Problem) -> Problem:
    """What the planners are given: where layers are computed again, none has heads to share out."""
    if not problem.recompute:
        return problem
    layers = tuple(msgspec.structs.replace(layer, heads=0, sequence=0) for layer in problem.model.layers)
    return msgspec.structs.replace(problem, model=msgspec.structs.replace(problem.model, layers=layers))


def _time_and_energy(plan: Plan) -> tuple[float, float]:
    assert plan.estimate is not None
    return plan.estimate.step_s, plan.estimate.round_energy_j


def _within_slowdown(plans: tuple[Plan, ...], problem: Problem) -> tuple[Plan, ...]:
    slowdown = problem.objective.max_slowdown
    if slowdown is None:
        return plans
    longest_s = slowdown * _time_and_energy(plans[0])[0] * (1 + 1e-12)
    return tuple(plan for plan in plans if _time_and_energy(plan)[0] <= longest_s)


def certified_on(frontier: Frontier, plan: Plan, problem: Problem) -> Plan:
    """A plan of a frontier with its proof: the best of all where the frontier is whole."""
    best = min(objective_value(other) for other in frontier.plans)
    bound = best if frontier.exact else min(lower_bound(problem), best)
    return certified(plan, problem, bound, f"time-energy frontier: {frontier.method}", len(frontier.plans))
