"""What a cut between two stages costs, for many pairs of stages at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np

from greentrain.cost import boundary_energy_j
from greentrain.objective import Problem
from greentrain.parallel.pipeline import Transfer, held, transfer
from greentrain.plan import Sharing
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.span_tables import SpanTables
from greentrain.planners.stage_options import SHARINGS, Options

__all__ = ["Cuts", "least_cut_j_S"]


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
    _known: dict[tuple[int, _Group, _Group], tuple[Transfer, float]] = field(
        default_factory=dict[tuple[int, "_Group", "_Group"], tuple[Transfer, float]]
    )

    def __post_init__(self) -> None:
        layers = self.problem.model.layers
        self._activation_L = np.array([0, *(layer.activation_bytes for layer in layers)], dtype=np.float64)
        self._gradient_L = np.array([0, *(layer.gradient_bytes for layer in layers)], dtype=np.float64)

    def between(self, before: Options, behind: Options) -> tuple[Transfer, np.ndarray]:
        """Transfers and joules per round of the cuts between options, row by row."""
        if self.types.uniform:
            return self._uniform(before, behind)
        rows = [self._pair(before, behind, row) for row in range(len(before))]
        columns = [np.array(column) for column in zip(*(link for link, _ in rows), strict=True)]
        return Transfer(*cast("list[float]", columns)), np.array([joules for _, joules in rows])

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

    def _pair(self, before: Options, behind: Options, row: int) -> tuple[Transfer, float]:
        cut = int(self.spans.stop_S[before.span_O[row]])
        left, right = self._group(before, row), self._group(behind, row)
        found = self._known.get((cut, left, right))
        if found is None:
            found = self._priced(cut, left, right)
            self._known[cut, left, right] = found
        return found

    def _group(self, options: Options, row: int) -> _Group:
        units = tuple(int(units) for units in options.units_OG[row] if units > 0)
        return _Group(SHARINGS[int(options.sharing[row])], int(options.group_O[row]), units)

    def _priced(self, cut: int, left: _Group, right: _Group) -> tuple[Transfer, float]:
        cluster, layer = self.problem.cluster, self.problem.model.layers[cut - 1]
        # Devices of one type on both sides are different devices.
        before = [n for count, own in self._counted(left) for n in own[:count]]
        after = [n for count, own in self._counted(right) for n in own[len(own) - count :]]
        rows = self.spans.micro_batch
        sides = [
            held(names, group.sharing, self._shares(group), rows) for names, group in ((before, left), (after, right))
        ]
        found = transfer(
            cluster, sides[0], sides[1], activation_bytes=layer.activation_bytes, gradient_bytes=layer.gradient_bytes
        )
        copies = [len(group.units) if group.sharing == "tensor" else 1 for group in (left, right)]
        joules = self.problem.batch * (
            copies[1] * layer.activation_bytes * sum(boundary_energy_j(cluster, before, after))
            + copies[0] * layer.gradient_bytes * sum(boundary_energy_j(cluster, after, before))
        )
        return found, joules

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
