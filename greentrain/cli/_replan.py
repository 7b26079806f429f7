"""What a run's measured rounds say of its plan, and the plan to go on with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from greentrain.cost import estimate
from greentrain.objective import Problem
from greentrain.plan import Plan, parallelism_name
from greentrain.planners import auto
from greentrain.planners.candidate import objective_value
from greentrain.planners.refit import DeviceSeen, RoundSeen, disagreements, refitted
from greentrain.planners.repair import repair

if TYPE_CHECKING:
    from greentrain.runtime.job import Revision
    from greentrain.runtime.live import UsualRound

__all__ = ["reviser_of"]

# A change costs some seconds of all devices: it must gain this much of the objective.
_LEAST_GAIN = 0.05
_TIME_LIMIT_S = 2.0


def reviser_of(problem: Problem, home: Plan, *, apply: bool) -> Callable[[Plan, UsualRound], Revision]:
    """A function that holds a run's usual round against its plan.

    Where they disagree, device times, network and power are fitted to what was measured. Rows and layers may then
    move between the present devices (``apply``); what a whole new plan would bring is told only, as it may leave
    devices out.

    Args:
        problem: What the plan was made for.
        home: The plan that the run began with.
        apply: Whether to go on with the better plan.
    """
    from greentrain.runtime.job import Revision

    known = problem

    def revise(plan: Plan, usual: UsualRound) -> Revision:
        nonlocal known
        if not set(plan.devices) <= {device.id for device in known.cluster.devices}:
            return Revision(None, None)
        seen = RoundSeen(
            step_s=usual.step_s,
            devices={
                name: DeviceSeen(busy_s=busy_s, energy_j=usual.energy_j.get(name))
                for name, busy_s in usual.busy_s.items()
            },
        )
        differences = disagreements(plan, known, seen)
        if not differences:
            return Revision(None, None)
        known = refitted(plan, known, seen)
        present = msgspec.structs.replace(plan, estimate=estimate(plan, known))
        moved = repair(plan, known, frozenset(), frozenset(), home=home)
        gain = 1 - objective_value(moved) / objective_value(present)
        text = f"measured and predicted disagree: {'; '.join(differences)}"
        if gain < _LEAST_GAIN:
            return Revision(f"{text}. {_elsewhere(known, present)}", None)
        what = f"moving rows or layers gains {gain:.0%} of {plan.objective.minimise}"
        if apply:
            return Revision(f"{text}. A new plan from the next round: {what}", moved)
        return Revision(f"{text}. {what}: train with --replan auto to do so", None)

    return revise


def _elsewhere(problem: Problem, present: Plan) -> str:
    """Whether another plan altogether would be better now."""
    other = auto.plan(problem, time_limit_s=_TIME_LIMIT_S)
    gain = 1 - objective_value(other) / objective_value(present)
    if gain < _LEAST_GAIN:
        return "The plan is still the best that is known"
    return (
        f"Measure again and schedule: {parallelism_name(other)} on {', '.join(other.devices)} would gain "
        f"{gain:.0%} of {present.objective.minimise}"
    )
