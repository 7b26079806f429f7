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
from typing import NamedTuple

import numpy as np

from greentrain.cluster import Cluster
from greentrain.cost import boundary_energy_j
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_air_s, gradient_sum_bytes, gradient_sum_s
from greentrain.planners.device_types import DeviceTypes
from greentrain.planners.pareto import undominated_rows
from greentrain.planners.share_units import Allocation, StageRows, least_by_counts
from greentrain.planners.span_tables import SpanTables, most_units_TS

__all__ = ["OptionMaker", "Options", "Window"]

_CHUNK = 40_000


class Window(NamedTuple):
    """The rounds that a search looks at: from ``low_s`` to ``high_s`` seconds."""

    low_s: float
    high_s: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ways to run a stage, one per row.

    Attributes:
        span_O: Span of layers.
        group_O: Count vector of the group.
        slot_OG: Slot of every place in the group, −1 beyond its size.
        units_OG: Share units of every place.
        forward_s: Slowest device's forward seconds per micro-batch.
        backward_s: Slowest device's backward seconds per micro-batch.
        both_s: Forward and backward seconds of the device that is slowest in both together.
        tail_s: Gradient sum and slowest update per round.
        busy_j: Joules above waiting per round, the gradient sum's bytes included.
        wait_w: Waiting watts of the group.
        widest: Most rows of one device.
        air_s: Seconds for which the gradient sum occupies a shared medium.
    """

    span_O: np.ndarray
    group_O: np.ndarray
    slot_OG: np.ndarray
    units_OG: np.ndarray
    forward_s: np.ndarray
    backward_s: np.ndarray
    both_s: np.ndarray
    tail_s: np.ndarray
    busy_j: np.ndarray
    wait_w: np.ndarray
    widest: np.ndarray
    air_s: np.ndarray

    def __len__(self) -> int:
        return len(self.span_O)

    @property
    def shape_O(self) -> np.ndarray:
        """Options with the same group and shares have the same number."""
        rows = np.concatenate([self.group_O[:, None], self.units_OG], axis=1)
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)

    def rows(self, keep: np.ndarray) -> Options:
        """Some of the options."""
        return Options(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})


@dataclass
class OptionMaker:
    """Prices the stages of one problem for one micro-batch size."""

    problem: Problem
    types: DeviceTypes
    spans: SpanTables
    counts_UT: np.ndarray
    _caps: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])
    _sums: dict[int, _GroupSum] = field(default_factory=dict[int, "_GroupSum"])
    _time_s_PSR: np.ndarray = field(init=False)
    _busy_j_PSR: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        spans = self.spans
        self._time_s_PSR = spans.forward_s_PSR + spans.backward_s_PSR
        busy_s_PSR = self._time_s_PSR * spans.micro_batches_n + spans.update_s_PS[:, :, None]
        self._busy_j_PSR = busy_s_PSR * spans.rise_w_P[:, None, None]

    def group_sum(self, group: int) -> _GroupSum:
        """The gradient sum of a group over every span; all of it is affine in the bytes."""
        found = self._sums.get(group)
        if found is None:
            found = self._group_sum(group)
            self._sums[group] = found
        return found

    def _group_sum(self, group: int) -> _GroupSum:
        cluster = self.problem.cluster
        counts = self.counts_UT[group].tolist()
        names = [name for count, own in zip(counts, self.types.names_T, strict=True) for name in own[:count]]
        params_S = self.spans.param_bytes_S.astype(np.float64)
        if len(names) < 2:
            return _GroupSum(0.0 * params_S, 0.0 * params_S, 0.0 * params_S)

        def affine(seconds_of: Callable[[Cluster, Sequence[str], int], float]) -> np.ndarray:
            one_s, two_s = seconds_of(cluster, names, 1_000_000), seconds_of(cluster, names, 2_000_000)
            return np.where(params_S > 0, one_s + (two_s - one_s) * (params_S / 1e6 - 1), 0.0)

        per_byte_j = sum(boundary_energy_j(cluster, names, names)) * len(names)
        joules_S = per_byte_j * gradient_sum_bytes(len(names), 1_000_000) * params_S / 1e6
        return _GroupSum(affine(gradient_sum_s), affine(gradient_sum_air_s), joules_S)

    def caps_TS(self, in_flight: int) -> np.ndarray:
        """Most share units that fit each device type's memory."""
        found = self._caps.get(in_flight)
        if found is None:
            found = most_units_TS(self.problem, self.types, self.spans, in_flight)
            self._caps[in_flight] = found
        return found

    @cached_property
    def least_s_US(self) -> np.ndarray:
        """Least seconds per micro-batch of every stage, forward and backward, shape (U, S); no shares are faster."""
        units = self.spans.units
        fastest_TSR = np.stack(
            [self._time_s_PSR[self.spans.slots_of(index)].min(axis=0) for index in range(len(self.types.device_T))]
        )[:, :, 1:]
        caps_TS = self.caps_TS(1)
        fastest_TSR = np.where(np.arange(1, units + 1) <= caps_TS[:, :, None], fastest_TSR, np.inf)
        found_US = np.full((len(self.counts_UT), len(self.spans.start_S)), np.inf)
        for group, counts in enumerate(self.counts_UT.tolist()):
            places = [index for index, count in enumerate(counts) for _ in range(count)]
            if 0 < len(places) <= units:
                times_SE = fastest_TSR[places].transpose(1, 0, 2).reshape(len(self.spans.start_S), -1)
                # Within a limit every device takes as many units as end in time: all must be taken by someone.
                enough_S = np.partition(times_SE, units - 1, axis=1)[:, units - 1]
                found_US[group] = np.maximum(enough_S, fastest_TSR[places][:, :, 0].max(axis=0))
        return found_US

    @cached_property
    def least_tail_s_US(self) -> np.ndarray:
        """Least seconds of the gradient sum and the update of every stage."""
        update_s_S = self.spans.update_s_PS.min(axis=0)
        return np.stack([self.group_sum(group).seconds_S + update_s_S for group in range(len(self.counts_UT))])

    def in_time_US(self, window: Window, fill_s_S: np.ndarray) -> np.ndarray:
        """Which stages can end in a round of the window; arguments as in :meth:`least_j_US`."""
        beside_s_US = np.maximum(self.least_tail_s_US, fill_s_S)
        return self.least_s_US * self.spans.micro_batches_n + beside_s_US <= window.high_s

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
        for size in range(1, int(sizes_U.max()) + 1):
            groups = np.flatnonzero(sizes_U == size)
            sums = [self.group_sum(int(group)) for group in groups]
            fastest_sum_S = np.min([own.seconds_S for own in sums], axis=0)
            slots_TSR = self._least_slot_j(window, fastest_sum_S, fill_s_S)
            least = least_by_counts(self.counts_UT[groups], slots_TSR)
            for group, least_S, own in zip(groups, least, sums, strict=True):
                found_US[group] = least_S + own.joules_S
        return found_US

    def _least_slot_j(self, window: Window, sum_s_S: np.ndarray, fill_s_S: np.ndarray) -> np.ndarray:
        """Least joules of one device of each type for every number of units, shape (T, S, R)."""
        spans = self.spans
        caps_TS = self.caps_TS(1)
        units_R = np.arange(spans.units + 1)
        beside_s_PS = np.maximum(spans.update_s_PS + sum_s_S, fill_s_S)
        in_time_PSR = self._time_s_PSR * spans.micro_batches_n + beside_s_PS[:, :, None] <= window.high_s
        in_memory_PSR = units_R <= caps_TS[spans.type_P][:, :, None]
        wait_j_P = np.minimum(spans.wait_w_P * window.low_s, spans.wait_w_P * window.high_s)
        cost_PSR = np.where(in_time_PSR & in_memory_PSR, self._busy_j_PSR + wait_j_P[:, None, None], np.inf)
        cost_PSR[:, :, 0] = np.inf
        found = [
            cost_PSR[spans.slots_of(index)].min(axis=0, initial=np.inf) for index in range(len(self.types.device_T))
        ]
        return np.stack(found)

    def options(
        self, window: Window, budget_US: np.ndarray, fill_s_US: np.ndarray, in_flight: int, *, by_energy: bool,
        all_shares: bool,
    ) -> Options:  # fmt: skip
        """The options of every stage that may be part of a better plan.

        Args:
            window: Rounds that are looked at.
            budget_US: A stage's joules in a round must stay below this, shape (U, S).
            fill_s_US: Seconds that the layers before a stage take one micro-batch at least, shape (U, S).
            in_flight: Micro-batches that the stage holds at once; decides the memory.
            by_energy: Whether joules matter; otherwise only the least limit is of use.
            all_shares: Try all shares instead of the cheapest within each limit.
        """
        found: list[Options] = []
        caps_TS = self.caps_TS(in_flight)
        for size in range(1, int(self.counts_UT.sum(axis=1).max()) + 1):
            groups = np.flatnonzero(self.counts_UT.sum(axis=1) == size)
            for rows in self._configurations(groups, budget_US):
                found += self._priced(
                    rows, window, budget_US, fill_s_US, caps_TS, by_energy=by_energy, all_shares=all_shares
                )
        return _undominated(_joined(found, self._widest_group), window, by_energy=by_energy)

    def _configurations(self, groups: np.ndarray, budget_US: np.ndarray) -> Iterator[StageRows]:
        """Spans × slots of the groups, in chunks."""
        listed: list[StageRows] = []
        waiting = 0
        for group in groups.tolist():
            spans = np.flatnonzero(budget_US[group] > -np.inf)
            slots = self._slot_choices(self.counts_UT[group].tolist())
            if len(spans) == 0 or not slots:
                continue
            for slots_CG in np.array_split(np.array(slots), max(len(slots) * len(spans) // _CHUNK, 1)):
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
        return int(((budget_US > -np.inf).sum(axis=1) * self._point_choices_U).sum())

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

    def _slot_choices(self, counts: Sequence[int]) -> list[tuple[int, ...]]:
        per_type = [
            list(itertools.combinations_with_replacement(self.spans.slots_of(index), count))
            for index, count in enumerate(counts)
        ]
        return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*per_type)]

    def _priced(
        self, rows: StageRows, window: Window, budget_US: np.ndarray, fill_s_US: np.ndarray, caps_TS: np.ndarray, *,
        by_energy: bool, all_shares: bool,
    ) -> list[Options]:  # fmt: skip
        spans = self.spans
        sum_s_N, air_s_N, sum_j_N = np.zeros((3, len(rows.span_N)))
        for group in np.unique(rows.group_N).tolist():
            own_N, own = rows.group_N == group, self.group_sum(group)
            own_S = rows.span_N[own_N]
            sum_s_N[own_N], air_s_N[own_N], sum_j_N[own_N] = (
                own.seconds_S[own_S],
                own.air_s_S[own_S],
                own.joules_S[own_S],
            )
        update_s_NG = spans.update_s_PS[rows.slot_NG, rows.span_N[:, None]]
        tail_s_N = sum_s_N + update_s_NG.max(axis=1)
        wait_w_N = spans.wait_w_P[rows.slot_NG].sum(axis=1)
        beside_s_N = np.maximum(tail_s_N, fill_s_US[rows.group_N, rows.span_N])
        limit_s_N = (window.high_s - beside_s_N) / spans.micro_batches_n
        spare_j_N = budget_US[rows.group_N, rows.span_N] - sum_j_N
        spare_j_N -= np.minimum(wait_w_N * window.low_s, wait_w_N * window.high_s)
        cap_NG = caps_TS[spans.type_P[rows.slot_NG], rows.span_N[:, None]]
        job = Allocation(self._time_s_PSR, self._busy_j_PSR, rows, limit_s_N, spare_j_N, cap_NG)
        if all_shares:
            picked_N, units_NG = job.all_units(spans.units)
        elif by_energy:
            picked_N, units_NG = job.cheapest_units(spans.units)
        else:
            picked_N, units_NG = job.fastest_units(spans.units)
        if len(picked_N) == 0:
            return []
        slot_NG, span_N = rows.slot_NG[picked_N], rows.span_N[picked_N]
        own_NG = (slot_NG, span_N[:, None], units_NG)
        return [
            Options(
                span_O=span_N,
                group_O=rows.group_N[picked_N],
                slot_OG=_padded(slot_NG, self._widest_group),
                units_OG=_padded(units_NG, self._widest_group),
                forward_s=spans.forward_s_PSR[own_NG].max(axis=1),
                backward_s=spans.backward_s_PSR[own_NG].max(axis=1),
                both_s=self._time_s_PSR[own_NG].max(axis=1),
                tail_s=tail_s_N[picked_N],
                busy_j=self._busy_j_PSR[own_NG].sum(axis=1) + sum_j_N[picked_N],
                wait_w=wait_w_N[picked_N],
                widest=units_NG.max(axis=1).astype(np.float64) * spans.step,
                air_s=air_s_N[picked_N],
            )
        ]

    @property
    def _widest_group(self) -> int:
        return int(self.counts_UT.sum(axis=1).max())


class _GroupSum(NamedTuple):
    """The gradient sum of a group: seconds, seconds on a shared medium, and joules, per span."""

    seconds_S: np.ndarray
    air_s_S: np.ndarray
    joules_S: np.ndarray


def _padded(values_NG: np.ndarray, places_n: int) -> np.ndarray:
    return np.pad(values_NG, ((0, 0), (0, places_n - values_NG.shape[1])), constant_values=-1).astype(np.int32)


def _stacked(listed: Sequence[StageRows]) -> StageRows:
    return StageRows(*(np.concatenate(columns) for columns in zip(*listed, strict=True)))


def _joined(found: Sequence[Options], places_n: int) -> Options:
    empty = {"slot_OG": np.zeros((0, places_n), dtype=np.int32), "units_OG": np.zeros((0, places_n), dtype=np.int32)}
    names = Options.__dataclass_fields__
    if not found:
        whole = {"span_O": np.zeros(0, dtype=np.int64), "group_O": np.zeros(0, dtype=np.int64), **empty}
        return Options(**{name: whole.get(name, np.zeros(0)) for name in names})
    return Options(**{name: np.concatenate([getattr(options, name) for options in found]) for name in names})


def _undominated(options: Options, window: Window, *, by_energy: bool) -> Options:
    """Options that no other one of the same span and group beats in every term of a round of the window."""
    columns = [options.forward_s, options.backward_s, options.both_s, options.tail_s, options.widest, options.air_s]
    if by_energy:
        columns += [options.busy_j + options.wait_w * window.low_s, options.busy_j + options.wait_w * window.high_s]
    key_O = options.span_O.astype(np.int64) * (int(options.group_O.max(initial=0)) + 1) + options.group_O
    return options.rows(undominated_rows(key_O, np.stack(columns, axis=1)))
