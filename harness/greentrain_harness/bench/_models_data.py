"""Public measurements as sweeps of operating points, one per (device, workload, size)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from greentrain.device import OperatingPoint
from greentrain.point_model import PointObservation

__all__ = ["LoadSweep", "Sweep", "cpu_sweeps", "jetson_sweeps", "tx2_grid", "tx2_vgg19", "zeus_sweeps"]

_Row = dict[str, str]
_KWH_J = 3.6e6


class Sweep(NamedTuple):
    """One workload at many operating points of a device.

    Attributes:
        device: The device type.
        workload: What ran; sizes of one workload are alike.
        size: Batch or matrix size, then whatever else tells its sweeps apart, behind a space.
        observed: One observation per point, settings rising.
        has_power: Whether the watts were measured; else they are 1.
    """

    device: str
    workload: str
    size: str
    observed: tuple[PointObservation, ...]
    has_power: bool = True


class LoadSweep(NamedTuple):
    """Power of a processor over its load.

    Attributes:
        cpu: The processor.
        run: Which of its runs.
        share_N: Load in [0, 1].
        power_w_N: Measured power, watts.
        lagged_w_N: The data set's own power column, watts.
        peer_w_N: What codecarbon estimated, watts.
    """

    cpu: str
    run: str
    share_N: tuple[float, ...]
    power_w_N: tuple[float, ...]
    lagged_w_N: tuple[float, ...]
    peer_w_N: tuple[float, ...]


def zeus_sweeps(data: Path) -> list[Sweep]:
    """Power-limit sweeps of six training workloads on two GPU types (ml-energy/zeus, Apache-2.0)."""
    sweeps: list[Sweep] = []
    for device in ("a40", "v100"):
        rows = _rows(data / "zeus_gpu_training" / f"summary_power_{device}.csv")
        sweeps += _sweeps(
            rows,
            device=lambda row, device=device: device.upper(),
            workload=lambda row: f"{row['dataset']} {row['network']}",
            size=lambda row: f"{row['batch_size']} {row['optimizer']}",
            observation=lambda row: PointObservation(
                _point(cap_w=float(row["power_limit"])), float(row["time_per_epoch"]), float(row["average_power"])
            ),
        )
    return sweeps


def jetson_sweeps(data: Path) -> list[Sweep]:
    """GPU-clock sweeps of AGX Xavier and Nano, external meter (emwjacobson/JetsonEfficiencyTesting)."""
    folder = data / "jetson_efficiency"
    gemm = _sweeps(
        _rows(folder / "gemm_square_all_freq.csv"),
        device=lambda row: row["device"],
        workload=lambda row: f"gemm {row['dtype']}",
        size=lambda row: row["matrix_n"],
        observation=lambda row: PointObservation(
            _point(gpu_hz=float(row["gpu_freq_hz"])), 1e9 / float(row["flops_per_s"]), float(row["power_mean_w"])
        ),
    )
    mobilenet = _sweeps(
        _rows(folder / "triton_mobilenet_batch_freq.csv"),
        device=lambda row: row["device"],
        workload=lambda row: "mobilenet",
        size=lambda row: row["batch"],
        observation=lambda row: PointObservation(
            _point(gpu_hz=float(row["gpu_freq_hz"])), 1 / float(row["inferences_per_s"]), float(row["power_mean_w"])
        ),
    )
    return [*gemm, *mobilenet]


def tx2_grid(data: Path) -> list[Sweep]:
    """GPU × memory clocks of TX2 with four networks, time only (thynics/jetson_dvfs)."""
    rows = [row for row in _rows(data / "jetson_tx2_dvfs" / "tx2_perf_gpu_emc.csv") if row["set"] == "gpu_x_emc"]
    return _sweeps(
        rows,
        device=lambda row: "TX2",
        workload=lambda row: row["model"],
        size=lambda row: "1",
        observation=lambda row: PointObservation(
            _point(gpu_hz=float(row["gpu_freq_hz"]), mem_hz=float(row["emc_freq_hz"])),
            float(row["latency_ms"]) / 1e3,
            1.0,
        ),
        has_power=False,
    )


def tx2_vgg19(data: Path) -> list[Sweep]:
    """GPU clocks of TX2 with VGG19, time and the board's input power."""
    return _sweeps(
        _rows(data / "jetson_tx2_dvfs" / "tx2_vgg19_by_freq.csv"),
        device=lambda row: "TX2",
        workload=lambda row: "vgg19",
        size=lambda row: "1",
        observation=lambda row: PointObservation(
            _point(gpu_hz=float(row["gpu_freq_hz"])), 1 / float(row["fps"]), float(row["VDD_IN_W"])
        ),
    )


def cpu_sweeps(data: Path) -> list[LoadSweep]:
    """Load against RAPL on four processors (mlco2/codecarbon, MIT).

    The column ``rapl_power`` repeats the previous row's interval; ``rapl_energy`` over ``duration`` is the row's own.
    """
    runs: dict[tuple[str, str], list[_Row]] = {}
    for row in _rows(data / "cpu_load_rapl" / "cpu_load_vs_rapl.csv"):
        runs.setdefault((row["cpu_name"], row["src"]), []).append(row)
    return [
        LoadSweep(
            cpu,
            run,
            tuple(float(row["cpu_load"]) / 100 for row in rows),
            tuple(float(row["rapl_energy"]) * _KWH_J / float(row["duration"]) for row in rows),
            tuple(float(row["rapl_power"]) for row in rows),
            tuple(float(row["estimated_power"]) for row in rows),
        )
        for (cpu, run), rows in runs.items()
    ]


def _sweeps(
    rows: Iterable[_Row],
    *,
    device: Callable[[_Row], str],
    workload: Callable[[_Row], str],
    size: Callable[[_Row], str],
    observation: Callable[[_Row], PointObservation],
    has_power: bool = True,
) -> list[Sweep]:
    found: dict[tuple[str, str, str], list[PointObservation]] = {}
    for row in rows:
        found.setdefault((device(row), workload(row), size(row)), []).append(observation(row))
    return [Sweep(*key, tuple(sorted(seen, key=_order)), has_power) for key, seen in found.items()]


def _order(seen: PointObservation) -> tuple[float, float, float]:
    return (seen.point.cap_w or 0.0, seen.point.mem_hz or 0.0, seen.point.gpu_hz or 0.0)


def _point(*, gpu_hz: float | None = None, mem_hz: float | None = None, cap_w: float | None = None) -> OperatingPoint:
    values = {"g": gpu_hz, "m": mem_hz, "c": cap_w}
    name = "-".join(f"{letter}{value:.0f}" for letter, value in values.items() if value is not None)
    return OperatingPoint(name=name, gpu_hz=gpu_hz, mem_hz=mem_hz, cap_w=cap_w)


def _rows(path: Path) -> list[_Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
