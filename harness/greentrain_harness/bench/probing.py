"""How many operating points must be measured until the best one is found: by active choice and at random.

``python -m greentrain_harness.bench.probing --data DIR [--objective energy]``, where DIR holds the public sweeps
``zeus_gpu_training`` (GPUs under power limits) and ``jetson_efficiency`` (Jetson boards over GPU clocks). Each sweep
was measured in full, so that the true best point is known. A sweep that is searched knows nothing of itself; as prior
it may have the sweeps of other workloads on the same board, never another size of its own workload.

A search has arrived at k points when the choice is within the wanted regret after k points and ever after. A search
that ends without arriving counts as if it had measured every point.

Where the settings hardly move the power, as under caps that never bind, one point is best by the noise of single runs
alone, which nothing can foresee. Such sweeps count in every row of a board and of all; the rows ``moving`` and
``still`` tell the two kinds apart.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from greentrain.device import OperatingPoint
from greentrain.errors import UsageError
from greentrain.point_model import PointObservation, fit_points
from greentrain.probing import Decision, next_probe, propose_probe, start_points

__all__ = ["DATA_VARIABLE", "METHODS", "Curve", "Search", "main", "public_curves", "searches", "table"]

DATA_VARIABLE = "GREENTRAIN_PUBLIC_DATA"

_REGRETS = (0.02, 0.01)
_LEAST_POINTS = 6
# Highest over lowest power of a sweep that the settings move; from 1.1 to 1.3 the same sweeps are so but for four.
_MOVING = 1.2
_ABOUT = "Points to measure until the best operating point is found: by active choice and at random."


class Curve(NamedTuple):
    """A full sweep of one workload on one board.

    Attributes:
        board: The board.
        workload: What ran, without its batch size.
        name: Board, workload and size, for people.
        observations: One per operating point.
    """

    board: str
    workload: str
    name: str
    observations: tuple[PointObservation, ...]

    @property
    def moving(self) -> bool:
        """Whether the settings move the power by more than a fifth."""
        power_w = [seen.power_w for seen in self.observations]
        return max(power_w) > _MOVING * min(power_w)

    def regrets(self, decision: Decision) -> tuple[float, ...]:
        """True cost of each point above the best one, as a ratio."""
        values = [_value(seen, decision) for seen in self.observations]
        return tuple(value / min(values) - 1 for value in values)


class Search(NamedTuple):
    """True regret of the choice after 1, 2, 3 … measured points; it ends where the method ends."""

    points_n: int
    regrets: tuple[float, ...]

    def probes_until(self, regret: float) -> int:
        """Points measured until the choice is within a regret and stays there; all of them where it never is."""
        late = [k for k, seen in enumerate(self.regrets) if seen > regret]
        arrived = late[-1] + 2 if late else 1
        return min(arrived, self.points_n) if arrived <= len(self.regrets) else self.points_n


# A sweep, its priors, the decision and a seed -> a search.
_Method = Callable[[Curve, Sequence[Sequence[PointObservation]], Decision, int], Search]


def active(curve: Curve, prior: Sequence[Sequence[PointObservation]], decision: Decision, seed: int) -> Search:
    """What ``greentrain measure --budget`` does."""
    del seed
    points = [seen.point for seen in curve.observations]
    regrets = curve.regrets(decision)
    order: list[int] = []
    found: list[float] = []
    start = [points.index(point) for point in start_points(points, prior=prior)]
    wanted: int | None = start[0]
    while wanted is not None:
        order.append(wanted)
        seen = {index: curve.observations[index] for index in order}
        proposal, _ = propose_probe(points, seen, prior=prior, decision=decision)
        found.append(regrets[proposal.chosen_index])
        wanted = start[len(order)] if len(order) < len(start) else proposal.index
    return Search(len(points), tuple(found))


def random_fitted(curve: Curve, prior: Sequence[Sequence[PointObservation]], decision: Decision, seed: int) -> Search:
    """The same fits, at points that are drawn by lot."""
    points = [seen.point for seen in curve.observations]
    regrets = curve.regrets(decision)
    order = random.Random(seed).sample(range(len(points)), len(points))
    found: list[float] = []
    for count in range(1, len(points) + 1):
        seen = {index: curve.observations[index] for index in order[:count]}
        proposal = next_probe(fit_points(points, list(seen.values()), prior=prior), seen, decision=decision)
        found.append(regrets[proposal.chosen_index])
    return Search(len(points), tuple(found))


def random_measured(curve: Curve, prior: Sequence[Sequence[PointObservation]], decision: Decision, seed: int) -> Search:
    """Points drawn by lot; the best one that was measured is chosen."""
    del prior
    regrets = curve.regrets(decision)
    order = random.Random(seed).sample(range(len(regrets)), len(regrets))
    return Search(len(regrets), tuple(min(regrets[index] for index in order[: k + 1]) for k in range(len(order))))


# Name -> (method, with the other workloads as prior, most orders by lot per sweep; 0 = nothing is by lot).
METHODS: dict[str, tuple[_Method, bool, int]] = {
    "active, other workloads as prior": (active, True, 0),
    "active, no prior": (active, False, 0),
    "random, best measured": (random_measured, False, 1000),
    "random, same fits, with prior": (random_fitted, True, 1),
    "random, same fits, no prior": (random_fitted, False, 1),
}


def searches(
    curves: Sequence[Curve], method: str, *, decision: Decision, seeds: int, among: Sequence[Curve] | None = None
) -> list[Search]:
    """All searches of a method.

    Args:
        curves: The sweeps to search.
        method: One of :data:`METHODS`.
        decision: What the choice is to be best at.
        seeds: Orders by lot per sweep.
        among: Where the priors come from; the same sweeps when not given.
    """
    search, with_prior, most_seeds = METHODS[method]
    found: list[Search] = []
    for curve in curves:
        prior = [
            other.observations
            for other in (among or curves)
            if with_prior and other.board == curve.board and other.workload != curve.workload
        ]
        found += [search(curve, prior, decision, seed) for seed in range(max(min(seeds, most_seeds), 1))]
    return found


def public_curves(folder: Path) -> list[Curve]:
    """The public sweeps with six points or more.

    Raises:
        UsageError: The folder does not hold them.
    """
    rows: defaultdict[tuple[str, str, str], dict[OperatingPoint, tuple[float, float]]] = defaultdict(dict)
    for board, workload, size, point, time_s, power_w in (*_zeus_rows(folder), *_jetson_rows(folder)):
        rows[board, workload, size][point] = (time_s, power_w)
    return [
        Curve(board, workload, f"{board} {workload} {size}", tuple(PointObservation(at, *seen) for at, seen in sorted(
            points.items(), key=lambda item: (item[0].cap_w or 0.0, item[0].gpu_hz or 0.0)
        )))
        for (board, workload, size), points in rows.items()
        if len(points) >= _LEAST_POINTS
    ]  # fmt: skip


_Row = tuple[str, str, str, OperatingPoint, float, float]


def _zeus_rows(folder: Path) -> Iterator[_Row]:
    for board in ("a40", "v100"):
        for row in _csv_rows(folder / "zeus_gpu_training" / f"summary_power_{board}.csv"):
            cap_w = float(row["power_limit"])
            point = OperatingPoint(name=f"{cap_w:g}W", cap_w=cap_w)
            size = f"{row['optimizer']} {row['batch_size']}"
            workload = f"{row['dataset']}/{row['network']}"
            yield board, workload, size, point, float(row["time_per_epoch"]), float(row["average_power"])


def _jetson_rows(folder: Path) -> Iterator[_Row]:
    def point(row: dict[str, str]) -> OperatingPoint:
        gpu_hz = float(row["gpu_freq_hz"])
        return OperatingPoint(name=f"{gpu_hz / 1e6:g}MHz", gpu_hz=gpu_hz)

    for row in _csv_rows(folder / "jetson_efficiency" / "gemm_square_all_freq.csv"):
        if row["power_mean_w"]:
            time_s = float(row["seconds"]) / float(row["iterations"])
            yield row["device"], "gemm", row["matrix_n"], point(row), time_s, float(row["power_mean_w"])
    for row in _csv_rows(folder / "jetson_efficiency" / "triton_mobilenet_batch_freq.csv"):
        if row["power_mean_w"]:
            time_s = 1 / float(row["inferences_per_s"])
            yield row["device"], "mobilenet", row["batch"], point(row), time_s, float(row["power_mean_w"])


def _csv_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}).", hint="Give the folder of the public sweeps with --data."
        ) from error


def _value(seen: PointObservation, decision: Decision) -> float:
    if decision.minimise == "time":
        return seen.time_s
    energy_j = seen.time_s * seen.power_w
    return energy_j * seen.time_s if decision.minimise == "edp" else energy_j


def table(
    curves: Sequence[Curve], *, decision: Decision, seeds: int, say: Callable[[str], None] = lambda text: None
) -> str:  # fmt: skip
    """Median and mean points until each regret, for each board and method; what is left over when active ends."""
    found: dict[tuple[str, bool, str], list[Search]] = {}
    kinds = tuple(dict.fromkeys((curve.board, curve.moving) for curve in curves))
    for method in METHODS:
        say(f"{method} …")
        for board, moving in kinds:
            mine = [curve for curve in curves if (curve.board, curve.moving) == (board, moving)]
            found[board, moving, method] = searches(mine, method, decision=decision, seeds=seeds, among=curves)
    lines = [f"{'sweeps of':9} {'number':>6} {'points':>6}  {'method':34} {'≤2 %: median':>12} {'mean':>5} "
             f"{'≤1 %: median':>12} {'mean':>5}  {'regret at the end: mean':>23} {'worst':>6} {'≤2 %':>5}"]  # fmt: skip
    for name, parts in _groups(kinds).items():
        sweeps_n = sum((curve.board, curve.moving) in parts for curve in curves)
        for method in METHODS:
            some = [search for board, moving in parts for search in found[board, moving, method]]
            points_n = statistics.fmean(search.points_n for search in some)
            head = f"{name:9} {sweeps_n:>6} {points_n:>6.1f}"
            lines.append(f"{head}  {method:34} {_figures(some, active_end=METHODS[method][2] == 0)}")
    return "\n".join(lines) + "\n"


def _groups(kinds: Sequence[tuple[str, bool]]) -> dict[str, list[tuple[str, bool]]]:
    """Which boards, moving or not, are told together, by the name of the row; none that is empty."""
    groups = {board: [kind for kind in kinds if kind[0] == board] for board, _ in kinds}
    groups |= {
        name: [kind for kind in kinds if kind[1] == wanted] for name, wanted in (("moving", True), ("still", False))
    }
    return {name: parts for name, parts in groups.items() if parts} | {"all": list(kinds)}


def _figures(found: Sequence[Search], *, active_end: bool) -> str:
    cells: list[str] = []
    for regret in _REGRETS:
        probes = [search.probes_until(regret) for search in found]
        cells.append(f"{statistics.median(probes):>12g} {statistics.fmean(probes):>5.2f}")
    if active_end:
        ends = [search.regrets[-1] for search in found]
        within = sum(end <= _REGRETS[0] for end in ends) / len(ends)
        spent = statistics.fmean(len(search.regrets) for search in found)
        cells.append(f" {np.mean(ends):>16.2%} {max(ends):>12.2%} {within:>5.0%}  after {spent:.2f} points")
    return " ".join(cells)


def main(argv: Iterable[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m greentrain_harness.bench.probing", description=_ABOUT)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"folder [{DATA_VARIABLE}]")
    parser.add_argument("--objective", choices=("energy", "time", "edp"), default="energy")
    parser.add_argument("--seeds", type=int, default=20, help="orders by lot per sweep")
    options = parser.parse_args(None if argv is None else list(argv))
    if options.data is None:
        parser.error(f"give the folder of the public sweeps with --data or {DATA_VARIABLE}")
    try:
        curves = public_curves(Path(options.data))
    except UsageError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    decision = Decision(minimise=options.objective)
    sys.stdout.write(
        table(curves, decision=decision, seeds=options.seeds, say=lambda text: print(text, file=sys.stderr))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
