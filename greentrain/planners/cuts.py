"""What a cut between two stages costs, for many pairs of stages at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np

from greentrain.cost import boundary_energy_j, boundary_transfer
from greentrain.objective import Problem
from greentrain.parallel.pipeline import Transfer
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.span_tables import SpanTables
from greentrain.planners.stage_options import Options

__all__ = ["Cuts", "least_cut_j_S"]


@dataclass
class Cuts:
    """Prices cuts; index L is the first layer behind the cut.

    Where all links are alike the widest share of either side decides. Otherwise every pair of groups and
    shares is priced by itself, once.
    """

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    _activation_L: np.ndarray = field(init=False)
    _gradient_L: np.ndarray = field(init=False)
    _known: dict[tuple[object, ...], tuple[Transfer, float]] = field(
        default_factory=dict[tuple[object, ...], tuple[Transfer, float]]
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
        shared = link.medium is not None
        left_N = self.spans.micro_batch + 0.0 * before.widest if shared else before.widest
        right_N = self.spans.micro_batch + 0.0 * behind.widest if shared else behind.widest
        down_s_N, up_s_N = forward_N / bandwidth, backward_N / bandwidth
        seconds = (
            left_N * down_s_N,
            right_N * down_s_N,
            right_N * up_s_N,
            left_N * up_s_N,
            np.where(forward_N > 0, link.latency_s, 0.0),
            np.where(backward_N > 0, link.latency_s, 0.0),
            left_N * down_s_N * shared,
            left_N * up_s_N * shared,
        )
        transfer = Transfer(*cast("tuple[float, ...]", seconds))
        return transfer, (forward_N + backward_N) * self.problem.batch * (link.tx_j_per_byte + link.rx_j_per_byte)

    def _pair(self, before: Options, behind: Options, row: int) -> tuple[Transfer, float]:
        cut = int(self.spans.stop_S[before.span_O[row]])
        left, right = self._shares(before, row), self._shares(behind, row)
        key = (cut, int(before.group_O[row]), left, int(behind.group_O[row]), right)
        found = self._known.get(key)
        if found is None:
            found = self._priced(cut, int(before.group_O[row]), left, int(behind.group_O[row]), right)
            self._known[key] = found
        return found

    def _shares(self, options: Options, row: int) -> tuple[int, ...]:
        return tuple(int(units) * self.spans.step for units in options.units_OG[row] if units > 0)

    def _priced(
        self, cut: int, left: int, left_shares: tuple[int, ...], right: int, right_shares: tuple[int, ...]
    ) -> tuple[Transfer, float]:
        cluster = self.problem.cluster
        # Devices of one type on both sides are different devices.
        before = [n for count, own in zip(self.counts_UT[left], self.types.names_T, strict=True) for n in own[:count]]
        after = [
            n
            for count, own in zip(self.counts_UT[right], self.types.names_T, strict=True)
            for n in own[len(own) - count :]
        ]
        layer = self.problem.model.layers[cut - 1]
        transfer = boundary_transfer(
            cluster, before, after, rows_before=left_shares, rows_after=right_shares, layer=layer
        )
        joules = self.problem.batch * (
            layer.activation_bytes * sum(boundary_energy_j(cluster, before, after))
            + layer.gradient_bytes * sum(boundary_energy_j(cluster, after, before))
        )
        return transfer, joules


def least_cut_j_S(problem: Problem, spans: SpanTables) -> np.ndarray:
    """Joules per round of the cut behind each span, at least; 0 behind the last layer."""
    cluster, layers = problem.cluster, problem.model.layers
    per_byte_j = min(link.tx_j_per_byte + link.rx_j_per_byte for link in (cluster.default_link, *cluster.links))
    bytes_L = [0, *(layer.activation_bytes + layer.gradient_bytes for layer in layers[:-1]), 0]
    return np.array(bytes_L, dtype=np.float64)[spans.stop_S] * problem.batch * per_byte_j
