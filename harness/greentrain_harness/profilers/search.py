"""The order in which a sweep measures when it may not measure everything: the point that tells most goes next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from greentrain.device import CURRENT_POINT, OperatingPoint
from greentrain.errors import UsageError
from greentrain.point_model import PointObservation, PointPosterior
from greentrain.probing import Decision, Proposal, propose_probe, start_points
from greentrain.units import format_quantity
from greentrain_harness.profilers.device import PointFigures
from greentrain_harness.profilers.points import observations

__all__ = ["Outcome", "Search", "outcome", "search_order"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a sweep looks for, and how far it may go.

    Attributes:
        decision: What the best point is to be best at, per unit of work.
        most_points: Points to measure at most, the present one among them; None for any number.
        budget_s: Seconds that the sweep may take; None for any time.
        models: One sample of each is the unit of work; a matrix product when empty.
        prior: Earlier sweeps of this board or its kind.
    """

    decision: Decision = field(default_factory=Decision)
    most_points: int | None = None
    budget_s: float | None = None
    models: tuple[str, ...] = ()
    prior: Sequence[Sequence[PointObservation]] = ()

    def observed(
        self, points: Sequence[OperatingPoint], done: Mapping[str, PointFigures]
    ) -> dict[int, PointObservation]:  # fmt: skip
        """What was measured, by the point's position."""
        position = {point.name: index for index, point in enumerate(points)}
        seen = observations((figures for name, figures in done.items() if name in position), self.models)
        return {position[observation.point.name]: observation for observation in seen}

    def propose(
        self, points: Sequence[OperatingPoint], done: Mapping[str, PointFigures]
    ) -> tuple[Proposal, PointPosterior] | None:  # fmt: skip
        """The next point and the fit behind it; None while nothing can be said.

        That is so before any of the points was measured, and where the fit refuses a figure as impossible: what was
        measured is kept all the same, and greentrain models check names it.
        """
        seen = self.observed(points, done)
        if not seen:
            return None
        try:
            return propose_probe(points, seen, prior=self.prior, decision=self.decision)
        except UsageError:
            return None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a search ended.

    Attributes:
        chosen: The best point, as far as is known; None when no point of the control was measured.
        expected_regret_ratio: What it is expected to cost above the best point, as a ratio; None likewise.
        measured: Points that were measured, without the present one.
        predicted: Points that are only predicted.
        left_out: Points that would be extrapolated; they are not in the profile.
    """

    chosen: str | None
    expected_regret_ratio: float | None
    measured: tuple[str, ...]
    predicted: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def text(self) -> str:
        """For people, without a full stop."""
        total = len(self.measured) + len(self.predicted) + len(self.left_out)
        counted = f"after {len(self.measured)} of {total} points (and the present one)"
        if self.expected_regret_ratio is None:
            return f"nothing is known of the other points {counted}"
        parts = [f"best so far {self.chosen}, expected regret {self.expected_regret_ratio:.1%} {counted}"]
        if self.predicted:
            parts.append(f"predicted only: {', '.join(self.predicted)}")
        if self.left_out:
            parts.append(f"not predicted, outside what was measured: {', '.join(self.left_out)}")
        return "; ".join(parts)


def search_order(
    search: Search, points: Sequence[OperatingPoint], done: Mapping[str, PointFigures], refused: Collection[str], *,
    spent_s: Callable[[], float], probe_s: float, say: Callable[[str], None],
) -> Iterator[str]:  # fmt: skip
    """Names of the points to measure, one after the other; between two names the caller measures.

    Args:
        search: What is looked for.
        points: All points of the control.
        done: What was measured so far; the caller adds to it.
        refused: Points that cannot be set; the caller adds to them.
        spent_s: Seconds since the sweep began.
        probe_s: Seconds that a point takes at least.
        say: Told why a point is next, and why it ends.
    """
    if CURRENT_POINT not in done:
        yield CURRENT_POINT
    before = len(done)
    start_s = spent_s()
    while True:
        left = [point for point in points if point.name not in done and point.name not in refused]
        if not left:
            say("every point was measured")
            return
        # What a point has taken so far, since cooling down may take longer than measuring.
        typical_s = max(probe_s, (spent_s() - start_s) / (len(done) - before) if len(done) > before else 0.0)
        stop = _limit(search, len(done), spent_s() + typical_s)
        if stop is not None:
            say(stop)
            return
        name, why = _next([point for point in points if point.name not in refused], search, done)
        say(why)
        if name is None:
            return
        yield name


def _limit(search: Search, measured_n: int, until_s: float) -> str | None:
    if search.most_points is not None and measured_n >= search.most_points:
        return f"ends with the {search.most_points} points that were asked for"
    if search.budget_s is not None and until_s > search.budget_s:
        return f"ends, one more point would exceed the budget of {format_quantity(search.budget_s, 'time')}"
    return None


def _next(
    points: Sequence[OperatingPoint], search: Search, done: Mapping[str, PointFigures]
) -> tuple[str | None, str]:  # fmt: skip
    """The next name and why; None when measuring may end."""
    for point in start_points(points, prior=search.prior):
        if point.name not in done:
            return point.name, f"next {point.name}: a corner of the settings, to begin with"
    proposed = search.propose(points, done)
    if proposed is None:
        point = next(point for point in points if point.name not in done)
        return point.name, f"next {point.name}: what was measured says nothing of the others"
    proposal, _ = proposed
    if proposal.index is None:
        return None, f"ends, {proposal.reason}"
    name = points[proposal.index].name
    return name, f"next {name}: {proposal.reason}"


def outcome(
    search: Search, points: Sequence[OperatingPoint], done: Mapping[str, PointFigures]
) -> tuple[Outcome, PointPosterior | None]:  # fmt: skip
    """How good the choice is at the end, and which points are only predicted.

    Args:
        search: What was looked for.
        points: Points of the control that can be set.
        done: What was measured.
    """
    measured = tuple(point.name for point in points if point.name in done)
    others = tuple(point.name for point in points if point.name not in done)
    proposed = search.propose(points, done)
    if proposed is None:
        ended = Outcome(chosen=None, expected_regret_ratio=None, measured=measured, predicted=(), left_out=others)
        return ended, None
    proposal, posterior = proposed
    beyond = {point.name for point, outside in zip(points, posterior.extrapolated_P, strict=True) if outside}
    ended = Outcome(
        chosen=points[proposal.chosen_index].name,
        expected_regret_ratio=proposal.expected_regret_ratio,
        measured=measured,
        predicted=tuple(name for name in others if name not in beyond),
        left_out=tuple(name for name in others if name in beyond),
    )
    return ended, posterior
