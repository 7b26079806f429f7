"""The planner for everybody: exact where the sets of devices are few enough, else a beam over them."""

from __future__ import annotations

from collections.abc import Callable

from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.planners import beam, exact
from greentrain.planners.device_types import device_types

__all__ = ["MOST_VECTORS", "is_exact", "plan"]

# Sets of devices, interchangeable ones counted, up to which the exact planner is asked.
MOST_VECTORS = 300


def is_exact(problem: Problem) -> bool:
    """Whether the cluster is small enough for the exact planner."""
    return device_types(problem).vectors_n <= MOST_VECTORS


def plan(
    problem: Problem,
    *,
    time_limit_s: float | None = None,
    gap_ratio: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """The proven optimum, or the best plan found in time with the gap that is left.

    Args:
        problem: Model, cluster and objective.
        time_limit_s: Seconds after which the best plan so far is returned; None: the planner's own limit.
        gap_ratio: A gap that is good enough; a beam takes its time all the same.
        progress: Told how far the search is.

    Raises:
        InfeasibleError: No plan satisfies the constraints.
    """
    if is_exact(problem):
        limit_s = exact.DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
        return exact.plan(problem, time_limit_s=limit_s, gap_ratio=gap_ratio, progress=progress)
    limit_s = beam.DEFAULT_TIME_LIMIT_S if time_limit_s is None else time_limit_s
    return beam.plan(problem, time_limit_s=limit_s, progress=progress)
