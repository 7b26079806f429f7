"""What groups of devices send among themselves: gradient sums per round, rings per micro-batch.

Axis legend: S spans, U groups (count vectors), K kinds of groups (with slots and units), L layers, P slots, R share
units, G places in a group, N rows of options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np

from greentrain.cluster import Cluster
from greentrain.cost import inside_energy_j
from greentrain.objective import Problem
from greentrain.parallel.data import (
    exposed_sum_s,
    gradient_sum_air_s,
    gradient_sum_busy_s,
    gradient_sum_bytes,
    gradient_sum_wire_s,
)
from greentrain.parallel.tensor_sequence import layer_pass_s, ring_loads_s, ring_part_bytes, rings_s
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.share_units import StageRows
from greentrain.planners.span_tables import SpanTables
from greentrain.sharing import Direction, Ring, end_ring, entry_ring, joint_ring, layer_ring, ring_bytes, stage_rings

__all__ = ["GroupMessages", "GroupSum"]

# Kinds of groups whose rings are remembered.
_MOST_PREFIXES = 50_000
_WAYS: tuple[Direction, ...] = ("forward", "backward")


class GroupSum(NamedTuple):
    """What a group sends inside, per span: its gradient sum per round and its rings per micro-batch.

    Attributes:
        seconds_S: Seconds of the sum.
        exposed_s_S: Those that no backward can hide.
        wire_s_S: For which it occupies the wire.
        busy_s_S: For which it occupies the busiest processor.
        air_s_S: For which it occupies a shared medium.
        joules_S: Of the sum and of a round's rings.
        ring_port_s_S: For which the rings occupy each port.
        ring_air_s_S: For which they occupy a shared medium.
    """

    seconds_S: np.ndarray
    exposed_s_S: np.ndarray
    wire_s_S: np.ndarray
    busy_s_S: np.ndarray
    air_s_S: np.ndarray
    joules_S: np.ndarray
    ring_port_s_S: np.ndarray
    ring_air_s_S: np.ndarray


@dataclass
class GroupMessages:
    """Prices what the groups of one problem send inside, for one micro-batch size and one way to share."""

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    _sums: dict[int, GroupSum] = field(default_factory=dict[int, GroupSum])
    _prefixes: dict[bytes, np.ndarray] = field(default_factory=dict[bytes, np.ndarray])

    def group_sum(self, group: int) -> GroupSum:
        """The gradient sum of a group over every span; all of it is affine in the bytes."""
        found = self._sums.get(group)
        if found is None:
            found = self._group_sum(group)
            self._sums[group] = found
        return found

    def _names(self, group: int) -> list[str]:
        counts = self.counts_UT[group].tolist()
        return [name for count, own in zip(counts, self.types.names_T, strict=True) for name in own[:count]]

    def _group_sum(self, group: int) -> GroupSum:
        cluster, spans = self.problem.cluster, self.spans
        names = self._names(group)
        sums_S = spans.sum_bytes_S.astype(np.float64)
        if len(names) < 2:
            return GroupSum(*np.zeros((len(GroupSum._fields), len(sums_S))))

        def affine(seconds_of: Callable[[Cluster, Sequence[str], int], float]) -> np.ndarray:
            one_s, two_s = seconds_of(cluster, names, 1_000_000), seconds_of(cluster, names, 2_000_000)
            return np.where(sums_S > 0, one_s + (two_s - one_s) * (sums_S / 1e6 - 1), 0.0)

        per_byte_j = sum(sum(inside_energy_j(cluster, names, name)) for name in names)
        rings_S = self._ring_bytes_S(len(names))
        moved_S = gradient_sum_bytes(len(names), 1_000_000) * sums_S / 1e6 + spans.micro_batches_n * rings_S
        port_s, air_s = ring_loads_s(cluster, names, 1.0)
        wire_s_S, busy_s_S = affine(gradient_sum_wire_s), gradient_sum_busy_s(cluster, names, 1) * sums_S
        sum_air_s_S = affine(gradient_sum_air_s)
        # What the first stage sums of the first layer comes last; see exposed_sum_s.
        hidden_S = (spans.start_S == 0) & (sum_air_s_S == 0) & (spans.sharing == "samples")
        last_s_S = np.where(hidden_S, wire_s_S[spans.span_LL[0, 1]], wire_s_S)
        return GroupSum(
            np.maximum(wire_s_S, busy_s_S),
            np.maximum(last_s_S, busy_s_S),
            wire_s_S,
            busy_s_S,
            sum_air_s_S,
            per_byte_j * moved_S,
            port_s * rings_S,
            air_s * rings_S,
        )

    def of_rows(self, rows: StageRows) -> GroupSum:
        """What the groups of some rows send inside, one entry per row."""
        found = GroupSum(*np.zeros((len(GroupSum._fields), len(rows.span_N))))
        for group in np.unique(rows.group_N).tolist():
            own_N = rows.group_N == group
            for values, own_S in zip(found, self.group_sum(group), strict=True):
                values[own_N] = own_S[rows.span_N[own_N]]
        return found

    def _ring_bytes_S(self, group_n: int) -> np.ndarray:
        """Bytes that each device of a group sends in the rings of a micro-batch, both passes."""
        return np.asarray(ring_part_bytes(self._whole_ring_bytes_S, self.spans.micro_batch, group_n))

    @cached_property
    def _whole_ring_bytes_S(self) -> Any:
        """Bytes per row of the rings of every span, both passes."""
        spans, layers = self.spans, self.problem.model.layers
        if spans.sharing == "samples":
            return np.zeros(len(spans.start_S))
        sizes_S = np.zeros(len(spans.start_S))
        for number in set(spans.like_S.tolist()):
            rings = stage_rings(spans.sharing, layers, int(spans.start_S[number]), int(spans.stop_S[number]))
            sizes_S[number] = ring_bytes(rings, "forward") + ring_bytes(rings, "backward")
        return sizes_S[spans.like_S]

    @cached_property
    def _rings_L(self) -> list[_LayerRings]:
        """The rings of every layer, and those between it and the one before it."""
        layers, sharing = self.problem.model.layers, self.spans.sharing
        befores = (None, *layers[:-1])
        return [
            _LayerRings(
                layer_ring(sharing, layer, ends_model=index + 1 == len(layers)),
                () if before is None else joint_ring(sharing, before, layer),
                () if before is None else entry_ring(sharing, before, layer),
            )
            for index, (before, layer) in enumerate(zip(befores, layers, strict=True))
        ]

    def sum_s(self, rows: StageRows, units_NG: np.ndarray, own_N: GroupSum) -> np.ndarray:
        """Seconds of the groups' gradient sums that their last backward does not hide; see ``exposed_sum_s``."""
        seconds_N = own_N.seconds_S.copy()
        hidden_N = np.flatnonzero(own_N.exposed_s_S < seconds_N)
        if len(hidden_N) == 0:
            return seconds_N
        spans = self.spans
        stop_N = spans.stop_S[rows.span_N[hidden_N]]
        slot_NG, unit_NG = rows.slot_NG[hidden_N], units_NG[hidden_N]
        groups, place_N = np.unique(rows.group_N[hidden_N], return_inverse=True)
        wire_s_UL = np.stack([self.group_sum(int(group)).wire_s_S[spans.span_LL[0, 1:]] for group in groups])

        ready_s_L: list[Any] = []
        wires_s_L: list[Any] = []
        for layer in range(int(stop_N.max())):
            behind_N = spans.span_LL[layer, np.maximum(stop_N, layer + 1)]
            ready_s_N = spans.backward_s_PSR[slot_NG, behind_N[:, None], unit_NG].max(axis=1)
            # Layers behind the stage take none of its backward.
            ready_s_L.append(np.where(stop_N > layer, ready_s_N, 0.0))
            wires_s_L.append(wire_s_UL[place_N, np.minimum(layer, stop_N - 1)])
        seconds_N[hidden_N] = exposed_sum_s(ready_s_L, wires_s_L, cast("float", own_N.busy_s_S[hidden_N]))
        return seconds_N

    def known_prefix_s(self, kinds_K: np.ndarray) -> np.ndarray:
        """As :meth:`_ring_prefix_s`, every kind priced once."""
        keys = [kind.tobytes() for kind in kinds_K]
        if len(self._prefixes) > _MOST_PREFIXES:
            self._prefixes.clear()
        new = [place for place, key in enumerate(keys) if key not in self._prefixes]
        if new:
            found_22KL = np.stack(self._ring_prefix_s(kinds_K[new]))
            self._prefixes.update({keys[place]: found_22KL[:, :, row] for row, place in enumerate(new)})
        return np.stack([self._prefixes[key] for key in keys], axis=2)

    def _ring_prefix_s(self, kinds_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of a micro-batch that end before each boundary, and those of them that no stage from there has.

        A stage takes the difference, the first at its end and the second at its start. Both of shape (2, K, L + 1),
        forward and backward.

        Args:
            kinds_K: Group, slots and units of each kind of group, one row each.
        """
        spans, layers = self.spans, self.problem.model.layers
        group_n = (kinds_K.shape[1] - 1) // 2
        slot_KG, units_KG = kinds_K[:, 1 : 1 + group_n], kinds_K[:, 1 + group_n :]
        own_s_2KL = np.zeros((2, len(kinds_K), len(layers) + 1))
        # What a joint of layers takes inside a stage, less what it takes at its start.
        joint_s_2KL = np.zeros_like(own_s_2KL)
        for group in np.unique(kinds_K[:, 0]).tolist():
            own_K = np.flatnonzero(kinds_K[:, 0] == group)
            price = _RingPrice(
                spans, self.problem.cluster, self._names(group), units_KG[own_K].max(axis=1) / spans.units
            )
            for way, table in enumerate((spans.forward_s_PSR, spans.backward_s_PSR)):
                for index, rings in enumerate(self._rings_L):
                    compute_s_K = table[slot_KG[own_K], spans.span_LL[index, index + 1], units_KG[own_K]].max(axis=1)
                    own_s_2KL[way, own_K, index + 1] = price.layer_s(way, rings.own, compute_s_K)
                    if rings.joint or rings.entry:
                        inside_s = price.rings_s(way, rings.joint)
                        joint_s_2KL[way, own_K, index] = inside_s - price.rings_s(way, rings.entry)
                        own_s_2KL[way, own_K, index + 1] += inside_s
                own_s_2KL[way, own_K, -1] += price.rings_s(way, end_ring(spans.sharing, layers[-1]))
        stops_s_2KL = own_s_2KL.cumsum(axis=2)
        return stops_s_2KL, stops_s_2KL + joint_s_2KL


class _LayerRings(NamedTuple):
    """A layer's own rings, those between it and the layer before it, and those in front where a stage begins."""

    own: Ring | None
    joint: tuple[Ring, ...]
    entry: tuple[Ring, ...]


class _RingPrice(NamedTuple):
    """Prices the rings of one group for several shares."""

    spans: SpanTables
    cluster: Cluster
    devices: Sequence[str]
    largest_part_K: np.ndarray

    def layer_s(self, way: int, ring: Ring | None, compute_s_K: np.ndarray) -> np.ndarray:
        seconds_K = layer_pass_s(
            self.spans.sharing, self.cluster, self.devices, compute_s=cast("float", compute_s_K),
            ring_bytes=ring.bytes if ring else 0, rings_n=ring.rings_n(_WAYS[way]) if ring else 0,
            rows=self.spans.micro_batch, largest_part=cast("float", self.largest_part_K),
        )  # fmt: skip
        return cast("np.ndarray", seconds_K)

    def rings_s(self, way: int, rings: Sequence[Ring]) -> np.ndarray:
        seconds_K = rings_s(
            rings, _WAYS[way], self.cluster, self.devices, rows=self.spans.micro_batch,
            largest_part=cast("float", self.largest_part_K),
        )  # fmt: skip
        return cast("np.ndarray", seconds_K)
