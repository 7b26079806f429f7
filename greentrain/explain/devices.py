"""Why each device is in or out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from greentrain.cost import estimate, over_cap_w
from greentrain.explain.nouns import Reason
from greentrain.explain.search import Question, Search, best_plan, text_of
from greentrain.planners.device_types import device_types
from greentrain.units import format_quantity

__all__ = ["device_questions"]


def device_questions(search: Search) -> Iterator[Question]:
    """One question per device; devices that are alike share the answer."""
    answers: dict[tuple[tuple[str, ...], bool], Reason] = {}
    types = device_types(search.problem)
    for device in search.problem.cluster.devices:
        # A device without an allowed operating point is of no type.
        alike = next((names for names in types.names_T if device.id in names), (device.id,))

        def ask(name: str = device.id, alike: tuple[str, ...] = alike) -> Reason:
            used = name in search.plan.devices
            if (alike, used) not in answers:
                answers[alike, used] = _without(search, name, alike) if used else _with(search, name, alike)
            return msgspec.structs.replace(answers[alike, used], topic=name)

        yield Question("device", device.id, ask)


def _without(search: Search, name: str, alike: tuple[str, ...]) -> Reason:
    """What the best plan costs with one device less of the type."""
    problem, plan = search.problem, search.plan
    if len(problem.cluster.devices) == 1:
        return Reason(topic=name, sentence="in: the only device", matters=True)
    # A spare one of the same type would only take its place.
    spare = {other for other in alike if other not in plan.devices}
    kept = tuple(device.id for device in problem.cluster.devices if device.id not in spare)
    fewer = msgspec.structs.replace(problem, cluster=problem.cluster.restricted_to(kept))
    found = search.best(fewer, must_avoid=name) if device_types(fewer).without(name).names_T else None
    if found is None:
        return Reason(topic=name, sentence=f"in: without it no {_plan(search)} keeps the limits", matters=True)
    if spare:
        found = msgspec.structs.replace(found, estimate=estimate(found, problem))
    search.found.append(found)
    figures = search.figures(found)
    fewer_n = sum(other in plan.devices for other in alike) - 1
    which = "without it" if len(alike) == 1 else f"with {fewer_n or 'no'} {problem.cluster.device(name).kind}"
    sentence = f"in: {which} {best_plan(figures)} would take {text_of(figures, plan.objective.minimise)}"
    return Reason(topic=name, sentence=sentence, matters=True, figures=figures)


def _with(search: Search, name: str, alike: tuple[str, ...]) -> Reason:
    problem, plan = search.problem, search.plan
    used = [other for other in alike if other in plan.devices]
    if used:
        sentence = f"out: of the {len(alike)} devices like it the plan needs {len(used)} ({', '.join(used)})"
        return Reason(topic=name, sentence=sentence, matters=False)
    refused = _refused(search, name)
    if refused is not None:
        return Reason(topic=name, sentence=f"out: {refused}", matters=False)
    # The planner names the first of a type.
    found = search.best(problem, must_use=alike[0])
    if found is None:
        return Reason(topic=name, sentence=f"out: no {_plan(search)} with it keeps the limits", matters=False)
    search.found.append(found)
    figures = search.figures(found)
    sentence = f"out: {best_plan(figures)} with it would take {text_of(figures, plan.objective.minimise)}"
    return Reason(topic=name, sentence=sentence, matters=False, figures=figures)


def _plan(search: Search) -> str:
    return "plan" if search.whole else "plan found"


def _refused(search: Search, name: str) -> str | None:
    """The power cap that leaves a device no operating point, in words."""
    objective, device = search.problem.objective, search.problem.cluster.device(name)
    if name not in objective.power_cap_w or any(
        over_cap_w(device, point.name, objective) <= 0 for point in device.points
    ):
        return None
    least_w = min(device.curve(point.name).busy_w for point in device.points)
    cap = format_quantity(objective.power_cap_w[name], "power")
    return (
        f"its power cap of {cap} is below every operating point (the least draws {format_quantity(least_w, 'power')})"
    )
