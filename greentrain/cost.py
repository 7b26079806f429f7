"""THE cost model: prices a plan in seconds, bytes and joules by device and by cause.

Nothing else in greentrain prices anything. Energy of a round of T seconds:

    E = Σ_used [ P_busy·t_busy + P_wait·(T − t_busy) + J_tx·bytes_tx + J_rx·bytes_rx ] + Σ_unused,counted P_idle·T
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from greentrain.cluster import Cluster
from greentrain.device import Device
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.parallel.data import gradient_sum_air_s, gradient_sum_bytes, gradient_sum_s
from greentrain.parallel.pipeline import Step, Transfer, round_s, transfer
from greentrain.plan import Estimate, Plan, Stage
from greentrain.profile import LayerProfile, interpolate_batch_s
from greentrain.units import format_quantity

__all__ = [
    "CostTables",
    "StagePrice",
    "Traffic",
    "boundary_energy_j",
    "boundary_transfer",
    "estimate",
    "memory_bytes",
    "most_rows",
    "stage_price",
    "stage_step",
    "stage_traffic",
]


class StagePrice(NamedTuple):
    """A stage's own price per micro-batch.

    Attributes:
        forward_s: Slowest device's forward seconds.
        backward_s: Slowest device's backward seconds.
        both_s: Forward and backward seconds of the device that is slowest in both together.
        busy_s: Computing seconds of each device, per micro-batch.
        update_s: Slowest device's optimizer seconds per round.
        sum_s: Seconds of the gradient sum per round.
    """

    forward_s: float
    backward_s: float
    both_s: float
    busy_s: tuple[float, ...]
    update_s: float
    sum_s: float


@dataclass
class CostTables:
    """Prefix sums of layer times, looked up many times while planning one problem.

    Attributes:
        problem: The problem whose times are tabulated.
    """

    problem: Problem
    _prefix: dict[tuple[str, str, int], tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    _update: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def compute_s(self, device: Device, point: str, start: int, stop: int, rows: int) -> tuple[float, float]:
        """Forward and backward seconds of layers [start, stop) over some rows."""
        key = (device.kind, point, rows)
        found = self._prefix.get(key)
        if found is None:
            times = self.problem.model.times_of(device.kind, point)
            found = (
                _prefix([interpolate_batch_s(times.batch_B, row, rows) for row in times.forward_s_LB]),
                _prefix([interpolate_batch_s(times.batch_B, row, rows) for row in times.backward_s_LB]),
            )
            self._prefix[key] = found
        forward_s, backward_s = found
        return forward_s[stop] - forward_s[start], backward_s[stop] - backward_s[start]

    def update_s(self, device: Device, point: str, start: int, stop: int) -> float:
        """Optimizer seconds of layers [start, stop)."""
        key = (device.kind, point)
        found = self._update.get(key)
        if found is None:
            found = _prefix(list(self.problem.model.times_of(device.kind, point).update_s_L))
            self._update[key] = found
        return found[stop] - found[start]


def estimate(plan: Plan, problem: Problem, *, tables: CostTables | None = None) -> Estimate:
    """Price one round of a plan.

    Args:
        plan: A plan that is valid for the problem.
        problem: Model, cluster and objective.
        tables: Shared look-ups when many plans of one problem are priced.

    Returns:
        Time, memory and energy; what breaks a limit stands in ``violations``.

    Raises:
        UsageError: A layer time or a power curve is missing.
    """
    tables = tables or CostTables(problem)
    prices = [stage_price(stage, tables) for stage in plan.stages]
    step_s = _round_s(plan, problem, prices)
    busy_s: dict[str, float] = {}
    energy_j: dict[str, dict[str, float]] = {}
    peak_bytes: dict[str, int] = {}
    for index, (stage, price) in enumerate(zip(plan.stages, prices, strict=True)):
        traffic = stage_traffic(plan, index, problem.cluster)
        for position, name in enumerate(stage.devices):
            device = problem.cluster.device(name)
            curve = device.curve(stage.points[position])
            update_s = tables.update_s(device, stage.points[position], stage.start, stage.stop)
            busy_s[name] = price.busy_s[position] * plan.micro_batches_n + update_s
            energy_j[name] = {
                "compute": curve.busy_w * busy_s[name],
                "wait": curve.idle_w * max(step_s - busy_s[name], 0.0),
                "send": traffic[position].sent_j,
                "receive": traffic[position].received_j,
            }
            peak_bytes[name] = memory_bytes(stage, stage.shares[position], problem)
    if problem.objective.count_idle_of_unused:
        for device in problem.cluster.devices:
            if device.id not in energy_j:
                energy_j[device.id] = {"idle": device.power.idle_w * step_s}
    round_j = sum(sum(causes.values()) for causes in energy_j.values())
    return Estimate(
        step_s=step_s,
        samples_per_s=plan.batch / step_s,
        energy_j_per_sample=round_j / plan.batch,
        energy_j=energy_j,
        busy_s=busy_s,
        peak_bytes=peak_bytes,
        violations=_violations(plan, problem, step_s, round_j, peak_bytes),
    )


def stage_price(stage: Stage, tables: CostTables) -> StagePrice:
    """A stage's own price, independent of its neighbours."""
    cluster = tables.problem.cluster
    forward_s = backward_s = update_s = 0.0
    busy_s: list[float] = []
    for name, point, rows in zip(stage.devices, stage.points, stage.shares, strict=True):
        device = cluster.device(name)
        own_forward_s, own_backward_s = tables.compute_s(device, point, stage.start, stage.stop, rows)
        forward_s = max(forward_s, own_forward_s)
        backward_s = max(backward_s, own_backward_s)
        update_s = max(update_s, tables.update_s(device, point, stage.start, stage.stop))
        busy_s.append(own_forward_s + own_backward_s)
    sum_s = gradient_sum_s(cluster, stage.devices, stage.param_bytes)
    return StagePrice(forward_s, backward_s, max(busy_s), tuple(busy_s), update_s, sum_s)


def memory_bytes(stage: Stage, rows: int, problem: Problem) -> int:
    """Peak training memory of one device of a stage: ``MOD + OPT + K·ACT(rows)`` and its message buffers.

    MOD is weights and accumulated gradients, OPT the optimizer's state (Asteroid, arXiv 2408.08015).
    """
    model = problem.model
    fixed, per_row = _memory_terms(stage.start, stage.stop, stage.in_flight, problem)
    entering = model.layers[stage.start - 1].activation_bytes if stage.start > 0 else model.input_bytes
    leaving = stage.output_bytes
    return fixed + per_row * rows + 2 * (entering + leaving) * rows


def most_rows(device: Device, start: int, stop: int, in_flight: int, problem: Problem) -> int:
    """Most rows of a micro-batch that fit a device's memory; 0 when not even the weights do."""
    model = problem.model
    fixed, per_row = _memory_terms(start, stop, in_flight, problem)
    entering = model.layers[start - 1].activation_bytes if start > 0 else model.input_bytes
    leaving = model.layers[stop - 1].activation_bytes if stop < len(model.layers) else 0
    free = device.memory_bytes - fixed
    # A byte at least, for layers that neither keep nor hand on anything.
    return max(free // max(per_row + 2 * (entering + leaving), 1), 0)


def _memory_terms(start: int, stop: int, in_flight: int, problem: Problem) -> tuple[int, int]:
    layers = problem.model.layers[start:stop]
    trainable = sum(layer.param_bytes for layer in layers)
    frozen = sum(layer.frozen_bytes for layer in layers)
    stash = sum(layer.stash_bytes for layer in layers)
    return trainable * (2 + OPTIMIZER_STATES[problem.optimizer]) + frozen, in_flight * stash


def stage_step(stage: Stage, price: StagePrice, cluster: Cluster) -> Step:
    """What the round formula needs to know of a stage."""
    air_s = gradient_sum_air_s(cluster, stage.devices, stage.param_bytes)
    return Step(price.forward_s, price.backward_s, price.both_s, price.sum_s, price.update_s, air_s)


def boundary_transfer(
    cluster: Cluster, before: Sequence[str], after: Sequence[str], *, rows_before: Sequence[int],
    rows_after: Sequence[int], layer: LayerProfile,
) -> Transfer:  # fmt: skip
    """The transfer of a cut after ``layer`` between two groups and their shares."""
    return transfer(
        cluster, before, after, rows_before=rows_before, rows_after=rows_after,
        activation_bytes=layer.activation_bytes, gradient_bytes=layer.gradient_bytes,
    )  # fmt: skip


def _round_s(plan: Plan, problem: Problem, prices: Sequence[StagePrice]) -> float:
    steps = [stage_step(stage, price, problem.cluster) for stage, price in zip(plan.stages, prices, strict=True)]
    transfers = [
        boundary_transfer(
            problem.cluster, before.devices, after.devices,
            rows_before=before.shares, rows_after=after.shares, layer=problem.model.layers[before.stop - 1],
        )
        for before, after in itertools.pairwise(plan.stages)
    ]  # fmt: skip
    return round_s(steps, transfers, plan.micro_batches_n)


class Traffic(NamedTuple):
    """What a device sends and receives in a round."""

    sent_bytes: float
    received_bytes: float
    sent_j: float
    received_j: float


def boundary_energy_j(cluster: Cluster, senders: Sequence[str], receivers: Sequence[str]) -> tuple[float, float]:
    """Joules per byte of the senders and of the receivers between two groups: the dearest link decides."""
    links = [cluster.link(src, dst) for src in senders for dst in receivers if src != dst]
    return (
        max((link.tx_j_per_byte for link in links), default=0.0),
        max((link.rx_j_per_byte for link in links), default=0.0),
    )


def stage_traffic(plan: Plan, index: int, cluster: Cluster) -> list[Traffic]:
    """Bytes and joules of the messages of each device of a stage in one round."""
    stage = plan.stages[index]
    sum_bytes = gradient_sum_bytes(len(stage.devices), stage.param_bytes)
    # (bytes per row out, in, other group); activations go to the right, gradients to the left.
    sides: list[tuple[int, int, Stage]] = []
    if index + 1 < len(plan.stages):
        sides.append((stage.output_bytes, stage.gradient_bytes, plan.stages[index + 1]))
    if index > 0:
        before = plan.stages[index - 1]
        sides.append((before.gradient_bytes, before.output_bytes, before))
    inside_tx_j, inside_rx_j = boundary_energy_j(cluster, stage.devices, stage.devices)
    found: list[Traffic] = []
    for share in stage.shares:
        rows = share * plan.micro_batches_n
        sent, received = sum_bytes, sum_bytes
        sent_j, received_j = sum_bytes * inside_tx_j, sum_bytes * inside_rx_j
        for out_bytes, in_bytes, other in sides:
            tx_j, _ = boundary_energy_j(cluster, stage.devices, other.devices)
            _, rx_j = boundary_energy_j(cluster, other.devices, stage.devices)
            sent += rows * out_bytes
            received += rows * in_bytes
            sent_j += rows * out_bytes * tx_j
            received_j += rows * in_bytes * rx_j
        found.append(Traffic(sent, received, sent_j, received_j))
    return found


def _violations(
    plan: Plan, problem: Problem, step_s: float, round_j: float, peak_bytes: dict[str, int]
) -> tuple[str, ...]:
    found: list[str] = []
    for name, needed in peak_bytes.items():
        room = problem.cluster.device(name).memory_bytes
        if needed > room:
            lacking = format_quantity(needed - room, "bytes")
            found.append(f"device {name} lacks {lacking} of memory (needs {format_quantity(needed, 'bytes')})")
    objective = problem.objective
    if objective.job_samples is not None:
        rounds = objective.job_samples / plan.batch
        if objective.deadline_s is not None and rounds * step_s > objective.deadline_s:
            late = format_quantity(rounds * step_s - objective.deadline_s, "time")
            found.append(f"the deadline is missed by {late} (needs {format_quantity(rounds * step_s, 'time')})")
        if objective.budget_j is not None and rounds * round_j > objective.budget_j:
            over = format_quantity(rounds * round_j - objective.budget_j, "energy")
            found.append(f"the energy budget is exceeded by {over}")
    return tuple(found)


def _prefix(values: Sequence[float]) -> tuple[float, ...]:
    total = 0.0
    sums = [0.0]
    for value in values:
        total += value
        sums.append(total)
    return tuple(sums)
