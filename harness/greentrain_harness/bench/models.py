"""How well few measurements tell the rest:  python -m greentrain_harness.bench.models --data DIR

Public sweeps of operating points are fitted from their first probes and compared with all that was held out. Earlier
sweeps are those of other workloads or sizes on the same device type, never the sweep itself; the order of the probes
looks at settings alone. ``DIR`` (or GREENTRAIN_PUBLIC_DATA) holds the data sets named in ``_models_data``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from greentrain.device import OperatingPoint
from greentrain.point_model import PointObservation, first_points, fit_points
from greentrain.power import fit_power_curve
from greentrain_harness.bench._models_data import (
    LoadSweep,
    Sweep,
    cpu_sweeps,
    jetson_sweeps,
    tx2_grid,
    tx2_vgg19,
    zeus_sweeps,
)
from greentrain_harness.bench._models_score import Held, held, pooled, score_sweeps

__all__ = ["Figure", "cpu_figures", "figures", "main", "speed_figures", "sweep_figures"]

_PRIORS = ("none", "other workloads", "other sizes")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the table.

    Attributes:
        what: Device and workload.
        prior: Which earlier sweeps were known.
        probes: How many points were seen.
        quantity: What the figure is of.
        median: Median over the held-out points, or sweeps for the regret; the share itself for a coverage, the mean
            where the quantity says so.
        p90: 90th percentile (None for a coverage and a mean).
        n: Number of held-out points or sweeps.
        low: Least that it should be (None = no limit).
        high: Most that it should be (None = no limit).
    """

    what: str
    prior: str
    probes: int
    quantity: str
    median: float
    p90: float | None
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the figure is within its limits; None where there is none."""
        if self.low is None and self.high is None:
            return None
        return (self.low is None or self.median >= self.low) and (self.high is None or self.median <= self.high)


@dataclass(frozen=True, kw_only=True)
class _Bars:
    """The most that the median may be, as ratios (None = not asked)."""

    power: float | None = None
    time: float | None = None
    regret: float | None = None
    coverage: bool = False


def figures(data: Path) -> list[Figure]:
    """All figures but the speeds."""
    zeus, jetson = zeus_sweeps(data), jetson_sweeps(data)
    found: list[Figure] = []
    for device in ("A40", "V100"):
        sweeps = [sweep for sweep in zeus if sweep.device == device]
        for probes, bars in (
            (3, _Bars(power=0.04, time=0.06, regret=0.02, coverage=True)),
            (5, _Bars(power=0.02, time=0.03, regret=0.01, coverage=True)),
        ):
            for prior in _PRIORS:
                found += sweep_figures(device, sweeps, probes, prior, bars=bars)
    found += _jetson_figures(jetson)
    for probes in (5, 8):
        for prior in ("none", "other workloads"):
            bars = _Bars(time=0.06) if probes == 5 else _Bars()
            found += sweep_figures("TX2 GPU x EMC", tx2_grid(data), probes, prior, bars=bars)
    for probes in (2, 3):
        bars = _Bars(power=0.04, time=0.04, regret=0.02) if probes == 3 else _Bars()
        found += sweep_figures("TX2 vgg19", tx2_vgg19(data), probes, "none", bars=bars)
    return [*found, *cpu_figures(cpu_sweeps(data))]


def _jetson_figures(jetson: Sequence[Sweep]) -> list[Figure]:
    found: list[Figure] = []
    for device in ("AGX", "Nano"):
        for workload in ("gemm float", "mobilenet"):
            sweeps = [sweep for sweep in jetson if (sweep.device, sweep.workload) == (device, workload)]
            for probes in (2, 3):
                for prior in _PRIORS:
                    bars = _Bars(power=0.04, time=0.04, regret=0.02) if probes == 3 else _Bars()
                    what = f"{device} {workload}"
                    found += sweep_figures(what, sweeps, probes, prior, bars=bars, among=jetson)
    return found


def sweep_figures(
    what: str,
    sweeps: Sequence[Sweep],
    probes: int,
    prior: str,
    *,
    bars: _Bars,
    among: Sequence[Sweep] | None = None,
) -> list[Figure]:
    """Errors, coverage and regret of sweeps that are predicted from a few probes."""
    score = score_sweeps(sweeps, probes, prior, among=among)
    has_power = all(sweep.has_power for sweep in sweeps)
    found: list[Figure] = []

    def add(quantity: str, values: np.ndarray, high: float | None) -> None:
        found.append(_figure(what, prior, probes, quantity, values, high=high))

    def mean(quantity: str, values: np.ndarray) -> None:
        found.append(_mean(what, prior, probes, quantity, values))

    def cover(quantity: str, inside: np.ndarray) -> None:
        low, high = (0.9, 0.98) if bars.coverage else (None, None)
        found.append(_mean(what, prior, probes, quantity, inside, low=low, high=high))

    def tell(quantity: str, part: Held, high: float | None) -> None:
        add(f"{quantity} error", part.error_H, high)
        cover(f"{quantity} in band", part.inside_H)
        add(f"{quantity} band ±", part.band_H, None)
        mean(f"{quantity} interval score, mean", part.interval_H)

    tell("time", score.time, bars.time)
    if has_power:
        tell("power", score.power, bars.power)
        # Time and power taken together: every held-out value counts once.
        cover("both in band", np.concatenate([score.time.inside_H, score.power.inside_H]))
        add("energy regret", score.regret_S, bars.regret)
        mean("energy regret, mean", score.regret_S)
    return found


def cpu_figures(sweeps: Sequence[LoadSweep]) -> list[Figure]:
    """Watts over load of each run of a processor, from its own probes; codecarbon's estimate beside it."""
    found: list[Figure] = []
    for probes in (3, 4, 5):
        told: list[Held] = []
        peer: list[np.ndarray] = []
        for sweep in sweeps:
            share_N, watts_N = np.clip(sweep.share_N, 0.0, 1.0), np.asarray(sweep.power_w_N)
            wanted = np.linspace(share_N.min(), share_N.max(), probes)
            seen = sorted({int(np.abs(share_N - share).argmin()) for share in wanted})
            out = np.setdiff1d(np.arange(len(share_N)), seen)
            curve = fit_power_curve(point="load", share=[*share_N[seen]], power_w=[*watts_N[seen]])
            told_w = np.asarray([curve.power_w(share) for share in share_N[out]])
            band_w = np.asarray([curve.band_at_w(share) or np.inf for share in share_N[out]])
            told.append(held(watts_N[out], told_w, told_w - band_w, told_w + band_w))
            peer.append(np.abs(np.asarray(sweep.peer_w_N)[out] / watts_N[out] - 1))
        power = pooled(told)
        found.append(_figure("CPU load", "none", probes, "power error", power.error_H, high=0.1))
        found.append(_figure("CPU load", "none", probes, "codecarbon's error", np.concatenate(peer), high=None))
        found.append(_mean("CPU load", "none", probes, "power in band", power.inside_H))
        found.append(_mean("CPU load", "none", probes, "power interval score, mean", power.interval_H))
    return found


def speed_figures(*, repeats: int = 15) -> list[Figure]:
    """Processor seconds of a fit of 20 points, and of all models of eight boards with eight points each (synthetic)."""
    points = [OperatingPoint(name=f"p{index}", gpu_hz=2e8 + 5e7 * index) for index in range(20)]
    sweep = _synthetic(points, 1.0)
    fit_points(points, sweep)  # The first call imports scipy.
    one_s = [_taken_s(lambda: fit_points(points, sweep)) for _ in range(repeats)]
    few = [OperatingPoint(name=f"p{index}", gpu_hz=2e8 + 1e8 * index) for index in range(8)]

    def cluster() -> None:
        for board in range(8):
            fit_points(few, _synthetic(few, 1.0 + 0.1 * board))

    all_s = [_taken_s(cluster) for _ in range(5)]
    return [
        _figure("speed", "none", 20, "fit of 20 points, CPU s", np.asarray(one_s), high=0.05),
        _figure("speed", "none", 8, "fits of 8 boards x 8 points, CPU s", np.asarray(all_s), high=2.0),
    ]


def _synthetic(points: Sequence[OperatingPoint], scale: float) -> list[PointObservation]:
    seen: list[PointObservation] = []
    for index, point in enumerate(first_points(points, len(points))):
        share = (point.gpu_hz or 1.0) / 1.2e9
        wobble = 1 + 0.01 * np.sin(7.0 * index)
        seen.append(PointObservation(point, scale * (0.2 + 1 / share) * wobble, (5 + 20 * share**3) * wobble))
    return seen


def _taken_s(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def _figure(what: str, prior: str, probes: int, quantity: str, values: np.ndarray, *, high: float | None) -> Figure:
    return Figure(
        what=what, prior=prior, probes=probes, quantity=quantity, median=float(np.median(values)),
        p90=float(np.percentile(values, 90)), n=len(values), high=high,
    )  # fmt: skip


def _mean(
    what: str,
    prior: str,
    probes: int,
    quantity: str,
    values: np.ndarray,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Figure:
    return Figure(
        what=what, prior=prior, probes=probes, quantity=quantity, median=float(values.mean()), p90=None, n=len(values),
        low=low, high=high,
    )  # fmt: skip


def _print(found: Sequence[Figure]) -> None:
    """One line per device, probes and earlier sweeps: medians with 90th percentiles, then what is beyond its limit."""
    lines: dict[tuple[str, int, str], list[Figure]] = {}
    for row in found:
        lines.setdefault((row.what, row.probes, row.prior), []).append(row)
    print("median / 90th percentile (n); * = beyond its limit")
    for (what, probes, prior), rows in lines.items():
        print(f"{what}, {probes} probes, earlier sweeps: {prior}")
        print("    " + "; ".join(_told(row) for row in rows))
    held = [row for row in found if row.holds is not None]
    print(f"{sum(row.holds is True for row in held)} of {len(held)} figures with a limit are within it")


def _told(row: Figure) -> str:
    seconds = row.quantity.endswith(" s")
    middle, end = (
        "" if value is None else f"{value:.3f}" if seconds else f"{value:.1%}" for value in (row.median, row.p90)
    )
    spread = f" / {end}" if end else ""
    mark = "*" if row.holds is False else ""
    return f"{row.quantity} {middle}{spread} (n={row.n}){mark}"


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="GREENTRAIN_PUBLIC_DATA",
    required=True,
    help="Folder of the public data sets.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(data: Path, as_json: bool) -> None:
    """Held-out errors of the power and time models on public sweeps."""
    found = [*figures(data), *speed_figures()]
    if as_json:
        json.dump([{**asdict(row), "holds": row.holds} for row in found], sys.stdout, indent=1)
    else:
        _print(found)


if __name__ == "__main__":
    main()
