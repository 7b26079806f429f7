"""All plans of a problem, with what the search looks up about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

from greentrain.cost import CostTables
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_s
from greentrain.plan import Plan
from greentrain.planners.cuts import Cuts, least_cut_j_S
from greentrain.planners.device_types import DeviceTypes, device_types
from greentrain.planners.goal import Goal
from greentrain.planners.span_tables import SpanTables, span_tables
from greentrain.planners.stage_bounds import StageBounds, least_fill_s, stage_bounds
from greentrain.planners.stage_options import OptionMaker, Options, Window

__all__ = ["SearchSpace", "Tables"]

# Problems with fewer ways to share single stages are searched over all shares.
_MOST_ALLOCATIONS = 100_000


@dataclass
class Tables:
    """What the search keeps for one micro-batch size.

    Attributes:
        spans: Seconds and watts of spans of layers.
        maker: Makes the options of stages.
        cuts: Prices cuts.
        cut_j_S: Least joules of the cut behind each span.
        fill_s_UL: Least seconds of one micro-batch in the layers before a boundary.
        fastest: Options by memory where joules do not matter.
        fastest_to_s: Rounds for which these are complete.
    """

    spans: SpanTables
    maker: OptionMaker
    cuts: Cuts
    cut_j_S: np.ndarray
    fill_s_UL: np.ndarray
    fastest: list[tuple[np.ndarray, Options]] = field(default_factory=list[tuple[np.ndarray, Options]])
    fastest_to_s: float = 0.0


@dataclass
class SearchSpace:
    """The plans of a problem.

    Attributes:
        problem: Model, cluster and objective.
        goal: Decides which plans are of interest.
        must_use: Only plans with this device count.
        must_avoid: Only plans without this device count.
        considered_n: Pairs of stages that were looked at.
        all_shares: Whether all shares are tried, or the cheapest within each limit.
        cost_tables: Layer times.
        types: Device types.
        counts_UT: Their count vectors.
        without_UU: Number of u − v, or −1.
        must_U: Which vectors hold the device that must be used; None without a wish.
        base_w: Watts of all devices while on but unused, where that counts.
        tables_of: By micro-batch size.
    """

    problem: Problem
    goal: Goal
    must_use: str | None = None
    must_avoid: str | None = None
    considered_n: int = 0
    all_shares: bool = field(init=False)
    cost_tables: CostTables = field(init=False)
    types: DeviceTypes = field(init=False)
    counts_UT: np.ndarray = field(init=False)
    without_UU: np.ndarray = field(init=False)
    must_U: np.ndarray | None = None
    base_w: float = 0.0
    tables_of: dict[int, Tables] = field(init=False)

    def __post_init__(self) -> None:
        self.cost_tables = CostTables(self.problem)
        self.types = device_types(self.problem)
        if self.must_avoid is not None:
            self.types = self.types.without(self.must_avoid)
        self.counts_UT = self.types.counts_UT()
        self.without_UU = self.types.without_UU()
        if self.must_use is not None:
            self.must_U = self.counts_UT[:, self.types.type_of(self.must_use)] > 0
        if self.problem.objective.count_idle_of_unused:
            self.base_w = sum(device.power.idle_w for device in self.problem.cluster.devices)
        self.tables_of = {size: self._tables(size) for size in sorted(self.problem.micro_batches, reverse=True)}
        self.all_shares = sum(own.maker.allocations_n for own in self.tables_of.values()) <= _MOST_ALLOCATIONS

    def _tables(self, micro_batch: int) -> Tables:
        spans = span_tables(self.problem, self.types, micro_batch, self.cost_tables, by_energy=self.goal.by_energy)
        maker = OptionMaker(self.problem, self.types, spans, self.counts_UT)
        fill_s_UL = least_fill_s(maker.least_s_US, spans, self.without_UU)
        cuts = Cuts(self.problem, self.types, spans, self.counts_UT)
        return Tables(spans, maker, cuts, least_cut_j_S(self.problem, spans), fill_s_UL)

    def bounds(self, micro_batch: int, window: Window) -> StageBounds:
        """Least joules of every part of a plan in a round of the window."""
        own = self.tables_of[micro_batch]
        fill_s_S = own.fill_s_UL[-1, own.spans.start_S]
        if self.goal.by_energy:
            stage_j_US = own.maker.least_j_US(window, fill_s_S) + own.cut_j_S
        else:
            stage_j_US = np.where(own.maker.in_time_US(window, fill_s_S), 0.0, np.inf)
        return stage_bounds(stage_j_US, own.spans, self.without_UU, self.must_U)

    def longest_round_s(self, micro_batch: int) -> float:
        """No round of interest is longer: its devices would wait for too many joules, or no limit would hold."""
        spans = self.tables_of[micro_batch].spans
        least_w = self.base_w + min(float(spans.wait_w_P.min()), 0.0 if self.base_w else inf)
        limit_j = self.goal.limit_j(0.0)
        by_waiting_s = limit_j / least_w if least_w > 0 and self.goal.by_energy else inf
        return min(by_waiting_s, self._all_in_turn_s(spans), self.goal.limit_s())

    def _all_in_turn_s(self, spans: SpanTables) -> float:
        """Every layer on the slowest device, with a cut and a gradient sum behind each, one after another."""
        model, cluster = self.problem.model, self.problem.cluster
        links = (cluster.default_link, *cluster.links)
        bandwidth = min(cluster.bandwidth_bytes_per_s(link) for link in links)
        latency_s = max(link.latency_s for link in links)
        single_S = spans.stop_S - spans.start_S == 1
        compute_s = (spans.forward_s_PSR + spans.backward_s_PSR)[:, single_S, 1:].max(axis=(0, 2)).sum()
        moved = sum(layer.activation_bytes + layer.gradient_bytes for layer in model.layers)
        transfer_s = spans.micro_batch * moved / bandwidth + 2 * latency_s * len(model.layers)
        names = [device.id for device in cluster.devices]
        sum_s = gradient_sum_s(cluster, names, sum(layer.param_bytes for layer in model.layers))
        update_s = spans.update_s_PS[:, single_S].max(axis=0).sum()
        return 2 * (spans.micro_batches_n * (compute_s + transfer_s) + len(model.layers) * sum_s + update_s)

    def offer(self, plan: Plan) -> None:
        """Hand a plan to the goal when it keeps the limits and the wish."""
        price = plan.estimate
        assert price is not None
        wanted = self.must_use is None or self.must_use in plan.devices
        if wanted and self.must_avoid not in plan.devices and not price.violations:
            self.goal.offer(plan)
