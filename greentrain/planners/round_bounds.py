"""Which stages can be part of a round that ends within a limit, and how long the others take at least.

Every stage of a round of M micro-batches waits for one of them to come down through the stages before it, and works
on all of them; before its first backward one has gone down through the stages behind it and come back; and its ports
carry all of them. None of these sums is longer than the round (:mod:`greentrain.parallel.pipeline`). So shortest
paths over (layers, devices used), of stages that keep the limit with the shortest way to them, leave out what cannot
be part of such a round; what is left makes the ways longer.

Axis legend: U count vectors, S spans, L layer boundaries 0 … layers, Z classes of groups with like ports,
N stages that are still open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from greentrain.objective import Problem
from greentrain.parallel.pipeline import Pipe
from greentrain.plan import in_flight_limit
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.options import Options
from greentrain.planners.port_bounds import Ports, in_classes, least_ports
from greentrain.planners.span_tables import SpanTables
from greentrain.planners.stage_bounds import StageBounds, least_fill_s

__all__ = ["Reach", "RoundBounds", "StageSeconds"]

# Sums of seconds come out differently by rounding.
_SLACK = 1 + 1e-12


class StageSeconds(NamedTuple):
    """Least seconds of every stage per micro-batch, the gradient sum and update per round; shape (U, S).

    Attributes:
        both_s: Forward and backward.
        tail_s: Gradient sum and update behind the last backward.
        whole_tail_s: The same behind the last forward: all of the sum.
        forward_part: The forward's least part of both, of any stage.
        longer_part_S: Least part of the longer one of both, of each span.
    """

    both_s: np.ndarray
    tail_s: np.ndarray
    whole_tail_s: np.ndarray
    forward_part: float
    longer_part_S: np.ndarray


class _Stages(NamedTuple):
    """The stages that are still open, one per entry.

    Attributes:
        group: Count vector.
        class_: Class of the group.
        start: First layer.
        stop: One past the last.
        both_s: Forward and backward seconds.
        ends_s: All micro-batches, and what follows of the gradient sum and the update.
        alone: Whether the group is one device.
        last: Whether nothing is behind.
        phase_s: The longer one of forward and backward, or the cut behind, whichever takes longer.
        work_s: Both, or the cut behind.
        in_s: The busier one of the two flows into the group; ``out_s``: out of it.
        all_in_s: Both flows in; ``all_out_s``: out.
        latency_s: Latency of both ways of the cut behind.
        comes_s: A micro-batch through the ports at the cut in front, both ways.
    """

    group: np.ndarray
    class_: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    both_s: np.ndarray
    ends_s: np.ndarray
    alone: np.ndarray
    last: np.ndarray
    phase_s: np.ndarray
    work_s: np.ndarray
    in_s: np.ndarray
    out_s: np.ndarray
    all_in_s: np.ndarray
    all_out_s: np.ndarray
    latency_s: np.ndarray
    comes_s: np.ndarray

    def rows(self, keep: np.ndarray) -> _Stages:
        return _Stages(*(column[keep] for column in self))


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What can be part of a round within a limit.

    Attributes:
        limit_s: The limit.
        open_US: Stages that can.
        before_s_US: Seconds of one micro-batch before each stage at least, on the devices that it leaves.
        enter_s_UZL: The same before a boundary, behind which is a group of a class, on at most these devices.
        possible: Whether any plan can.
        trip_s_UL: Seconds of one micro-batch behind a boundary, down to the last stage and back, on at most these
            devices.
        cut_s_UL: The same with the ports at the boundary.
    """

    limit_s: float
    open_US: np.ndarray
    before_s_US: np.ndarray
    enter_s_UZL: np.ndarray
    possible: bool
    trip_s_UL: np.ndarray
    cut_s_UL: np.ndarray

    def as_bounds(self) -> StageBounds:
        """Bounds on joules where these do not matter: nothing, or infinite where no plan can be."""
        before_UL = np.where(np.isfinite(self.enter_s_UZL.min(axis=1)), 0.0, np.inf)
        return StageBounds(
            stage_j_US=np.where(self.open_US, 0.0, np.inf),
            before_j_UL=before_UL,
            behind_j_UL=np.where(np.isfinite(self.trip_s_UL), 0.0, np.inf),
            plan_j=0.0 if self.possible else np.inf,
            before_with_j_UL=None,
        )


class _Behind(NamedTuple):
    """The fields of :class:`Reach` of the same names."""

    trip_s_UL: np.ndarray
    cut_s_UL: np.ndarray


@dataclass
class RoundBounds:
    """Looks for stages that can be part of a round within a limit.

    Attributes:
        problem: Model and cluster.
        types: Device types.
        spans: Spans of layers.
        counts_UT: Count vectors.
        without_UU: Number of u − v, or −1.
        seconds: Least seconds of every stage.
        by_rows: Whether every group shares rows, in whole units.
        most_steps: With more steps to do, shortest paths within a limit are not worth their time.
        class_U: Class of each group.
    """

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    without_UU: np.ndarray
    seconds: StageSeconds
    by_rows: bool
    most_steps: int
    class_U: np.ndarray = field(init=False)
    _down_s_ZL: np.ndarray = field(init=False)
    _up_s_ZL: np.ndarray = field(init=False)
    _comes_s_ZL: np.ndarray = field(init=False)
    _latency_s_L: np.ndarray = field(init=False)
    _down_part: float = field(init=False)
    _fewer_U: list[np.ndarray] = field(init=False)
    _others_U: np.ndarray = field(init=False)
    _stages: _Stages = field(init=False)
    _base: Reach = field(init=False)

    def __post_init__(self) -> None:
        layers = self.problem.model.layers
        down_L = np.array([0, *(layer.activation_bytes for layer in layers[:-1]), 0], dtype=np.float64)
        up_L = np.array([0, *(layer.gradient_bytes for layer in layers[:-1]), 0], dtype=np.float64)
        ports = least_ports(self.problem, self.types, self.spans, self.counts_UT, by_rows=self.by_rows)
        self.class_U, ports = in_classes(ports)
        cluster = self.problem.cluster
        latency_s = min(link.latency_s for link in (cluster.default_link, *cluster.links))
        self._latency_s_L = latency_s * ((down_L > 0).astype(float) + (up_L > 0))
        first_U = np.unique(self.class_U, return_index=True)[1]
        self._down_s_ZL, self._up_s_ZL = ports.in_s_U[first_U, None] * down_L, ports.out_s_U[first_U, None] * up_L
        self._comes_s_ZL = np.maximum(self._down_s_ZL, ports.air_s * down_L)
        self._comes_s_ZL = self._comes_s_ZL + np.maximum(self._up_s_ZL, ports.air_s * up_L)
        crossing = (down_L > 0) | (up_L > 0)
        parts = np.where(down_L >= up_L, 0.5, down_L / np.maximum(down_L + up_L, 1.0))[crossing]
        self._down_part = min(self.seconds.forward_part, float(parts.min(initial=0.5)))
        self._fewer_U = _fewer(self.counts_UT)
        # With more stages behind than this no more micro-batches are in flight: all of them are.
        self._others_U = np.minimum(self.counts_UT.sum(axis=1), self.spans.micro_batches_n // 2)
        self._stages = self._all_stages(ports, down_L, up_L)
        fill_s_UL = least_fill_s(self.seconds.both_s, self.spans, self.without_UU)
        zeros_UL = np.zeros_like(fill_s_UL)
        enter_s_UZL = np.repeat(fill_s_UL[:, None], len(first_U), axis=1)
        self._base = self._reach(np.inf, self._stages, enter_s_UZL, _Behind(zeros_UL, zeros_UL))

    def _all_stages(self, ports: Ports, down_L: np.ndarray, up_L: np.ndarray) -> _Stages:
        spans, seconds = self.spans, self.seconds
        group, span = np.nonzero(np.isfinite(seconds.both_s))
        start, stop = spans.start_S[span], spans.stop_S[span]
        both_s = seconds.both_s[group, span]
        in_s, out_s = ports.in_s_U[group], ports.out_s_U[group]
        behind_s = np.maximum(
            np.maximum(down_L[stop] * out_s, up_L[stop] * in_s), np.maximum(down_L[stop], up_L[stop]) * ports.air_s
        )
        flows_in, flows_out = (down_L[start] * in_s, up_L[stop] * in_s), (up_L[start] * out_s, down_L[stop] * out_s)
        return _Stages(
            group=group, class_=self.class_U[group], start=start, stop=stop, both_s=both_s,
            ends_s=np.maximum(
                spans.micro_batches_n * both_s + seconds.tail_s[group, span],
                (spans.micro_batches_n - 1 + seconds.forward_part) * both_s + seconds.whole_tail_s[group, span],
            ),
            alone=self.counts_UT.sum(axis=1)[group] == 1,
            last=stop == len(down_L) - 1,
            phase_s=np.maximum(seconds.longer_part_S[span] * both_s, behind_s),
            work_s=np.maximum(both_s, behind_s),
            in_s=np.maximum(*flows_in), out_s=np.maximum(*flows_out),
            all_in_s=flows_in[0] + flows_in[1], all_out_s=flows_out[0] + flows_out[1],
            latency_s=self._latency_s_L[stop], comes_s=self._comes_s_ZL[self.class_U[group], start],
        )  # fmt: skip

    def within(self, limit_s: float, wider: Reach | None = None) -> Reach:
        """What can be part of a round of at most so many seconds.

        Args:
            limit_s: The limit.
            wider: What is known of a longer limit.
        """
        limit_s *= _SLACK
        if wider is not None and wider.limit_s == limit_s:
            return wider
        known = self._base if wider is None or wider.limit_s < limit_s else wider
        enter_s_UZL, behind = known.enter_s_UZL, _Behind(known.trip_s_UL, known.cut_s_UL)
        all_ = self._stages
        stages = all_.rows(np.flatnonzero(known.open_US[all_.group, self.spans.span_LL[all_.start, all_.stop]]))
        stages = self._open(stages, enter_s_UZL, behind, limit_s)
        if self._steps_n(stages) > self.most_steps:
            return self._reach(limit_s, stages, enter_s_UZL, behind)
        if known is self._base:
            enter_s_UZL = self._front(stages, behind, limit_s)
            stages = self._open(stages, enter_s_UZL, behind, limit_s)
            if not np.isfinite(enter_s_UZL[-1, :, -1]).any():
                return self._reach(limit_s, stages, enter_s_UZL, behind)
        behind = self._behind(stages, enter_s_UZL, limit_s)
        stages = self._open(stages, enter_s_UZL, behind, limit_s)
        enter_s_UZL = self._front(stages, behind, limit_s)
        stages = self._open(stages, enter_s_UZL, behind, limit_s)
        return self._reach(limit_s, stages, enter_s_UZL, behind)

    def _steps_n(self, stages: _Stages) -> int:
        """Steps of shortest paths over these stages: each on every set of devices that holds its group."""
        within_U = (self.counts_UT.max(axis=0) - self.counts_UT + 1).prod(axis=1)
        return int(within_U[stages.group].sum())

    def _reach(self, limit_s: float, stages: _Stages, enter_s_UZL: np.ndarray, behind: _Behind) -> Reach:
        open_US = np.zeros(self.seconds.both_s.shape, dtype=bool)
        open_US[stages.group, self.spans.span_LL[stages.start, stages.stop]] = True
        return Reach(
            limit_s=limit_s,
            open_US=open_US,
            before_s_US=enter_s_UZL[self.without_UU[-1], self.class_U][:, self.spans.start_S],
            enter_s_UZL=enter_s_UZL,
            possible=bool(np.isfinite(enter_s_UZL[-1, :, -1]).any()),
            trip_s_UL=behind.trip_s_UL,
            cut_s_UL=behind.cut_s_UL,
        )

    def in_time(self, reach: Reach, options: Options) -> np.ndarray:
        """Which options can be part of a round within the limit of a reach, with their own seconds."""
        before_s = reach.before_s_US[options.group_O, options.span_O]
        works_s = self.spans.micro_batches_n * options.both_s
        return (before_s + works_s <= reach.limit_s) & (
            before_s * self._down_part + works_s + options.tail_s <= reach.limit_s
        )

    def late_s(self, reach: Reach, free_N: np.ndarray, start_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
        """Seconds before the first micro-batch reaches a stage and after it has come back, at least.

        Args:
            reach: Of the limit.
            free_N: Devices that are left for the stages before.
            start_N: First layer of the stage.
            group_N: Its group.
        """
        return reach.enter_s_UZL[free_N, self.class_U[group_N], start_N]

    def crossed_s(self, pipe: Pipe, start_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
        """Seconds from the first activations that enter pipes to the last gradients that leave them, at least.

        Args:
            pipe: Stages behind a cut.
            start_N: First layer behind it.
            group_N: Group of the first of the stages.
        """
        class_N, m = self.class_U[group_N], self.spans.micro_batches_n
        k = in_flight_limit(pipe.stages_n, 0, m)
        down_s, up_s = self._down_s_ZL[class_N, start_N], self._up_s_ZL[class_N, start_N]
        in_s = (k - 1) * np.maximum(down_s, pipe.in_s) + (m - k) * (down_s + pipe.in_s)
        out_s = (k - 1) * np.maximum(up_s, pipe.out_s) + (m - k) * (up_s + pipe.out_s)
        return pipe.both_s + pipe.beyond_s + np.where(start_N > 0, np.maximum(in_s, out_s), 0.0)

    @property
    def down_part(self) -> float:
        """The way down's least part of the way down and back."""
        return self._down_part

    def _open(self, stages: _Stages, enter_s_UZL: np.ndarray, behind: _Behind, limit_s: float) -> _Stages:
        """Those that keep the limit with the shortest ways, each on all devices that the stage leaves."""
        free_N = self.without_UU[-1][stages.group]
        enter_s = enter_s_UZL[free_N, stages.class_, stages.start]
        room_s_KN = self._room_s_KN(stages, limit_s)
        room_s = room_s_KN[self._others_U[free_N], np.arange(len(free_N))]
        further_s = np.where(
            stages.alone, behind.cut_s_UL[free_N, stages.stop],
            np.maximum(behind.trip_s_UL[free_N, stages.stop], behind.cut_s_UL[free_N, stages.stop] - stages.both_s),
        )  # fmt: skip
        keeps = (enter_s <= self._way_s(stages, limit_s)) & (enter_s + further_s <= room_s)
        return stages.rows(np.flatnonzero(keeps))

    def _way_s(self, stages: _Stages, limit_s: float) -> np.ndarray:
        """Longest way to each stage, down and back, with which its own work keeps the limit."""
        works_s = self.spans.micro_batches_n * stages.both_s
        return np.minimum(limit_s - works_s, (limit_s - stages.ends_s) / self._down_part)

    def _room_s_KN(self, stages: _Stages, limit_s: float) -> np.ndarray:
        """Seconds that the ways to a stage and behind it may take, with at most K devices behind.

        One micro-batch goes all the way and comes back; before, meanwhile and after the others occupy the stage and
        its ports, as many of them being in flight as the stages behind allow.
        """
        m = self.spans.micro_batches_n
        found: list[np.ndarray] = []
        for others_n in range(int(self._others_U.max()) + 1):
            k_N = np.where(stages.last, 1, min(2 * others_n + 1, m))
            more_N, rest_N = k_N - 1, m - k_N
            steady_s = np.maximum.reduce(
                [
                    more_N * stages.phase_s + rest_N * stages.work_s,
                    more_N * stages.in_s + rest_N * stages.all_in_s,
                    more_N * stages.out_s + rest_N * stages.all_out_s,
                ]
            )
            found.append(limit_s - steady_s - stages.both_s - stages.latency_s)
        return np.array(found)

    def _front(self, stages: _Stages, behind: _Behind, limit_s: float) -> np.ndarray:
        """Shortest ways to every boundary, shape (U, Z, L), on at most the devices of each vector."""
        vectors_n, classes_n, boundaries_n = len(self.counts_UT), len(self._comes_s_ZL), len(self._latency_s_L)
        enter_s_UZL = np.full((vectors_n, classes_n, boundaries_n), np.inf)
        enter_s_UZL[0, :, 0] = 0.0
        way_s, room_s_KN = self._way_s(stages, limit_s), self._room_s_KN(stages, limit_s)
        place = stages.class_ * boundaries_n + stages.start
        # Places of ways that end with one device, and behind them of those that end with a group.
        end = stages.stop + boundaries_n * ~stages.alone
        for used in range(1, vectors_n):
            rest_N = self.without_UU[used, stages.group]
            own = np.flatnonzero(rest_N >= 0)
            enter_s = enter_s_UZL.reshape(vectors_n, -1)[rest_N[own], place[own]]
            own, enter_s = _kept(enter_s <= way_s[own], own, enter_s)
            left, both_s, stop = self.without_UU[-1, used], stages.both_s[own], stages.stop[own]
            cut_s, trip_s = behind.cut_s_UL[left, stop], behind.trip_s_UL[left, stop]
            further_s = np.where(stages.alone[own], cut_s, np.maximum(trip_s, cut_s - both_s))
            own, enter_s = _kept(enter_s + further_s <= room_s_KN[self._others_U[left], own], own, enter_s)
            whole_s, before_s = np.full(2 * boundaries_n, np.inf), np.full(2 * boundaries_n, np.inf)
            np.minimum.at(whole_s, end[own], enter_s + stages.both_s[own])
            np.minimum.at(before_s, end[own], enter_s)
            # A group hands on its first rows while others are still computed, one device all at the end.
            alone_s = whole_s[:boundaries_n] + self._comes_s_ZL
            group_s = np.maximum(whole_s[boundaries_n:], before_s[boundaries_n:] + self._comes_s_ZL)
            enter_s_UZL[used] = self._latency_s_L + np.minimum(alone_s, group_s)
            for fewer in self._fewer_U[used]:
                np.minimum(enter_s_UZL[used], enter_s_UZL[fewer], out=enter_s_UZL[used])
        return enter_s_UZL

    def _behind(self, stages: _Stages, enter_s_UZL: np.ndarray, limit_s: float) -> _Behind:
        """Shortest ways from every boundary to the end and back, on at most the devices of each vector."""
        vectors_n, boundaries_n = len(self.counts_UT), len(self._latency_s_L)
        trip_s_UL, cut_s_UL = np.full((2, vectors_n, boundaries_n), np.inf)
        trip_s_UL[:, -1] = cut_s_UL[:, -1] = 0.0
        way_s, room_s_KN = self._way_s(stages, limit_s), self._room_s_KN(stages, limit_s)
        place = stages.class_ * boundaries_n + stages.start
        for used in range(1, vectors_n):
            rest_N = self.without_UU[used, stages.group]
            own = np.flatnonzero(rest_N >= 0)
            enter_s = enter_s_UZL[self.without_UU[-1, used]].reshape(-1)[place[own]]
            own, enter_s = _kept(enter_s <= way_s[own], own, enter_s)
            rest, both_s, stop = rest_N[own], stages.both_s[own], stages.stop[own]
            cut_s, trip_s = cut_s_UL[rest, stop], trip_s_UL[rest, stop]
            further_s = np.where(stages.alone[own], cut_s, np.maximum(trip_s, cut_s - both_s))
            keeps = enter_s + further_s <= room_s_KN[self._others_U[rest], own]
            whole_s = (both_s + stages.latency_s[own] + cut_s)[keeps]
            own = own[keeps]
            np.minimum.at(trip_s_UL[used], stages.start[own], whole_s)
            np.minimum.at(cut_s_UL[used], stages.start[own], whole_s + stages.comes_s[own])
            for fewer in self._fewer_U[used]:
                np.minimum(trip_s_UL[used], trip_s_UL[fewer], out=trip_s_UL[used])
                np.minimum(cut_s_UL[used], cut_s_UL[fewer], out=cut_s_UL[used])
        return _Behind(trip_s_UL, cut_s_UL)


def _kept(keeps: np.ndarray, own: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return own[keeps], seconds[keeps]


def _fewer(counts_UT: np.ndarray) -> list[np.ndarray]:
    """The vectors with one device less."""
    strides_T = np.cumprod([1, *(counts_UT.max(axis=0)[:-1] + 1)])
    return [number - strides_T[counts > 0] for number, counts in enumerate(counts_UT)]
