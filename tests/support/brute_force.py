"""Every plan of a tiny problem, one by one: slow and obvious, for checking the planners."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import inf

from problems import plan_of

from greentrain.cost import estimate
from greentrain.objective import Problem
from greentrain.plan import Estimate, Plan, Sharing, allowed, shares_total
from greentrain.planners.candidate import Part


def compositions(total: int, parts_n: int) -> Iterator[tuple[int, ...]]:
    """All ordered lists of positive whole numbers with this sum."""
    if parts_n == 1:
        yield (total,)
        return
    for first in range(1, total - parts_n + 2):
        for rest in compositions(total - first, parts_n - 1):
            yield (first, *rest)


def ordered_groups(devices: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """All ordered lists of disjoint, non-empty groups; the empty list too."""
    yield ()
    for size in range(1, len(devices) + 1):
        for group in itertools.combinations(devices, size):
            left = tuple(device for device in devices if device not in group)
            for rest in ordered_groups(left):
                yield (group, *rest)


def all_plans(problem: Problem, *, sharings: Sequence[Sharing] = ("samples", "tensor_sequence")) -> Iterator[Plan]:
    """Every plan: groups, cuts, micro-batch sizes, ways to share, shares and operating points."""
    names = tuple(device.id for device in problem.cluster.devices)
    for groups in ordered_groups(names):
        for sizes in compositions(len(problem.model.layers), len(groups)) if groups else ():
            stops = tuple(itertools.accumulate(sizes))
            for micro_batch in problem.micro_batches:
                choices = [
                    list(_stage_parts(problem, stop - size, stop, group, micro_batch, sharings))
                    for size, stop, group in zip(sizes, stops, groups, strict=True)
                ]
                for parts in itertools.product(*choices):
                    plan = plan_of(problem, micro_batch, parts)
                    if allowed(plan, problem):
                        yield plan


def _stage_parts(
    problem: Problem, start: int, stop: int, group: tuple[str, ...], micro_batch: int, sharings: Sequence[Sharing]
) -> Iterator[Part]:
    points = [[point.name for point in problem.cluster.device(name).points] for name in group]
    for sharing in sharings:
        whole = shares_total(sharing, problem.model.layers[start:stop], micro_batch)
        if whole < len(group) or (sharing != "samples" and len(group) == 1):
            continue
        for shares in compositions(whole, len(group)):
            for chosen in itertools.product(*points):
                yield Part(start, stop, group, shares, chosen, sharing)


def best_value(problem: Problem, plans: list[Plan]) -> float:
    """The least objective of the plans that keep every limit; infinity when none does."""
    prices = [price for plan in plans if not (price := estimate(plan, problem)).violations]
    fastest_s = min((price.step_s for price in prices), default=inf)
    slowdown = problem.objective.max_slowdown or inf
    allowed = [price for price in prices if price.step_s <= slowdown * fastest_s * (1 + 1e-12)]
    return min((value_of(price, problem) for price in allowed), default=inf)


def value_of(price: Estimate, problem: Problem) -> float:
    """Energy, time or their product per sample, written out."""
    s_per_sample = price.step_s / problem.batch
    kinds = {
        "energy": price.energy_j_per_sample,
        "carbon": price.energy_j_per_sample,
        "time": s_per_sample,
        "edp": price.energy_j_per_sample * s_per_sample,
    }
    return kinds[problem.objective.minimise]
