"""Discrete-event clock over the action lists of one round; writes the rows that a real run writes.

Every device executes its list in order. A send is handed to the network and does not wait; a message
occupies the sender's way out and then, from its first byte on, the receiver's way in for bytes / bandwidth
each, or the shared medium once, and arrives one latency later. A way serves the messages between different
pairs of devices in turn; both directions of a port go on at once. A receive waits for its message; what a last
backward does not hide of a gradient sum waits for the whole group, and the sum occupies its ports or the medium, as do
the rings of a group that shares work inside a sample, whose passes begin and end together.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, cast

from greentrain.actions import Action, lower
from greentrain.cluster import Cluster
from greentrain.cost import (
    CostTables,
    StagePrice,
    Traffic,
    device_compute_s,
    device_pass_s,
    device_update_s,
    estimate,
    stage_price,
    stage_traffic,
    unused_power,
    wake_j,
)
from greentrain.errors import UsageError
from greentrain.ledger import ACTION_CAUSES, LedgerRow, totals_j
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_bytes
from greentrain.parallel.rows import row_parts
from greentrain.parallel.tensor_sequence import ring_loads_s, ring_part_bytes
from greentrain.plan import Estimate, Plan

__all__ = ["simulate", "to_estimate"]


def simulate(plan: Plan, problem: Problem, *, run: str = "simulated") -> list[LedgerRow]:
    """Execute one round of a plan in simulated time.

    Args:
        plan: A valid plan.
        problem: Gives layer times, links and power curves.
        run: Name written into the rows.

    Returns:
        Rows of the round: forward, backward, send, receive, sum, update, wait, wake (and idle or sleep
        for counted devices without a part), with ``source="modelled"`` and ``meter="simulator"``.

    Raises:
        UsageError: The action lists wait for each other for ever.
    """
    actions = lower(plan)
    clock = _Clock(plan, problem, actions)
    clock.run()
    return _rows(plan, problem, clock, run)


def to_estimate(rows: Sequence[LedgerRow], plan: Plan, problem: Problem) -> Estimate:
    """The price of a plan by the simulated round: its time and joules, with the formula's memory."""
    formula = estimate(plan, problem)
    step_s = max(row.t_start_s + row.duration_s for row in rows)
    energy_j: dict[str, dict[str, float]] = {}
    for device in {row.device for row in rows}:
        own = [row for row in rows if row.device == device]
        energy_j[device] = totals_j(own, lambda row: ACTION_CAUSES[row.action])
    round_j = sum(sum(causes.values()) for causes in energy_j.values())
    return Estimate(
        step_s=step_s,
        samples_per_s=plan.batch / step_s,
        energy_j_per_sample=round_j / plan.batch,
        energy_j=energy_j,
        busy_s=formula.busy_s,
        peak_bytes=formula.peak_bytes,
        violations=formula.violations,
        method="simulator",
    )


_Key = tuple[str, str, int, str, int]
# Stage, kind and micro-batch of an action of a whole group.
_Group = tuple[int, str, int]


class _Message(NamedTuple):
    """What is on its way: when it asks for the first of its ways, then who gets what."""

    asks_s: float
    number: int
    key: _Key
    transfer_s: float
    latency_s: float
    ways: tuple[str, ...]


@dataclass
class _Network:
    """Ports and shared media: until when each is taken, and what is on its way."""

    cluster: Cluster
    arrival_s: dict[_Key, float] = field(default_factory=dict)
    _free_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _served_s: defaultdict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    _waiting: list[_Message] = field(default_factory=list[_Message])
    _sent_n: int = 0

    @property
    def next_s(self) -> float:
        """When the next message asks for its way."""
        return self._waiting[0].asks_s if self._waiting else inf

    def send(self, action: Action, now_s: float) -> None:
        """Hand over a message."""
        peer = cast("str", action.peer)
        link = self.cluster.link(action.device, peer)
        ways = (f"medium {link.medium}",) if link.medium is not None else (f"out {action.device}", f"in {peer}")
        transfer_s = action.bytes / self.cluster.bandwidth_bytes_per_s(link)
        self._sent_n += 1
        key = _message(action.device, peer, action)
        heapq.heappush(self._waiting, _Message(now_s, self._sent_n, key, transfer_s, link.latency_s, ways))

    def serve_next(self) -> None:
        """Let the next message onto its way, or back in line behind the one before it between the same two."""
        message = heapq.heappop(self._waiting)
        way, *others = message.ways
        flow = (*message.key[:2], way)
        if self._served_s[flow] > message.asks_s:
            heapq.heappush(self._waiting, message._replace(asks_s=self._served_s[flow]))
            return
        start_s = max(message.asks_s, self._free_s[way])
        self._free_s[way] = self._served_s[flow] = start_s + message.transfer_s
        if others:
            heapq.heappush(self._waiting, message._replace(asks_s=start_s, ways=tuple(others)))
        else:
            self.arrival_s[message.key] = start_s + message.transfer_s + message.latency_s

    def sum_start_s(self, devices: Sequence[str], now_s: float) -> float | None:
        """When a group that is ready can begin its gradient sum; None while messages of its own wait."""
        if any(message.key[0] in devices or message.key[1] in devices for message in self._waiting):
            return None
        return max(now_s, *(self._free_s[way] for way in self._ways(devices)))

    def occupy(self, devices: Sequence[str], part_bytes: float, start_s: float) -> None:
        """Send so many bytes from each device of a group to the next one."""
        port_s, air_s = ring_loads_s(self.cluster, devices, part_bytes)
        for way in self._ways(devices):
            self._free_s[way] = max(start_s, self._free_s[way]) + port_s + air_s

    def _ways(self, devices: Sequence[str]) -> set[str]:
        links = [self.cluster.link(src, dst) for src in devices for dst in devices if src != dst]
        media = {f"medium {link.medium}" for link in links if link.medium is not None}
        return media or {f"{side} {device}" for device in devices for side in ("out", "in")}


@dataclass
class _Clock:
    """The state of every device's list."""

    plan: Plan
    problem: Problem
    actions: Mapping[str, Sequence[Action]]
    now_s: dict[str, float] = field(init=False)
    done: dict[str, list[tuple[Action, float, float]]] = field(init=False)
    _next: dict[str, int] = field(init=False)
    _tables: CostTables = field(init=False)
    _network: _Network = field(init=False)
    _prices: list[StagePrice] = field(init=False)
    # What whole groups do: who has come by when, and once it has begun, its start and its seconds.
    _gathering: defaultdict[_Group, dict[str, float]] = field(init=False)
    _together: dict[_Group, tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.now_s = dict.fromkeys(self.actions, 0.0)
        self.done = {device: [] for device in self.actions}
        self._next = dict.fromkeys(self.actions, 0)
        self._tables = CostTables(self.problem)
        self._network = _Network(self.problem.cluster)
        self._prices = [stage_price(stage, self._tables, self.plan.micro_batch) for stage in self.plan.stages]
        self._gathering = defaultdict(dict)
        self._together = {}

    def run(self) -> None:
        """Always do what can begin first, so that messages queue in the order of time."""
        while True:
            ready = [(start_s, device) for device in self.actions if (start_s := self._ready_s(device)) is not None]
            start_s, device = min(ready, default=(inf, ""))
            if self._network.next_s < inf and self._network.next_s <= start_s:
                self._network.serve_next()
            elif ready:
                self._execute(device, start_s)
            else:
                break
        stuck = {device: listed[self._next[device]] for device, listed in self.actions.items()
                 if self._next[device] < len(listed)}  # fmt: skip
        if stuck:
            grid = "; ".join(f"{device} waits at --> {action}" for device, action in stuck.items())
            raise UsageError(f"the actions wait for each other for ever: {grid}.", hint="Check the schedule.")

    def _ready_s(self, device: str) -> float | None:
        """When the device's next action can begin; None when it has none, or what it needs is not known yet."""
        if self._next[device] >= len(self.actions[device]):
            return None
        action = self.actions[device][self._next[device]]
        now_s = self.now_s[device]
        if action.kind in ("RF", "RB"):
            arrival_s = self._network.arrival_s.get(_message(cast("str", action.peer), device, action))
            return None if arrival_s is None else max(now_s, arrival_s)
        return self._group_ready_s(action, now_s) if self._is_of_group(action) else now_s

    def _is_of_group(self, action: Action) -> bool:
        """Whether all devices of the stage do it together."""
        inside = action.kind in ("F", "B") and self.plan.stages[action.stage].sharing != "samples"
        return action.kind == "AR" or inside

    def _group_ready_s(self, action: Action, now_s: float) -> float | None:
        group = (action.stage, action.kind, action.micro_batch)
        if group in self._together:
            return self._together[group][0]
        come = self._gathering[group]
        come[action.device] = now_s
        devices = self.plan.stages[action.stage].devices
        if len(come) < len(devices):
            return None
        start_s = max(come.values())
        return self._network.sum_start_s(devices, start_s) if action.kind == "AR" else start_s

    def _execute(self, device: str, start_s: float) -> None:
        action = self.actions[device][self._next[device]]
        self._next[device] += 1
        duration_s = own_s = 0.0
        if action.kind in ("SF", "SB"):
            self._network.send(action, start_s)
        elif self._is_of_group(action):
            duration_s = self._group_s(action, start_s)
            own_s = duration_s if action.kind == "AR" else self._compute_s(action)
        elif action.kind in ("F", "B", "U"):
            own_s = self._compute_s(action)
            duration_s = own_s if action.kind == "U" else self._pass_s(action)
        self.done[device].append((action, start_s, own_s))
        self.now_s[device] = start_s + duration_s

    def _group_s(self, action: Action, start_s: float) -> float:
        """Seconds of what a group does together; the first of its devices starts it."""
        group = (action.stage, action.kind, action.micro_batch)
        if group not in self._together:
            stage, price = self.plan.stages[action.stage], self._prices[action.stage]
            if action.kind == "AR":
                duration_s = price.sum_s
                self._network.occupy(stage.devices, gradient_sum_bytes(len(stage.devices), action.bytes), start_s)
            else:
                forward = action.kind == "F"
                duration_s = price.forward_s if forward else price.backward_s
                carried = stage.ring_forward_bytes if forward else stage.ring_backward_bytes
                part_bytes = ring_part_bytes(carried, self.plan.micro_batch, len(stage.devices))
                self._network.occupy(stage.devices, part_bytes, start_s)
            self._together[group] = (start_s, duration_s)
        return self._together[group][1]

    def _pass_s(self, action: Action) -> float:
        """Seconds of a device's own forward or backward, with those of its processor for messages."""
        stage = self.plan.stages[action.stage]
        position = stage.devices.index(action.device)
        forward_s, backward_s = device_pass_s(stage, position, self._tables, self.plan.micro_batch)
        return forward_s if action.kind == "F" else backward_s

    def _compute_s(self, action: Action) -> float:
        """Seconds in which the device itself computes."""
        stage = self.plan.stages[action.stage]
        position = stage.devices.index(action.device)
        if action.kind == "U":
            return device_update_s(stage, position, self._tables)
        forward_s, backward_s = device_compute_s(stage, position, self._tables, self.plan.micro_batch)
        return forward_s if action.kind == "F" else backward_s


def _message(src: str, dst: str, action: Action) -> _Key:
    return (src, dst, action.micro_batch, action.kind[-1], action.first_row)


def _rows(plan: Plan, problem: Problem, clock: _Clock, run: str) -> list[LedgerRow]:
    step_s = max(clock.now_s.values())
    rows: list[LedgerRow] = []
    for index, stage in enumerate(plan.stages):
        traffic = stage_traffic(plan, index, problem.cluster)
        for position, name in enumerate(stage.devices):
            curve = problem.cluster.device(name).curve(stage.points[position])
            writer = _RowWriter(run, name, plan.devices.index(name), curve.idle_w, curve.busy_w, traffic[position])
            for action, start_s, duration_s in clock.done[name]:
                writer.add(action, start_s, duration_s, len(stage.devices))
            writer.wait_until(step_s)
            if (woken_j := wake_j(problem.cluster.device(name), problem)) > 0:
                writer.row("wake", 0.0, 0.0, woken_j)
            rows += writer.rows
    if problem.objective.count_idle_of_unused:
        for device in problem.cluster.devices:
            if device.id not in plan.devices:
                cause, rest_w = unused_power(device)
                writer = _RowWriter(run, device.id, -1, rest_w, 0.0, Traffic(0, 0, 0, 0))
                writer.row(cause, 0.0, step_s, rest_w * step_s)
                rows += writer.rows
    return rows


@dataclass
class _RowWriter:
    """Turns one device's executed actions into rows; time between them is waiting."""

    run: str
    device: str
    rank: int
    idle_w: float
    busy_w: float
    traffic: Traffic
    end_s: float = 0.0
    rows: list[LedgerRow] = field(default_factory=list[LedgerRow])

    def row(self, action: str, start_s: float, duration_s: float, energy_j: float, size_bytes: int = 0) -> None:
        self.rows.append(
            LedgerRow(
                run=self.run, device=self.device, rank=self.rank, step=0, action=action, t_start_s=start_s,
                duration_s=duration_s, energy_j=energy_j, error_j=None, bytes=size_bytes,
                source="modelled", meter="simulator",
            )
        )  # fmt: skip

    def wait_until(self, start_s: float) -> None:
        if start_s > self.end_s:
            self.row("wait", self.end_s, start_s - self.end_s, self.idle_w * (start_s - self.end_s))

    def add(self, action: Action, start_s: float, duration_s: float, group_n: int) -> None:
        self.wait_until(start_s)
        self.end_s = start_s + duration_s
        # Watts of the seconds that an action takes, joules of the bytes that it moves.
        per_byte_j = {
            "send": _per_byte(self.traffic.sent_j, self.traffic.sent_bytes),
            "receive": _per_byte(self.traffic.received_j, self.traffic.received_bytes),
        }
        for part in row_parts(action, group_n):
            part_s = duration_s if part.lasts else 0.0
            power_w = self.busy_w if ACTION_CAUSES[part.action] == "compute" else self.idle_w
            energy_j = power_w * part_s + part.bytes * per_byte_j.get(part.action, 0.0)
            if part.bytes or part_s > 0:
                self.row(part.action, start_s, part_s, energy_j, part.bytes)


def _per_byte(energy_j: float, size_bytes: float) -> float:
    return energy_j / size_bytes if size_bytes > 0 else 0.0
