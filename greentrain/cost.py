"""THE cost model: prices a plan in seconds, bytes and joules by device and by cause.

Nothing else in greentrain prices anything. Energy of a round of T seconds:

    E = Σ_used [ P_busy·t_busy + P_wait·(T − t_busy) + J_tx·bytes_tx + J_rx·bytes_rx + J_wake/rounds ]
        + Σ_unused,counted P_rest·T

with P_rest the sleep power of a device that can sleep, else its idle power. A participant wakes once per job.
``t_busy`` is computing alone: handling messages makes passes longer, its joules are in those per byte.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from greentrain.cluster import Cluster
from greentrain.device import Device
from greentrain.objective import Objective, Problem
from greentrain.parallel.data import (
    exposed_sum_s,
    gradient_sum_air_s,
    gradient_sum_busy_s,
    gradient_sum_bytes,
    gradient_sum_s,
    gradient_sum_wire_s,
)
from greentrain.parallel.memory import memory_bytes, most_rows, weight_part
from greentrain.parallel.network import Handled, handled_bytes, handling_s
from greentrain.parallel.pipeline import Step, Transfer, held, round_s, transfer
from greentrain.parallel.tensor_sequence import layer_pass_s, ring_loads_s, ring_part_bytes, rings_s
from greentrain.plan import Cut, Estimate, Plan, Stage, allowed, cut, parallelism_name
from greentrain.profile import LayerProfile, interpolate_batch_s
from greentrain.sharing import (
    Direction,
    Sharing,
    common_piece_bytes,
    end_ring,
    entry_ring,
    is_split,
    joint_ring,
    layer_ring,
    ring_pass_bytes,
)
from greentrain.units import format_quantity

__all__ = [
    "CostTables",
    "StagePrice",
    "Traffic",
    "boundary_energy_j",
    "boundary_transfer",
    "device_compute_s",
    "device_pass_s",
    "device_update_s",
    "estimate",
    "inside_energy_j",
    "job_s",
    "memory_bytes",
    "most_rows",
    "over_cap_w",
    "stage_price",
    "stage_step",
    "stage_traffic",
    "unused_power",
    "wake_j",
    "weight_part",
]


class StagePrice(NamedTuple):
    """A stage's own price per micro-batch.

    Attributes:
        forward_s: Slowest device's forward seconds.
        backward_s: Slowest device's backward seconds.
        both_s: Forward and backward seconds of the device that is slowest in both together.
        first_forward_s: Fastest device's forward seconds.
        first_backward_s: Fastest device's backward seconds.
        busy_s: Computing seconds of each device, per micro-batch.
        update_s: Slowest device's optimizer seconds per round.
        sum_s: Seconds of the gradient sum per round that the last backward does not hide.
    """

    forward_s: float
    backward_s: float
    both_s: float
    first_forward_s: float
    first_backward_s: float
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
    _passes: dict[tuple[str, str, Sharing, float, float], tuple[tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict
    )
    _handled: dict[tuple[int, int, Sharing], tuple[Handled, Handled]] = field(default_factory=dict)
    _update: dict[tuple[str, str, Sharing], tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def compute_s(self, device: Device, point: str, start: int, stop: int, rows: float) -> tuple[float, float]:
        """Forward and backward seconds of layers [start, stop) over some rows."""
        return self.shared_s(device, point, start, stop, sharing="samples", rows=rows, micro_batch=rows)

    def shared_s(
        self, device: Device, point: str, start: int, stop: int, *, sharing: Sharing, rows: float, micro_batch: float
    ) -> tuple[float, float]:
        """Forward and backward seconds of a device's part of layers [start, stop).

        Args:
            device: Gives the kind.
            point: Operating point.
            start: First layer.
            stop: One past the last layer.
            sharing: How the stage is shared.
            rows: The device's part in rows, in all layers that are shared.
            micro_batch: Rows in the layers that every device computes whole.
        """
        forward_s, backward_s = self.until_s(device, point, sharing=sharing, rows=rows, micro_batch=micro_batch)
        return forward_s[stop] - forward_s[start], backward_s[stop] - backward_s[start]

    def until_s(
        self, device: Device, point: str, *, sharing: Sharing, rows: float, micro_batch: float
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Forward and backward seconds of the layers [0, stop) for every stop; arguments as in :meth:`shared_s`."""
        key = (device.kind, point, sharing, rows, micro_batch)
        found = self._passes.get(key)
        if found is None:
            model = self.problem.model
            times = model.times_of(device.kind, point)
            inside = sharing != "samples"
            rows_L = [micro_batch if inside and not is_split(sharing, layer) else rows for layer in model.layers]
            forward_s = _interpolated(times.batch_B, times.forward_s_LB, rows_L)
            backward_s = _interpolated(times.batch_B, times.backward_s_LB, rows_L)
            if self.problem.recompute:
                backward_s = tuple(map(operator.add, forward_s, backward_s))
            found = (forward_s, backward_s)
            self._passes[key] = found
        return found

    def handled(self, start: int, stop: int, sharing: Sharing) -> tuple[Handled, Handled]:
        """What a device of a stage handles of the network, forward and backward."""
        found = self._handled.get((start, stop, sharing))
        if found is None:
            layers = self.problem.model.layers
            found = (handled_bytes(layers, start, stop, sharing, "forward"),
                     handled_bytes(layers, start, stop, sharing, "backward"))  # fmt: skip
            self._handled[start, stop, sharing] = found
        return found

    def update_s(self, device: Device, point: str, start: int, stop: int) -> float:
        """Optimizer seconds of layers [start, stop)."""
        return sum(self.shared_update_s(device, point, start, stop, sharing="samples"))

    def shared_update_s(
        self, device: Device, point: str, start: int, stop: int, *, sharing: Sharing
    ) -> tuple[float, float]:
        """Optimizer seconds of the layers in [start, stop) that a group splits, and of those that it does not."""
        key = (device.kind, point, sharing)
        found = self._update.get(key)
        if found is None:
            model = self.problem.model
            pairs = list(zip(model.times_of(device.kind, point).update_s_L, model.layers, strict=True))
            found = (_prefix([seconds * is_split(sharing, layer) for seconds, layer in pairs]),
                     _prefix([seconds * (not is_split(sharing, layer)) for seconds, layer in pairs]))  # fmt: skip
            self._update[key] = found
        split_s, whole_s = found
        return split_s[stop] - split_s[start], whole_s[stop] - whole_s[start]


def _interpolated(
    batch_B: tuple[int, ...], time_s_LB: Sequence[tuple[float, ...]], rows_L: Sequence[float]
) -> tuple[float, ...]:
    return _prefix([interpolate_batch_s(batch_B, row, rows) for row, rows in zip(time_s_LB, rows_L, strict=True)])


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
            update_s = device_update_s(stage, position, tables)
            busy_s[name] = price.busy_s[position] * plan.micro_batches_n + update_s
            energy_j[name] = {
                "compute": curve.busy_w * busy_s[name],
                "wait": curve.idle_w * max(step_s - busy_s[name], 0.0),
                "send": traffic[position].sent_j,
                "receive": traffic[position].received_j,
            }
            if (woken_j := wake_j(device, problem)) > 0:
                energy_j[name]["wake"] = woken_j
            peak_bytes[name] = memory_bytes(stage, position, problem, plan.micro_batch)
    if problem.objective.count_idle_of_unused:
        for device in problem.cluster.devices:
            if device.id not in energy_j:
                cause, rest_w = unused_power(device)
                energy_j[device.id] = {cause: rest_w * step_s}
    round_j = sum(sum(causes.values()) for causes in energy_j.values())
    return Estimate(
        step_s=step_s,
        samples_per_s=plan.batch / step_s,
        energy_j_per_sample=round_j / plan.batch,
        energy_j=energy_j,
        busy_s=busy_s,
        peak_bytes=peak_bytes,
        violations=_violations(plan, problem, step_s, energy_j, peak_bytes),
    )


def stage_price(stage: Stage, tables: CostTables, micro_batch: int) -> StagePrice:
    """A stage's own price, independent of its neighbours."""
    own_s = [device_compute_s(stage, position, tables, micro_batch) for position in range(len(stage.devices))]
    update_s = max(device_update_s(stage, position, tables) for position in range(len(stage.devices)))
    if stage.sharing == "samples":
        passes_s = [device_pass_s(stage, position, tables, micro_batch) for position in range(len(stage.devices))]
        forward_s, backward_s = (max(seconds) for seconds in zip(*passes_s, strict=True))
        both_s = max(sum(seconds) for seconds in passes_s)
        first_s = [min(seconds) for seconds in zip(*passes_s, strict=True)]
    else:
        network_s = [_network_s(stage, position, tables, micro_batch) for position in range(len(stage.devices))]
        forward_s = _ring_pass_s(stage, tables, micro_batch, "forward") + max(seconds for seconds, _ in network_s)
        backward_s = _ring_pass_s(stage, tables, micro_batch, "backward") + max(seconds for _, seconds in network_s)
        both_s = forward_s + backward_s
        first_s = [forward_s, backward_s]
    sum_s = _sum_s(stage, tables, micro_batch)
    busy_s = tuple(sum(seconds) for seconds in own_s)
    return StagePrice(forward_s, backward_s, both_s, first_s[0], first_s[1], busy_s, update_s, sum_s)


def _sum_s(stage: Stage, tables: CostTables, micro_batch: int) -> float:
    """Seconds of a stage's gradient sum behind its last backward.

    Only the first stage sums during its backward: elsewhere a gradient that goes back would wait behind the sum. On a
    shared medium the sum would wait for what the other stages send.
    """
    cluster, devices = tables.problem.cluster, stage.devices
    whole_s = gradient_sum_s(cluster, devices, stage.sum_bytes)
    air_s = gradient_sum_air_s(cluster, devices, stage.sum_bytes)
    if stage.start > 0 or stage.sharing != "samples" or whole_s == 0 or air_s > 0:
        return whole_s
    sizes = itertools.accumulate(layer.param_bytes for layer in tables.problem.model.layers[: stage.stop])
    ready_s_L = (
        max(_layers_s(stage, position, tables, micro_batch, layer)[1] for position in range(len(devices)))
        for layer in range(stage.stop)
    )
    return exposed_sum_s(
        ready_s_L, (gradient_sum_wire_s(cluster, devices, size) for size in sizes),
        gradient_sum_busy_s(cluster, devices, stage.sum_bytes),
    )  # fmt: skip


def device_compute_s(stage: Stage, position: int, tables: CostTables, micro_batch: int) -> tuple[float, float]:
    """Forward and backward seconds in which a device of a stage computes, per micro-batch."""
    return _layers_s(stage, position, tables, micro_batch, stage.start)


def _layers_s(stage: Stage, position: int, tables: CostTables, micro_batch: int, first: int) -> tuple[float, float]:
    """The same from some layer of the stage on."""
    device = tables.problem.cluster.device(stage.devices[position])
    return tables.shared_s(
        device, stage.points[position], first, stage.stop, sharing=stage.sharing,
        rows=stage.work_rows(position, micro_batch), micro_batch=micro_batch,
    )  # fmt: skip


def device_pass_s(stage: Stage, position: int, tables: CostTables, micro_batch: int) -> tuple[float, float]:
    """The same with the seconds in which its processor handles messages: they compete with computing."""
    forward_s, backward_s = device_compute_s(stage, position, tables, micro_batch)
    network_forward_s, network_backward_s = _network_s(stage, position, tables, micro_batch)
    return forward_s + network_forward_s, backward_s + network_backward_s


def _network_s(stage: Stage, position: int, tables: CostTables, micro_batch: int) -> tuple[float, float]:
    device, rows = tables.problem.cluster.device(stage.devices[position]), stage.work_rows(position, micro_batch)
    forward, backward = tables.handled(stage.start, stage.stop, stage.sharing)
    return handling_s(device, forward, rows, micro_batch), handling_s(device, backward, rows, micro_batch)


def device_update_s(stage: Stage, position: int, tables: CostTables) -> float:
    """Optimizer seconds of a device of a stage, per round."""
    device = tables.problem.cluster.device(stage.devices[position])
    split_s, whole_s = tables.shared_update_s(
        device, stage.points[position], stage.start, stage.stop, sharing=stage.sharing
    )
    return split_s * weight_part(stage, position) + whole_s


def _ring_pass_s(stage: Stage, tables: CostTables, micro_batch: int, direction: Direction) -> float:
    """Seconds of a pass of a micro-batch through a group that shares work inside a sample."""
    problem, sharing = tables.problem, stage.sharing
    layers, cluster = problem.model.layers, problem.cluster
    way = 0 if direction == "forward" else 1
    largest_part = max(stage.shares) / sum(stage.shares)
    total_s = 0.0
    between = list(entry_ring(sharing, layers[stage.start - 1], layers[stage.start])) if stage.start > 0 else []
    for index in range(stage.start, stage.stop):
        slowest_s = max(
            tables.shared_s(
                cluster.device(name), point, index, index + 1, sharing=sharing,
                rows=stage.work_rows(at, micro_batch), micro_batch=micro_batch,
            )[way]
            for at, (name, point) in enumerate(zip(stage.devices, stage.points, strict=True))
        )  # fmt: skip
        ring = layer_ring(sharing, layers[index], ends_model=index + 1 == len(layers))
        total_s += layer_pass_s(
            sharing, cluster, stage.devices, compute_s=slowest_s, ring_bytes=ring.bytes if ring else 0,
            rings_n=ring.rings_n(direction) if ring else 0, rows=micro_batch, largest_part=largest_part,
        )  # fmt: skip
        if index + 1 < stage.stop:
            between += joint_ring(sharing, layers[index], layers[index + 1])
    if stage.stop == len(layers):
        between += end_ring(sharing, layers[-1])
    return total_s + rings_s(between, direction, cluster, stage.devices, rows=micro_batch, largest_part=largest_part)


def stage_step(stage: Stage, price: StagePrice, cluster: Cluster, micro_batch: int) -> Step:
    """What the round formula needs to know of a stage."""
    ring_port_s, ring_air_s = ring_loads_s(cluster, stage.devices, _ring_part_bytes(stage, micro_batch))
    return Step(
        price.forward_s, price.backward_s, price.both_s, price.first_forward_s, price.first_backward_s,
        price.sum_s, price.update_s,
        gradient_sum_air_s(cluster, stage.devices, stage.sum_bytes), ring_port_s, ring_air_s,
    )  # fmt: skip


def _ring_part_bytes(stage: Stage, micro_batch: int) -> float:
    """Bytes that a device of the stage sends in rings per micro-batch, on average."""
    return ring_part_bytes(stage.ring_forward_bytes + stage.ring_backward_bytes, micro_batch, len(stage.devices))


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
    rows = plan.micro_batch
    transfers = [
        transfer(
            problem.cluster,
            held(before.devices, before.sharing, before.shares, rows, whole=before.whole_stop),
            held(after.devices, after.sharing, after.shares, rows, whole=after.whole_start),
            activation_bytes=before.output_bytes, gradient_bytes=before.gradient_bytes,
            side_bytes=before.side_bytes, side_gradient_bytes=before.side_gradient_bytes,
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


def inside_energy_j(cluster: Cluster, devices: Sequence[str], device: str) -> tuple[float, float]:
    """Joules per byte that a device sends to and receives from its group, both at once: its dearest link decides."""
    ways = [(cluster.link(device, other), cluster.link(other, device)) for other in devices if other != device]

    def priced(duplex_j: float | None, one_way_j: float) -> float:
        return one_way_j if duplex_j is None else duplex_j

    return (
        max((priced(out.duplex_j_per_byte, out.tx_j_per_byte) for out, _ in ways), default=0.0),
        max((priced(out.duplex_j_per_byte, back.rx_j_per_byte) for out, back in ways), default=0.0),
    )


def stage_traffic(plan: Plan, index: int, cluster: Cluster) -> list[Traffic]:
    """Bytes and joules of the messages of each device of a stage in one round."""
    stage, rows = plan.stages[index], plan.micro_batch
    # (the cut out of the stage, the cut into it, the other stage); activations go to the right, gradients to the left.
    sides: list[tuple[Cut, Cut, Stage]] = []
    if index + 1 < len(plan.stages):
        after = plan.stages[index + 1]
        sides.append((cut(stage, after, rows, forward=True), cut(stage, after, rows, forward=False), after))
    if index > 0:
        before = plan.stages[index - 1]
        sides.append((cut(before, stage, rows, forward=False), cut(before, stage, rows, forward=True), before))
    prices = [(boundary_energy_j(cluster, stage.devices, there.devices)[0],
               boundary_energy_j(cluster, there.devices, stage.devices)[1]) for _, _, there in sides]  # fmt: skip
    found: list[Traffic] = []
    for position in range(len(stage.devices)):
        sent, received = _inside_bytes(plan, stage, position)
        inside_tx_j, inside_rx_j = inside_energy_j(cluster, stage.devices, stage.devices[position])
        sent_j, received_j = sent * inside_tx_j, received * inside_rx_j
        for (outward, inward, _), (tx_j, rx_j) in zip(sides, prices, strict=True):
            out = plan.micro_batches_n * sum(
                common_piece_bytes(outward.sent[position], piece, outward.hidden_bytes, outward.side_bytes)
                for piece in outward.taken
            )
            into = plan.micro_batches_n * sum(
                common_piece_bytes(piece, inward.taken[position], inward.hidden_bytes, inward.side_bytes)
                for piece in inward.sent
            )
            sent += out
            received += into
            sent_j += out * tx_j
            received_j += into * rx_j
        found.append(Traffic(sent, received, sent_j, received_j))
    return found


def _inside_bytes(plan: Plan, stage: Stage, position: int) -> tuple[float, float]:
    """Bytes that a device sends to and receives from its own group in one round: gradient sum and rings."""
    sent = received = gradient_sum_bytes(len(stage.devices), stage.sum_bytes)
    for direction in ("forward", "backward"):
        out, into = ring_pass_bytes(stage.rings, stage.shares, position, plan.micro_batch, direction)
        sent += plan.micro_batches_n * out
        received += plan.micro_batches_n * into
    return sent, received


def unused_power(device: Device) -> tuple[str, float]:
    """Cause and watts of a device that takes no part: asleep where it can sleep, else idle."""
    if device.power.sleep_w is not None:
        return "sleep", device.power.sleep_w
    return "idle", device.power.idle_w


def wake_j(device: Device, problem: Problem) -> float:
    """Joules per round of waking a participant once for the job; 0 without a job or where waking costs nothing."""
    job_samples = problem.objective.job_samples
    return (device.wake_j or 0.0) * problem.batch / job_samples if job_samples else 0.0


def over_cap_w(device: Device, point: str, objective: Objective) -> float:
    """Watts by which an operating point exceeds the device's cap when it is busy; 0 or less where it is allowed."""
    return device.curve(point).busy_w - objective.power_cap_w.get(device.id, inf)


def _violations(
    plan: Plan, problem: Problem, step_s: float, energy_j: dict[str, dict[str, float]], peak_bytes: dict[str, int]
) -> tuple[str, ...]:
    found: list[str] = []
    if not allowed(plan, problem):
        found.append(f"the parallelism is {parallelism_name(plan)!r}, only {problem.parallelism!r} is wanted")
    for name, needed in peak_bytes.items():
        room = problem.cluster.device(name).memory_bytes
        if needed > room:
            lacking = format_quantity(needed - room, "bytes")
            found.append(f"device {name} lacks {lacking} of memory (needs {format_quantity(needed, 'bytes')})")
    for stage in plan.stages:
        for name, point in zip(stage.devices, stage.points, strict=True):
            device = problem.cluster.device(name)
            if over_cap_w(device, point, problem.objective) > 0:
                busy, cap = device.curve(point).busy_w, problem.objective.power_cap_w[name]
                found.append(
                    f"device {name} draws {format_quantity(busy, 'power')} at {point}, "
                    f"its cap is {format_quantity(cap, 'power')}"
                )
    return (*found, *_job_violations(plan, problem, step_s, energy_j))


def job_s(plan: Plan, problem: Problem, step_s: float) -> float:
    """Seconds of the whole job: its rounds, after the slowest participant is awake."""
    assert problem.objective.job_samples is not None
    awake_s = max(problem.cluster.device(name).wake_s or 0.0 for name in plan.devices)
    return awake_s + problem.objective.job_samples / plan.batch * step_s


def _job_violations(
    plan: Plan, problem: Problem, step_s: float, energy_j: dict[str, dict[str, float]]
) -> Iterator[str]:
    objective = problem.objective
    if objective.job_samples is None:
        return
    rounds = objective.job_samples / plan.batch
    needed_s = job_s(plan, problem, step_s)
    if objective.deadline_s is not None and needed_s > objective.deadline_s:
        late = format_quantity(needed_s - objective.deadline_s, "time")
        yield f"the deadline is missed by {late} (needs {format_quantity(needed_s, 'time')})"
    job_j = {name: rounds * sum(causes.values()) for name, causes in energy_j.items()}
    if objective.budget_j is not None and sum(job_j.values()) > objective.budget_j:
        yield f"the energy budget is exceeded by {format_quantity(sum(job_j.values()) - objective.budget_j, 'energy')}"
    for name, budget_j in objective.device_budget_j.items():
        if job_j.get(name, 0.0) > budget_j:
            over = format_quantity(job_j[name] - budget_j, "energy")
            yield f"device {name} exceeds its energy budget of {format_quantity(budget_j, 'energy')} by {over}"


def _prefix(values: Sequence[float]) -> tuple[float, ...]:
    total = 0.0
    sums = [0.0]
    for value in values:
        total += value
        sums.append(total)
    return tuple(sums)
