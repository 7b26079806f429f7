"""A small model and simulated rows of a study, for tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from greentrain.objective import Parallelism
from greentrain.profile import LayerProfile, ModelProfile
from greentrain.study import WAYS, GradientRow, StudyCase, StudyRow
from greentrain_harness.study.boards import BoardStudy
from greentrain_harness.study.grid import simulated_cases

__all__ = ["GRADIENT", "MODEL", "lab_row", "quick_rows", "row"]

_LAYER = LayerProfile(
    name="layer", param_bytes=12_000_000, activation_bytes=65_536, gradient_bytes=65_536, stash_bytes=700_000,
    forward_flop=2e8, heads=8, sequence=32,
)  # fmt: skip
_END = msgspec.structs.replace(_LAYER, name="end", heads=0, sequence=0, param_bytes=4_000_000, activation_bytes=40)

# Small enough for all boards, too large for two of them where memory is short.
MODEL = ModelProfile(
    model="toy", structure_sha256="0" * 64, layers=(_LAYER, _LAYER, _LAYER, _LAYER, _LAYER, _END), input_bytes=256
)

GRADIENT = GradientRow(
    model="toy", way="data", devices_n=3, batch=8, micro_batch=4, stages="0 samples×3", tensors_n=6,
    largest_difference_ratio=3e-7, loss_difference_ratio=-1e-8,
)  # fmt: skip

_CASE = StudyCase(
    part="simulated", model="toy", boards="mixed", mode="default", network="switch", devices_n=2,
    bandwidth_mbit_per_s=100.0, batch=32, way="data",
)  # fmt: skip


def row(
    way: Parallelism, *, devices_n: int = 2, bandwidth: float = 100.0, joules: float | None = 1.0, speed: float = 10.0,
    **fields: object,
) -> StudyRow:  # fmt: skip
    """A row; without joules one that does not fit."""
    figures: dict[str, object] = {"status": "out-of-memory", "lacking_bytes": 5, "peak_memory_bytes": 1_000}
    if joules is not None:
        figures = {
            "status": "ok", "energy_j_per_sample": joules, "samples_per_s": speed, "step_s": 32 / speed,
            "participants_n": devices_n, "parallelism": way, "sole_param_bytes": 0 if way == "data" else 10**6,
            "idle_time_ratio": 0.5, "idle_energy_ratio": 0.25, "mean_power_w": joules * speed, "peak_memory_bytes": 900,
            "sent_bytes_per_sample": 7.0, "time_source": "simulated", "energy_source": "modelled",
        }  # fmt: skip
    case = {**msgspec.structs.asdict(_CASE), "way": way, "devices_n": devices_n, "bandwidth_mbit_per_s": bandwidth}
    return msgspec.convert({**case, **figures, **fields}, type=StudyRow)


def lab_row(way: Parallelism) -> StudyRow:
    """A run on two emulated nodes."""
    return row(
        way, part="lab", boards="lab", quotas_percent="60 60", batch=8, time_source="measured", predicted_step_s=3.0,
        predicted_j_per_sample=0.9, error_j_per_sample=0.2,
    )  # fmt: skip


@functools.cache
def quick_rows() -> Sequence[StudyRow]:
    """The quick grid of the small model, simulated."""
    boards = BoardStudy({MODEL.model: MODEL})
    return [boards.row(case) for case in simulated_cases([MODEL.model], quick=True) if case.way in WAYS]
