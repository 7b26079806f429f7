"""How long the searching planners take, how close they come, and how much memory they need."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from greentrain.cluster import Cluster
from greentrain.errors import RunError
from greentrain.objective import Problem
from greentrain.planners import PLANNERS
from greentrain_harness.bench._planner_cases import BoardMode, boards, clusters, make_cluster, make_problem
from greentrain_harness.bench._planner_compare import GOALS, SEARCHING, Goal, run_planner
from greentrain_harness.bench._planner_profiles import LayerChain, merged

__all__ = ["SpeedCase", "SpeedRow", "measure_case", "named_cases", "speed_table", "sweep_cases"]

_MODELS = ("inception_v3", "vit-large-patch16-224")
_SWEEP_MODEL = "inception_v3"


class SpeedCase(NamedTuple):
    """A problem with a name; the bars are None where it is only a point of a sweep."""

    name: str
    problem: Problem
    bar_s: float | None = None
    bar_gap: float | None = None


class SpeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A planner on a case, in a process of its own.

    Attributes:
        case: Name of the case.
        goal: What was minimised.
        planner: Name of the planner.
        reason: Why there is no plan; empty otherwise.
        plan_s: Seconds of planning.
        cpu_s: Processor seconds of planning.
        gap_ratio: The certificate's gap.
        peak_bytes: Largest resident memory of the process, with the interpreter (None = not told by the system).
        bar_s: Seconds that it may take.
        bar_gap: Gap that it may leave.
    """

    case: str
    goal: str
    planner: str
    reason: str
    plan_s: float
    cpu_s: float
    gap_ratio: float | None
    peak_bytes: int | None
    bar_s: float | None
    bar_gap: float | None

    @property
    def holds(self) -> bool | None:
        """Whether it keeps its bars; None without bars."""
        if self.bar_s is None or self.bar_gap is None:
            return None
        return self.gap_ratio is not None and self.plan_s <= self.bar_s and self.gap_ratio <= self.bar_gap + 1e-9


def named_cases(chains: Mapping[str, LayerChain], modes: Sequence[BoardMode]) -> Iterator[SpeedCase]:
    """The three cases with bars, for a convolutional network and a transformer; chains unmerged."""
    found = clusters(modes)
    for goal in ("energy", "time"):
        for model in _MODELS:
            for title, cluster, layers_n, bar_s, bar_gap in (
                ("6 boards of 3 kinds × 3 points × 26 layers", "mixed-6", 26, 1.0, 0.0),
                ("8 all-different × 4 points × 32 layers", "different-8", 32, 10.0, 0.005),
                ("64 boards of 4 kinds × 64 layers", "boards-64", 64, 30.0, 0.05),
            ):
                yield _case(f"{title}, {model}", chains[model], found[cluster], layers_n, goal, bar_s, bar_gap)


def sweep_cases(chains: Mapping[str, LayerChain], modes: Sequence[BoardMode]) -> Iterator[SpeedCase]:
    """Growth with devices, with layers and with operating points; chains unmerged."""
    chain = chains[_SWEEP_MODEL]
    found = clusters(modes)
    eight = found["different-8"]
    for count in range(2, 9):
        names = tuple(device.id for device in eight.devices[-count:])
        yield _case(f"{count} all-different × 4 points × 16 layers", chain, eight.restricted_to(names), 16)
    for layers_n in (8, 16, 32, 64):
        yield _case(f"6 boards of 3 kinds × 3 points × {layers_n} layers", chain, found["mixed-6"], layers_n)
    for points_n in range(1, 5):
        devices = [device for name in ("nx", "tx2", "orin-nano", "orin-nx", "agx")
                   for device in boards(name, 1, points_n=points_n, modes=modes)]  # fmt: skip
        yield _case(f"5 all-different × {points_n} points × 16 layers", chain, make_cluster("sweep", devices), 16)


def _case(
    name: str, chain: LayerChain, cluster: Cluster, layers_n: int, goal: Goal = "energy",
    bar_s: float | None = None, bar_gap: float | None = None,
) -> SpeedCase:  # fmt: skip
    problem = make_problem(merged(chain, layers_n), cluster, objective=GOALS[goal])
    return SpeedCase(name, problem, bar_s, bar_gap)


def measure_case(case: SpeedCase, *, limit_s: float) -> Iterator[SpeedRow]:
    """Every searching planner on a case, each in a fresh process.

    Raises:
        RunError: The process failed.
    """
    command = [sys.executable, "-m", "greentrain_harness.bench._planner_speed"]
    for planner in SEARCHING:
        if planner not in PLANNERS:
            continue
        task = msgspec.json.encode(_Task(planner, limit_s, *case))
        child = subprocess.run(command, input=task, stdout=subprocess.PIPE, check=False)
        if child.returncode != 0:
            raise RunError(f"planner {planner!r} failed on {case.name!r}.", hint="Its error stands above.")
        yield msgspec.json.decode(child.stdout, type=SpeedRow)


class _Task(NamedTuple):
    """What the process is told: a planner, its time limit, and the case."""

    planner: str
    limit_s: float
    name: str
    problem: Problem
    bar_s: float | None
    bar_gap: float | None


def _measure(task: _Task) -> SpeedRow:
    outcome = run_planner(task.planner, task.problem, limit_s=task.limit_s)
    certificate = outcome.plan.certificate if outcome.plan else None
    return SpeedRow(
        case=task.name,
        goal=task.problem.objective.minimise,
        planner=task.planner,
        reason=outcome.reason,
        plan_s=outcome.plan_s,
        cpu_s=outcome.cpu_s,
        gap_ratio=certificate.gap_ratio if certificate else None,
        peak_bytes=_peak_bytes(),
        bar_s=task.bar_s,
        bar_gap=task.bar_gap,
    )


def _peak_bytes() -> int | None:
    """Largest resident memory of this process image; the usual counter would hold that of the parent too."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """One line per case and planner."""
    lines = [f"{'case':66} {'goal':6} {'planner':11} {'plan s':>8} {'cpu s':>8} {'gap':>8} {'peak MiB':>9} {'bar':>14}"]
    for row in rows:
        gap = "–" if row.gap_ratio is None else f"{row.gap_ratio:.2%}"
        peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        bar = "" if row.bar_s is None or row.bar_gap is None else f"{row.bar_s:g} s, {row.bar_gap:.1%}"
        mark = {True: "holds", False: "MISSED", None: ""}[row.holds]
        lines.append(
            f"{row.case:66} {row.goal:6} {row.planner:11} {row.plan_s:>8.2f} {row.cpu_s:>8.2f} {gap:>8} {peak:>9} "
            f"{bar:>14} {mark} {row.reason}".rstrip()
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_measure(msgspec.json.decode(sys.stdin.buffer.read(), type=_Task))))
