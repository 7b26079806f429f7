"""Which limit binds, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from greentrain.explain.nouns import Reason
from greentrain.explain.search import CLOSE, Question, Search, text_of
from greentrain.objective import Problem
from greentrain.units import format_quantity

__all__ = ["SetLimit", "limit_questions", "set_limits"]

# As good as no limit.
_ROOM_BYTES = 1 << 60


class SetLimit(NamedTuple):
    """A limit that the user or the hardware sets.

    Attributes:
        topic: ``deadline``, ``energy budget``, ``slowdown``, ``parallelism``, ``memory``, or one of a device:
            ``power cap of X``, ``energy budget of X``.
        words: The limit with its value.
        without: The same problem without it.
    """

    topic: str
    words: str
    without: Problem


def set_limits(problem: Problem) -> Iterator[SetLimit]:
    """Every limit of a problem; memory, which every device has, comes last."""
    objective = problem.objective

    def changed(**fields: object) -> Problem:
        return msgspec.structs.replace(problem, objective=msgspec.structs.replace(objective, **fields))

    if objective.deadline_s is not None:
        words = f"the deadline of {format_quantity(objective.deadline_s, 'time')}"
        yield SetLimit("deadline", words, changed(deadline_s=None))
    if objective.budget_j is not None:
        words = f"the energy budget of {format_quantity(objective.budget_j, 'energy')}"
        yield SetLimit("energy budget", words, changed(budget_j=None))
    if objective.max_slowdown is not None:
        words = f"the slowdown of at most {objective.max_slowdown:g}"
        yield SetLimit("slowdown", words, changed(max_slowdown=None))
    for name, cap_w in objective.power_cap_w.items():
        others = {device: value for device, value in objective.power_cap_w.items() if device != name}
        words = f"the power cap of {format_quantity(cap_w, 'power')} on {name}"
        yield SetLimit(f"power cap of {name}", words, changed(power_cap_w=others))
    for name, budget_j in objective.device_budget_j.items():
        others = {device: value for device, value in objective.device_budget_j.items() if device != name}
        words = f"the energy budget of {format_quantity(budget_j, 'energy')} on {name}"
        yield SetLimit(f"energy budget of {name}", words, changed(device_budget_j=others))
    if problem.parallelism != "any":
        words = f"the wish for {problem.parallelism} parallelism"
        yield SetLimit("parallelism", words, msgspec.structs.replace(problem, parallelism="any"))
    yield SetLimit("memory", "the devices' memory", _with_room(problem))


def _with_room(problem: Problem) -> Problem:
    devices = tuple(msgspec.structs.replace(device, memory_bytes=_ROOM_BYTES) for device in problem.cluster.devices)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, devices=devices))


def limit_questions(search: Search) -> Iterator[Question]:
    """What the best plan would be without each limit."""
    for limit in set_limits(search.problem):

        def ask(limit: SetLimit = limit) -> Reason:
            figures = search.figures(search.relaxed(limit.without))
            if figures.change_ratio > -CLOSE:
                sentence = f"{limit.words}: without it the plan would be no better"
                return Reason(topic=limit.topic, sentence=sentence, matters=False)
            words = text_of(figures, search.plan.objective.minimise)
            sentence = (
                f"{limit.words}: without it {figures.parallelism} on {', '.join(figures.devices)} would take {words}"
            )
            return Reason(topic=limit.topic, sentence=sentence, matters=True, figures=figures)

        yield Question("limit", limit.topic, ask)
