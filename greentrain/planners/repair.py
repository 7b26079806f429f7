"""The plan to go on with when devices are lost or join: near the present one, so that few layers travel.

Inside a group that has lost a member the rows are shared anew. Where a whole stage is lost its neighbours take its
layers, cut where the objective is least; then boundaries move by single layers while that helps (Asteroid's light
repair, arXiv 2408.08015, with the plan's objective in place of time). A device that comes joins a group or takes a
part of a stage, whichever is best. All devices that are left take part: each may hold layers that only it has. A group
that shared work inside a sample shares rows from then on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from greentrain.cost import CostTables, most_rows
from greentrain.errors import InfeasibleError
from greentrain.objective import Problem
from greentrain.parallel.data import allocate_shares
from greentrain.plan import Plan, in_flight_limit
from greentrain.planners.candidate import Part, assemble, objective_value
from greentrain.units import format_quantity

__all__ = ["repair"]

_MOST_CUTS = 300
_TIME_LIMIT_S = 0.4
# A boundary moves only for a gain that is worth its transfer.
_LEAST_GAIN = 0.02

Parts = tuple[Part, ...]
Key = tuple[int, float]


def repair(
    plan: Plan, problem: Problem, lost: frozenset[str], joined: frozenset[str], *, home: Plan,
    time_limit_s: float = _TIME_LIMIT_S,
) -> Plan:  # fmt: skip
    """The plan to go on with.

    Args:
        plan: The present plan.
        problem: Its model and objective, with a cluster that has all these devices.
        lost: Devices of the plan that are gone.
        joined: Devices that want to take part. Those of ``home`` do; others only where the objective gains.
        home: The plan that the run began with.
        time_limit_s: Seconds after which no further improvement is looked for.

    Raises:
        InfeasibleError: The model does not fit the devices that are left.
    """
    search = _Search(problem, plan, home, time.monotonic() + time_limit_s)
    best = search.best(_without(plan, lost, search))
    best = search.improved(best)
    for device in sorted(joined):
        candidates = list(_with(best, device, search))
        if joined == frozenset(home.devices) - (frozenset(plan.devices) - lost) and _same(home, plan):
            candidates.append(tuple(Part(s.start, s.stop, s.devices, s.shares, s.points) for s in home.stages))
        if not candidates:
            continue
        grown = search.improved(search.best(candidates))
        if device in home.devices or search.key(grown) < search.key(best):
            best = grown
    lacking = search.key(best)[0]
    if lacking > 0:
        raise InfeasibleError(
            f"without {', '.join(sorted(lost))} the model lacks {format_quantity(lacking, 'bytes')} of memory.",
            hint="Add a device, and go on from the last checkpoint with --resume.",
        )
    found = search.plan(best)
    return msgspec.structs.replace(found, origin=plan.origin)


def _same(home: Plan, plan: Plan) -> bool:
    """Whether the stages of the one can take the place of the other's."""
    by_rows = all(stage.sharing == "samples" for stage in home.stages)
    return by_rows and (home.batch, home.micro_batch) == (plan.batch, plan.micro_batch)


@dataclass
class _Search:
    """Prices candidates, each once."""

    problem: Problem
    present: Plan
    home: Plan
    until_s: float
    _tables: CostTables = field(init=False)
    _known: dict[Parts, Plan] = field(default_factory=dict[Parts, Plan])

    def __post_init__(self) -> None:
        self._tables = CostTables(self.problem)

    def plan(self, parts: Parts) -> Plan:
        """The priced plan."""
        if parts not in self._known:
            self._known[parts] = assemble(self.problem, "repair", self.present.micro_batch, parts, self._tables)
        return self._known[parts]

    def key(self, parts: Parts) -> Key:
        """Bytes of memory that are lacking, then the objective. Late is better than not at all."""
        plan = self.plan(parts)
        assert plan.estimate is not None
        lacking = sum(
            max(used - self.problem.cluster.device(name).memory_bytes, 0)
            for name, used in plan.estimate.peak_bytes.items()
        )
        return lacking, objective_value(plan)

    def best(self, candidates: Iterable[Parts]) -> Parts:
        """The one with the least key; when time is over, of those looked at so far."""
        found: Parts | None = None
        for parts in candidates:
            if found is None or self.key(parts) < self.key(found):
                found = parts
            if time.monotonic() > self.until_s:
                break
        assert found is not None
        return found

    def improved(self, parts: Parts) -> Parts:
        """Move single rows and boundaries while that gains more than it costs."""
        for neighbours in (_row_moves, _boundary_moves):
            while time.monotonic() <= self.until_s:
                better = self.best((parts, *neighbours(parts, self)))
                if not _gains(self.key(better), self.key(parts), _LEAST_GAIN if neighbours is _boundary_moves else 0.0):
                    break
                parts = better
        return parts

    def shared(self, start: int, stop: int, devices: Sequence[str], points: Sequence[str], place: _Place) -> Part:
        """A stage whose rows are shared so that its slowest device is as fast as possible, within the memories."""
        micro_batch = self.present.micro_batch
        members = [self.problem.cluster.device(device) for device in devices]
        times = [
            [sum(self._tables.compute_s(device, point, start, stop, rows)) for rows in range(micro_batch + 1)]
            for device, point in zip(members, points, strict=True)
        ]
        in_flight = in_flight_limit(place.stages_n, place.index, self.present.micro_batches_n)
        limits = [most_rows(device, start, stop, in_flight, self.problem) for device in members]
        # Where nothing fits, the price says how much is lacking.
        shares = allocate_shares(micro_batch, times, limits)
        shares = shares or allocate_shares(micro_batch, times, [micro_batch] * len(members))
        if shares is None:
            raise InfeasibleError(
                f"{len(members)} devices cannot share {micro_batch} rows.", hint="Schedule with a larger --micro-batch."
            )
        return Part(start, stop, tuple(devices), shares, tuple(points))

    def point(self, device: str) -> str:
        """The operating point at which a device that comes is to work."""
        for plan in (self.home, self.present):
            for stage in plan.stages:
                if device in stage.devices:
                    return stage.points[stage.devices.index(device)]
        return self.problem.cluster.device(device).points[0].name


@dataclass(frozen=True)
class _Place:
    """A stage's place in a pipeline."""

    index: int
    stages_n: int


def _gains(better: Key, old: Key, least: float) -> bool:
    return better[0] < old[0] or (better[0] == old[0] and better[1] < old[1] * (1 - least) - 1e-15)


def _without(plan: Plan, lost: frozenset[str], search: _Search) -> Iterator[Parts]:
    """The present stages without the lost devices; layers of lost stages go to the neighbours, cut anywhere."""
    left = [
        [(device, point) for device, point in zip(stage.devices, stage.points, strict=True) if device not in lost]
        for stage in plan.stages
    ]
    groups = [(number, group) for number, group in enumerate(left) if group]
    if not groups:
        raise InfeasibleError("no device of the plan is left.", hint="Go on from the last checkpoint with --resume.")
    gaps = [
        range(plan.stages[before].stop, plan.stages[after].start + 1)
        for (before, _), (after, _) in itertools.pairwise(groups)
    ]
    layers_n = plan.stages[-1].stop
    for cuts in itertools.islice(itertools.product(*gaps), _MOST_CUTS):
        yield _built(plan, groups, (0, *cuts, layers_n), search)


def _built(
    plan: Plan, groups: Sequence[tuple[int, list[tuple[str, str]]]], cuts: Sequence[int], search: _Search
) -> Parts:
    parts: list[Part] = []
    for index, (number, group) in enumerate(groups):
        stage = plan.stages[number]
        devices, points = tuple(device for device, _ in group), tuple(point for _, point in group)
        start, stop = cuts[index], cuts[index + 1]
        if (devices, start, stop, "samples") == (stage.devices, stage.start, stage.stop, stage.sharing):
            parts.append(Part(start, stop, devices, stage.shares, points))
        else:
            parts.append(search.shared(start, stop, devices, points, _Place(index, len(groups))))
    return tuple(parts)


def _with(parts: Parts, device: str, search: _Search) -> Iterator[Parts]:
    """A device joins a group, or takes the first or the last layers of a stage."""
    point = search.point(device)
    for index, part in enumerate(parts):
        place = _Place(index, len(parts))
        if len(part.devices) < search.present.micro_batch:
            grown = search.shared(part.start, part.stop, (*part.devices, device), (*part.points, point), place)
            yield (*parts[:index], grown, *parts[index + 1 :])
        alone = (device,), (point,)
        for cut in range(part.start + 1, part.stop):
            for first, second in ((alone, (part.devices, part.points)), ((part.devices, part.points), alone)):
                split = (
                    search.shared(part.start, cut, *first, _Place(index, len(parts) + 1)),
                    search.shared(cut, part.stop, *second, _Place(index + 1, len(parts) + 1)),
                )
                yield (*parts[:index], *split, *parts[index + 1 :])


def _row_moves(parts: Parts, search: _Search) -> Iterator[Parts]:
    """One row from one device of a group to another."""
    del search
    for index, part in enumerate(parts):
        for giver, taker in itertools.permutations(range(len(part.devices)), 2):
            if part.shares[giver] > 1:
                shares = list(part.shares)
                shares[giver] -= 1
                shares[taker] += 1
                yield (*parts[:index], part._replace(shares=tuple(shares)), *parts[index + 1 :])


def _boundary_moves(parts: Parts, search: _Search) -> Iterator[Parts]:
    """One or two layers from a stage to the next or the one before."""
    for index, (before, after) in enumerate(itertools.pairwise(parts)):
        for move in (-2, -1, 1, 2):
            cut = before.stop + move
            if before.start < cut < after.stop:
                pair = (
                    search.shared(before.start, cut, before.devices, before.points, _Place(index, len(parts))),
                    search.shared(cut, after.stop, after.devices, after.points, _Place(index + 1, len(parts))),
                )
                yield (*parts[:index], *pair, *parts[index + 2 :])
