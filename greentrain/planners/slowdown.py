"""A slowdown against the fastest plan as a deadline, which every part of the cluster can be held to."""

from __future__ import annotations

from math import inf

import msgspec

from greentrain.objective import Problem

__all__ = ["slowdown_as_deadline"]


def slowdown_as_deadline(problem: Problem, fastest_s: float) -> Problem:
    """The same problem with its slowdown, if it has one, as a deadline.

    Args:
        problem: Its objective limits the slowdown.
        fastest_s: Length of the fastest round, seconds.
    """
    objective = problem.objective
    if objective.max_slowdown is None:
        return problem
    # A job so long that waking does not count, where none is given.
    samples = objective.job_samples or 10**9 * problem.batch
    longest_s = objective.max_slowdown * fastest_s * samples / problem.batch
    limited = msgspec.structs.replace(
        objective, max_slowdown=None, deadline_s=min(longest_s, objective.deadline_s or inf), job_samples=samples
    )
    return msgspec.structs.replace(problem, objective=limited)
