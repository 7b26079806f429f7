"""Asking the exact planner again, within a time that all questions share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Literal, NamedTuple

import msgspec

from greentrain.cost import CostTables, estimate
from greentrain.errors import InfeasibleError
from greentrain.explain.nouns import Figures, Reason
from greentrain.objective import Problem
from greentrain.plan import Plan, parallelism_name
from greentrain.planners import exact, single
from greentrain.planners.auto import MOST_VECTORS, is_exact
from greentrain.planners.candidate import objective_value
from greentrain.planners.device_types import device_types
from greentrain.planners.slowdown import slowdown_as_deadline

__all__ = ["CLOSE", "OutOfTimeError", "Question", "Search", "best_plan", "text_of"]

# Objectives that differ by less are called equal.
CLOSE = 1e-4
_GAP = 1e-3
# A search that ends with a larger gap has found nothing to speak of.
_SETTLED = 0.02
_FEW_VECTORS = 48
# Better some answers than all questions begun.
_SHARE_S = 0.4
# Below this even the tables of a small problem are not made.
_SHORTEST_S = 0.02


class OutOfTimeError(Exception):
    """A question that the time does not suffice for."""


class Question(NamedTuple):
    """One thing to find out.

    Attributes:
        section: Where its answer belongs.
        topic: What it is about.
        ask: Gives the answer, or raises OutOfTimeError.
    """

    section: Literal["device", "limit", "runner-up", "change"]
    topic: str
    ask: Callable[[], Reason]


@dataclass
class Search:
    """The planner, the chosen plan and the time that is left.

    Attributes:
        plan: The chosen plan.
        problem: What it was chosen for.
        stop_at_s: Monotonic second at which nothing more is asked.
        fastest_s: Length of the fastest round, which a slowdown is measured against (None = not known).
        whole_s: Seconds that a search of the whole cluster is expected to take.
        questions_left: Questions that still share the time.
        whole: Whether every answer so far is about the whole cluster.
        found: Every feasible plan of the same problem that a question came upon.
    """

    plan: Plan
    problem: Problem
    stop_at_s: float
    fastest_s: float | None = None
    whole_s: float = 0.0
    questions_left: int = 1
    whole: bool = True
    found: list[Plan] = field(default_factory=list[Plan])

    def best(self, problem: Problem, *, must_use: str | None = None, must_avoid: str | None = None) -> Plan | None:
        """The best plan of a problem with its bound; None where there is none.

        A slowdown is kept as the longest round that it allows now, also on a faster network. Where the whole cluster
        would take too long, the plan's own devices and a few more are asked, and nothing is said about a bound.

        Raises:
            OutOfTimeError: The time does not suffice for an answer.
        """
        left_s = self.stop_at_s - time.monotonic()
        if self.fastest_s is not None:
            problem = slowdown_as_deadline(problem, self.fastest_s)
        share_s = min(left_s, max(2 * left_s / self.questions_left, _SHARE_S))
        if share_s < _SHORTEST_S:
            raise OutOfTimeError
        if is_exact(problem) and self.whole_s <= share_s:
            begun_s = time.monotonic()
            try:
                found = exact.plan(
                    problem, must_use=must_use, must_avoid=must_avoid, time_limit_s=share_s, gap_ratio=_GAP
                )
            except InfeasibleError:
                found = None
            if _settled(found) if found is not None else time.monotonic() - begun_s < share_s:
                return found
            self.whole_s = inf
        return self._among_few(problem, must_use, must_avoid, share_s)

    def _among_few(self, problem: Problem, must_use: str | None, must_avoid: str | None, share_s: float) -> Plan | None:
        smaller = self._smaller(problem, must_use, must_avoid)
        begun_s = time.monotonic()
        try:
            found = exact.plan(smaller, must_use=must_use, must_avoid=must_avoid, time_limit_s=share_s, gap_ratio=_GAP)
        except InfeasibleError as error:
            if time.monotonic() - begun_s >= share_s:
                raise OutOfTimeError from error
            self.whole = False
            return None
        if not _settled(found):
            raise OutOfTimeError
        self.whole = False
        return msgspec.structs.replace(found, estimate=estimate(found, problem), certificate=None)

    def _smaller(self, problem: Problem, must_use: str | None, must_avoid: str | None) -> Problem:
        """The plan's devices with those that the question is about, or with the one that is best alone."""
        known = {device.id for device in self.problem.cluster.devices}
        new = {device.id for device in problem.cluster.devices if device.id not in known}
        kept = set(self.plan.devices) | new | ({must_use} if must_use is not None else set())
        there = {device.id for device in problem.cluster.devices} - kept
        others = (found for found in self._alone if found.devices[0] in there)
        best = min(others, key=objective_value, default=None)
        wider = kept if best is None or new or must_use is not None else kept | set(best.devices)
        for names, most in ((wider, _FEW_VECTORS), (kept, MOST_VECTORS)):
            own = tuple(device.id for device in problem.cluster.devices if device.id in names)
            smaller = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(own))
            types = device_types(smaller)
            left = types if must_avoid is None else types.without(must_avoid)
            if left.names_T and types.vectors_n <= most:
                return smaller
        raise OutOfTimeError

    @cached_property
    def _alone(self) -> list[Plan]:
        """Plans on single devices."""
        return list(single.candidates(self.problem, CostTables(self.problem)))

    def figures(self, other: Plan) -> Figures:
        """What another plan costs beside the chosen one."""
        price = other.estimate
        assert price is not None
        value = objective_value(self.plan)
        bound = None if other.certificate is None else other.certificate.lower_bound
        return Figures(
            energy_j_per_sample=price.energy_j_per_sample,
            samples_per_s=price.samples_per_s,
            devices=other.devices,
            parallelism=parallelism_name(other),
            change_ratio=objective_value(other) / value - 1,
            at_least_ratio=None if bound is None else bound / value - 1,
        )

    def relaxed(self, problem: Problem) -> Plan:
        """The best plan where more is allowed than now, so that the chosen plan is still possible.

        Raises:
            OutOfTimeError: The time does not suffice for an answer.
        """
        own = msgspec.structs.replace(self.plan, estimate=estimate(self.plan, problem), certificate=None)
        found = self.best(problem)
        return found if found is not None and objective_value(found) < objective_value(own) * (1 - CLOSE) else own


def _settled(found: Plan) -> bool:
    """Whether the search came close enough to the best plan."""
    gap = None if found.certificate is None else found.certificate.gap_ratio
    return gap is not None and gap <= _SETTLED


def text_of(figures: Figures, minimise: str) -> str:
    """J/sample, samples/s and the change of the objective."""
    return (
        f"{figures.energy_j_per_sample:.3g} J/sample at {figures.samples_per_s:.3g} samples/s "
        f"({figures.change_ratio:+.1%} {minimise})"
    )


def best_plan(figures: Figures) -> str:
    """Names the plan; without a bound it is the best of those that were asked."""
    return "the best plan" if figures.at_least_ratio is not None else "the best plan found"
