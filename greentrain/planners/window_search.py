"""The pipelines of one window of round lengths, built from the last stage as labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from greentrain.plan import in_flight_limit
from greentrain.planners.candidate import Part, assemble
from greentrain.planners.goal import NEAR
from greentrain.planners.labels import Labels, first_labels, longer_labels, undominated_labels
from greentrain.planners.options import SHARINGS, Options, Shares, Window, joined, undominated
from greentrain.planners.round_bounds import Reach
from greentrain.planners.search_space import SearchSpace, Tables, WindowBounds
from greentrain.planners.stage_bounds import StageBounds

__all__ = ["TooManyError", "WindowSearch"]

_MOST_PAIRS = 1_000_000
_MOST_NEAR = 2


class TooManyError(Exception):
    """A window holds more than one step should look at."""


@dataclass
class WindowSearch:
    """Builds the pipelines of one window, from the last stage."""

    space: SearchSpace
    micro_batch: int
    window: Window
    known: WindowBounds
    most: float
    shares: Shares
    own: Tables = field(init=False)
    _options: dict[int, Options] = field(default_factory=dict[int, Options])
    _caps: list[tuple[np.ndarray, Options]] = field(default_factory=list[tuple[np.ndarray, Options]])
    _numbers_of: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])
    _levels: list[Labels] = field(default_factory=list[Labels])
    _everyone: int = 0

    def __post_init__(self) -> None:
        self.own = self.space.tables_of[self.micro_batch]
        self._everyone = len(self.space.counts_UT) - 1

    @property
    def bounds(self) -> StageBounds:
        """Least joules of every part of a plan."""
        return self.known.joules

    @property
    def reach(self) -> Reach:
        """Stages that can be part of a plan, and the seconds that the others take."""
        return self.known.reach

    @property
    def _limit_j(self) -> float:
        """Joules that a round of this window must stay below, without those of counted idle devices."""
        return self.space.goal.limit_j(self.window.low_s) - self.space.base_w * self.window.low_s

    def run(self) -> None:
        """Build label after label until nothing is open."""
        options = self._options_at(1)
        layers = self.own.spans.span_LL.shape[0] - 1
        rows = np.flatnonzero(self.own.spans.stop_S[options.span_O] == layers)
        labels = first_labels(options, rows, self.own.spans.start_S, self.own.spans.micro_batches_n)
        while len(labels):
            self.space.check_time()
            labels = self._kept(labels)
            self._levels.append(labels)
            self._offer_whole(labels)
            if int(self.space.counts_UT.sum(axis=1).max()) == len(self._levels):
                return
            labels = self._longer(labels)

    @property
    def configurations_n(self) -> int:
        """Ways to choose span, group and operating points that are open in this window."""
        return self._configurations_n(self._budget_US())

    def _configurations_n(self, budget_US: np.ndarray) -> int:
        return sum(maker.configurations_n(budget_US) for maker in self.own.makers)

    def _budget_US(self) -> np.ndarray:
        """Joules that each stage may take: the limit less the least of everything before and behind it."""
        rest_US = self._rest_j_US()
        open_US = self.bounds.stage_j_US + rest_US < self._limit_j
        limit_j = np.full_like(rest_US, self._limit_j)
        return np.where(open_US, np.subtract(limit_j, rest_US, where=open_US, out=limit_j) - self.own.cut_j_S, -np.inf)

    def _rest_j_US(self) -> np.ndarray:
        """Joules that everything before and behind each stage takes at least."""
        free = self.space.without_UU[self._everyone]
        spans = self.own.spans
        return self.bounds.before_j_UL[free][:, spans.start_S] + self.bounds.behind_j_UL[free][:, spans.stop_S]

    def _options_at(self, stages_n: int) -> Options:
        found = self._options.get(stages_n)
        if found is None:
            in_flight = in_flight_limit(stages_n, 0, self.own.spans.micro_batches_n)
            found = self._by_memory(in_flight)
            self._options[stages_n] = found
        return found

    def _by_memory(self, in_flight: int) -> Options:
        """The options for so many micro-batches in flight, made once for all that leave room for the same rows."""
        makers = self.own.makers
        caps_TS = np.concatenate([maker.caps_TS(in_flight) for maker in makers])
        for other_TS, options in self._caps:
            if np.array_equal(other_TS, caps_TS):
                return options
        options = self._in_time(self._new_options(in_flight))
        self._caps.append((caps_TS, options))
        return options

    def _made(self, window: Window, budget_US: np.ndarray, in_flight: int) -> Options:
        """The options of all ways to share."""
        goal, fill_s_US = self.space.goal, self.reach.before_s_US
        options = [
            maker.options(
                window, budget_US, fill_s_US, in_flight, by_energy=goal.by_energy, shares=self.shares,
                check_time=self.space.check_time,
            )
            for maker in self.own.makers
        ]  # fmt: skip
        if len(options) == 1:
            return options[0]
        return undominated(
            joined(options, options[0].slot_OG.shape[1]),
            window,
            by_energy=goal.by_energy,
            check_time=self.space.check_time,
        )

    def _in_time(self, options: Options) -> Options:
        """The options that can end in this window."""
        return options.rows(np.flatnonzero(self.own.rounds.in_time(self.reach, options)))

    def _new_options(self, in_flight: int) -> Options:
        budget_US = self._budget_US()
        if self._configurations_n(budget_US) > self.most:
            raise TooManyError
        return self._made(self.window, budget_US, in_flight)

    def _kept(self, labels: Labels) -> Labels:
        """Labels that can still lead to a plan of interest, without the dominated ones."""
        space, window = self.space, self.window
        free = space.without_UU[self._everyone, labels.used]
        before_UL = self.bounds.before_j_UL
        rest_j = before_UL[free, labels.start]
        if self.bounds.before_with_j_UL is not None:
            assert space.must_U is not None
            rest_j = np.where(space.must_U[labels.used], rest_j, self.bounds.before_with_j_UL[free, labels.start])
        at_least_s = np.maximum(labels.round_s, window.low_s)
        round_j = np.minimum(labels.round_j(at_least_s), labels.round_j(window.high_s)) + rest_j
        limit_s = min(window.high_s, space.goal.limit_s())
        keep = self._in_reach(labels, free, limit_s) & (
            round_j + space.base_w * (at_least_s - window.low_s) < self._limit_j
        )
        labels = labels.rows(np.flatnonzero(keep))
        options = self._options_at(len(self._levels) + 1)
        head = options.rows(labels.option)
        shape = np.zeros(len(labels), dtype=np.int64)
        if not space.types.uniform:
            shape = self._numbers(options)[labels.option]
        kept = undominated_labels(
            labels, window, head, shape, by_energy=space.goal.by_energy, check_time=space.check_time
        )
        return labels.rows(kept)

    def _in_reach(self, labels: Labels, free: np.ndarray, limit_s: float) -> np.ndarray:
        """Whether the layers before labels can be computed in time."""
        options = self._options_at(len(self._levels) + 1)
        rounds = self.own.rounds
        late_s = rounds.late_s(self.reach, free, labels.start, options.group_O[labels.option])
        in_reach = (labels.round_s + rounds.down_part * late_s <= limit_s) & (labels.pipe.aligned_s + late_s <= limit_s)
        return in_reach & (
            late_s + rounds.crossed_s(labels.pipe, labels.start, options.group_O[labels.option]) <= limit_s
        )

    def _longer(self, labels: Labels) -> Labels:
        """Every label with every option in front of it that fits."""
        behind = self._options_at(len(self._levels))
        options = self._options_at(len(self._levels) + 1)
        option_N, label_N = self._pairs(options, labels)
        space = self.space
        space.considered_n += len(option_N)

        def transfer_of(option_n: np.ndarray, label_n: np.ndarray):
            behind_n = labels.option[label_n]
            pair_n = np.stack([self._numbers(options)[option_n], self._numbers(behind)[behind_n]], axis=1)
            return self.own.cuts.between(options.rows(option_n), behind.rows(behind_n), pair_n)

        used_N = labels.used[label_N] + options.group_O[option_N]
        return longer_labels(
            options, option_N, labels, label_N, used_N, self.own.spans.start_S,
            self.own.spans.micro_batches_n, transfer_of,
        )  # fmt: skip

    def _numbers(self, options: Options) -> np.ndarray:
        """Group numbers of all options; where all links are alike nobody looks at them."""
        if self.space.types.uniform:
            return np.zeros(len(options), dtype=np.int64)
        found = self._numbers_of.get(id(options))
        if found is None:
            found = self.own.cuts.group_numbers(options)
            self._numbers_of[id(options)] = found
        return found

    def _pairs(self, options: Options, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
        """Options and labels that meet at a boundary, use different devices and are cheap enough together."""
        space, spans = self.space, self.own.spans
        stop_O = spans.stop_S[options.span_O]
        option_j = np.minimum(
            options.busy_j + options.wait_w * self.window.low_s, options.busy_j + options.wait_w * self.window.high_s
        )
        label_j = np.minimum(labels.round_j(self.window.low_s), labels.round_j(self.window.high_s))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        pairs_n = 0
        for boundary in np.unique(labels.start[labels.start > 0]).tolist():
            own_o, own_l = np.flatnonzero(stop_O == boundary), np.flatnonzero(labels.start == boundary)
            free_l = space.without_UU[self._everyone, labels.used[own_l]]
            left_ol = space.without_UU[free_l[None, :], options.group_O[own_o][:, None]]
            rest_ol = self.bounds.before_j_UL[left_ol, spans.start_S[options.span_O[own_o]][:, None]]
            together_ol = option_j[own_o][:, None] + label_j[own_l][None, :] + rest_ol < self._limit_j
            row_o, row_l = np.nonzero((left_ol >= 0) & together_ol)
            keep = self._meet_in_time(options, own_o[row_o], labels, own_l[row_l], left_ol[row_o, row_l])
            row_o, row_l = row_o[keep], row_l[keep]
            found.append((own_o[row_o], own_l[row_l]))
            pairs_n += len(row_o)
            space.check_time()
            if pairs_n > _MOST_PAIRS:
                raise TooManyError
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate([before for before, _ in found]), np.concatenate([behind for _, behind in found])

    def _meet_in_time(
        self, options: Options, option_N: np.ndarray, labels: Labels, label_N: np.ndarray, left_N: np.ndarray
    ) -> np.ndarray:
        """Which options in front of labels can be part of a round of this window, before their cut is priced."""
        spans = self.own.spans
        limit_s = min(self.window.high_s, self.space.goal.limit_s())
        start_N = spans.start_S[options.span_O[option_N]]
        late_s = self.own.rounds.late_s(self.reach, left_N, start_N, options.group_O[option_N])
        both_s = options.both_s[option_N]
        phase_s = np.maximum(options.forward_s, options.backward_s)[option_N]
        m, pipe = spans.micro_batches_n, labels.pipe
        k = in_flight_limit(len(self._levels) + 1, 0, m)
        trip_s = both_s + np.asarray(pipe.both_s + pipe.beyond_s)[label_N] + (k - 1) * phase_s + (m - k) * both_s
        ends_s = np.maximum.reduce([np.asarray(pipe.aligned_s)[label_N] + both_s, m * both_s, trip_s])
        return late_s + ends_s <= limit_s

    def _offer_whole(self, labels: Labels) -> None:
        """Offer the plans that cover all layers, best first."""
        space = self.space
        whole = np.flatnonzero(labels.start == 0)
        round_s = labels.round_s[whole]
        round_j = labels.round_j(labels.round_s)[whole] + space.base_w * round_s
        values = [space.goal.least_value(s, j) for s, j in zip(round_s.tolist(), round_j.tolist(), strict=True)]
        near = 0
        for position in np.argsort(values, kind="stable").tolist():
            limit_j = space.goal.limit_j(float(round_s[position]))
            near += round_j[position] >= limit_j
            # A few that are nearly as good are finalists.
            if round_j[position] >= limit_j * NEAR or near > _MOST_NEAR:
                continue
            parts = tuple(self._parts(int(whole[position])))
            space.offer(assemble(space.problem, "exact", self.micro_batch, parts, space.cost_tables))

    def _parts(self, row: int) -> Iterator[Part]:
        """The stages of a label of the longest pipelines so far, the first one first."""
        types = self.space.types
        taken = [0] * len(types.names_T)
        for level in range(len(self._levels), 0, -1):
            labels, options = self._levels[level - 1], self._options_at(level)
            option = int(labels.option[row])
            sharing = SHARINGS[int(options.sharing[option])]
            spans = next(maker.spans for maker in self.own.makers if maker.spans.sharing == sharing)
            names: list[str] = []
            points: list[str] = []
            shares: list[int] = []
            for slot, units in zip(options.slot_OG[option].tolist(), options.units_OG[option].tolist(), strict=True):
                if slot >= 0:
                    owner = int(spans.type_P[slot])
                    names.append(types.names_T[owner][taken[owner]])
                    taken[owner] += 1
                    points.append(spans.point_P[slot])
                    shares.append(units * spans.step)
            start, stop = int(spans.start_S[options.span_O[option]]), int(spans.stop_S[options.span_O[option]])
            yield Part(start, stop, tuple(names), tuple(shares), tuple(points), sharing)
            row = int(labels.parent[row])
