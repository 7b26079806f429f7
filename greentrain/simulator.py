"""Discrete-event clock over the action lists of one round; writes the rows that a real run writes.

Every device executes its list in order. A send is handed to the network and does not wait; a message
occupies the sender's way out and the receiver's way in (or the shared medium) for bytes / bandwidth and
arrives one latency later. A receive waits for its message; a gradient sum waits for the whole group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from greentrain.actions import Action, lower
from greentrain.cost import CostTables, Traffic, estimate, stage_traffic
from greentrain.errors import UsageError
from greentrain.ledger import ACTION_CAUSES, LedgerRow, totals_j
from greentrain.objective import Problem
from greentrain.parallel.data import gradient_sum_s
from greentrain.parallel.rows import row_parts
from greentrain.plan import Estimate, Plan

__all__ = ["simulate", "to_estimate"]


def simulate(plan: Plan, problem: Problem, *, run: str = "simulated") -> list[LedgerRow]:
    """Execute one round of a plan in simulated time.

    Args:
        plan: A valid plan.
        problem: Gives layer times, links and power curves.
        run: Name written into the rows.

    Returns:
        Rows of the round: forward, backward, send, receive, sum, update, wait (and idle for counted
        devices without a part), with ``source="modelled"`` and ``meter="simulator"``.

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


@dataclass
class _Clock:
    """The state of the network and of every device's list."""

    plan: Plan
    problem: Problem
    actions: Mapping[str, Sequence[Action]]
    now_s: dict[str, float] = field(init=False)
    done: dict[str, list[tuple[Action, float, float]]] = field(init=False)
    _next: dict[str, int] = field(init=False)
    _tables: CostTables = field(init=False)
    _arrival_s: dict[tuple[str, str, int, str, int], float] = field(init=False)
    _free_s: defaultdict[str, float] = field(init=False)
    _at_sum: dict[int, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.now_s = dict.fromkeys(self.actions, 0.0)
        self.done = {device: [] for device in self.actions}
        self._next = dict.fromkeys(self.actions, 0)
        self._tables = CostTables(self.problem)
        self._arrival_s = {}
        self._free_s = defaultdict(float)
        self._at_sum = defaultdict(dict)

    def run(self) -> None:
        """Always execute the action that can begin first, so that messages queue in the order of time."""
        while True:
            ready = [(start_s, device) for device in self.actions if (start_s := self._ready_s(device)) is not None]
            if not ready:
                break
            start_s, device = min(ready)
            self._execute(device, start_s)
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
            arrival_s = self._arrival_s.get(_message(cast("str", action.peer), device, action))
            return None if arrival_s is None else max(now_s, arrival_s)
        if action.kind == "AR":
            waiting = self._at_sum[action.stage]
            waiting[device] = now_s
            group = self.plan.stages[action.stage].devices
            return max(waiting.values()) if len(waiting) == len(group) else None
        return now_s

    def _execute(self, device: str, start_s: float) -> None:
        action = self.actions[device][self._next[device]]
        self._next[device] += 1
        duration_s = 0.0
        if action.kind in ("SF", "SB"):
            self._send(action, start_s)
        elif action.kind == "AR":
            stage = self.plan.stages[action.stage]
            duration_s = gradient_sum_s(self.problem.cluster, stage.devices, stage.param_bytes)
        elif action.kind in ("F", "B", "U"):
            duration_s = self._compute_s(action)
        self.done[device].append((action, start_s, duration_s))
        self.now_s[device] = start_s + duration_s

    def _compute_s(self, action: Action) -> float:
        stage = self.plan.stages[action.stage]
        device = self.problem.cluster.device(action.device)
        point = stage.points[stage.devices.index(action.device)]
        if action.kind == "U":
            return self._tables.update_s(device, point, stage.start, stage.stop)
        rows = action.last_row - action.first_row
        forward_s, backward_s = self._tables.compute_s(device, point, stage.start, stage.stop, rows)
        return forward_s if action.kind == "F" else backward_s

    def _send(self, action: Action, now_s: float) -> None:
        peer = cast("str", action.peer)
        link = self.problem.cluster.link(action.device, peer)
        ways = (f"medium {link.medium}",) if link.medium else (f"out {action.device}", f"in {peer}")
        start_s = max(now_s, *(self._free_s[way] for way in ways))
        end_s = start_s + action.bytes / self.problem.cluster.bandwidth_bytes_per_s(link)
        for way in ways:
            self._free_s[way] = end_s
        self._arrival_s[_message(action.device, peer, action)] = end_s + link.latency_s


def _message(src: str, dst: str, action: Action) -> tuple[str, str, int, str, int]:
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
            rows += writer.rows
    if problem.objective.count_idle_of_unused:
        for device in problem.cluster.devices:
            if device.id not in plan.devices:
                writer = _RowWriter(run, device.id, -1, device.power.idle_w, 0.0, Traffic(0, 0, 0, 0))
                writer.row("idle", 0.0, step_s, device.power.idle_w * step_s)
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
