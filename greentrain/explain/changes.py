"""What a faster network or one more board would bring."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from greentrain.cluster import Link
from greentrain.device import Device
from greentrain.explain.nouns import Reason
from greentrain.explain.search import CLOSE, Question, Search, text_of
from greentrain.objective import Problem
from greentrain.planners.device_types import device_types

__all__ = ["change_questions"]

_FASTER = (10, 2)


def change_questions(search: Search) -> Iterator[Question]:
    """Faster links, then one more device of each type."""
    problem = search.problem
    nothing: set[str] = set()
    if len(problem.cluster.devices) > 1:
        for factor in _FASTER:
            topic = f"network {factor} times as fast"

            def ask_faster(topic: str = topic, factor: int = factor) -> Reason:
                # What ten times the bandwidth does not change, twice as much does not either.
                if nothing:
                    return _unchanged(topic)
                reason = _reason(search, topic, with_faster_links(problem, factor))
                if not reason.matters:
                    nothing.add(topic)
                return reason

            yield Question("change", topic, ask_faster)
    for device in device_types(problem).device_T:
        topic = f"one more {device.kind}"

        def ask_more(topic: str = topic, device: Device = device) -> Reason:
            return _reason(search, topic, with_one_more(problem, device))

        yield Question("change", topic, ask_more)


def with_faster_links(problem: Problem, factor: float) -> Problem:
    """The same problem with this many times the bandwidth everywhere."""

    def faster(link: Link) -> Link:
        return msgspec.structs.replace(link, bandwidth_bytes_per_s=factor * link.bandwidth_bytes_per_s)

    cluster = problem.cluster
    cluster = msgspec.structs.replace(
        cluster,
        default_link=faster(cluster.default_link),
        links=tuple(faster(link) for link in cluster.links),
        media=tuple(
            msgspec.structs.replace(medium, bandwidth_bytes_per_s=factor * medium.bandwidth_bytes_per_s)
            for medium in cluster.media
        ),
    )
    return msgspec.structs.replace(problem, cluster=cluster)


def with_one_more(problem: Problem, device: Device) -> Problem:
    """The same problem with another such device on the default link."""
    cluster = problem.cluster
    taken = {known.id for known in cluster.devices}
    name = next(f"{device.id}+{n}" for n in range(1, len(taken) + 2) if f"{device.id}+{n}" not in taken)
    more = msgspec.structs.replace(device, id=name)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(cluster, devices=(*cluster.devices, more)))


def _reason(search: Search, topic: str, changed: Problem) -> Reason:
    figures = search.figures(search.relaxed(changed))
    if abs(figures.change_ratio) < CLOSE:
        return _unchanged(topic)
    words = text_of(figures, search.plan.objective.minimise)
    sentence = f"{topic}: {figures.parallelism} on {', '.join(figures.devices)} would take {words}"
    return Reason(topic=topic, sentence=sentence, matters=True, figures=figures)


def _unchanged(topic: str) -> Reason:
    return Reason(topic=topic, sentence=f"{topic}: nothing changes", matters=False)
