"""Why no plan keeps every limit, and the smallest change that would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from greentrain.cost import job_s
from greentrain.errors import InfeasibleError
from greentrain.explain.limits import SetLimit, set_limits
from greentrain.objective import Problem
from greentrain.plan import Estimate, Plan
from greentrain.units import format_quantity

__all__ = ["why_infeasible"]

Ask = Callable[[Problem], Plan]

_SHOWN = 3
# So that a figure still suffices once it is rounded to four digits.
_UP = 1.0006


class _Way(NamedTuple):
    """One limit that stands in the way, and how it could be relaxed."""

    sentence: str
    hint: str


def why_infeasible(problem: Problem, ask: Ask, error: InfeasibleError) -> InfeasibleError:
    """The planner's refusal with the limit that binds and the least that would help.

    Args:
        problem: What no plan was found for.
        ask: The planner; raises InfeasibleError.
        error: What it said.
    """
    ways = [way for limit in set_limits(problem) if (way := _way(limit, problem, ask, error)) is not None]
    if ways:
        first, *others = ways[:_SHOWN]
        hint = first.hint + "".join(f"; or {way.hint[0].lower()}{way.hint[1:]}" for way in others)
        return InfeasibleError(f"no plan keeps every limit: {first.sentence}.", hint=f"{hint}.")
    if sum(1 for _ in set_limits(problem)) == 1:
        return error
    return InfeasibleError(
        f"no plan keeps every limit, not even when one of them is dropped: {_seen(error)}.",
        hint="Relax several of them: " + ", ".join(limit.words for limit in set_limits(problem)) + ".",
    )


def _way(limit: SetLimit, problem: Problem, ask: Ask, error: InfeasibleError) -> _Way | None:
    found = _asked(limit.without, ask)
    if found is None:
        return None
    if limit.topic == "deadline":
        return _deadline(limit, problem, ask)
    if limit.topic == "energy budget":
        return _budget(limit, problem, ask)
    if limit.topic.startswith("power cap of "):
        return _cap(limit.topic.removeprefix("power cap of "), problem, ask)
    if limit.topic.startswith("energy budget of "):
        return _device_budget(limit.topic.removeprefix("energy budget of "), limit, problem, ask)
    if limit.topic == "memory":
        return _memory(problem, ask, error)
    return _Way(f"{limit.words} cannot be kept", f"Leave out {limit.words}")


def _asked(problem: Problem, ask: Ask) -> Plan | None:
    try:
        return ask(problem)
    except InfeasibleError:
        return None


def _best(limit: SetLimit, ask: Ask, minimise: str) -> tuple[Plan, Estimate]:
    objective = msgspec.structs.replace(limit.without.objective, minimise=minimise, max_slowdown=None)
    found = ask(msgspec.structs.replace(limit.without, objective=objective))
    assert found.estimate is not None
    return found, found.estimate


def _deadline(limit: SetLimit, problem: Problem, ask: Ask) -> _Way:
    found, price = _best(limit, ask, "time")
    deadline_s = problem.objective.deadline_s
    assert deadline_s is not None
    needed_s = job_s(found, problem, price.step_s)
    needs = format_quantity(needed_s * _UP, "time", digits=4)
    late = format_quantity(needed_s - deadline_s, "time")
    return _Way(f"the deadline is missed by {late}, the fastest plan needs {needs}", f"Allow {needs}")


def _budget(limit: SetLimit, problem: Problem, ask: Ask) -> _Way:
    _, price = _best(limit, ask, "energy")
    objective = problem.objective
    assert objective.budget_j is not None
    assert objective.job_samples is not None
    needed_j = price.energy_j_per_sample * objective.job_samples
    over_j = needed_j - objective.budget_j
    needs = _watt_hours(needed_j * _UP)
    return _Way(
        f"the energy budget is exceeded by {_watt_hours(over_j)} ({over_j / needed_j:.0%} too small), "
        f"the leanest plan needs {needs}",
        f"Allow {needs}",
    )


def _cap(name: str, problem: Problem, ask: Ask) -> _Way | None:
    """The least watts of an operating point with which there is a plan."""
    objective, device = problem.objective, problem.cluster.device(name)
    cap_w = objective.power_cap_w[name]
    for busy_w in sorted(device.curve(point.name).busy_w for point in device.points):
        caps = {**objective.power_cap_w, name: busy_w}
        relaxed = msgspec.structs.replace(problem, objective=msgspec.structs.replace(objective, power_cap_w=caps))
        if busy_w > cap_w and _asked(relaxed, ask) is not None:
            least = format_quantity(busy_w * _UP, "power", digits=4)
            cap = format_quantity(cap_w, "power")
            return _Way(
                f"the power cap of {cap} on {name} leaves out an operating point that is needed, "
                f"{least} is the smallest cap that works",
                f"Allow {name} {least}",
            )
    return None


def _device_budget(name: str, limit: SetLimit, problem: Problem, ask: Ask) -> _Way:
    _, price = _best(limit, ask, "energy")
    objective = problem.objective
    assert objective.job_samples is not None
    taken_j = sum(price.energy_j.get(name, {}).values()) * objective.job_samples / problem.batch
    budget, needs = _watt_hours(objective.device_budget_j[name]), _watt_hours(taken_j * _UP)
    return _Way(
        f"the energy budget of {budget} on {name} is too small, the leanest plan takes {needs} there",
        f"Allow {name} {needs}",
    )


def _memory(problem: Problem, ask: Ask, error: InfeasibleError) -> _Way:
    """The largest micro-batch that fits, else the largest batch in rows of one."""
    sentence = _seen(error)
    for size in sorted(_divisors(problem.batch), reverse=True):
        smaller = msgspec.structs.replace(problem, micro_batches=(size,))
        if size < min(problem.micro_batches) and _asked(smaller, ask) is not None:
            return _Way(sentence, f"With --micro-batch {size} it fits")
    batch = problem.batch // 2
    while batch >= 1:
        smaller = msgspec.structs.replace(problem, batch=batch, micro_batches=(1,))
        if _asked(smaller, ask) is not None:
            return _Way(sentence, f"With --batch {batch} --micro-batch 1 it fits")
        batch //= 2
    return _Way(sentence, "Add a device with more memory; no smaller batch helps")


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(1, number + 1) if number % size == 0)


def _seen(error: InfeasibleError) -> str:
    return error.message.rpartition("no feasible plan: ")[2].rstrip(".")


def _watt_hours(energy_j: float) -> str:
    return f"{energy_j / 3600:.4g} Wh"
