"""Why each device is in a plan or not: what the best plan would cost without it, or with it."""

from __future__ import annotations

import msgspec

from greentrain.cost import estimate
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import exhaustive, load_planner
from greentrain.planners.candidate import objective_value

__all__ = ["reasons"]


def reasons(plan: Plan, problem: Problem) -> dict[str, str]:
    """One sentence per device of the problem.

    Args:
        plan: The chosen plan.
        problem: What it was chosen for.

    Returns:
        Device id to reason.
    """
    exact = exhaustive.choices_n(problem) <= exhaustive.CHOICES_LIMIT
    found: dict[str, str] = {}
    for device in problem.cluster.devices:
        if device.id in plan.devices:
            found[device.id] = _without(plan, problem, device.id, exact=exact)
        elif exact:
            found[device.id] = _with(plan, problem, device.id)
        else:
            found[device.id] = _alone(plan, problem, device.id)
    return found


def _without(plan: Plan, problem: Problem, device: str, *, exact: bool) -> str:
    others = tuple(other.id for other in problem.cluster.devices if other.id != device)
    if not others:
        return "in: the only device"
    try:
        if exact:
            best = exhaustive.plan(problem, must_avoid=device)
        else:
            smaller = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(others))
            best = load_planner("auto")(smaller)
            # Left out it is still on: its idle joules count where the objective says so.
            best = msgspec.structs.replace(best, estimate=estimate(best, problem))
    except InfeasibleError as error:
        return f"in: without it there is no feasible plan ({error.message})"
    return f"in: without it the best plan would take {_difference(best, plan)}"


def _with(plan: Plan, problem: Problem, device: str) -> str:
    try:
        best = exhaustive.plan(problem, must_use=device)
    except InfeasibleError:
        return "out: no plan with it satisfies the limits"
    return f"out: the best plan with it would take {_difference(best, plan)}"


def _alone(plan: Plan, problem: Problem, device: str) -> str:
    only = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to((device,)))
    try:
        best = load_planner("single")(only)
        best = msgspec.structs.replace(best, estimate=estimate(best, problem))
    except InfeasibleError as error:
        return f"out: alone it cannot train the model ({error.message})"
    return f"out: no plan tried with it is better; alone it would take {_difference(best, plan)}"


def _difference(other: Plan, plan: Plan) -> str:
    assert other.estimate is not None
    assert plan.estimate is not None
    ratio = objective_value(other) / objective_value(plan) - 1
    return (
        f"{other.estimate.energy_j_per_sample:.3g} J/sample at {other.estimate.samples_per_s:.3g} samples/s "
        f"({ratio:+.1%} {plan.objective.minimise})"
    )
