"""The finalists of a planner before the arbiter: the simulated round decides between plans that are nearly alike."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greentrain.objective import Problem
from greentrain.plan import Estimate, Plan
from greentrain.simulator import simulate, to_estimate

__all__ = ["Finalist", "rescored"]

# A plan that the formula prefers is given up only for one that the simulator finds better by this part.
_CLEARLY = 0.002


class Finalist(msgspec.Struct, frozen=True, kw_only=True):
    """A plan and its simulated price.

    Attributes:
        plan: Priced by the formula.
        simulated: Priced by the simulator.
        value: The objective of the simulated price.
    """

    plan: Plan
    simulated: Estimate
    value: float


def rescored(finalists: Sequence[Plan], problem: Problem) -> tuple[Finalist, ...]:
    """Simulate the finalists; the plan to take comes first.

    Args:
        finalists: Feasible plans, the one that the formula prefers first.
        problem: What they were made for.
    """
    listed = [_finalist(plan, problem) for plan in finalists]
    first = listed[0]
    best = min(listed, key=lambda finalist: finalist.value)
    taken = best if best.value < first.value * (1 - _CLEARLY) else first
    return (taken, *(finalist for finalist in listed if finalist is not taken))


def _finalist(plan: Plan, problem: Problem) -> Finalist:
    simulated = to_estimate(simulate(plan, problem), plan, problem)
    value = plan.objective.value(
        energy_j_per_sample=simulated.energy_j_per_sample, s_per_sample=1 / simulated.samples_per_s
    )
    return Finalist(plan=plan, simulated=simulated, value=value)
