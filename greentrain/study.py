"""Rows of a study of parallelisms: one plan each, simulated or run in the lab; their files and what the columns mean.

A row says what was asked for (a :class:`StudyCase`) and what came of it. A plan that does not fit a device's memory is
a row with the status ``out-of-memory`` and no figures, never a zero.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec

from greentrain._checks import require_non_negative, require_positive
from greentrain.errors import UsageError
from greentrain.files import field_message, read_csv, write_csv, writing
from greentrain.objective import Parallelism

__all__ = [
    "GRADIENT_COLUMNS",
    "GRADIENT_TOLERANCE_RATIO",
    "STUDY_COLUMNS",
    "WAYS",
    "GradientRow",
    "Network",
    "Part",
    "RowFile",
    "Status",
    "StudyCase",
    "StudyRow",
]

Part = Literal["simulated", "lab"]
Network = Literal["switch", "shared", "rooms"]
Status = Literal["ok", "out-of-memory", "impossible", "failed"]

# The ways to share work that are compared, in the order of tables and pictures.
WAYS: tuple[Parallelism, ...] = ("single", "data", "sequence", "tensor", "tensor+sequence", "pipeline", "hybrid")

# Largest difference of a float32 gradient from the unsplit model's, relative to the largest of its tensor, that
# rounding in another order explains.
GRADIENT_TOLERANCE_RATIO = 1e-4


class StudyCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a row asks for; rows of one study differ in it."""

    part: Part
    model: str
    boards: str
    mode: str
    network: Network
    devices_n: int
    bandwidth_mbit_per_s: float
    batch: int
    way: Parallelism
    quotas_percent: str | None = None
    memory_limit_mib: float | None = None

    def __post_init__(self) -> None:
        require_positive(
            devices_n=self.devices_n, bandwidth_mbit_per_s=self.bandwidth_mbit_per_s, batch=self.batch,
            memory_limit_mib=self.memory_limit_mib,
        )  # fmt: skip


class StudyRow(StudyCase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A case with what came of it; figures are None where the plan does not exist or did not run."""

    status: Status
    parallelism: Parallelism | None = None
    participants_n: int | None = None
    micro_batch: int | None = None
    stages: str | None = None
    step_s: float | None = None
    samples_per_s: float | None = None
    energy_j_per_sample: float | None = None
    error_j_per_sample: float | None = None
    mean_power_w: float | None = None
    sent_bytes_per_sample: float | None = None
    peak_memory_bytes: int | None = None
    lacking_bytes: int | None = None
    idle_time_ratio: float | None = None
    idle_energy_ratio: float | None = None
    sole_param_bytes: int | None = None
    predicted_step_s: float | None = None
    predicted_j_per_sample: float | None = None
    time_source: Literal["simulated", "measured"] | None = None
    energy_source: Literal["modelled"] | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(energy_j_per_sample=self.energy_j_per_sample, step_s=self.step_s)

    @property
    def case(self) -> StudyCase:
        """What the row asks for."""
        return StudyCase(**{name: getattr(self, name) for name in StudyCase.__struct_fields__})


class GradientRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the gradients of one way to share work lie from the unsplit model's."""

    model: str
    way: Parallelism
    devices_n: int
    batch: int
    micro_batch: int
    stages: str
    tensors_n: int
    largest_difference_ratio: float
    loss_difference_ratio: float

    @property
    def equal(self) -> bool:
        """Whether rounding explains the differences."""
        worst = max(self.largest_difference_ratio, abs(self.loss_difference_ratio))
        return worst <= GRADIENT_TOLERANCE_RATIO


# Column, unit, meaning, in the order of the file.
STUDY_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("part", "", "simulated: one round in the event simulator on catalogue boards; lab: trained on emulated nodes"),
    ("model", "", "workload"),
    ("boards", "", "catalogue kind of all devices, mixed (several kinds, the fastest first), or lab"),
    ("mode", "", "operating point of the boards: default (the first of the catalogue) or lowest (the last)"),
    ("network", "", "switch: full rate between any two; shared: one medium for all; rooms: two halves, fast inside"),
    ("devices_n", "", "devices that the plan may use"),
    ("bandwidth_mbit_per_s", "Mbit/s", "rate of each link, of the medium, or between the two rooms"),
    ("batch", "", "samples per round (global batch of an optimizer step)"),
    ("way", "", "how the work is to be shared"),
    ("quotas_percent", "%", "lab: processor quota of each node, percent of a core"),
    ("memory_limit_mib", "MiB", "memory that training may use on each device; empty: all that the board has for it"),
    ("status", "", "ok; out-of-memory: no such plan fits; impossible: the layers cannot be shared so; failed: lab run"),
    ("parallelism", "", "form of the plan: a hybrid may turn out as a pipeline or as data parallelism"),
    ("participants_n", "", "devices that take part"),
    ("micro_batch", "", "samples per micro-batch"),
    ("stages", "", "first layer of each stage, and how many devices share it how"),
    ("step_s", "s", "length of a round"),
    ("samples_per_s", "samples/s", "throughput"),
    ("energy_j_per_sample", "J/sample", "joules of all devices; modelled, see energy_source"),
    ("error_j_per_sample", "J/sample", "± of energy_j_per_sample that the meters state; empty when simulated"),
    ("mean_power_w", "W", "mean power of all devices together"),
    ("sent_bytes_per_sample", "B/sample", "payload bytes sent by all devices"),
    ("peak_memory_bytes", "B", "largest training memory of a device; of a plan that does not fit: what it would need"),
    ("lacking_bytes", "B", "what the device that lacks most lacks; only where the status is out-of-memory"),
    ("idle_time_ratio", "", "share of the participants' time without computing; empty for lab runs with rings"),
    ("idle_energy_ratio", "", "share of the joules that goes into waiting; empty for lab runs with rings"),
    ("sole_param_bytes", "B", "largest part of the weights that a single device holds alone, and that dies with it"),
    ("predicted_step_s", "s", "lab: round that the plan predicted"),
    ("predicted_j_per_sample", "J/sample", "lab: joules that the plan predicted"),
    ("time_source", "", "simulated, or measured by the clock in the lab"),
    ("energy_source", "", "modelled: catalogue watts, in the lab on processor time that was really used"),
    ("note", "", "why there are no figures"),
)  # fmt: skip

GRADIENT_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("model", "", "workload"),
    ("way", "", "how the work is shared"),
    ("devices_n", "", "processes that share it"),
    ("batch", "", "samples of the round"),
    ("micro_batch", "", "samples per micro-batch"),
    ("stages", "", "first layer of each stage, and how many devices share it how"),
    ("tensors_n", "", "gradient tensors compared: all of the model"),
    ("largest_difference_ratio", "", "largest difference from the unsplit model over the tensor's largest element"),
    ("loss_difference_ratio", "", "difference of the round's loss from the unsplit model's, relative"),
)

R = TypeVar("R", bound=msgspec.Struct)


class RowFile(Generic[R]):
    """A CSV of structs that grows row by row, so that nothing is lost when the process ends.

    Args:
        path: The file; rows that it holds already are read.
        kind: The struct; its fields are the columns.

    Attributes:
        rows: All rows, in the order of the file.

    Raises:
        UsageError: The file is no such table.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path
        self._columns: tuple[str, ...] = kind.__struct_fields__
        self.rows: list[R] = []
        if path.exists() and path.stat().st_size:
            columns, lines = read_csv(path, allow_cut=True)
            if tuple(columns) != self._columns:
                raise UsageError(
                    f"{path}: no table of {kind.__name__}, its columns differ.", hint="Give another folder with -o."
                )
            self.rows = [_converted(columns, line, kind, path, number) for number, line in enumerate(lines, start=2)]
        # Also drops a line that was cut.
        write_csv(path, self._columns, [self._cells(row) for row in self.rows])

    def append(self, row: R) -> None:
        """Add a row; it is on disk when this returns."""
        self.rows.append(row)
        with writing(self.path), self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow(self._cells(row))

    def _cells(self, row: R) -> list[object]:
        values = [getattr(row, name) for name in self._columns]
        return ["" if value is None else _short(value) for value in values]


def _short(value: object) -> object:
    """Six digits are more than a simulation or a lab can promise."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _converted(columns: Sequence[str], line: Sequence[str], kind: type[R], path: Path, number: int) -> R:
    try:
        cells = {name: cell or None for name, cell in zip(columns, line, strict=True)}
        return msgspec.convert(cells, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: line {number}: {field_message(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path}: line {number}: {error}.", hint="Remove the line, or give another folder.") from error
