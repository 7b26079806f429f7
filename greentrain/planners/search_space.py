"""All plans of a problem, with what the search looks up about them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

import numpy as np

from greentrain.cost import CostTables
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_s
from greentrain.parallel.tensor_sequence import rings_s
from greentrain.plan import Plan, Sharing, allowed
from greentrain.planners.cuts import Cuts, least_cut_j_S
from greentrain.planners.device_types import DeviceTypes, device_types
from greentrain.planners.goal import Goal
from greentrain.planners.options import Window
from greentrain.planners.round_bounds import Reach, RoundBounds, StageSeconds
from greentrain.planners.span_tables import SpanTables, counted_w, span_tables
from greentrain.planners.stage_bounds import StageBounds, stage_bounds
from greentrain.planners.stage_options import OptionMaker
from greentrain.sharing import Direction, stage_rings
from greentrain.units import format_quantity

__all__ = ["OutOfTimeError", "SearchSpace", "Tables", "WindowBounds", "all_span_tables"]

# Problems with fewer ways to share single stages are searched over all shares.
_MOST_ALLOCATIONS = 100_000
# Steps of shortest paths that are worth their time where joules tell plans apart, and where only seconds do.
_FEW_STEPS, _MANY_STEPS = 300_000, 4_000_000
# Sets of devices, counted by type, whose tables fit in memory.
_MOST_VECTORS = 1024


class OutOfTimeError(Exception):
    """The time of a search is over."""


@dataclass
class Tables:
    """What the search keeps for one micro-batch size.

    Attributes:
        spans: Spans of layers, with the seconds and watts of the first way to share.
        makers: Make the options of stages, one per way to share.
        cuts: Prices cuts.
        cut_j_S: Least joules of the cut behind each span.
        rounds: Finds the stages that can be part of a round within a limit.
    """

    spans: SpanTables
    makers: tuple[OptionMaker, ...]
    cuts: Cuts
    cut_j_S: np.ndarray
    rounds: RoundBounds


class WindowBounds(NamedTuple):
    """What holds for every plan in a round of a window.

    Attributes:
        joules: Least joules of every part of a plan.
        reach: Stages that can be part of it, and the seconds that the others take.
    """

    joules: StageBounds
    reach: Reach


@dataclass
class SearchSpace:
    """The plans of a problem.

    Attributes:
        problem: Model, cluster and objective.
        goal: Decides which plans are of interest.
        must_use: Only plans with this device count.
        must_avoid: Only plans without this device count.
        stop_at_s: Monotonic time at which the search ends.
        pooled: Every device may take any other's place: only the bounds of these plans are of use.
        considered_n: Plans and pairs of stages that were looked at.
        all_shares: Whether all shares are tried, or the cheapest within each limit.
        cost_tables: Layer times.
        types: Device types.
        counts_UT: Their count vectors.
        without_UU: Number of u − v, or −1.
        must_U: Which vectors hold the device that must be used; None without a wish.
        base_w: Watts of all devices while on but unused, where that counts.
        tables_of: By micro-batch size.

    Raises:
        NotSupportedError: There are too many sets of devices.
        InfeasibleError: The model cannot be shared as asked.
    """

    problem: Problem
    goal: Goal
    must_use: str | None = None
    must_avoid: str | None = None
    stop_at_s: float = inf
    pooled: bool = False
    considered_n: int = 0
    all_shares: bool = field(init=False)
    cost_tables: CostTables = field(init=False)
    types: DeviceTypes = field(init=False)
    counts_UT: np.ndarray = field(init=False)
    without_UU: np.ndarray = field(init=False)
    must_U: np.ndarray | None = None
    base_w: float = 0.0
    tables_of: dict[int, Tables] = field(init=False)
    _types: DeviceTypes = field(init=False)

    def __post_init__(self) -> None:
        self.cost_tables = CostTables(self.problem)
        self.types = device_types(self.problem)
        if not self.types.names_T:
            raise InfeasibleError(
                "every operating point of every device is above its power cap.", hint=_least_caps(self.problem)
            )
        if self.pooled:
            self._types = self.types
            self.types = self.types.pooled()
        if self.must_avoid is not None:
            self.types = self.types.without(self.must_avoid)
        if self.types.vectors_n > _MOST_VECTORS:
            raise NotSupportedError(
                f"the exact planner would face {self.types.vectors_n} sets of devices, its limit is {_MOST_VECTORS}.",
                hint="Use --planner beam, or fewer devices (--exclude).",
            )
        self.counts_UT = self.types.counts_UT()
        self.without_UU = self.types.without_UU()
        if self.must_use is not None:
            self.must_U = self.counts_UT[:, self.types.type_of(self.must_use)] > 0
        self.base_w = counted_w(self.problem)
        self.tables_of = {size: self._tables(size) for size in sorted(self.problem.micro_batches, reverse=True)}
        makers = [maker for own in self.tables_of.values() for maker in own.makers]
        self.all_shares = sum(maker.allocations_n for maker in makers) <= _MOST_ALLOCATIONS

    def _tables(self, micro_batch: int) -> Tables:
        types = self._types if self.pooled else self.types
        found = all_span_tables(self.problem, types, micro_batch, self.cost_tables, by_energy=self.goal.by_energy)
        if self.pooled:
            found = [replace(spans, type_P=np.zeros_like(spans.type_P)) for spans in found]
        makers = [OptionMaker(self.problem, self.types, spans, self.counts_UT) for spans in found]
        spans = makers[0].spans
        rounds = RoundBounds(
            self.problem, self.types, spans, self.counts_UT, self.without_UU,
            _stage_seconds(makers, _open_US(self.problem.parallelism, self.counts_UT, spans)),
            by_rows=len(makers) == 1 and spans.sharing == "samples",
            most_steps=_FEW_STEPS if self.goal.by_energy and not self.base_w else _MANY_STEPS,
        )  # fmt: skip
        cuts = Cuts(self.problem, self.types, spans, self.counts_UT)
        return Tables(spans, tuple(makers), cuts, least_cut_j_S(self.problem, spans), rounds)

    def bounds(self, micro_batch: int, window: Window, wider: Reach | None = None) -> WindowBounds:
        """What holds for every plan in a round of the window.

        Args:
            micro_batch: Rows of a micro-batch.
            window: The rounds.
            wider: The reach of a longer limit, where one is known.
        """
        own = self.tables_of[micro_batch]
        reach = own.rounds.within(window.high_s, wider)
        if not self.goal.by_energy and self.must_U is None:
            return WindowBounds(reach.as_bounds(), reach)
        stage_j_US = np.zeros(reach.open_US.shape)
        if self.goal.by_energy:
            fill_s_S = reach.before_s_US.min(axis=0)
            stage_j_US = np.min([maker.least_j_US(window, fill_s_S) for maker in own.makers], axis=0) + own.cut_j_S
        stage_j_US = np.where(reach.open_US, stage_j_US, np.inf)
        return WindowBounds(stage_bounds(stage_j_US, own.spans, self.without_UU, self.must_U), reach)

    def longest_round_s(self, micro_batch: int) -> float:
        """No round of interest is longer: its devices would wait for too many joules, or no limit would hold."""
        own = self.tables_of[micro_batch]
        spans = own.spans
        least_w = float(spans.more_w_P.min())
        if self.base_w:
            lower_w = [
                min(float(spans.more_w_P[spans.slots_of(index)].min()), 0.0) * len(names)
                for index, names in enumerate(self.types.names_T)
            ]
            least_w = self.base_w + sum(lower_w)
        limit_j = self.goal.limit_j(0.0)
        by_waiting_s = limit_j / least_w if least_w > 0 and self.goal.by_energy else inf
        longest_s = max(self._all_in_turn_s(maker.spans) for maker in own.makers)
        return min(by_waiting_s, longest_s, self.goal.limit_s())

    def _all_in_turn_s(self, spans: SpanTables) -> float:
        """Every layer on the slowest device, with a cut, a gradient sum and rings each, one after another."""
        model, cluster = self.problem.model, self.problem.cluster
        links = (cluster.default_link, *cluster.links)
        bandwidth = min(cluster.bandwidth_bytes_per_s(link) for link in links)
        latency_s = max(link.latency_s for link in links)
        single_S = spans.stop_S - spans.start_S == 1
        compute_s = (spans.forward_s_PSR + spans.backward_s_PSR)[:, single_S, 1:].max(axis=(0, 2)).sum()
        moved = sum(layer.activation_bytes + layer.gradient_bytes for layer in model.layers)
        transfer_s = spans.micro_batch * moved / bandwidth + 2 * latency_s * len(model.layers)
        names = [device.id for device in cluster.devices]
        sum_s = gradient_sum_s(cluster, names, sum(layer.param_bytes for layer in model.layers))
        update_s = spans.update_s_PSR[:, single_S].max(axis=(0, 2)).sum()
        moving_s = transfer_s + self._rings_s(spans, names)
        return 2 * (spans.micro_batches_n * (compute_s + moving_s) + len(model.layers) * sum_s + update_s)

    def _rings_s(self, spans: SpanTables, names: Sequence[str]) -> float:
        """All rings of a micro-batch over all devices, in stages of one layer and of all."""
        cluster, layers = self.problem.cluster, self.problem.model.layers
        if spans.sharing == "samples" or len(names) == 1:
            return 0.0
        parts = [(0, len(layers)), *((layer, layer + 1) for layer in range(len(layers)))]
        directions: tuple[Direction, ...] = ("forward", "backward")
        return sum(
            rings_s(
                stage_rings(spans.sharing, layers, start, stop), direction, cluster, names, rows=spans.micro_batch,
                largest_part=1.0,
            )
            for start, stop in parts
            for direction in directions
        )  # fmt: skip

    def check_time(self) -> None:
        """Called now and then.

        Raises:
            OutOfTimeError: The search must end.
        """
        if time.monotonic() > self.stop_at_s:
            raise OutOfTimeError

    def offer(self, plan: Plan) -> None:
        """Hand a plan to the goal when it keeps the limits and the wish."""
        self.considered_n += 1
        price = plan.estimate
        assert price is not None
        wanted = self.must_use is None or self.must_use in plan.devices
        wanted &= self.must_avoid not in plan.devices and allowed(plan, self.problem)
        if wanted and not price.violations:
            self.goal.offer(plan)


def _stage_seconds(makers: Sequence[OptionMaker], open_US: np.ndarray) -> StageSeconds:
    """What every stage takes at least, whatever its shares, points and way to share."""
    both_s = np.where(open_US, np.min([maker.least_s_US for maker in makers], axis=0), np.inf)
    forward_parts: list[np.ndarray] = []
    for maker in makers:
        forward_s, backward_s = maker.spans.forward_s_PSR[:, :, 1:], maker.spans.backward_s_PSR[:, :, 1:]
        both_PSR = forward_s + backward_s
        forward_parts.append(np.divide(forward_s, both_PSR, where=both_PSR > 0, out=np.full_like(both_PSR, 0.5)))
    return StageSeconds(
        both_s=both_s,
        tail_s=np.min([maker.least_tail_s_US for maker in makers], axis=0),
        whole_tail_s=np.min([maker.whole_tail_s_US for maker in makers], axis=0),
        forward_part=min(maker.forward_part for maker in makers),
        longer_part_S=np.min([np.maximum(part, 1 - part).min(axis=(0, 2)) for part in forward_parts], axis=0),
    )


def _least_caps(problem: Problem) -> str:
    """What the caps would have to be at least."""
    least = [
        f"{device.id}={format_quantity(min(device.curve(point.name).busy_w for point in device.points), 'power')}"
        for device in problem.cluster.devices
    ]
    return f"The smallest caps that leave an operating point: {', '.join(least)}."


def all_span_tables(
    problem: Problem, types: DeviceTypes, micro_batch: int, tables: CostTables, *, by_energy: bool
) -> list[SpanTables]:
    """The tables of every way to share that the problem asks for and the model allows.

    The plain forms of sharing inside samples are tried only when they are asked for by name.

    Raises:
        InfeasibleError: The model cannot be shared as asked.
    """
    asked: dict[str, tuple[Sharing, ...]] = {
        "any": ("samples", "tensor_sequence"),
        "hybrid": ("samples", "tensor_sequence"),
        "tensor+sequence": ("tensor_sequence",),
        "tensor": ("tensor",),
        "sequence": ("sequence",),
    }
    found = [
        span_tables(problem, types, micro_batch, tables, sharing=sharing, by_energy=by_energy)
        for sharing in asked.get(problem.parallelism, ("samples",))
    ]
    shared = [spans for spans in found if spans is not None]
    if not shared:
        raise InfeasibleError(
            f"model {problem.model.model!r} has no heads or tokens for --parallelism {problem.parallelism}.",
            hint="Use --parallelism data, pipeline or any.",
        )
    return shared


def _open_US(parallelism: str, counts_UT: np.ndarray, spans: SpanTables) -> np.ndarray:
    """Which groups may run which spans in a plan of a parallelism."""
    whole_S = (spans.start_S == 0) & (spans.stop_S == spans.stop_S.max())
    alone_U = counts_UT.sum(axis=1) == 1
    if parallelism == "any":
        return np.ones((len(alone_U), len(whole_S)), dtype=bool)
    if parallelism in ("pipeline", "hybrid"):
        return (alone_U | (parallelism == "hybrid"))[:, None] & ~whole_S
    return (alone_U == (parallelism == "single"))[:, None] & whole_S
