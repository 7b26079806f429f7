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
from greentrain.sharing import is_split

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
    # Part of them that belongs to other tensors than the hidden state.
    _side_L: np.ndarray = field(init=False)
    _side_gradient_L: np.ndarray = field(init=False)
    # Whether a group computes a layer whole on every device, by way to share.
    _whole_WL: np.ndarray = field(init=False)
    _kind_L: np.ndarray = field(init=False)
    _kinds: list[_CutKind] = field(default_factory=list["_CutKind"])
    _numbers: dict[_Group, int] = field(default_factory=dict["_Group", int])
    _known: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict[tuple[int, int, int], np.ndarray])

    def __post_init__(self) -> None:
        layers = self.problem.model.layers
        self._activation_L = np.array([0, *(layer.activation_bytes for layer in layers)], dtype=np.float64)
        self._gradient_L = np.array([0, *(layer.gradient_bytes for layer in layers)], dtype=np.float64)
        self._side_L = np.array([0, *(layer.activation_bytes - layer.hidden_bytes for layer in layers)])
        self._side_gradient_L = np.array([0, *(layer.side_gradient_bytes for layer in layers)])
        self._whole_WL = np.array(
            [
                [sharing == "tensor" or (sharing != "samples" and not is_split(sharing, layer)) for layer in layers]
                for sharing in SHARINGS
            ]
        )
        found = [self._kind(cut) for cut in range(len(layers))]
        self._kinds = sorted(set(found))
        self._kind_L = np.array([self._kinds.index(kind) for kind in found])

    def _kind(self, cut: int) -> _CutKind:
        """What the price of a cut in front of a layer depends on, but for its bytes."""
        if cut == 0:
            return _CutKind((), (), 0.0, 0.0)
        whole_WL = self._whole_WL.tolist()
        sides = zip((self._side_L, self._side_gradient_L), (self._activation_L, self._gradient_L), strict=True)
        down, up = (float(side_L[cut] / max(whole_L[cut], 1)) for side_L, whole_L in sides)
        return _CutKind(tuple(own_L[cut - 1] for own_L in whole_WL), tuple(own_L[cut] for own_L in whole_WL), down, up)

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
        number_N = (self._kind_L[cut_N] * len(groups) + pair_N[:, 0]) * len(groups) + pair_N[:, 1]
        numbers, which_N = np.unique(number_N, return_inverse=True)
        priced = [
            self._priced(number // len(groups) ** 2, number // len(groups) % len(groups), number % len(groups), groups)
            for number in numbers.tolist()
        ]
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
        left, right = self._edge(before, cut_N - 1), self._edge(behind, cut_N)
        side_N, side_gradient_N = self._side_L[cut_N], self._side_gradient_L[cut_N]
        hidden_N, hidden_gradient_N = forward_N - side_N, backward_N - side_gradient_N
        wire, air = (1 - on_air) / bandwidth, on_air / bandwidth
        down_N = self.spans.micro_batch * (hidden_N * right.copies + side_N * right.side_copies)
        up_N = self.spans.micro_batch * (hidden_gradient_N * left.copies + side_gradient_N * left.side_copies)
        seconds = (
            (left.sent * right.copies * hidden_N + left.side_sent * right.side_copies * side_N) * wire,
            (right.taken * hidden_N + right.side_taken * side_N) * wire,
            (right.sent * left.copies * hidden_gradient_N + right.side_sent * left.side_copies * side_gradient_N)
            * wire,
            (left.taken * hidden_gradient_N + left.side_taken * side_gradient_N) * wire,
            np.where(forward_N > 0, link.latency_s, 0.0),
            np.where(backward_N > 0, link.latency_s, 0.0),
            down_N * air,
            up_N * air,
        )
        joules_N = (down_N + up_N) * self.spans.micro_batches_n * (link.tx_j_per_byte + link.rx_j_per_byte)
        return Transfer(*cast("tuple[float, ...]", seconds)), joules_N

    def _edge(self, options: Options, layer_N: np.ndarray) -> _Edge:
        """What the groups of some options hold at a cut beside a layer."""
        rows, sizes_N = float(self.spans.micro_batch), options.sizes.astype(np.float64)
        ways_N = options.sharing.astype(np.int64)
        whole_N, inside_N = self._whole_WL[ways_N, layer_N], ways_N > 0
        return _Edge(
            sent=np.where(whole_N, rows / sizes_N, options.sent_rows),
            taken=np.where(whole_N, rows, options.taken_rows),
            copies=np.where(whole_N, sizes_N, 1.0),
            side_sent=np.where(inside_N, rows / sizes_N, options.sent_rows),
            side_taken=np.where(inside_N, rows, options.taken_rows),
            side_copies=np.where(inside_N, sizes_N, 1.0),
        )

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

    def _priced(self, kind: int, left: int, right: int, groups: Sequence[_Group]) -> np.ndarray:
        """The transfer of activations alone and of gradients alone, with the joules per byte, shape (2, fields + 1)."""
        found = self._known.get((kind, left, right))
        if found is None:
            found = self._new_price(self._kinds[kind], groups[left], groups[right])
            self._known[kind, left, right] = found
        return found

    def _new_price(self, kind: _CutKind, left: _Group, right: _Group) -> np.ndarray:
        cluster, rows = self.problem.cluster, self.spans.micro_batch
        # Devices of one type on both sides are different devices.
        before = [n for count, own in self._counted(left) for n in own[:count]]
        after = [n for count, own in self._counted(right) for n in own[len(own) - count :]]
        whole = kind.left_whole_W[SHARINGS.index(left.sharing)], kind.right_whole_W[SHARINGS.index(right.sharing)]
        sides = [
            held(names, group.sharing, self._shares(group), rows, whole=own)
            for names, group, own in ((before, left, whole[0]), (after, right, whole[1]))
        ]
        down_side, up_side = round(_UNIT_BYTES * kind.side_part), round(_UNIT_BYTES * kind.side_gradient_part)
        down = transfer(
            cluster, sides[0], sides[1], activation_bytes=_UNIT_BYTES, gradient_bytes=0, side_bytes=down_side
        )
        up = transfer(
            cluster, sides[0], sides[1], activation_bytes=0, gradient_bytes=_UNIT_BYTES, side_gradient_bytes=up_side
        )
        down_j = _copies(right, kind.side_part, whole=whole[1]) * sum(boundary_energy_j(cluster, before, after))
        up_j = _copies(left, kind.side_gradient_part, whole=whole[0]) * sum(boundary_energy_j(cluster, after, before))
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


class _CutKind(NamedTuple):
    """What a cut's price depends on, but for its bytes.

    Attributes:
        left_whole_W: By way to share, whether every device of the group in front of it computes the layer there whole.
        right_whole_W: The same behind it.
        side_part: Part of the activations that are no hidden state.
        side_gradient_part: The same of the gradients.
    """

    left_whole_W: tuple[bool, ...]
    right_whole_W: tuple[bool, ...]
    side_part: float
    side_gradient_part: float


class _Edge(NamedTuple):
    """Rows that the busiest device of a group hands over and takes at a cut, and how often the group needs each.

    The first three of the hidden state, the others of the other tensors.
    """

    sent: np.ndarray
    taken: np.ndarray
    copies: np.ndarray
    side_sent: np.ndarray
    side_taken: np.ndarray
    side_copies: np.ndarray


def _copies(group: _Group, side_part: float, *, whole: bool) -> float:
    """How often a group takes a byte of a cut."""
    group_n = len(group.units)
    side_copies = 1 if group.sharing == "samples" else group_n
    return (1 - side_part) * (group_n if whole else 1) + side_part * side_copies


def least_cut_j_S(problem: Problem, spans: SpanTables) -> np.ndarray:
    """Joules per round of the cut behind each span, at least; 0 behind the last layer."""
    cluster, layers = problem.cluster, problem.model.layers
    per_byte_j = min(link.tx_j_per_byte + link.rx_j_per_byte for link in (cluster.default_link, *cluster.links))
    bytes_L = [0, *(layer.activation_bytes + layer.gradient_bytes for layer in layers[:-1]), 0]
    return np.array(bytes_L, dtype=np.float64)[spans.stop_S] * problem.batch * per_byte_j
