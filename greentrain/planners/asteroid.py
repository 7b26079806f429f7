"""Asteroid (MobiCom'24, arXiv 2408.08015): the time-optimal hybrid pipeline, whatever the objective.

Devices stand in one order, largest memory first. ``Q(l, n, p)`` is the least time of the last l layers on the
last n devices in p stages; a head stage is prepended, with K = 2p − 1 micro-batches in flight. All devices take
part, at their default operating points.

The round formula has more than one coordinate, so a state keeps the suffixes that no other one beats in all of
them. A suffix is dropped when it, or the rest of the model on the rest of the devices, takes longer than a plan
that is known. Large clusters with deep models are searched over some of the cuts only, then around the best.

Axis legend: I first device of a suffix (0 … D), L cut positions of the layers (0 … L), S spans of layers, N suffixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.parallel.pipeline import Pipe, Step, last_stage, prepended
from greentrain.plan import Plan, in_flight_limit
from greentrain.planners.candidate import Part, assemble, best_of, certified, lower_bound
from greentrain.planners.device_runs import DeviceRuns, GroupStages, Ways, taken
from greentrain.planners.pareto import undominated_rows

__all__ = ["candidates", "fastest_of", "fastest_parts", "plan"]

# Up to so many layers × devices, so many suffixes are kept per state; beyond, only the fastest one.
_ALL_SUFFIXES = 640
_MOST_SUFFIXES = 16
# Up to so many layers × devices every cut is tried; beyond, so many cuts of each, then those around the best.
_EVERY_CUT = 1600
_GRID_CUTS = 32
_SLACK = 1 + 1e-9
# Seconds of a layer on no device: above all limits, but finite, as differences are taken.
_NEVER_S = 1e30


def plan(problem: Problem) -> Plan:
    """The fastest hybrid pipeline over all devices.

    Raises:
        InfeasibleError: It fits no memory or limit, or there are too few rows and layers for all devices.
    """
    return fastest_of(candidates(problem, CostTables(problem)), problem, "asteroid")


def candidates(problem: Problem, tables: CostTables) -> Iterable[Plan]:
    """The fastest plan of each micro-batch size."""
    for micro_batch in problem.micro_batches:
        parts = fastest_parts(problem, tables, micro_batch)
        if parts:
            yield assemble(problem, "asteroid", micro_batch, parts, tables)


def fastest_of(plans: Iterable[Plan], problem: Problem, planner: str) -> Plan:
    """The fastest feasible plan, whatever the objective, with its certificate in the objective's unit.

    Raises:
        InfeasibleError: None is feasible.
    """
    found = list(plans)
    priced = [(plan, plan.estimate) for plan in found if plan.estimate is not None]
    feasible = [(plan, price) for plan, price in priced if not price.violations]
    if not feasible:
        return best_of(found, problem, planner)
    fastest, _ = min(feasible, key=lambda pair: pair[1].step_s)
    method = f"fastest of {len(found)} candidates; bound: every layer on its cheapest device, without waiting"
    return certified(fastest, problem, lower_bound(problem), method, len(found))


def fastest_parts(problem: Problem, tables: CostTables, micro_batch: int) -> tuple[Part, ...]:
    """The stages of the fastest pipeline over all devices; empty when there are too few rows and layers.

    Where no shares fit the memories they are ignored, so that the price says which device lacks how many bytes.
    """
    devices = tuple(sorted(problem.cluster.devices, key=lambda device: (-device.memory_bytes, device.kind, device.id)))
    for memory_aware in (True, False):
        runs = DeviceRuns(problem, devices, micro_batch, tables, memory_aware=memory_aware)
        found = _found(runs)
        if found is not None:
            return found.parts
    return ()


class _Found(NamedTuple):
    """A plan with the seconds of its round."""

    round_s: float
    parts: tuple[Part, ...]


def _found(runs: DeviceRuns) -> _Found | None:
    """Over every cut where that is little work; else around the best of some cuts, then over every one if it can be."""
    size = runs.layers_n * len(runs.devices)
    every_layer, every_device = range(runs.layers_n + 1), range(len(runs.devices) + 1)
    if size <= _ALL_SUFFIXES:
        return _Search(runs, every_layer, every_device, inf, _MOST_SUFFIXES).run()
    best = _near_best(runs)
    if size > _EVERY_CUT:
        return best
    limit_s = best.round_s / _SLACK if best else inf
    return _Search(runs, every_layer, every_device, limit_s, 1).run() or best


def _near_best(runs: DeviceRuns) -> _Found | None:
    """The best of evenly spread cuts, then of those around it, ever nearer."""
    layers_n, devices_n = runs.layers_n, len(runs.devices)
    kinds = (place for place in range(1, devices_n) if runs.type_D[place] != runs.type_D[place - 1])
    device_cuts = sorted({*_grid(devices_n), *itertools.islice(kinds, _GRID_CUTS)})
    layer_cuts = _cheap_cuts([layer.activation_bytes for layer in runs.problem.model.layers])
    best = _Search(runs, layer_cuts, device_cuts, inf, 1).run()
    move = ceil(max(layers_n, devices_n) / _GRID_CUTS)
    while best is not None and move >= 1:
        layer_cuts = _near([part.stop for part in best.parts], move, layers_n)
        device_cuts = _near(itertools.accumulate(len(part.devices) for part in best.parts), move, devices_n)
        found = _Search(runs, layer_cuts, device_cuts, best.round_s / _SLACK, 1).run()
        # The smallest moves go on while they help: every time at least by the slack.
        move = move // 2 if found is None or move > 1 else move
        best = found or best
    return best


def _grid(count: int) -> list[int]:
    """Evenly spread cut positions, 0 and the end among them."""
    return [*range(0, count, ceil(count / _GRID_CUTS)), count]


def _cheap_cuts(activation_bytes_L: Sequence[int]) -> list[int]:
    """Spread cut positions, each the one of its neighbourhood that least crosses; 0 and the end among them."""
    inner = range(1, len(activation_bytes_L))
    width = ceil(len(activation_bytes_L) / _GRID_CUTS)
    windows = (inner[start : start + width] for start in range(0, len(inner), width))
    return [
        0,
        *(min(window, key=lambda cut: activation_bytes_L[cut - 1]) for window in windows),
        len(activation_bytes_L),
    ]


def _near(cuts: Iterable[int], move: int, count: int) -> list[int]:
    """The cut positions and those that many places away from one."""
    moved = {cut + by for cut in cuts for by in (-move, 0, move)}
    return sorted({0, count, *(cut for cut in moved if 0 < cut < count)})


@dataclass
class _Bounds:
    """Seconds that no round can beat, from the rows per second of the devices.

    With weights w_d ∝ a device's speed over the whole model, a group that runs some layers takes at least
    ``B · Σ_l min_d w_d·t_dl / Σ_d w_d`` per micro-batch, t_dl being the least seconds per row.

    Attributes:
        runs: Devices and layer times.
        head_s_IL: The layers before L on the devices before I, all in one, per round.
        tail_s_IL: The layers from L on the devices from I.
    """

    runs: DeviceRuns
    head_s_IL: np.ndarray = field(init=False)
    tail_s_IL: np.ndarray = field(init=False)
    _weighted_DL: np.ndarray = field(init=False)
    _speed_D: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        runs = self.runs
        layer_s_TLR = np.diff(runs.forward_s_TLR + runs.backward_s_TLR, axis=1)[:, :, 1:]
        row_s_DL = (layer_s_TLR / np.arange(1, runs.micro_batch + 1)).min(axis=2)[runs.type_D]
        self._speed_D = 1 / np.maximum(row_s_DL.sum(axis=1), 1e-12)
        self._weighted_DL = row_s_DL * self._speed_D[:, None] * runs.problem.batch / _SLACK
        devices_n = len(runs.devices)
        self.head_s_IL = np.array([self.group_s_L(0, stop) for stop in range(devices_n + 1)])
        tails_s = [self.group_s_L(start, devices_n) for start in range(devices_n + 1)]
        self.tail_s_IL = np.array([whole[-1] - whole for whole in tails_s])

    def group_s_L(self, first: int, last: int) -> np.ndarray:
        """Least seconds per round of the layers before L on a group: a running sum, so spans are differences."""
        least_L = np.full(self.runs.layers_n, _NEVER_S)
        if first < last:
            least_L = self._weighted_DL[first:last].min(axis=0) / self._speed_D[first:last].sum()
        return np.concatenate([[0.0], np.cumsum(least_L)])


class _Suffixes(NamedTuple):
    """Suffixes of the pipeline with one first device and one number of stages, in the order of their first layer.

    Attributes:
        start_N: First layer.
        stop_N: First layer behind the first stage.
        last_N: First device behind the first stage.
        behind_N: Number of the suffix behind the first stage.
        widest_N: Rows of the largest share of the first stage.
        pipe: What it takes, every figure an array.
    """

    start_N: np.ndarray
    stop_N: np.ndarray
    last_N: np.ndarray
    behind_N: np.ndarray
    widest_N: np.ndarray
    pipe: Pipe

    def take(self, keep: np.ndarray) -> _Suffixes:
        """Some of the suffixes."""
        start_N, stop_N, last_N, behind_N, widest_N = (column[keep] for column in self[:5])
        return _Suffixes(start_N, stop_N, last_N, behind_N, widest_N, taken(self.pipe, keep))

    def best(self, most: int) -> _Suffixes:
        """For each first layer the fastest ones that no other beats in every figure, ``most`` at the most."""
        found = self
        if most > 1:
            figures = np.stack([*_figures(self.pipe), self.widest_N], axis=1)
            found = self.take(undominated_rows(self.start_N, figures))
        order_N = np.lexsort((_round_s(found.pipe), found.start_N))
        sorted_N = found.start_N[order_N]
        rank_N = np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)
        return found.take(order_N[rank_N < most])


class _Pairs(NamedTuple):
    """Head stages, each before a suffix.

    Attributes:
        start_N: First layer.
        stop_N: First layer of the suffix.
        last_N: First device of the suffix.
        behind_N: Number of the suffix.
        left_N: Rows of the largest share of the head.
        right_N: Rows of the largest share of the suffix's first stage.
        ways: Slowest links between both.
        step: What the head takes.
        behind: What the suffix takes.
    """

    start_N: np.ndarray
    stop_N: np.ndarray
    last_N: np.ndarray
    behind_N: np.ndarray
    left_N: np.ndarray
    right_N: np.ndarray
    ways: Ways
    step: Step
    behind: Pipe


def _joined(rows: Sequence[Any]) -> Any:
    """Tuples of arrays, at any depth, one after another; a plain number is the same in all of them."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    if not isinstance(rows[0], tuple):
        return rows[0]
    kind: Any = type(rows[0])
    return kind(*(_joined(column) for column in zip(*rows, strict=True)))


def _figures(pipe: Pipe) -> tuple[Any, ...]:
    return pipe[1:]


def _round_s(pipe: Pipe) -> Any:
    return pipe.round_s


@dataclass
class _Search:
    """The dynamic programme over some cut positions.

    Attributes:
        runs: Prices the stages.
        layer_cuts: Where the layers may be cut, 0 and the end included.
        device_cuts: Where the order of devices may be cut.
        limit_s: Only rounds up to this are of interest; falls as plans are found.
        suffixes_n: Most suffixes that are kept per state.
    """

    runs: DeviceRuns
    layer_cuts: Sequence[int]
    device_cuts: Sequence[int]
    limit_s: float
    suffixes_n: int
    _bounds: _Bounds = field(init=False)
    _levels: list[dict[int, _Suffixes]] = field(default_factory=list[dict[int, _Suffixes]])
    _stages: dict[tuple[int, int, int], GroupStages] = field(default_factory=dict[tuple[int, int, int], GroupStages])
    _limited: dict[tuple[int, int], bool] = field(default_factory=dict[tuple[int, int], bool])

    def __post_init__(self) -> None:
        self._bounds = _Bounds(self.runs)

    def run(self) -> _Found | None:
        """The fastest plan; None when no plan is within the limit."""
        fastest: tuple[float, int] | None = None
        for stages_n in range(1, min(len(self.layer_cuts), len(self.device_cuts))):
            level: dict[int, _Suffixes] = {}
            for first in self.device_cuts[: len(self.device_cuts) - stages_n]:
                found = self._suffixes(first, stages_n)
                if found is not None:
                    level[first] = found
            self._levels.append(level)
            if not level:
                break
            # From the first device on only suffixes that are whole plans are looked for.
            round_s = float(_round_s(level[0].pipe).min()) if 0 in level else inf
            if round_s < (fastest[0] if fastest else inf):
                fastest = (round_s, stages_n)
                self.limit_s = min(self.limit_s, round_s * _SLACK)
        return _Found(fastest[0], self._parts(fastest[1])) if fastest else None

    def _suffixes(self, first: int, stages_n: int) -> _Suffixes | None:
        """The suffixes of so many stages that begin with one device."""
        if stages_n == 1:
            found = self._last_stages(first)
        else:
            behind = self._levels[-1]
            pairs = [self._pairs(first, last, behind[last], stages_n) for last in behind if last > first]
            found = self._prepended(pairs)
        if found is None:
            return None
        found = found.take(np.flatnonzero(_round_s(found.pipe) < self.limit_s))
        return found.best(self.suffixes_n) if len(found.start_N) else None

    def _last_stages(self, first: int) -> _Suffixes:
        last = len(self.runs.devices)
        stages = self._candidates(first, last, 1)
        none_N = np.zeros(len(stages.start_S), dtype=np.int64)
        pipe = last_stage(stages.step, self.runs.micro_batches_n)
        return _Suffixes(stages.start_S, stages.stop_S, none_N + last, none_N, stages.widest_S, pipe)

    def _pairs(self, first: int, last: int, behind: _Suffixes, stages_n: int) -> _Pairs:
        """The stages of the devices [first, last) before each of the suffixes that begin where they end."""
        stages = self._candidates(first, last, stages_n)
        # The limit may have fallen since these stages were made.
        open_S = np.flatnonzero(self._bounds.head_s_IL[first, stages.start_S] < self.limit_s)
        low_S = np.searchsorted(behind.start_N, stages.stop_S[open_S])
        count_S = np.searchsorted(behind.start_N, stages.stop_S[open_S], side="right") - low_S
        behind_N = np.arange(count_S.sum()) - np.repeat(np.cumsum(count_S) - count_S, count_S)
        behind_N += np.repeat(low_S, count_S)
        stage_N = np.repeat(open_S, count_S)
        after = behind.take(behind_N)
        return _Pairs(
            stages.start_S[stage_N], stages.stop_S[stage_N], np.full(len(stage_N), last), behind_N,
            stages.widest_S[stage_N], after.widest_N, self.runs.ways(first, last, after.last_N),
            taken(stages.step, stage_N), after.pipe,
        )  # fmt: skip

    def _prepended(self, found: Sequence[_Pairs]) -> _Suffixes | None:
        if not found:
            return None
        pairs = _joined(found)
        link = self.runs.transfer(pairs.ways, pairs.stop_N, pairs.left_N, pairs.right_N)
        pipe = prepended(pairs.step, link, pairs.behind, self.runs.micro_batches_n)
        return _Suffixes(pairs.start_N, pairs.stop_N, pairs.last_N, pairs.behind_N, pairs.left_N, pipe)

    def _candidates(self, first: int, last: int, stages_n: int) -> GroupStages:
        """The stages of a group as the head of a suffix of ``stages_n`` stages that are still of interest."""
        in_flight = in_flight_limit(stages_n, 0, self.runs.micro_batches_n)
        if not self._limited.get((first, last), True):
            in_flight = 0  # Memory limits nothing: the shares are the same for every K.
        key = (first, last, in_flight)
        if key not in self._stages:
            start_S, stop_S = self._spans(first, last)
            # K never exceeds M: where nothing is limited with M in flight, nothing ever is.
            most = self.runs.micro_batches_n
            self._limited[first, last] = self.runs.limited(first, last, most, start_S, stop_S)
            self._stages[key] = self.runs.stages(first, last, in_flight or most, start_S, stop_S)
        return self._stages[key]

    def _spans(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Spans of a group that leave the rest of the model to the rest of the devices within the limit."""
        devices_n, layers_n = len(self.runs.devices), self.runs.layers_n
        starts = (0,) if first == 0 else tuple(self.layer_cuts[1:-1])
        stops = (layers_n,) if last == devices_n else tuple(self.layer_cuts[1:-1])
        start_S, stop_S = (grid.ravel() for grid in np.meshgrid(starts, stops, indexing="ij"))
        keep_S = start_S < stop_S
        start_S, stop_S = start_S[keep_S], stop_S[keep_S]
        bounds = self._bounds
        own_s_L = bounds.group_s_L(first, last)
        own_s_S = own_s_L[stop_S] - own_s_L[start_S]
        sum_s_S, _ = self.runs.sum_s(first, last, start_S, stop_S)
        # The first stage's last backward may hide it.
        early_part = 1 - (first == 0) / self.runs.micro_batches_n
        ends_s_S = np.maximum(own_s_S, own_s_S * early_part + sum_s_S)
        least_s_S = np.maximum(ends_s_S, bounds.head_s_IL[first, start_S])
        keep_S = np.maximum(least_s_S, bounds.tail_s_IL[last, stop_S]) < self.limit_s
        return start_S[keep_S], stop_S[keep_S]

    def _parts(self, stages_n: int) -> tuple[Part, ...]:
        """The stages of the best plan of that many stages."""
        parts: list[Part] = []
        first = 0
        row = int(_round_s(self._levels[stages_n - 1][0].pipe).argmin())
        for number in range(stages_n, 0, -1):
            own = self._levels[number - 1][first]
            start, stop, last = int(own.start_N[row]), int(own.stop_N[row]), int(own.last_N[row])
            stages = self._candidates(first, last, number)
            place = int(np.flatnonzero((stages.start_S == start) & (stages.stop_S == stop))[0])
            group = self.runs.devices[first:last]
            shares = tuple(int(rows) for rows in stages.shares_GS[:, place])
            names, points = tuple(d.id for d in group), tuple(d.points[0].name for d in group)
            parts.append(Part(start, stop, names, shares, points))
            first, row = last, int(own.behind_N[row])
        return tuple(parts)
