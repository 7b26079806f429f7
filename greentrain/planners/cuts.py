"""What a cut between two stages costs, for many pairs of stages at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

from greentrain.cost import boundary_energy_j
from greentrain.objective import Problem
from greentrain.parallel.pipeline import Transfer, held, transfer
from greentrain.plan import Sharing
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.options import SHARINGS, Options
from greentrain.planners.span_tables import SpanTables

__all__ = ["Cuts", "least_cut_j_S"]

# Bytes per row for which pairs of groups are priced; so many that parts of a row are as good as exact.
_UNIT_BYTES = 1 << 40


@dataclass
class Cuts:
    """Prices cuts; index L is the first layer behind the cut.

    Where all links are alike the largest share of either side decides. Otherwise every pair of groups and
    shares is priced by itself, once.
    """

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    _activation_L: np.ndarray = field(init=False)
    _gradient_L: np.ndarray = field(init=False)
    _numbers: dict[_Group, int] = field(default_factory=dict["_Group", int])
    _known: dict[tuple[int, int], np.ndarray] = field(default_factory=dict[tuple[int, int], np.ndarray])

    def __post_init__(self) -> None:
        layers = self.problem.model.layers
        self._activation_L = np.array([0, *(layer.activation_bytes for layer in layers)], dtype=np.float64)
        self._gradient_L = np.array([0, *(layer.gradient_bytes for layer in layers)], dtype=np.float64)

    def between(self, before: Options, behind: Options, pair_N: np.ndarray) -> tuple[Transfer, np.ndarray]:
        """Transfers and joules per round of the cuts between options, row by row.

        Args:
            before: Options of the stages in front of the cuts.
            behind: Options of the stages behind them.
            pair_N: Their group numbers, shape (N, 2).
        """
        if self.types.uniform:
            return self._uniform(before, behind)
        return self._pair_by_pair(before, pair_N)

    def _pair_by_pair(self, before: Options, pair_N: np.ndarray) -> tuple[Transfer, np.ndarray]:
        """Seconds and joules are proportional to the bytes, so every pair of groups is priced once for all cuts."""
        cut_N = self.spans.stop_S[before.span_O]
        forward_N, backward_N = self._activation_L[cut_N], self._gradient_L[cut_N]
        groups = list(self._numbers)
        # One number per pair: sorting those is far cheaper than sorting rows.
        pairs, which_N = np.unique(pair_N[:, 0] * len(groups) + pair_N[:, 1], return_inverse=True)
        priced = [self._priced(pair // len(groups), pair % len(groups), groups) for pair in pairs.tolist()]
        of_N2F = np.array(priced).reshape(-1, 2, len(Transfer._fields) + 1)[which_N.reshape(-1)]
        columns = [
            np.where(forward_N > 0, of_N2F[:, 0, place], 0.0) + np.where(backward_N > 0, of_N2F[:, 1, place], 0.0)
            if name.endswith("latency_s")
            else (forward_N * of_N2F[:, 0, place] + backward_N * of_N2F[:, 1, place]) / _UNIT_BYTES
            for place, name in enumerate(Transfer._fields)
        ]
        joules_N = self.problem.batch * (forward_N * of_N2F[:, 0, -1] + backward_N * of_N2F[:, 1, -1])
        return Transfer(*cast("list[float]", columns)), joules_N

    def _uniform(self, before: Options, behind: Options) -> tuple[Transfer, np.ndarray]:
        cluster = self.problem.cluster
        link = cluster.default_link
        bandwidth = cluster.bandwidth_bytes_per_s(link)
        cut_N = self.spans.stop_S[before.span_O]
        forward_N, backward_N = self._activation_L[cut_N], self._gradient_L[cut_N]
        on_air = float(link.medium is not None)
        down_s_N, up_s_N = forward_N / bandwidth, backward_N / bandwidth
        rows = self.spans.micro_batch
        seconds = (
            before.sent_rows * behind.copies * down_s_N * (1 - on_air),
            behind.taken_rows * down_s_N * (1 - on_air),
            behind.sent_rows * before.copies * up_s_N * (1 - on_air),
            before.taken_rows * up_s_N * (1 - on_air),
            np.where(forward_N > 0, link.latency_s, 0.0),
            np.where(backward_N > 0, link.latency_s, 0.0),
            rows * behind.copies * down_s_N * on_air,
            rows * before.copies * up_s_N * on_air,
        )
        moved_N = forward_N * behind.copies + backward_N * before.copies
        joules_N = moved_N * self.problem.batch * (link.tx_j_per_byte + link.rx_j_per_byte)
        return Transfer(*cast("tuple[float, ...]", seconds)), joules_N

    def group_numbers(self, options: Options) -> np.ndarray:
        """A number for each option; equal ones have the same group, shares and way to share."""
        rows = np.concatenate([options.sharing[:, None], options.group_O[:, None], options.units_OG], axis=1)
        kinds, which_O = np.unique(rows.astype(np.int64), axis=0, return_inverse=True)
        numbers = [
            self._numbers.setdefault(
                _Group(SHARINGS[row[0]], row[1], tuple(units for units in row[2:] if units > 0)), len(self._numbers)
            )
            for row in kinds.tolist()
        ]
        return np.array(numbers, dtype=np.int64)[which_O.reshape(-1)]

    def _priced(self, left: int, right: int, groups: Sequence[_Group]) -> np.ndarray:
        """The transfer of activations alone and of gradients alone, with the joules per byte, shape (2, fields + 1)."""
        found = self._known.get((left, right))
        if found is None:
            found = self._new_price(groups[left], groups[right])
            self._known[left, right] = found
        return found

    def _new_price(self, left: _Group, right: _Group) -> np.ndarray:
        cluster, rows = self.problem.cluster, self.spans.micro_batch
        # Devices of one type on both sides are different devices.
        before = [n for count, own in self._counted(left) for n in own[:count]]
        after = [n for count, own in self._counted(right) for n in own[len(own) - count :]]
        sides = [
            held(names, group.sharing, self._shares(group), rows) for names, group in ((before, left), (after, right))
        ]
        down = transfer(cluster, sides[0], sides[1], activation_bytes=_UNIT_BYTES, gradient_bytes=0)
        up = transfer(cluster, sides[0], sides[1], activation_bytes=0, gradient_bytes=_UNIT_BYTES)
        copies = [len(group.units) if group.sharing == "tensor" else 1 for group in (left, right)]
        down_j = copies[1] * sum(boundary_energy_j(cluster, before, after))
        up_j = copies[0] * sum(boundary_energy_j(cluster, after, before))
        return np.array([[*down, down_j], [*up, up_j]])

    def _counted(self, group: _Group) -> list[tuple[int, tuple[str, ...]]]:
        return list(zip(self.counts_UT[group.number].tolist(), self.types.names_T, strict=True))

    def _shares(self, group: _Group) -> tuple[int, ...]:
        """Rows of each device; where samples are split inside, any whole numbers in the same proportion."""
        step = self.spans.step if group.sharing == "samples" else 1
        return tuple(units * step for units in group.units)


class _Group(NamedTuple):
    """A group with its shares."""

    sharing: Sharing
    number: int
    units: tuple[int, ...]


def least_cut_j_S(problem: Problem, spans: SpanTables) -> np.ndarray:
    """Joules per round of the cut behind each span, at least; 0 behind the last layer."""
    cluster, layers = problem.cluster, problem.model.layers
    per_byte_j = min(link.tx_j_per_byte + link.rx_j_per_byte for link in (cluster.default_link, *cluster.links))
    bytes_L = [0, *(layer.activation_bytes + layer.gradient_bytes for layer in layers[:-1]), 0]
    return np.array(bytes_L, dtype=np.float64)[spans.stop_S] * problem.batch * per_byte_j
