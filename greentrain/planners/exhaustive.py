"""Every plan of the sample-sharing space, pruned only by bounds: proven optimal, for small problems.

Pipelines are built from the tail: prepending a head stage h and its link c to a suffix gives

    A* ← max(M·E_h, E_h + E_c + (M−1)·D_c, E_h + E_c + A*)        R* ← max(T_a^h, R* − E_b^h − E_b^c)

and the round takes ``A* + R*``. Seconds, waiting watts and busy joules only grow as stages are
prepended, so a suffix that is no better than the best whole plan can be dropped. Inside a stage only
shares and operating points that are not dominated in every coordinate can be part of an optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb, inf, prod
from typing import NamedTuple

import msgspec
import numpy as np

from greentrain.cost import CostTables, boundary_energy_j, boundary_step, most_rows
from greentrain.errors import InfeasibleError, NotSupportedError
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_bytes, gradient_sum_s
from greentrain.parallel.pipeline import Step
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble, best_of, certified, objective_value
from greentrain.planners.single import candidates as single_candidates

__all__ = ["choices_n", "plan"]

# Share and point choices that are still searched in seconds on one core.
CHOICES_LIMIT = 400_000


class _Option(NamedTuple):
    """One way to share a stage inside a group; all seconds per micro-batch but the tail's."""

    shares: tuple[int, ...]
    points: tuple[str, ...]
    forward_s: float
    backward_s: float
    tail_s: float
    wait_w: float
    busy_j: float


class _Suffix(NamedTuple):
    """The stages chosen so far, from the tail; ``busy_j`` is above waiting, per round."""

    aligned_s: float
    tail_s: float
    wait_w: float
    busy_j: float
    parts: tuple[Part, ...]


def plan(problem: Problem, *, must_use: str | None = None) -> Plan:
    """The optimal plan of the sample-sharing space under the cost model.

    Args:
        problem: A small problem.
        must_use: Only plans with this device count; for explanations.

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
    search = _Search(problem, must_use=must_use, time_limit_s=_time_limit_s(problem))
    for micro_batch in sorted(problem.micro_batches, reverse=True):  # Large ones soon give a good incumbent.
        search.run(micro_batch)
    if search.best is None:
        # The single-device candidates know which limit is broken, and by how much.
        if must_use is None:
            return best_of(single_candidates(problem, search.tables), problem, "exhaustive")
        raise InfeasibleError(f"no feasible plan uses device {must_use!r}.", hint="Relax the limits.")
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
    time_limit_s: float
    best: tuple[int, tuple[Part, ...]] | None = None
    best_value: float = inf
    considered_n: int = 0
    tables: CostTables = field(init=False)
    micro_batch: int = 0
    _options: dict[tuple[int, int, tuple[int, ...], int, int], list[_Option]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = CostTables(self.problem)

    def run(self, micro_batch: int) -> None:
        """Search all plans with one micro-batch size."""
        self.micro_batch = micro_batch
        everyone = frozenset(range(len(self.problem.cluster.devices)))
        self._extend(None, len(self.problem.model.layers), everyone)

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
                    for option in self._stage_options(start, stop, group, in_flight):
                        self._visit(suffix, option, group, start, stop, left)

    def _visit(
        self, suffix: _Suffix | None, option: _Option, group: tuple[int, ...], start: int, stop: int,
        left: frozenset[int],
    ) -> None:  # fmt: skip
        longer = self._prepend(suffix, option, group, start, stop)
        self.considered_n += 1
        if self._value(longer, used_all_layers=start == 0) >= self.best_value:
            return
        if longer.aligned_s + longer.tail_s > self.time_limit_s:
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
        objective = self.problem.objective
        if objective.budget_j is None or objective.job_samples is None:
            return True
        rounds = objective.job_samples / self.problem.batch
        return rounds * self._round_j(suffix, used_all_layers=True) <= objective.budget_j

    def _round_j(self, suffix: _Suffix, *, used_all_layers: bool) -> float:
        wait_w = suffix.wait_w
        if used_all_layers and self.problem.objective.count_idle_of_unused:
            used = {name for part in suffix.parts for name in part.devices}
            wait_w += sum(d.power.idle_w for d in self.problem.cluster.devices if d.id not in used)
        return suffix.busy_j + wait_w * (suffix.aligned_s + suffix.tail_s)

    def _value(self, suffix: _Suffix, *, used_all_layers: bool) -> float:
        batch = self.problem.batch
        return self.problem.objective.value(
            energy_j_per_sample=self._round_j(suffix, used_all_layers=used_all_layers) / batch,
            s_per_sample=(suffix.aligned_s + suffix.tail_s) / batch,
        )

    def _prepend(
        self, suffix: _Suffix | None, option: _Option, group: tuple[int, ...], start: int, stop: int
    ) -> _Suffix:
        names = tuple(self.problem.cluster.devices[index].id for index in group)
        part = Part(start, stop, names, option.shares, option.points)
        own_s = option.forward_s + option.backward_s
        micro_batches_n = self.problem.batch // self.micro_batch
        if suffix is None:
            return _Suffix(micro_batches_n * own_s, option.tail_s, option.wait_w, option.busy_j, (part,))
        link, link_j = self._boundary(part, suffix.parts[0])
        link_s = link.forward_s + link.backward_s
        return _Suffix(
            max(
                micro_batches_n * own_s,
                own_s + link_s + (micro_batches_n - 1) * link.further_s,
                own_s + link_s + suffix.aligned_s,
            ),
            max(option.tail_s, suffix.tail_s - option.backward_s - link.backward_s),
            suffix.wait_w + option.wait_w,
            suffix.busy_j + option.busy_j + link_j,
            (part, *suffix.parts),
        )

    def _boundary(self, before: Part, after: Part) -> tuple[Step, float]:
        """The transfer step of a cut, and its joules per round."""
        cluster = self.problem.cluster
        layer = self.problem.model.layers[before.stop - 1]
        step = boundary_step(
            cluster, before.devices, after.devices, rows_before=before.shares, rows_after=after.shares, layer=layer
        )
        joules = sum(
            size * self.problem.batch * sum(boundary_energy_j(cluster, left, right))
            for size, left, right in (
                (layer.activation_bytes, before.devices, after.devices),
                (layer.gradient_bytes, after.devices, before.devices),
            )
        )
        return step, joules

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
        limits = [most_rows(device, start, stop, in_flight, problem) for device in devices]
        shares_NG = _compositions(self.micro_batch, limits)
        if len(shares_NG) == 0:
            return
        param_bytes = sum(layer.param_bytes for layer in problem.model.layers[start:stop])
        sum_s = gradient_sum_s(problem.cluster, names, param_bytes)
        sum_j = len(group) * gradient_sum_bytes(len(group), param_bytes)
        sum_j *= sum(boundary_energy_j(problem.cluster, names, names))
        columns: list[np.ndarray] = []
        labels: list[tuple[tuple[str, ...], float, float]] = []
        for points in itertools.product(*(tuple(point.name for point in device.points) for device in devices)):
            update_s = [self.tables.update_s(d, p, start, stop) for d, p in zip(devices, points, strict=True)]
            wait_w = 0.0
            busy_j_N = np.full(len(shares_NG), sum_j)
            forward_s_N = np.zeros(len(shares_NG))
            backward_s_N = np.zeros(len(shares_NG))
            for position, (device, point) in enumerate(zip(devices, points, strict=True)):
                curve = device.curve(point)
                times_RK = np.array(
                    [self.tables.compute_s(device, point, start, stop, rows) for rows in range(self.micro_batch + 1)]
                )
                own_NK = times_RK[shares_NG[:, position]]
                forward_s_N = np.maximum(forward_s_N, own_NK[:, 0])
                backward_s_N = np.maximum(backward_s_N, own_NK[:, 1])
                rounds = problem.batch // self.micro_batch
                busy_s_N = own_NK.sum(axis=1) * rounds + update_s[position]
                busy_j_N = busy_j_N + (curve.busy_w - curve.idle_w) * busy_s_N
                wait_w += curve.idle_w
            labels.append((points, sum_s + max(update_s), wait_w))
            tail_N = np.full(len(shares_NG), labels[-1][1])
            wait_N = np.full(len(shares_NG), wait_w)
            widest_N = shares_NG.max(axis=1).astype(np.float64)
            columns.append(np.stack([forward_s_N, backward_s_N, tail_N, wait_N, busy_j_N, widest_N], axis=1))
        coordinates_NC = np.concatenate(columns)
        for row in _pareto(coordinates_NC):
            points, tail_s, wait_w = labels[row // len(shares_NG)]
            shares = tuple(int(share) for share in shares_NG[row % len(shares_NG)])
            forward_s, backward_s, _, _, busy_j, _ = coordinates_NC[row]
            yield _Option(shares, points, float(forward_s), float(backward_s), tail_s, wait_w, float(busy_j))


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
    order = np.lexsort(coordinates_NC.T[::-1])
    kept: list[int] = []
    front = np.empty((0, coordinates_NC.shape[1]))
    for row in order:
        candidate = coordinates_NC[row]
        if len(front) == 0 or not (front <= candidate).all(axis=1).any():
            front = np.concatenate([front, candidate[None]])
            kept.append(int(row))
    return kept
