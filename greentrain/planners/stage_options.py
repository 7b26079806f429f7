"""Ways to run one stage: a span of layers on a group of device types, with operating points and shares.

A group's shares are the cheapest in joules within a limit on its slowest device's seconds per micro-batch;
every limit that matters is tried. Where a stage can be shared in only a few ways, all of them are tried.

Axis legend: S spans, U groups (count vectors), P slots (type at a point), R share units, O options,
G places in a group (padded with −1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import comb, prod
from typing import Any, NamedTuple

import numpy as np

from greentrain.objective import Problem
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.group_messages import GroupMessages, GroupSum
from greentrain.planners.options import SHARINGS, Options, Shares, Window, joined, undominated
from greentrain.planners.share_units import Allocation, StageRows, least_by_counts, least_of_many
from greentrain.planners.span_tables import PartBytes, SpanTables, most_units_TS

__all__ = ["OptionMaker"]

_CHUNK = 40_000
# The joules of more devices of one type are bounded, not found.
_MOST_CONVOLVED = 8
# Bounds may be a little too low, never too high: sums are rounded in another order than those of the options.
_LOOSER = 1 + 1e-12


@dataclass
class OptionMaker:
    """Prices the stages of one problem for one micro-batch size and one way to share."""

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    _caps: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])
    _part_bytes: dict[int, PartBytes] = field(default_factory=dict[int, PartBytes])
    messages: GroupMessages = field(init=False)
    _time_s_PSR: np.ndarray = field(init=False)
    _busy_j_PSR: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        spans = self.spans
        self.messages = GroupMessages(self.problem, self.types, spans, self.counts_UT)
        compute_s_PSR = spans.forward_s_PSR + spans.backward_s_PSR
        self._time_s_PSR = compute_s_PSR + spans.network_forward_s_PSR + spans.network_backward_s_PSR
        busy_s_PSR = compute_s_PSR * spans.micro_batches_n + spans.update_s_PSR
        self._busy_j_PSR = busy_s_PSR * spans.rise_w_P[:, None, None] + spans.wake_j_P[:, None, None]

    @property
    def least_group_n(self) -> int:
        """Devices that a group of this way to share needs at least."""
        return 1 if self.spans.sharing == "samples" else 2

    def caps_TS(self, in_flight: int) -> np.ndarray:
        """Most share units that fit each device type's memory."""
        if in_flight not in self._caps:
            self._caps[in_flight] = most_units_TS(
                self.problem, self.types, self.spans, in_flight, known=self._part_bytes
            )
        return self._caps[in_flight]

    @cached_property
    def least_s_US(self) -> np.ndarray:
        """Least seconds per micro-batch of every stage, forward and backward, shape (U, S); no shares are faster."""
        units = self.spans.units
        fastest_TSR = np.stack(
            [self._time_s_PSR[self.spans.slots_of(index)].min(axis=0) for index in range(len(self.types.device_T))]
        )[:, :, 1:]
        caps_TS = self.caps_TS(1)
        fastest_TSR = np.where(np.arange(1, units + 1) <= caps_TS[:, :, None], fastest_TSR, np.inf)
        fastest_TSR[:, ~self.spans.shared_S] = np.inf
        found_US = np.full((len(self.counts_UT), len(self.spans.start_S)), np.inf)
        for group, counts in enumerate(self.counts_UT.tolist()):
            places = [index for index, count in enumerate(counts) for _ in range(count)]
            if self.least_group_n <= len(places) <= units:
                times_SE = fastest_TSR[places].transpose(1, 0, 2).reshape(len(self.spans.start_S), -1)
                # Within a limit every device takes as many units as end in time: all must be taken by someone.
                enough_S = np.partition(times_SE, units - 1, axis=1)[:, units - 1]
                found_US[group] = np.maximum(enough_S, fastest_TSR[places][:, :, 0].max(axis=0))
        return found_US

    @cached_property
    def least_tail_s_US(self) -> np.ndarray:
        """Least seconds of the gradient sum and the update of every stage, behind its last backward."""
        return (
            np.stack([self.messages.group_sum(group).exposed_s_S for group in range(len(self.counts_UT))])
            + self._update_s_S
        )

    @cached_property
    def whole_tail_s_US(self) -> np.ndarray:
        """The same with all of the gradient sum: behind the stage's last forward."""
        return (
            np.stack([self.messages.group_sum(group).seconds_S for group in range(len(self.counts_UT))])
            + self._update_s_S
        )

    @cached_property
    def _update_s_S(self) -> Any:
        return self.spans.update_s_PSR[:, :, 1:].min(axis=(0, 2))

    @cached_property
    def forward_part(self) -> float:
        """The forward's least part of a device's forward and backward, over any layers."""
        forward_s_PSR, backward_s_PSR = self.spans.forward_s_PSR[:, :, 1:], self.spans.backward_s_PSR[:, :, 1:]
        both_s_PSR = forward_s_PSR + backward_s_PSR
        parts_PSR = np.divide(forward_s_PSR, both_s_PSR, where=both_s_PSR > 0, out=np.full_like(both_s_PSR, 0.5))
        return float(parts_PSR.min())

    def least_j_US(self, window: Window, fill_s_S: np.ndarray) -> np.ndarray:
        """A bound on the joules of every stage in a round of the window: no plan's stage costs less.

        Infinite where the stage cannot end in time. Compared with the options, points may differ per share and
        the slowest update is each device's own.

        Args:
            window: Rounds that are looked at.
            fill_s_S: Seconds that the layers before each span take one micro-batch at least.

        Returns:
            Joules of shape (U, S).
        """
        sizes_U = self.counts_UT.sum(axis=1)
        found_US = np.full((len(sizes_U), len(self.spans.start_S)), np.inf)
        devices = self._device_j(window, fill_s_S)
        for size in range(self.least_group_n, min(int(sizes_U.max()), self.spans.units) + 1):
            groups = np.flatnonzero(sizes_U == size)
            sums = [self.messages.group_sum(int(group)) for group in groups]
            exposed_s_S, whole_s_S = np.min([(own.exposed_s_S, own.seconds_S) for own in sums], axis=0)
            cost_TRS = devices.least_TRS(window.high_s, exposed_s_S, whole_s_S)
            if len(cost_TRS) == 1 and size > _MOST_CONVOLVED:
                least = iter([least_of_many(size, cost_TRS[0])])
            else:
                least = least_by_counts(self.counts_UT[groups], cost_TRS)
            for group, least_S, own in zip(groups, least, sums, strict=True):
                found_US[group] = least_S + own.joules_S
        return found_US

    def _device_j(self, window: Window, fill_s_S: np.ndarray) -> _DeviceJoules:
        """Joules of each device alone, where its memory and the time behind the layers before allow its part."""
        spans = self.spans
        caps_TS = self.caps_TS(1)
        units_R = np.arange(spans.units + 1)
        passes_s_PSR = self._time_s_PSR * spans.micro_batches_n
        in_time_PSR = passes_s_PSR + fill_s_S[:, None] <= window.high_s * _LOOSER
        in_memory_PSR = (units_R <= caps_TS[spans.type_P][:, :, None]) & spans.shared_S[:, None]
        wait_j_P = np.minimum(spans.more_w_P * window.low_s, spans.more_w_P * window.high_s)
        cost_PSR = np.where(in_time_PSR & in_memory_PSR, self._busy_j_PSR + wait_j_P[:, None, None], np.inf)
        cost_PSR[:, :, 0] = np.inf
        early_part = (spans.micro_batches_n - 1 + self.forward_part) / spans.micro_batches_n
        return _DeviceJoules(
            own_s_PRS=np.ascontiguousarray((passes_s_PSR + spans.update_s_PSR).transpose(0, 2, 1)),
            early_s_PRS=np.ascontiguousarray((early_part * passes_s_PSR + spans.update_s_PSR).transpose(0, 2, 1)),
            cost_j_PRS=np.ascontiguousarray(cost_PSR.transpose(0, 2, 1)),
            slots=tuple(spans.slots_of(index) for index in range(len(self.types.device_T))),
        )

    def options(
        self, window: Window, budget_US: np.ndarray, fill_s_US: np.ndarray, in_flight: int, *, by_energy: bool,
        shares: Shares, check_time: Callable[[], None],
    ) -> Options:  # fmt: skip
        """The options of every stage that may be part of a better plan.

        Args:
            window: Rounds that are looked at.
            budget_US: A stage's joules in a round must stay below this, shape (U, S).
            fill_s_US: Seconds that the layers before a stage take one micro-batch at least, shape (U, S).
            in_flight: Micro-batches that the stage holds at once; decides the memory.
            by_energy: Whether joules matter; otherwise only the least limit is of use.
            shares: Which shares are tried: all, the cheapest within each limit on the slowest device, or only those
                within the loosest limit and the tightest (``ends``), for a quick look.
            check_time: Called now and then; may raise to end the search.
        """
        found: list[Options] = []
        caps_TS = self.caps_TS(in_flight)
        for size in range(self.least_group_n, int(self.counts_UT.sum(axis=1).max()) + 1):
            groups = np.flatnonzero(self.counts_UT.sum(axis=1) == size)
            for rows in self._configurations(groups, budget_US):
                check_time()
                found += self._priced(rows, window, budget_US, fill_s_US, caps_TS, by_energy=by_energy, shares=shares)
        return undominated(joined(found, self._widest_group), window, by_energy=by_energy, check_time=check_time)

    def _configurations(self, groups: np.ndarray, budget_US: np.ndarray) -> Iterator[StageRows]:
        """Spans × slots of the groups, in chunks."""
        listed: list[StageRows] = []
        waiting = 0
        for group in groups.tolist():
            spans = np.flatnonzero((budget_US[group] > -np.inf) & self.spans.shared_S)
            if len(spans) == 0:
                continue
            all_CG = self._slot_choices(self.counts_UT[group].tolist())
            for slots_CG in np.array_split(all_CG, max(len(all_CG) * len(spans) // _CHUNK, 1)):
                span_N = np.repeat(spans, len(slots_CG))
                listed.append(StageRows(span_N, np.full(len(span_N), group), np.tile(slots_CG, (len(spans), 1))))
                waiting += len(span_N)
                if waiting > _CHUNK:
                    yield _stacked(listed)
                    listed, waiting = [], 0
        if listed:
            yield _stacked(listed)

    def configurations_n(self, budget_US: np.ndarray) -> int:
        """Spans × groups × operating points that :meth:`options` would look at."""
        open_U = (budget_US[:, self.spans.shared_S] > -np.inf).sum(axis=1)
        return int((open_U * self._point_choices_U * (self.counts_UT.sum(axis=1) >= self.least_group_n)).sum())

    @property
    def allocations_n(self) -> int:
        """Spans × groups × operating points × shares: every way to run a stage."""
        shares_U = np.array(
            [comb(self.spans.units - 1, size - 1) if size else 0 for size in self.counts_UT.sum(axis=1)]
        )
        return int((self._point_choices_U * shares_U).sum()) * len(self.spans.start_S)

    @cached_property
    def _point_choices_U(self) -> np.ndarray:
        points = [len(self.spans.slots_of(index)) for index in range(len(self.types.device_T))]
        return np.array(
            [
                prod(comb(many + count - 1, count) for many, count in zip(points, counts, strict=True))
                for counts in self.counts_UT.tolist()
            ],
            dtype=np.float64,
        )

    def _slot_choices(self, counts: Sequence[int]) -> np.ndarray:
        """Every choice of operating points for the devices of a group, one row of slots each."""
        per_type = [
            np.array(list(itertools.combinations_with_replacement(self.spans.slots_of(index), count)), dtype=np.int32)
            for index, count in enumerate(counts)
            if count
        ]
        rows = np.indices([len(slots) for slots in per_type]).reshape(len(per_type), -1)
        return np.concatenate([slots[row] for slots, row in zip(per_type, rows, strict=True)], axis=1)

    def _priced(
        self, rows: StageRows, window: Window, budget_US: np.ndarray, fill_s_US: np.ndarray, caps_TS: np.ndarray, *,
        by_energy: bool, shares: Shares,
    ) -> list[Options]:  # fmt: skip
        spans = self.spans
        own_N = self.messages.of_rows(rows)
        update_s_N = spans.update_s_PSR[rows.slot_NG, rows.span_N[:, None], 1].max(axis=1)
        wait_w_N = spans.more_w_P[rows.slot_NG].sum(axis=1)
        beside_s_N = np.maximum(own_N.exposed_s_S + update_s_N, fill_s_US[rows.group_N, rows.span_N])
        limit_s_N = (window.high_s - beside_s_N) / spans.micro_batches_n
        # All of the sum follows the last forward.
        early_n = spans.micro_batches_n - 1 + self.forward_part
        if early_n > 0:
            limit_s_N = np.minimum(limit_s_N, (window.high_s - own_N.seconds_S - update_s_N) / early_n * _LOOSER)
        spare_j_N = budget_US[rows.group_N, rows.span_N] - own_N.joules_S
        spare_j_N -= np.minimum(wait_w_N * window.low_s, wait_w_N * window.high_s)
        cap_NG = caps_TS[spans.type_P[rows.slot_NG], rows.span_N[:, None]]
        job = Allocation(self._time_s_PSR, self._busy_j_PSR, rows, limit_s_N, spare_j_N, cap_NG)
        if shares == "all":
            picked_N, units_NG = job.all_units(spans.units)
        elif by_energy and shares == "cheapest":
            picked_N, units_NG = job.cheapest_units(spans.units)
        elif by_energy:
            loosest, tightest = job.loosest_units(spans.units), job.fastest_units(spans.units)
            picked_N, units_NG = (np.concatenate(both) for both in zip(loosest, tightest, strict=True))
        else:
            picked_N, units_NG = job.fastest_units(spans.units)
        if len(picked_N) == 0:
            return []
        rows, own_N = rows.picked(picked_N), GroupSum(*(values[picked_N] for values in own_N))
        own_NG = (rows.slot_NG, rows.span_N[:, None], units_NG)
        passes = self._pass_s(rows, units_NG)
        group_n = rows.slot_NG.shape[1]
        largest_rows = units_NG.max(axis=1) / spans.units * spans.micro_batch
        whole = spans.sharing == "tensor" and group_n > 1
        return [
            Options(
                span_O=rows.span_N,
                group_O=rows.group_N,
                slot_OG=_padded(rows.slot_NG, self._widest_group),
                units_OG=_padded(units_NG, self._widest_group),
                forward_s=passes.forward_s,
                backward_s=passes.backward_s,
                both_s=passes.both_s,
                first_forward_s=passes.first_forward_s,
                first_backward_s=passes.first_backward_s,
                tail_s=self.messages.sum_s(rows, units_NG, own_N) + spans.update_s_PSR[own_NG].max(axis=1),
                busy_j=self._busy_j_PSR[own_NG].sum(axis=1) + own_N.joules_S,
                wait_w=spans.more_w_P[rows.slot_NG].sum(axis=1),
                most_s=self._most_s(rows, units_NG, own_N.joules_S),
                sent_rows=np.full(len(units_NG), spans.micro_batch / group_n) if whole else largest_rows,
                taken_rows=np.full(len(units_NG), float(spans.micro_batch)) if whole else largest_rows,
                copies=np.full(len(units_NG), float(group_n if whole else 1)),
                air_s=own_N.air_s_S,
                ring_port_s=own_N.ring_port_s_S,
                ring_air_s=own_N.ring_air_s_S,
                sharing=np.full(len(units_NG), SHARINGS.index(spans.sharing)),
            )
        ]

    def _most_s(self, rows: StageRows, units_NG: np.ndarray, inside_j_N: np.ndarray) -> np.ndarray:
        """Longest round in which no device of the group exceeds its own budget, cuts at their least joules.

        Where work is shared inside a sample, uneven tiles spread the joules of messages unevenly: those are left out.
        """
        spans = self.spans
        budget_j_NG = spans.budget_j_P[rows.slot_NG]
        if np.isinf(budget_j_NG).all():
            return np.full(len(units_NG), np.inf)
        left_j_NG = budget_j_NG - self._busy_j_PSR[rows.slot_NG, rows.span_N[:, None], units_NG]
        if spans.sharing == "samples":
            left_j_NG -= (inside_j_N / rows.slot_NG.shape[1])[:, None]
            left_j_NG -= units_NG / spans.units * least_port_j_S(self.problem, spans)[rows.span_N][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            most_s_NG = np.where(left_j_NG < 0, -1.0, left_j_NG / spans.wait_w_P[rows.slot_NG])
        return np.nan_to_num(most_s_NG, nan=np.inf, posinf=np.inf).min(axis=1)

    def _pass_s(self, rows: StageRows, units_NG: np.ndarray) -> _Passes:
        """The group's passes of a micro-batch."""
        spans = self.spans
        own_NG = (rows.slot_NG, rows.span_N[:, None], units_NG)
        if spans.sharing == "samples":
            forward_s_NG = spans.forward_s_PSR[own_NG] + spans.network_forward_s_PSR[own_NG]
            backward_s_NG = spans.backward_s_PSR[own_NG] + spans.network_backward_s_PSR[own_NG]
            return _Passes(
                forward_s_NG.max(axis=1), backward_s_NG.max(axis=1), self._time_s_PSR[own_NG].max(axis=1),
                forward_s_NG.min(axis=1), backward_s_NG.min(axis=1),
            )  # fmt: skip
        start_N, stop_N = spans.start_S[rows.span_N], spans.stop_S[rows.span_N]
        kind_N = np.concatenate([rows.group_N[:, None], rows.slot_NG, units_NG], axis=1)
        kinds_K, kind_of_N = np.unique(kind_N, axis=0, return_inverse=True)
        stops_s_2KL, starts_s_2KL = self.messages.known_prefix_s(kinds_K)
        kind_of_N = kind_of_N.reshape(-1)
        both_s_2N = stops_s_2KL[:, kind_of_N, stop_N] - starts_s_2KL[:, kind_of_N, start_N]
        forward_s = both_s_2N[0] + spans.network_forward_s_PSR[own_NG].max(axis=1)
        backward_s = both_s_2N[1] + spans.network_backward_s_PSR[own_NG].max(axis=1)
        return _Passes(forward_s, backward_s, forward_s + backward_s, forward_s, backward_s)

    @property
    def _widest_group(self) -> int:
        return int(self.counts_UT.sum(axis=1).max())


class _Passes(NamedTuple):
    """Seconds of a micro-batch: of the slowest device of the group, and of its fastest."""

    forward_s: np.ndarray
    backward_s: np.ndarray
    both_s: np.ndarray
    first_forward_s: np.ndarray
    first_backward_s: np.ndarray


class _DeviceJoules(NamedTuple):
    """Devices alone, by operating point and number of units.

    Attributes:
        own_s_PRS: Seconds of the passes and the update.
        early_s_PRS: The same without the last backward.
        cost_j_PRS: Joules; infinite where the part is not possible.
        slots: Operating points of each type.
    """

    own_s_PRS: np.ndarray
    early_s_PRS: np.ndarray
    cost_j_PRS: np.ndarray
    slots: tuple[list[int], ...]

    def least_TRS(self, high_s: float, exposed_s_S: np.ndarray, whole_s_S: np.ndarray) -> np.ndarray:
        """Least joules of one device of each type whose gradient sum ends in time, shape (T, R, S)."""
        in_time_PRS = self.own_s_PRS + exposed_s_S <= high_s * _LOOSER
        in_time_PRS &= self.early_s_PRS + whole_s_S <= high_s * _LOOSER
        possible_PRS = np.where(in_time_PRS, self.cost_j_PRS, np.inf)
        return np.stack([possible_PRS[slots].min(axis=0, initial=np.inf) for slots in self.slots])


def _padded(values_NG: np.ndarray, places_n: int) -> np.ndarray:
    return np.pad(values_NG, ((0, 0), (0, places_n - values_NG.shape[1])), constant_values=-1).astype(np.int32)


def _stacked(listed: Sequence[StageRows]) -> StageRows:
    return StageRows(*(np.concatenate(columns) for columns in zip(*listed, strict=True)))


def least_port_j_S(problem: Problem, spans: SpanTables) -> np.ndarray:
    """Joules per round of all that a stage hands over and takes at its cuts, at least; cheapest links."""
    cluster, layers = problem.cluster, problem.model.layers
    links = (cluster.default_link, *cluster.links)
    tx_j, rx_j = min(link.tx_j_per_byte for link in links), min(link.rx_j_per_byte for link in links)
    down_L = [0, *(layer.activation_bytes for layer in layers[:-1]), 0]
    up_L = [0, *(layer.gradient_bytes for layer in layers[:-1]), 0]
    down, up = np.array(down_L, dtype=np.float64), np.array(up_L, dtype=np.float64)
    before_S = down[spans.start_S] * rx_j + up[spans.start_S] * tx_j
    return problem.batch * (before_S + down[spans.stop_S] * tx_j + up[spans.stop_S] * rx_j)
