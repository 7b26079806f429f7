"""What a search wants: the best plan of an objective, or the whole time-energy frontier."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import msgspec

from greentrain.objective import ObjectiveKind, Problem
from greentrain.plan import Estimate, Plan
from greentrain.planners.candidate import objective_value

__all__ = ["NEAR", "BestGoal", "FrontierGoal", "Goal", "minimising_energy", "minimising_time"]

# A plan must be better by this part to count as better.
_STEP = 1e-10
# Plans within this of the best are finalists, that many at most.
NEAR = 1.01
_FINALISTS_N = 6


class Goal(Protocol):
    """Decides which plans are still of interest."""

    @property
    def by_energy(self) -> bool:
        """Whether joules matter at all."""
        ...

    @property
    def found(self) -> bool:
        """Whether a plan is known."""
        ...

    def least_value(self, round_s: float, round_j: float) -> float:
        """A figure, rising in both, that orders windows: no plan that takes as much has a lower one."""
        ...

    def limit_j(self, round_s: float) -> float:
        """A round of at least ``round_s`` seconds is of interest only below these joules."""
        ...

    def limit_s(self) -> float:
        """Rounds longer than this are of no interest."""
        ...

    def closes(self, value: float) -> bool:
        """Whether nothing of at least this value is of interest."""
        ...

    def offer(self, plan: Plan) -> None:
        """Take a feasible plan into account."""
        ...


def _job_limits(problem: Problem) -> tuple[float, float]:
    """Longest round and most joules per round that the limits of the job allow."""
    objective = problem.objective
    if objective.job_samples is None:
        return inf, inf
    rounds = objective.job_samples / problem.batch
    limit_s = inf if objective.deadline_s is None else objective.deadline_s / rounds
    limit_j = inf if objective.budget_j is None else objective.budget_j / rounds
    return limit_s, limit_j


def _price(plan: Plan) -> Estimate:
    assert plan.estimate is not None
    return plan.estimate


def minimising_time(problem: Problem) -> Problem:
    """The same problem for the fastest plan, without a slowdown that would be measured against it."""
    return _minimising(problem, "time")


def minimising_energy(problem: Problem) -> Problem:
    """The same problem for the plan with the least energy, however slow."""
    return _minimising(problem, "energy")


def _minimising(problem: Problem, kind: ObjectiveKind) -> Problem:
    objective = msgspec.structs.replace(problem.objective, minimise=kind, max_slowdown=None)
    return msgspec.structs.replace(problem, objective=objective)


@dataclass
class BestGoal:
    """The plan with the least objective.

    Attributes:
        problem: What is to be minimised.
        gap_ratio: How much better a plan must be to be looked for.
        slowest_s: Longest round that a slowdown allows.
        plan: The best plan so far.
        value: Its objective.
    """

    problem: Problem
    gap_ratio: float = 0.0
    slowest_s: float = inf
    plan: Plan | None = None
    value: float = inf
    _offered: list[Plan] = field(default_factory=list[Plan])
    _limits: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self._limits = _job_limits(self.problem)

    @property
    def by_energy(self) -> bool:
        """Whether joules matter at all."""
        return self.problem.objective.minimise != "time" or self._limits[1] < inf

    @property
    def found(self) -> bool:
        """Whether a plan is known."""
        return self.plan is not None

    @property
    def _better_than(self) -> float:
        return self.value / (1 + max(self.gap_ratio, _STEP))

    @property
    def proven(self) -> float:
        """No plan that was dropped for one in hand is better than this: only closer plans are not looked for."""
        return self.value / (1 + self.gap_ratio)

    def least_value(self, round_s: float, round_j: float) -> float:
        """The objective of such a round."""
        if round_j == inf:
            return inf
        batch = self.problem.batch
        return self.problem.objective.value(energy_j_per_sample=round_j / batch, s_per_sample=round_s / batch)

    def limit_j(self, round_s: float) -> float:
        """Joules at which a round of this length equals the best plan."""
        if round_s > self.limit_s():
            return -inf
        batch = self.problem.batch
        wanted = {
            "time": inf,
            "edp": self._better_than * batch**2 / max(round_s, 1e-300),
        }.get(self.problem.objective.minimise, self._better_than * batch)
        return min(wanted, self._limits[1] * (1 + 1e-12))

    def limit_s(self) -> float:
        """The deadline, the slowdown, and the fastest plan where time is the objective."""
        wanted = self._better_than * self.problem.batch if self.problem.objective.minimise == "time" else inf
        return min(wanted, self._limits[0] * (1 + 1e-12), self.slowest_s * (1 + 1e-12))

    def closes(self, value: float) -> bool:
        """Whether a bound leaves no room for a better plan."""
        return value >= self._better_than

    def offer(self, plan: Plan) -> None:
        """Keep the plan when it is the best so far."""
        if _price(plan).step_s > self.slowest_s * (1 + 1e-12):
            return
        value = objective_value(plan)
        # The same plan comes up in several windows.
        if all((other.stages, other.micro_batch) != (plan.stages, plan.micro_batch) for other in self._offered):
            self._offered = sorted([*self._offered, plan], key=objective_value)[:_FINALISTS_N]
        if value < self.value:
            self.plan, self.value = plan, value

    @property
    def finalists(self) -> tuple[Plan, ...]:
        """The best plan and those that were offered and are nearly as good, best first."""
        return tuple(plan for plan in self._offered if objective_value(plan) <= self.value * NEAR)


@dataclass
class FrontierGoal:
    """Every plan that no other beats in both time and energy.

    Attributes:
        problem: Gives the limits; its objective is not used.
    """

    problem: Problem
    _plans: list[Plan] = field(default_factory=list[Plan])
    _limits: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self._limits = _job_limits(self.problem)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The frontier so far, fastest first."""
        return tuple(self._plans)

    @property
    def by_energy(self) -> bool:
        """Joules matter."""
        return True

    @property
    def found(self) -> bool:
        """Whether a plan is known."""
        return bool(self._plans)

    def least_value(self, round_s: float, round_j: float) -> float:
        """Windows are worked off from short rounds to long ones."""
        return inf if round_j >= self.limit_j(round_s) else round_s

    def limit_j(self, round_s: float) -> float:
        """Joules of the cheapest plan that is at least as fast."""
        known = [_price(plan).round_energy_j * (1 - _STEP) for plan in self._plans if _price(plan).step_s <= round_s]
        return min([self._limits[1] * (1 + 1e-12), *known])

    def limit_s(self) -> float:
        """The deadline."""
        return self._limits[0] * (1 + 1e-12)

    def closes(self, value: float) -> bool:
        """Only what cannot be reached is closed."""
        return value == inf

    def offer(self, plan: Plan) -> None:
        """Keep the plan unless another one is as fast and as cheap."""
        price = _price(plan)
        others = [(_price(other), other) for other in self._plans]
        if any(o.step_s <= price.step_s and o.round_energy_j <= price.round_energy_j for o, _ in others):
            return
        self._plans = [
            other for o, other in others if not (price.step_s <= o.step_s and price.round_energy_j <= o.round_energy_j)
        ]
        self._plans.append(plan)
        self._plans.sort(key=lambda kept: _price(kept).step_s)
