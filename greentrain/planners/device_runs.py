"""Groups of neighbouring devices as stages: Asteroid's shares and what they take, for many spans of layers at once.

Axis legend: D devices in the planner's order, G devices of a group, S spans [start, stop) of layers, T kinds of
device at their default point, L cut positions 0 … L, R rows 0 … B of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from greentrain.cost import CostTables, most_rows
from greentrain.device import Device
from greentrain.objective import Problem
from greentrain.parallel.data import exposed_sum_s, gradient_sum_bytes
from greentrain.parallel.pipeline import Step, Transfer

_Rows = TypeVar("_Rows", bound="tuple[object, ...]")

__all__ = ["DeviceRuns", "GroupStages", "Ways", "proportional_shares", "share_rows", "taken"]


class GroupStages(NamedTuple):
    """The stages that a group can be, one entry per span.

    Attributes:
        start_S: First layer.
        stop_S: One past the last layer.
        shares_GS: Rows per device.
        widest_S: Rows of the largest share.
        step: What the stage takes, every figure an array.
    """

    start_S: np.ndarray
    stop_S: np.ndarray
    shares_GS: np.ndarray
    widest_S: np.ndarray
    step: Step


class _Way(NamedTuple):
    """The slowest link of a set: bandwidth, latency, and whether any of them shares a medium."""

    bandwidth: np.ndarray
    latency_s: np.ndarray
    shared: np.ndarray


class Ways(NamedTuple):
    """The slowest links between two groups, of the activations and of the gradients."""

    down: _Way
    up: _Way


@dataclass
class DeviceRuns:
    """Prices the groups [first, last) of an order of devices, at their default points, for one micro-batch size.

    Between devices of different links the slowest one of two groups counts, as in Asteroid (arXiv 2408.08015);
    where all links are alike the figures are those of :func:`greentrain.cost.estimate`.

    Attributes:
        problem: Model, cluster and objective.
        devices: The order.
        micro_batch: Rows of a micro-batch (B).
        tables: Layer times.
        memory_aware: Whether shares must fit the memories.
    """

    problem: Problem
    devices: tuple[Device, ...]
    micro_batch: int
    tables: CostTables
    memory_aware: bool = True
    type_D: np.ndarray = field(init=False)
    forward_s_TLR: np.ndarray = field(init=False)
    backward_s_TLR: np.ndarray = field(init=False)
    update_s_TL: np.ndarray = field(init=False)
    _params_L: np.ndarray = field(init=False)
    _activation_L: np.ndarray = field(init=False)
    _gradient_L: np.ndarray = field(init=False)
    _links: _Way = field(init=False)
    _limits: dict[tuple[int, int], np.ndarray] = field(default_factory=dict[tuple[int, int], np.ndarray])
    _unlimited: bool | None = None
    _inside: dict[tuple[int, int], _Way] = field(default_factory=dict[tuple[int, int], _Way])
    _between: dict[tuple[int, int], Ways] = field(default_factory=dict[tuple[int, int], Ways])

    def __post_init__(self) -> None:
        layers = self.problem.model.layers
        keys = [(device.kind, device.points[0].name) for device in self.devices]
        known = list(dict.fromkeys(keys))
        self.type_D = np.array([known.index(key) for key in keys])
        examples = [self.devices[keys.index(key)] for key in known]
        both_TLR2 = np.array([self._prefix_s(device) for device in examples])
        self.forward_s_TLR, self.backward_s_TLR = both_TLR2[..., 0], both_TLR2[..., 1]
        self.update_s_TL = np.array(
            [
                [self.tables.update_s(d, d.points[0].name, 0, stop) for stop in range(self.layers_n + 1)]
                for d in examples
            ]
        )
        self._params_L = np.cumsum([0, *(layer.param_bytes for layer in layers)])
        self._activation_L = np.array([0.0, *(layer.activation_bytes for layer in layers)])
        self._gradient_L = np.array([0.0, *(layer.gradient_bytes for layer in layers)])
        self._links = self._link_table()

    @property
    def layers_n(self) -> int:
        """Layers of the model."""
        return len(self.problem.model.layers)

    @property
    def micro_batches_n(self) -> int:
        """Micro-batches per round (M)."""
        return self.problem.batch // self.micro_batch

    def _prefix_s(self, device: Device) -> list[list[tuple[float, float]]]:
        point = device.points[0].name
        rows = range(self.micro_batch + 1)
        return [
            [self.tables.compute_s(device, point, 0, stop, count) for count in rows]
            for stop in range(self.layers_n + 1)
        ]

    def _link_table(self) -> _Way:
        """Every link from one device of the order to another, shape (D, D)."""
        cluster = self.problem.cluster
        names = [device.id for device in self.devices]
        chosen = {(link.src, link.dst): link for link in cluster.links}
        links = [[chosen.get((src, dst), cluster.default_link) for dst in names] for src in names]
        return _Way(
            np.array([[cluster.bandwidth_bytes_per_s(link) for link in row] for row in links]),
            np.array([[link.latency_s for link in row] for row in links]),
            np.array([[link.medium is not None for link in row] for row in links]),
        )

    def stages(self, first: int, last: int, in_flight: int, start_S: np.ndarray, stop_S: np.ndarray) -> GroupStages:
        """The group's stages over those of the spans that it has rows and memory for."""
        kinds_G1 = self.type_D[first:last, None]

        def both_s(rows_GS: np.ndarray, pick_S: np.ndarray) -> np.ndarray:
            low, high = start_S[pick_S], stop_S[pick_S]
            forward_s_GS = self.forward_s_TLR[kinds_G1, high, rows_GS] - self.forward_s_TLR[kinds_G1, low, rows_GS]
            backward_s_GS = self.backward_s_TLR[kinds_G1, high, rows_GS] - self.backward_s_TLR[kinds_G1, low, rows_GS]
            return forward_s_GS + backward_s_GS

        limit_GS = self._limit_GS(first, last, in_flight, start_S, stop_S)
        shares_GS = share_rows(self.micro_batch, both_s, limit_GS)
        keep_S = np.flatnonzero(shares_GS[0] > 0)
        low, high, shares_GS = start_S[keep_S], stop_S[keep_S], shares_GS[:, keep_S]
        forward_s_GS = self.forward_s_TLR[kinds_G1, high, shares_GS] - self.forward_s_TLR[kinds_G1, low, shares_GS]
        backward_s_GS = self.backward_s_TLR[kinds_G1, high, shares_GS] - self.backward_s_TLR[kinds_G1, low, shares_GS]
        sum_s, air_s = self.sum_s(first, last, low, high)
        if first == 0 and len(low) and not air_s.any():
            # The first stage sums during its last backward.
            whole_s_GS = self.backward_s_TLR[kinds_G1, high, shares_GS]
            ready_s_L: list[Any] = []
            wires_s_L: list[Any] = []
            for layer in range(int(high.max())):
                before_s_GS = self.backward_s_TLR[kinds_G1, np.minimum(layer, high), shares_GS]
                ready_s_L.append((whole_s_GS - before_s_GS).max(axis=0))
                wires_s_L.append(self.sum_s(first, last, low, np.minimum(layer + 1, high))[0])
            sum_s = np.minimum(sum_s, exposed_sum_s(ready_s_L, wires_s_L, 0.0))
        figures: list[Any] = [
            forward_s_GS.max(axis=0),
            backward_s_GS.max(axis=0),
            (forward_s_GS + backward_s_GS).max(axis=0),
            forward_s_GS.min(axis=0),
            backward_s_GS.min(axis=0),
            sum_s,
            (self.update_s_TL[kinds_G1, high] - self.update_s_TL[kinds_G1, low]).max(axis=0),
            air_s,
        ]
        return GroupStages(low, high, shares_GS, shares_GS.max(axis=0), Step(*figures))

    def limited(self, first: int, last: int, in_flight: int, start_S: np.ndarray, stop_S: np.ndarray) -> bool:
        """Whether memory limits any share of the group."""
        return bool((self._limit_GS(first, last, in_flight, start_S, stop_S) < self.micro_batch).any())

    def _limit_GS(self, first: int, last: int, in_flight: int, start_S: np.ndarray, stop_S: np.ndarray) -> np.ndarray:
        if not self.memory_aware or self._all_fit():
            return np.full((last - first, len(start_S)), self.micro_batch)
        limits_LL = (self._limit_LL(device, in_flight) for device in self.devices[first:last])
        return np.array([limit_LL[start_S, stop_S] for limit_LL in limits_LL])

    def _all_fit(self) -> bool:
        """Whether a whole micro-batch of any span fits even the smallest device with all micro-batches in flight."""
        if self._unlimited is None:
            smallest = min(self.devices, key=lambda device: device.memory_bytes)
            limit_LL = self._limit_LL(smallest, self.micro_batches_n)
            self._unlimited = bool((limit_LL[np.triu_indices(self.layers_n + 1, 1)] >= self.micro_batch).all())
        return self._unlimited

    def _limit_LL(self, device: Device, in_flight: int) -> np.ndarray:
        """Most rows, at most B, of every span [start, stop) that fit the device with K micro-batches in flight."""
        key = (device.memory_bytes, in_flight)
        if key not in self._limits:
            found_LL = np.zeros((self.layers_n + 1, self.layers_n + 1), dtype=np.int64)
            for start in range(self.layers_n):
                for stop in range(start + 1, self.layers_n + 1):
                    rows = most_rows(device, start, stop, in_flight, self.problem)
                    found_LL[start, stop] = min(rows, self.micro_batch)
            self._limits[key] = found_LL
        return self._limits[key]

    def sum_s(self, first: int, last: int, start_S: np.ndarray, stop_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of the group's gradient sums, hidden or not, and of those on a shared medium."""
        group_n = last - first
        param_bytes_S = self._params_L[stop_S] - self._params_L[start_S]
        if group_n == 1:
            return 0.0 * param_bytes_S, 0.0 * param_bytes_S
        way = self._inside.get((first, last))
        if way is None:
            others = ~np.eye(group_n, dtype=bool)
            bandwidth, latency_s, shared = (figure[first:last, first:last][others] for figure in self._links)
            way = self._inside[first, last] = _Way(*map(np.asarray, (bandwidth.min(), latency_s.max(), shared.any())))
        wire_s_S = gradient_sum_bytes(group_n, 1) * param_bytes_S / way.bandwidth
        if way.shared:
            wire_s_S = wire_s_S * group_n
        latency_s_S = np.where(param_bytes_S > 0, 2 * (group_n - 1) * way.latency_s, 0.0)
        return wire_s_S + latency_s_S, wire_s_S * way.shared

    def ways(self, first: int, middle: int, last_N: np.ndarray) -> Ways:
        """The slowest links between the group [first, middle) and groups that begin at ``middle``.

        Args:
            first: First device of the group before the cut.
            middle: First device of the groups behind it.
            last_N: Ends of the groups behind it.
        """
        found = self._between.get((first, middle))
        if found is None:
            here, beyond = slice(first, middle), slice(middle, None)
            down = _Way(*(figure[here, beyond] for figure in self._links))
            up = _Way(*(figure[beyond, here].T for figure in self._links))
            found = self._between[first, middle] = Ways(_slowest(down), _slowest(up))
        at_N = last_N - middle - 1
        return Ways(*(_Way(*(figure[at_N] for figure in way)) for way in found))

    def transfer(self, ways: Ways, cut_N: np.ndarray, left_N: np.ndarray, right_N: np.ndarray) -> Transfer:
        """What crosses cuts between two groups, the widest share of either side deciding.

        Args:
            ways: The slowest links.
            cut_N: First layers behind the cuts.
            left_N: Largest shares before the cuts.
            right_N: Largest shares behind them.
        """
        down_s_N, down_air_s_N, down_latency_s_N = self._loads(ways.down, self._activation_L[cut_N])
        up_s_N, up_air_s_N, up_latency_s_N = self._loads(ways.up, self._gradient_L[cut_N])
        figures: list[Any] = [
            down_s_N * left_N, down_s_N * right_N, up_s_N * right_N, up_s_N * left_N,
            down_latency_s_N, up_latency_s_N, down_air_s_N, up_air_s_N,
        ]  # fmt: skip
        return Transfer(*figures)

    def _loads(self, way: _Way, bytes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of a row over a wire, of a micro-batch over the medium, and of the latency."""
        row_s_N = bytes_N / way.bandwidth
        return row_s_N * ~way.shared, row_s_N * way.shared * self.micro_batch, way.latency_s * (bytes_N > 0)


def _slowest(way: _Way) -> _Way:
    """From links of shape (devices here, devices beyond) the slowest to the first, the first two, … beyond."""
    return _Way(
        np.minimum.accumulate(way.bandwidth.min(axis=0)),
        np.maximum.accumulate(way.latency_s.max(axis=0)),
        np.logical_or.accumulate(way.shared.any(axis=0)),
    )


def share_rows(
    rows: int, time_s_of: Callable[[np.ndarray, np.ndarray], np.ndarray], limit_GS: np.ndarray
) -> np.ndarray:
    """Asteroid's allocation inside a group (arXiv 2408.08015), for many spans at once.

    Shares in proportion to capacity, capped by memory, the rest shared out again among the others; then rows
    go one by one from the slowest device to the one that ends first with one more, while the maximum falls.

    Args:
        rows: Rows to share out.
        time_s_of: Seconds of each device for its rows, both of shape (G, S'), over the spans of the given numbers.
        limit_GS: Most rows that fit each device.

    Returns:
        Rows per device and span, at least 1 each; all 0 where the limits are too small.
    """
    group_n, spans_n = limit_GS.shape
    found_GS = np.zeros((group_n, spans_n), dtype=np.int64)
    possible = np.flatnonzero((limit_GS.min(axis=0) >= 1) & (limit_GS.sum(axis=0) >= rows))
    if rows < group_n or len(possible) == 0:
        return found_GS
    limit_GS = limit_GS[:, possible]
    whole_s_GS = time_s_of(np.full(limit_GS.shape, rows), possible)
    shares_GS = proportional_shares(rows, 1 / np.maximum(whole_s_GS, 1e-12), limit_GS)
    if group_n > 1:
        _move_rows(shares_GS, time_s_of, possible, limit_GS)
    found_GS[:, possible] = shares_GS
    return found_GS


def proportional_shares(rows: int, capacity_GS: np.ndarray, limit_GS: np.ndarray) -> np.ndarray:
    """Shares in proportion to capacity, at least 1 each.

    What is above a limit moves to those with room, in proportion again, until nothing is.

    Args:
        rows: What to share out; at least one per device, and no more than the limits allow in all.
        capacity_GS: Of each device, for many cases at once; in any unit.
        limit_GS: Most that each device can take, at least 1.
    """
    group_n, spans_n = limit_GS.shape
    fixed_GS = np.zeros(limit_GS.shape, dtype=bool)
    while True:
        open_GS = capacity_GS * ~fixed_GS
        left_S = rows - (limit_GS * fixed_GS).sum(axis=0)
        ideal_GS = left_S * open_GS / np.maximum(open_GS.sum(axis=0), 1e-300)
        over_GS = (ideal_GS > limit_GS) & ~fixed_GS
        if not over_GS.any():
            break
        fixed_GS |= over_GS
    shares_GS = np.where(fixed_GS, limit_GS, np.floor(ideal_GS).astype(np.int64))
    # Rows that rounding leaves go to the largest fractions; an open device's limit is whole, so one more fits.
    fraction_GS = np.where(fixed_GS | (shares_GS >= limit_GS), -1.0, ideal_GS - np.floor(ideal_GS))
    rank_GS = np.argsort(np.argsort(-fraction_GS, axis=0, kind="stable"), axis=0)
    shares_GS += rank_GS < rows - shares_GS.sum(axis=0)
    every_S = np.arange(spans_n)
    for place in range(group_n):
        empty_S = shares_GS[place] == 0
        shares_GS[shares_GS.argmax(axis=0)[empty_S], every_S[empty_S]] -= 1
        shares_GS[place, empty_S] = 1
    return shares_GS


def _move_rows(
    shares_GS: np.ndarray,
    time_s_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    possible: np.ndarray,
    limit_GS: np.ndarray,
) -> None:
    """Move rows off the slowest device while another one takes a row and stays below it, in place."""
    active = np.arange(shares_GS.shape[1])
    while len(active):
        own_GS = shares_GS[:, active]
        every = np.arange(len(active))
        now_s_GS = time_s_of(own_GS, possible[active])
        slowest = now_s_GS.argmax(axis=0)
        more_GS = np.minimum(own_GS + 1, limit_GS[:, active])
        then_s_GS = np.where(own_GS < limit_GS[:, active], time_s_of(more_GS, possible[active]), np.inf)
        then_s_GS[slowest, every] = np.inf
        taker = then_s_GS.argmin(axis=0)
        less_GS = own_GS.copy()
        less_GS[slowest, every] -= 1
        # Measured times need not rise with the rows: no move may make the slowest device slower.
        eased = time_s_of(less_GS, possible[active])[slowest, every] <= now_s_GS[slowest, every]
        moves = (then_s_GS[taker, every] < now_s_GS[slowest, every]) & (own_GS[slowest, every] > 1) & eased
        active, slowest, taker = active[moves], slowest[moves], taker[moves]
        shares_GS[slowest, active] -= 1
        shares_GS[taker, active] += 1


def taken(rows: _Rows, keep: np.ndarray) -> _Rows:
    """Some entries of every array of a tuple of arrays; a plain number holds for all."""
    columns: Any = rows
    return type(columns)(*(column[keep] if isinstance(column, np.ndarray) else column for column in columns))
