"""The best plans of another structure: other devices, or another parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import msgspec

from greentrain.explain.nouns import Reason
from greentrain.explain.search import Question, Search, text_of
from greentrain.objective import Parallelism
from greentrain.plan import Plan, parallelism_name
from greentrain.planners.candidate import objective_value
from greentrain.planners.device_types import DeviceTypes, device_types

__all__ = ["runner_up_questions", "runners_up"]

_SHOWN = 3


def runner_up_questions(search: Search) -> Iterator[Question]:
    """The best plan of every other parallelism that the model allows."""
    if search.problem.parallelism != "any":
        return
    layers = search.problem.model.layers
    for name in get_args(Parallelism):
        inside = (
            ("heads" if name == "tensor" else "sequence") if name in ("tensor", "sequence", "tensor+sequence") else ""
        )
        if name == parallelism_name(search.plan) or (inside and not any(getattr(layer, inside) for layer in layers)):
            continue

        def ask(name: Parallelism = name) -> Reason:
            found = search.best(msgspec.structs.replace(search.problem, parallelism=name))
            if found is None:
                return Reason(topic=name, sentence=f"no {name} plan keeps the limits", matters=False)
            search.found.append(found)
            return _reason(search, found)

        yield Question("runner-up", name, ask)


def runners_up(search: Search) -> tuple[Reason, ...]:
    """The best plans that were found with other devices or another parallelism, best first.

    Another set of devices goes without one of the plan's or uses another one, so that the answers about single
    devices hold the best of all other sets.
    """
    types = device_types(search.problem)
    seen = {_structure(search.plan, types)}
    shown: list[Reason] = []
    for found in sorted(search.found, key=objective_value):
        structure = _structure(found, types)
        if structure not in seen and len(shown) < _SHOWN:
            seen.add(structure)
            shown.append(_reason(search, found))
    return tuple(shown)


def _structure(plan: Plan, types: DeviceTypes) -> tuple[object, ...]:
    return parallelism_name(plan), tuple(sorted(types.type_of(name) for name in plan.devices))


def _reason(search: Search, found: Plan) -> Reason:
    figures = search.figures(found)
    words = text_of(figures, search.plan.objective.minimise)
    sentence = f"{figures.parallelism} on {', '.join(figures.devices)}: {words}"
    return Reason(topic=figures.parallelism, sentence=sentence, matters=False, figures=figures)
