"""The cost model's formula against the discrete-event simulator, over random plans."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from greentrain.actions import lower
from greentrain.cluster import Cluster
from greentrain.cost import CostTables
from greentrain.errors import InfeasibleError
from greentrain.ledger import LedgerRow
from greentrain.objective import Problem
from greentrain.plan import Plan
from greentrain.simulator import simulate
from greentrain_harness.bench._planner_cases import make_problem, random_plan
from greentrain_harness.bench._planner_profiles import LayerChain

__all__ = ["ErrorRow", "error_row", "error_rows", "error_table"]

Dominant = Literal["stage", "link", "tail"]


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One plan's round time by the formula and by the simulator.

    Attributes:
        model: Name of the profile.
        cluster: Name of the cluster.
        stages_n: Pipeline stages.
        devices_n: Participants.
        micro_batches_n: Micro-batches per round.
        dominant: What takes longest in a round: a device's computing, a port's (or the medium's) transfers
            between stages, or a group's gradient sum and update.
        formula_s: Seconds of a round by the formula.
        simulated_s: Seconds of a round by the simulator.
    """

    model: str
    cluster: str
    stages_n: int
    devices_n: int
    micro_batches_n: int
    dominant: Dominant
    formula_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Formula over simulator, less one: negative where the formula is optimistic."""
        return self.formula_s / self.simulated_s - 1


def error_rows(pairs: Iterable[tuple[LayerChain, Cluster]], *, plans_n: int, seed: int = 1) -> Iterator[ErrorRow]:
    """So many random plans of every chain on its cluster; pairs without a plan that fits are left out.

    The plans of a pair do not depend on the other pairs.
    """
    for chain, cluster in pairs:
        rng = random.Random(f"{seed} {chain.model} {cluster.name}")
        problem = make_problem(chain, cluster)
        tables = CostTables(problem)
        for _ in range(plans_n):
            try:
                plan = random_plan(problem, rng, tables=tables)
            except InfeasibleError:
                break
            yield error_row(plan, problem)


def error_row(plan: Plan, problem: Problem) -> ErrorRow:
    """A priced plan simulated."""
    assert plan.estimate is not None
    rows = simulate(plan, problem)
    tails_s: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        if row.action in ("sum", "update"):
            tails_s[row.device] += row.duration_s
    longest_s: dict[Dominant, float] = {
        "stage": max(_computing_s(rows).values()),
        "link": _transfers_s(plan, problem.cluster),
        "tail": max(tails_s.values(), default=0.0),
    }
    return ErrorRow(
        model=problem.model.model,
        cluster=problem.cluster.name,
        stages_n=len(plan.stages),
        devices_n=len(plan.devices),
        micro_batches_n=plan.micro_batches_n,
        dominant=max(longest_s, key=lambda what: longest_s[what]),
        formula_s=plan.estimate.step_s,
        simulated_s=max(row.t_start_s + row.duration_s for row in rows),
    )


def _computing_s(rows: Iterable[LedgerRow]) -> dict[str, float]:
    computing_s: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        computing_s[row.device] += row.duration_s if row.action in ("forward", "backward") else 0.0
    return computing_s


def _transfers_s(plan: Plan, cluster: Cluster) -> float:
    """Seconds in which the busiest port, or medium, carries messages between stages."""
    busy_s: defaultdict[str, float] = defaultdict(float)
    for device, actions in lower(plan).items():
        for action in actions:
            if action.kind in ("SF", "SB") and action.peer is not None:
                link = cluster.link(device, action.peer)
                ways = (link.medium,) if link.medium else (f"out {device}", f"in {action.peer}")
                for way in ways:
                    busy_s[way] += action.bytes / cluster.bandwidth_bytes_per_s(link)
    return max(busy_s.values(), default=0.0)


def error_table(rows: Sequence[ErrorRow]) -> str:
    """Mean, quantiles and extremes of the error by cluster, by what dominates and by number of stages."""
    lines = [
        f"{'formula / simulator − 1':26} {'plans':>6} {'mean|e|':>8} {'mean e':>8} {'|e| p50':>8} {'p90':>7} "
        f"{'p99':>7} {'lowest':>8} {'highest':>8} {'>3%':>6} {'>10%':>6}"
    ]
    piped = [row for row in rows if row.stages_n > 1]
    groupings: list[tuple[Sequence[ErrorRow], Callable[[ErrorRow], str]]] = [
        (rows, lambda _: "all"),
        (piped, lambda _: "two stages or more"),
        (rows, lambda row: f"stages: {min(row.stages_n, 5)}{'+' if row.stages_n >= 5 else ''}"),
        (piped, lambda row: f"dominant: {row.dominant}"),
        (piped, lambda row: f"cluster: {row.cluster}"),
        (piped, lambda row: f"model: {row.model}"),
    ]
    for members, key in groupings:
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for row in members:
            groups[key(row)].append(row.error)
        lines += [_line(name, np.array(groups[name])) for name in sorted(groups)]
    return "\n".join(lines) + "\n"


def _line(name: str, errors: np.ndarray) -> str:
    p50, p90, p99 = (float(value) for value in np.quantile(np.abs(errors), (0.5, 0.9, 0.99)))
    return (
        f"{name:26} {len(errors):>6} {np.abs(errors).mean():>8.2%} {errors.mean():>+8.2%} {p50:>8.2%} {p90:>7.1%} "
        f"{p99:>7.1%} {errors.min():>+8.1%} {errors.max():>+8.1%} {(np.abs(errors) > 0.03).mean():>6.0%} "
        f"{(np.abs(errors) > 0.1).mean():>6.2%}"
    )
