"""THE cost model: prices a plan in seconds, bytes and joules by device and by cause.

Nothing else in greentrain prices anything. Energy of a round of T seconds:

    E = Σ_used [ P_busy·t_busy + P_wait·(T − t_busy) + J_tx·bytes_tx + J_rx·bytes_rx ] + Σ_unused,counted P_idle·T
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from greentrain.cluster import Cluster
from greentrain.device import Device
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.parallel.data import gradient_sum_air_s, gradient_sum_bytes, gradient_sum_s
from greentrain.parallel.pipeline import Step, Transfer, held, round_s, transfer
from greentrain.parallel.tensor_sequence import pass_s, ring_loads_s
from greentrain.plan import Estimate, Plan, Stage, common_bytes, ring_part_bytes
from greentrain.profile import LayerProfile, interpolate_batch_s
from greentrain.units import format_quantity

__all__ = [
    "CostTables",
    "StagePrice",
    "Traffic",
    "boundary_energy_j",
    "boundary_transfer",
    "device_compute_s",
    "estimate",
    "memory_bytes",
    "most_rows",
    "stage_price",
    "stage_step",
    "stage_traffic",
    "weight_part",
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
    _prefix: dict[tuple[str, str, float], tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    _update: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def compute_s(self, device: Device, point: str, start: int, stop: int, rows: float) -> tuple[float, float]:
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
    prices = [stage_price(stage, tables, plan.micro_batch) for stage in plan.stages]
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
            update_s *= weight_part(stage, position)
            busy_s[name] = price.busy_s[position] * plan.micro_batches_n + update_s
            energy_j[name] = {
                "compute": curve.busy_w * busy_s[name],
                "wait": curve.idle_w * max(step_s - busy_s[name], 0.0),
                "send": traffic[position].sent_j,
                "receive": traffic[position].received_j,
            }
            peak_bytes[name] = memory_bytes(stage, position, problem, plan.micro_batch)
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


def stage_price(stage: Stage, tables: CostTables, micro_batch: int) -> StagePrice:
    """A stage's own price, independent of its neighbours."""
    cluster = tables.problem.cluster
    own_s = [device_compute_s(stage, position, tables, micro_batch) for position in range(len(stage.devices))]
    update_s = 0.0
    for position, (name, point) in enumerate(zip(stage.devices, stage.points, strict=True)):
        whole_s = tables.update_s(cluster.device(name), point, stage.start, stage.stop)
        update_s = max(update_s, whole_s * weight_part(stage, position))
    if stage.sharing == "samples":
        forward_s, backward_s = (max(seconds) for seconds in zip(*own_s, strict=True))
        both_s = max(sum(seconds) for seconds in own_s)
    else:
        forward_s, backward_s = (_ring_pass_s(stage, tables, micro_batch, way) for way in ("forward", "backward"))
        both_s = forward_s + backward_s
    sum_s = gradient_sum_s(cluster, stage.devices, stage.sum_bytes)
    return StagePrice(forward_s, backward_s, both_s, tuple(sum(seconds) for seconds in own_s), update_s, sum_s)


def device_compute_s(stage: Stage, position: int, tables: CostTables, micro_batch: int) -> tuple[float, float]:
    """Forward and backward seconds in which a device of a stage computes, per micro-batch."""
    device = tables.problem.cluster.device(stage.devices[position])
    rows = stage.work_rows(position, micro_batch)
    return tables.compute_s(device, stage.points[position], stage.start, stage.stop, rows)


def weight_part(stage: Stage, position: int) -> float:
    """The part of a stage's weights that a device holds: its heads and columns, or all of them."""
    split = stage.sharing in ("tensor_sequence", "tensor")
    return stage.shares[position] / sum(stage.shares) if split else 1.0


def _ring_pass_s(stage: Stage, tables: CostTables, micro_batch: int, direction: str) -> float:
    """Seconds of a pass of a micro-batch through a group that shares work inside a sample."""
    problem = tables.problem
    way = 0 if direction == "forward" else 1
    slowest_s_L = [
        max(
            tables.compute_s(problem.cluster.device(name), point, layer, layer + 1, stage.work_rows(at, micro_batch))[
                way
            ]
            for at, (name, point) in enumerate(zip(stage.devices, stage.points, strict=True))
        )
        for layer in range(stage.start, stage.stop)
    ]
    return pass_s(
        stage.sharing, problem.cluster, stage.devices, direction=direction, compute_s_L=slowest_s_L,
        activation_bytes_L=[layer.activation_bytes for layer in problem.model.layers[stage.start : stage.stop]],
        rows=micro_batch, largest_part=max(stage.shares) / sum(stage.shares),
    )  # fmt: skip


def memory_bytes(stage: Stage, position: int, problem: Problem, micro_batch: int) -> int:
    """Peak training memory of one device of a stage: ``MOD + OPT + K·ACT`` and its message buffers.

    MOD is weights and accumulated gradients, OPT the optimizer's state (Asteroid, arXiv 2408.08015). Once nothing
    is in flight any more, the gradient sum needs a flat copy of the gradients. Heads and columns split the
    weights, tokens the stash; Megatron's ``tensor`` keeps every layer's input whole on each device. A ring needs two
    whole activations.
    """
    layers = problem.model.layers[stage.start : stage.stop]
    rows = stage.work_rows(position, micro_batch)
    fixed, per_row = _memory_terms(stage.start, stage.stop, stage.in_flight, problem)
    entering = problem.model.layers[stage.start - 1].activation_bytes if stage.start > 0 else problem.model.input_bytes
    moving = per_row * rows + 2 * (entering + stage.output_bytes) * rows
    if stage.sharing == "tensor":
        whole = sum(min(layer.activation_bytes, layer.stash_bytes) for layer in layers)
        moving += (stage.in_flight * whole + 2 * entering) * (micro_batch - rows)
    if stage.sharing != "samples":
        moving += 2 * micro_batch * max(layer.activation_bytes for layer in layers)
    return ceil(fixed * weight_part(stage, position) + max(moving, stage.sum_bytes))


def most_rows(device: Device, start: int, stop: int, in_flight: int, problem: Problem, *, group_n: int = 1) -> int:
    """Most rows of a micro-batch that fit a device's memory; 0 when not even the weights do.

    Args:
        device: Gives the memory.
        start: First layer.
        stop: One past the last layer.
        in_flight: Micro-batches that the stage holds.
        problem: Gives the layers.
        group_n: Devices that share the rows; two or more need room for a gradient sum.
    """
    model = problem.model
    fixed, per_row = _memory_terms(start, stop, in_flight, problem)
    entering = model.layers[start - 1].activation_bytes if start > 0 else model.input_bytes
    leaving = model.layers[stop - 1].activation_bytes if stop < len(model.layers) else 0
    free = device.memory_bytes - fixed
    if group_n > 1 and free < sum(layer.param_bytes for layer in model.layers[start:stop]):
        return 0
    # A byte at least, for layers that neither keep nor hand on anything.
    return max(free // max(per_row + 2 * (entering + leaving), 1), 0)


def _memory_terms(start: int, stop: int, in_flight: int, problem: Problem) -> tuple[int, int]:
    layers = problem.model.layers[start:stop]
    trainable = sum(layer.param_bytes for layer in layers)
    frozen = sum(layer.frozen_bytes for layer in layers)
    stash = sum(layer.stash_bytes for layer in layers)
    return trainable * (2 + OPTIMIZER_STATES[problem.optimizer]) + frozen, in_flight * stash


def stage_step(stage: Stage, price: StagePrice, cluster: Cluster, micro_batch: int) -> Step:
    """What the round formula needs to know of a stage."""
    ring_port_s, ring_air_s = ring_loads_s(cluster, stage.devices, sum(_ring_bytes(stage, micro_batch)))
    return Step(
        price.forward_s, price.backward_s, price.both_s, price.sum_s, price.update_s,
        gradient_sum_air_s(cluster, stage.devices, stage.sum_bytes), ring_port_s, ring_air_s,
    )  # fmt: skip


def _ring_bytes(stage: Stage, micro_batch: int) -> tuple[int, int]:
    """Bytes that each device's ring messages have per micro-batch, forward and backward."""
    group_n = len(stage.devices)
    return (
        ring_part_bytes(stage.ring_forward_bytes, micro_batch, group_n),
        ring_part_bytes(stage.ring_backward_bytes, micro_batch, group_n),
    )


def boundary_transfer(
    cluster: Cluster, before: Sequence[str], after: Sequence[str], *, rows_before: Sequence[int],
    rows_after: Sequence[int], layer: LayerProfile,
) -> Transfer:  # fmt: skip
    """The transfer of a cut after ``layer`` between two groups that share samples."""
    return transfer(
        cluster, held(before, "samples", rows_before, sum(rows_before)),
        held(after, "samples", rows_after, sum(rows_after)),
        activation_bytes=layer.activation_bytes, gradient_bytes=layer.gradient_bytes,
    )  # fmt: skip


def _round_s(plan: Plan, problem: Problem, prices: Sequence[StagePrice]) -> float:
    steps = [
        stage_step(stage, price, problem.cluster, plan.micro_batch)
        for stage, price in zip(plan.stages, prices, strict=True)
    ]
    groups = [held(stage.devices, stage.sharing, stage.shares, plan.micro_batch) for stage in plan.stages]
    transfers = [
        transfer(
            problem.cluster, before, after,
            activation_bytes=stage.output_bytes, gradient_bytes=stage.gradient_bytes,
        )
        for (before, after), stage in zip(itertools.pairwise(groups), plan.stages, strict=False)
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
    own = held(stage.devices, stage.sharing, stage.shares, plan.micro_batch)
    inside = gradient_sum_bytes(len(stage.devices), stage.sum_bytes)
    inside += plan.micro_batches_n * sum(_ring_bytes(stage, plan.micro_batch))
    # (bytes per row out, in, other stage); activations go to the right, gradients to the left.
    sides: list[tuple[int, int, Stage]] = []
    if index + 1 < len(plan.stages):
        sides.append((stage.output_bytes, stage.gradient_bytes, plan.stages[index + 1]))
    if index > 0:
        before = plan.stages[index - 1]
        sides.append((before.gradient_bytes, before.output_bytes, before))
    inside_tx_j, inside_rx_j = boundary_energy_j(cluster, stage.devices, stage.devices)
    found: list[Traffic] = []
    for sends, takes in zip(own.sends, own.takes, strict=True):
        sent, received = inside, inside
        sent_j, received_j = inside * inside_tx_j, inside * inside_rx_j
        for out_bytes, in_bytes, stage_there in sides:
            other = held(stage_there.devices, stage_there.sharing, stage_there.shares, plan.micro_batch)
            tx_j, _ = boundary_energy_j(cluster, stage.devices, other.devices)
            _, rx_j = boundary_energy_j(cluster, other.devices, stage.devices)
            out = plan.micro_batches_n * sum(common_bytes(sends, piece, out_bytes) for piece in other.takes)
            into = plan.micro_batches_n * sum(common_bytes(piece, takes, in_bytes) for piece in other.sends)
            sent += out
            received += into
            sent_j += out * tx_j
            received_j += into * rx_j
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
