"""What a study of parallelisms shows, computed once from its rows: who wins where, and how ways differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from greentrain.objective import Parallelism
from greentrain.study import WAYS, GradientRow, Network, Part, StudyRow

__all__ = [
    "Cell",
    "Measure",
    "Scenario",
    "Study",
    "build_study",
    "cell_sizes",
    "scenario_of",
    "value_of",
    "winner_shares",
]

Measure = Literal["energy", "time"]


class Scenario(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What stays the same while devices and bandwidth change."""

    part: Part
    model: str
    boards: str
    batch: int
    mode: str = "default"
    network: Network = "switch"
    memory_limit_mib: float | None = None


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place of the map: a number of devices on a network.

    Attributes:
        scenario: Whatever else is the same.
        devices_n: Devices.
        bandwidth_mbit_per_s: Rate of the links.
        rows: The plans with figures, by way.
        too_large: Ways that do not fit the memory.
        single: The best one of the devices alone, where it has figures.
    """

    scenario: Scenario
    devices_n: int
    bandwidth_mbit_per_s: float
    rows: dict[str, StudyRow]
    too_large: tuple[str, ...]
    single: StudyRow | None

    def winner(self, measure: Measure) -> StudyRow | None:
        """The plan of several devices with the fewest joules, or the most samples, per second; None where none fits."""
        shared = [row for way, row in self.rows.items() if way != "single"]
        return min(shared, key=lambda row: value_of(row, measure), default=None)

    def beats_single(self, measure: Measure) -> bool | None:
        """Whether sharing is better than one device alone; None where one of both has no figures."""
        best = self.winner(measure)
        if best is None or self.single is None:
            return None
        return value_of(best, measure) < value_of(self.single, measure)


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a study and what was made of them.

    Attributes:
        rows: All rows.
        gradients: The verified gradients.
        cells: One per scenario, number of devices (two or more) and bandwidth of the simulated part.
    """

    rows: tuple[StudyRow, ...]
    gradients: tuple[GradientRow, ...]
    cells: tuple[Cell, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Workloads, in the order of the rows."""
        return tuple(dict.fromkeys(row.model for row in self.rows if row.part == "simulated"))

    @property
    def lab_rows(self) -> tuple[StudyRow, ...]:
        """The measured part."""
        return tuple(row for row in self.rows if row.part == "lab")

    def of(self, scenario: Scenario) -> tuple[Cell, ...]:
        """Cells of one scenario."""
        return tuple(cell for cell in self.cells if cell.scenario == scenario)

    def scenarios(self) -> tuple[Scenario, ...]:
        """All of them, in the order of the rows."""
        return tuple(dict.fromkeys(cell.scenario for cell in self.cells))


def value_of(row: StudyRow, measure: Measure) -> float:
    """Joules or seconds per sample of a row with figures."""
    if measure == "energy":
        assert row.energy_j_per_sample is not None
        return row.energy_j_per_sample
    assert row.samples_per_s is not None
    return 1 / row.samples_per_s


def build_study(rows: Iterable[StudyRow], gradients: Iterable[GradientRow]) -> Study:
    """Sort the rows into cells."""
    listed = tuple(rows)
    simulated = [row for row in listed if row.part == "simulated"]
    singles = {scenario_of(row): row for row in simulated if row.way == "single" and row.status == "ok"}
    groups: defaultdict[tuple[Scenario, int, float], list[StudyRow]] = defaultdict(list)
    for row in simulated:
        if row.devices_n > 1:
            groups[scenario_of(row), row.devices_n, row.bandwidth_mbit_per_s].append(row)
    cells = tuple(
        Cell(
            scenario=scenario, devices_n=devices_n, bandwidth_mbit_per_s=bandwidth,
            rows={row.way: row for row in group if row.status == "ok"},
            too_large=tuple(row.way for row in group if row.status == "out-of-memory"),
            # One device has no network: the one of the same boards counts.
            single=singles.get(msgspec.structs.replace(scenario, network="switch")),
        )
        for (scenario, devices_n, bandwidth), group in groups.items()
    )  # fmt: skip
    return Study(rows=listed, gradients=tuple(gradients), cells=cells)


def scenario_of(row: StudyRow) -> Scenario:
    """The scenario of a row."""
    return Scenario(
        part=row.part, model=row.model, boards=row.boards, batch=row.batch, mode=row.mode, network=row.network,
        memory_limit_mib=row.memory_limit_mib,
    )  # fmt: skip


def winner_shares(cells: Sequence[Cell], measure: Measure) -> dict[Parallelism, int]:
    """In how many cells each way wins."""
    counts = Counter(best.way for cell in cells if (best := cell.winner(measure)) is not None)
    return {way: counts[way] for way in WAYS if counts[way]}


def cell_sizes(cells: Sequence[Cell]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Numbers of devices and bandwidths that the cells have, rising."""
    return (
        tuple(sorted({cell.devices_n for cell in cells})),
        tuple(sorted({cell.bandwidth_mbit_per_s for cell in cells})),
    )
