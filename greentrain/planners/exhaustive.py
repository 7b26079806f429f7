"""Every plan of the sample-sharing space, pruned only by bounds: proven optimal, for small problems.

Pipelines are built from the last stage (:mod:`greentrain.parallel.pipeline`). Seconds, waiting watts and
busy joules only grow as stages are prepended, so a suffix that is no better than the best whole plan can
be dropped. No term of the round ever shrinks with a slower stage, so inside a stage only shares and
operating points that are not dominated in every coordinate can be part of an optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb, inf, prod
from typing import NamedTuple

import msgspec
import numpy as np

from greentrain.cost import (
    CostTables,
    boundary_energy_j,
    boundary_transfer,
    most_rows,
    over_cap_w,
    unused_power,
    wake_j,
)
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_air_s, gradient_sum_bytes, gradient_sum_s
from greentrain.parallel.pipeline import Pipe, Step, Transfer, last_stage, prepended
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of, certified, objective_value
from greentrain.planners.single import candidates as single_candidates

__all__ = ["choices_n", "plan"]

# Share and point choices that are still searched in seconds on one core.
CHOICES_LIMIT = 400_000


class _Option(NamedTuple):
    """One way to share a stage inside a group."""

    shares: tuple[int, ...]
    points: tuple[str, ...]
    step: Step
    wait_w: float
    busy_j: float


class _Suffix(NamedTuple):
    """The stages chosen so far, from the tail; ``busy_j`` is above waiting, per round."""

    pipe: Pipe
    wait_w: float
    busy_j: float
    parts: tuple[Part, ...]


def plan(problem: Problem, *, must_use: str | None = None, must_avoid: str | None = None) -> Plan:
    """The optimal plan of the sample-sharing space under the cost model.

    Args:
        problem: A small problem.
        must_use: Only plans with this device count; for explanations.
        must_avoid: Only plans without this device count. Unlike in a smaller cluster it stays on, and the
            slowdown is still against the fastest plan of all.

    Raises:
        NotSupportedError: The space is too large to enumerate.
        InfeasibleError: No plan satisfies the constraints.
    """
    choices = choices_n(problem)
    if choices > CHOICES_LIMIT:
        raise NotSupportedError(
            f"the exhaustive planner would face {choices} ways to share single stages, its limit is {CHOICES_LIMIT}.",
            hint="Use --planner auto, fewer devices (--exclude), fewer operating points or smaller micro-batches.",
        )
    search = _Search(problem, must_use=must_use, must_avoid=must_avoid, time_limit_s=_time_limit_s(problem))
    search.start_from_single_devices()
    for micro_batch in sorted(problem.micro_batches, reverse=True):  # Large ones soon give a good incumbent.
        search.run(micro_batch)
    if search.best is None:
        # The single-device candidates know which limit is broken, and by how much.
        if must_use is None and must_avoid is None:
            return best_of(single_candidates(problem, search.tables), problem, "exhaustive")
        wish = f"uses device {must_use!r}" if must_use is not None else f"goes without device {must_avoid!r}"
        raise InfeasibleError(f"no feasible plan {wish}.", hint="Relax the limits.")
    micro_batch, parts = search.best
    found = assemble(problem, "exhaustive", micro_batch, parts, search.tables)
    method = "exhaustive enumeration with bounds over stages, devices, shares, operating points and micro-batches"
    return certified(found, problem, objective_value(found), method, search.considered_n)


def choices_n(problem: Problem) -> int:
    """Number of (group, shares, points) choices of a single stage, the size of the space's base."""
    total = 0
    devices = problem.cluster.devices
    for size in range(1, len(devices) + 1):
        points = sum(prod(len(device.points) for device in group) for group in itertools.combinations(devices, size))
        total += points * sum(comb(rows - 1, size - 1) for rows in problem.micro_batches)
    return total


def _time_limit_s(problem: Problem) -> float:
    """Longest round allowed by the deadline and by the slowdown against the fastest plan."""
    objective = problem.objective
    limit_s = inf
    if objective.deadline_s is not None and objective.job_samples is not None:
        limit_s = objective.deadline_s / (objective.job_samples / problem.batch)
    if objective.max_slowdown is not None:
        fastest = plan(_minimising_time(problem))
        assert fastest.estimate is not None
        limit_s = min(limit_s, objective.max_slowdown * fastest.estimate.step_s * (1 + 1e-12))
    return limit_s


def _minimising_time(problem: Problem) -> Problem:
    objective = msgspec.structs.replace(problem.objective, minimise="time", max_slowdown=None)
    return msgspec.structs.replace(problem, objective=objective)


@dataclass
class _Search:
    """Depth-first search with an incumbent, one micro-batch size at a time."""

    problem: Problem
    must_use: str | None
    must_avoid: str | None
    time_limit_s: float
    best: tuple[int, tuple[Part, ...]] | None = None
    best_value: float = inf
    considered_n: int = 0
    tables: CostTables = field(init=False)
    micro_batch: int = 0
    _least_j_DL: list[list[float]] = field(default_factory=list[list[float]])
    _least_s_DL: list[list[float]] = field(default_factory=list[list[float]])
    _rest_j: tuple[float, ...] = ()
    _options: dict[tuple[int, int, tuple[int, ...], int, int], list[_Option]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = CostTables(self.problem)

    def start_from_single_devices(self) -> None:
        """Take the best single device as the first incumbent, so that bounds prune from the beginning."""
        for found in single_candidates(self.problem, self.tables):
            assert found.estimate is not None
            allowed = self.must_avoid not in found.devices
            allowed &= self.must_use is None or self.must_use in found.devices
            in_time = found.estimate.step_s <= self.time_limit_s
            if allowed and in_time and not found.estimate.violations and objective_value(found) < self.best_value:
                stage = found.stages[0]
                self.best_value = objective_value(found)
                self.best = (
                    found.micro_batch,
                    (Part(stage.start, stage.stop, stage.devices, stage.shares, stage.points),),
                )

    def run(self, micro_batch: int) -> None:
        """Search all plans with one micro-batch size."""
        self.micro_batch = micro_batch
        everyone = frozenset(range(len(self.problem.cluster.devices)))
        least = [self._least(index) for index in everyone]
        self._least_j_DL, self._least_s_DL = [row for row, _ in least], [row for _, row in least]
        cheapest_j = [min(row[layer] for row in self._least_j_DL) for layer in range(len(self.problem.model.layers))]
        self._rest_j = tuple(itertools.accumulate(cheapest_j, initial=0.0))
        free = frozenset(i for i in everyone if self.problem.cluster.devices[i].id != self.must_avoid)
        self._extend(None, len(self.problem.model.layers), free)

    def _extend(self, suffix: _Suffix | None, stop: int, free: frozenset[int]) -> None:
        """Prepend every possible stage that ends before layer ``stop``."""
        depth = len(suffix.parts) + 1 if suffix else 1
        in_flight = min(2 * depth - 1, self.problem.batch // self.micro_batch)
        starts = range(stop) if len(free) > 1 else (0,)
        for size in range(1, len(free) + 1):
            for group in itertools.combinations(sorted(free), size):
                left = free - set(group)
                # Without a device left the stage must reach the first layer.
                for start in starts if left else (0,):
                    if self._hopeless(suffix, group, start, stop):
                        continue
                    for option in self._stage_options(start, stop, group, in_flight):
                        self._visit(suffix, option, group, start, stop, left)

    def _least(self, index: int) -> tuple[list[float], list[float]]:
        """Least joules per round and seconds per row of each layer on a device.

        A device's energy ``(P_busy − P_wait)·t + P_wait·T`` is never below ``P_busy·t``, since t ≤ T.
        """
        device = self.problem.cluster.devices[index]
        layers = len(self.problem.model.layers)
        least_j, least_s = [inf] * layers, [inf] * layers
        for point in device.points:
            busy_w = device.curve(point.name).busy_w
            for rows in range(1, self.micro_batch + 1):
                for layer in range(layers):
                    row_s = sum(self.tables.compute_s(device, point.name, layer, layer + 1, rows)) / rows
                    least_s[layer] = min(least_s[layer], row_s)
                    least_j[layer] = min(least_j[layer], busy_w * row_s * self.problem.batch)
        return least_j, least_s

    def _hopeless(self, suffix: _Suffix | None, group: tuple[int, ...], start: int, stop: int) -> bool:
        """Whether no stage of this group can lead to a better plan: checked before its shares are enumerated.

        The rows are shared as a fluid, without waiting for the slowest; the gradient sum is exact.
        """
        span = range(start, stop)
        span_j = sum(min(self._least_j_DL[index][layer] for index in group) for layer in span)
        speed = sum(1 / max(sum(self._least_s_DL[index][layer] for layer in span), 1e-12) for index in group)
        own_s = self.micro_batch / speed
        behind_s = suffix.pipe.aligned_s if suffix else 0.0
        aligned_s = max(self.problem.batch // self.micro_batch * own_s, own_s + behind_s)
        round_s = max(aligned_s + self._sum_s(group, start, stop), suffix.pipe.round_s if suffix else 0.0)
        round_j = span_j + self._rest_j[start] + (suffix.busy_j + suffix.wait_w * round_s if suffix else 0.0)
        batch = self.problem.batch
        value = self.problem.objective.value(energy_j_per_sample=round_j / batch, s_per_sample=round_s / batch)
        return value >= self.best_value or round_s > self.time_limit_s

    def _sum_s(self, group: tuple[int, ...], start: int, stop: int) -> float:
        names = [self.problem.cluster.devices[index].id for index in group]
        param_bytes = sum(layer.param_bytes for layer in self.problem.model.layers[start:stop])
        return gradient_sum_s(self.problem.cluster, names, param_bytes)

    def _visit(
        self, suffix: _Suffix | None, option: _Option, group: tuple[int, ...], start: int, stop: int,
        left: frozenset[int],
    ) -> None:  # fmt: skip
        longer = self._prepend(suffix, option, group, start, stop)
        self.considered_n += 1
        bound = longer._replace(busy_j=longer.busy_j + self._rest_j[start])
        if self._value(bound, used_all_layers=start == 0) >= self.best_value:
            return
        if longer.pipe.round_s > self.time_limit_s:
            return
        if start > 0:
            self._extend(longer, start, left)
        elif self._accepts(longer):
            self.best_value = self._value(longer, used_all_layers=True)
            self.best = (self.micro_batch, longer.parts)

    def _accepts(self, suffix: _Suffix) -> bool:
        used = {name for part in suffix.parts for name in part.devices}
        if self.must_use is not None and self.must_use not in used:
            return False
        if self.problem.objective.job_samples is None and self.problem.parallelism == "any":
            return True
        found = assemble(self.problem, "exhaustive", self.micro_batch, suffix.parts, self.tables)
        assert found.estimate is not None
        return not found.estimate.violations

    def _round_j(self, suffix: _Suffix, *, used_all_layers: bool) -> float:
        wait_w = suffix.wait_w
        if used_all_layers and self.problem.objective.count_idle_of_unused:
            used = {name for part in suffix.parts for name in part.devices}
            wait_w += sum(unused_power(d)[1] for d in self.problem.cluster.devices if d.id not in used)
        return suffix.busy_j + wait_w * suffix.pipe.round_s

    def _value(self, suffix: _Suffix, *, used_all_layers: bool) -> float:
        batch = self.problem.batch
        return self.problem.objective.value(
            energy_j_per_sample=self._round_j(suffix, used_all_layers=used_all_layers) / batch,
            s_per_sample=suffix.pipe.round_s / batch,
        )

    def _prepend(
        self, suffix: _Suffix | None, option: _Option, group: tuple[int, ...], start: int, stop: int
    ) -> _Suffix:
        names = tuple(self.problem.cluster.devices[index].id for index in group)
        part = Part(start, stop, names, option.shares, option.points)
        step = option.step
        micro_batches_n = self.problem.batch // self.micro_batch
        if suffix is None:
            return _Suffix(last_stage(step, micro_batches_n), option.wait_w, option.busy_j, (part,))
        link, link_j = self._boundary(part, suffix.parts[0])
        return _Suffix(
            prepended(step, link, suffix.pipe, micro_batches_n),
            suffix.wait_w + option.wait_w,
            suffix.busy_j + option.busy_j + link_j,
            (part, *suffix.parts),
        )

    def _boundary(self, before: Part, after: Part) -> tuple[Transfer, float]:
        """The transfer step of a cut, and its joules per round."""
        cluster = self.problem.cluster
        layer = self.problem.model.layers[before.stop - 1]
        link = boundary_transfer(
            cluster, before.devices, after.devices, rows_before=before.shares, rows_after=after.shares, layer=layer
        )
        joules = sum(
            size * self.problem.batch * sum(boundary_energy_j(cluster, left, right))
            for size, left, right in (
                (layer.activation_bytes, before.devices, after.devices),
                (layer.gradient_bytes, after.devices, before.devices),
            )
        )
        return link, joules

    def _stage_options(self, start: int, stop: int, group: tuple[int, ...], in_flight: int) -> list[_Option]:
        key = (start, stop, group, in_flight, self.micro_batch)
        found = self._options.get(key)
        if found is None:
            found = list(self._undominated(start, stop, group, in_flight))
            self._options[key] = found
        return found

    def _undominated(self, start: int, stop: int, group: tuple[int, ...], in_flight: int) -> Iterator[_Option]:
        problem = self.problem
        devices = [problem.cluster.devices[index] for index in group]
        names = tuple(device.id for device in devices)
        limits = [most_rows(device, start, stop, in_flight, problem, group_n=len(group)) for device in devices]
        shares_NG = _compositions(self.micro_batch, limits)
        if len(shares_NG) == 0:
            return
        param_bytes = sum(layer.param_bytes for layer in problem.model.layers[start:stop])
        sum_s = self._sum_s(group, start, stop)
        air_s = gradient_sum_air_s(problem.cluster, names, param_bytes)
        # What crosses a cut depends on the widest share, or on every share where links differ.
        rows_NX = shares_NG if problem.cluster.links else shares_NG.max(axis=1, keepdims=True)
        sum_j = len(group) * gradient_sum_bytes(len(group), param_bytes)
        sum_j *= sum(boundary_energy_j(problem.cluster, names, names))
        columns: list[np.ndarray] = []
        labels: list[tuple[tuple[str, ...], float, float]] = []
        allowed_points = [
            [point.name for point in device.points if over_cap_w(device, point.name, problem.objective) <= 0]
            for device in devices
        ]
        for points in itertools.product(*allowed_points):
            update_s = [self.tables.update_s(d, p, start, stop) for d, p in zip(devices, points, strict=True)]
            wait_w = 0.0
            busy_j_N = np.full(len(shares_NG), sum_j)
            forward_s_N = np.zeros(len(shares_NG))
            backward_s_N = np.zeros(len(shares_NG))
            both_s_N = np.zeros(len(shares_NG))
            for position, (device, point) in enumerate(zip(devices, points, strict=True)):
                curve = device.curve(point)
                times_RK = np.array(
                    [self.tables.compute_s(device, point, start, stop, rows) for rows in range(self.micro_batch + 1)]
                )
                own_NK = times_RK[shares_NG[:, position]]
                forward_s_N = np.maximum(forward_s_N, own_NK[:, 0])
                backward_s_N = np.maximum(backward_s_N, own_NK[:, 1])
                both_s_N = np.maximum(both_s_N, own_NK.sum(axis=1))
                rounds = problem.batch // self.micro_batch
                busy_s_N = own_NK.sum(axis=1) * rounds + update_s[position]
                busy_j_N = busy_j_N + (curve.busy_w - curve.idle_w) * busy_s_N + wake_j(device, problem)
                wait_w += curve.idle_w
            labels.append((points, max(update_s), wait_w))
            update_N = np.full(len(shares_NG), max(update_s))
            wait_N = np.full(len(shares_NG), wait_w)
            own_NC = np.stack([forward_s_N, backward_s_N, both_s_N, update_N, wait_N, busy_j_N], axis=1)
            columns.append(np.concatenate([own_NC, rows_NX], axis=1))
        if not columns:
            return
        coordinates_NC = np.concatenate(columns)
        # A budget of one device may rule out what is best for all of them.
        kept = range(len(coordinates_NC)) if problem.objective.device_budget_j else _pareto(coordinates_NC)
        for row in kept:
            points, longest_s, wait_w = labels[row // len(shares_NG)]
            shares = tuple(int(share) for share in shares_NG[row % len(shares_NG)])
            forward_s, backward_s, both_s, _, _, busy_j = (float(value) for value in coordinates_NC[row, :6])
            step = Step(forward_s, backward_s, both_s, sum_s, longest_s, air_s)
            yield _Option(shares, points, step, wait_w, busy_j)


def _compositions(rows: int, limits: list[int]) -> np.ndarray:
    """All shares of at least 1 that add up to ``rows`` within the limits, shape (n, devices)."""
    found = np.zeros((1, 0), dtype=np.int64)
    for position, limit in enumerate(limits):
        left = len(limits) - position - 1
        used_N = found.sum(axis=1)
        if left == 0:
            last_N = rows - used_N
            keep = (last_N >= 1) & (last_N <= limit)
            found = np.concatenate([found[keep], last_N[keep, None]], axis=1)
            break
        pieces = [
            np.concatenate([found[keep], np.full((int(keep.sum()), 1), share)], axis=1)
            for share in range(1, min(limit, rows - left) + 1)
            if (keep := used_N + share + left <= rows).any()
        ]
        found = np.concatenate(pieces) if pieces else np.zeros((0, position + 1), dtype=np.int64)
    return found


def _pareto(coordinates_NC: np.ndarray) -> list[int]:
    """Rows that no other row beats in every coordinate; of equal rows the first."""
    left = np.lexsort(coordinates_NC.T[::-1])
    kept: list[int] = []
    while len(left):
        # In lexicographic order the first of what is left cannot be beaten by any of the rest.
        best = coordinates_NC[left[0]]
        kept.append(int(left[0]))
        left = left[(coordinates_NC[left] < best).any(axis=1)]
    return kept
