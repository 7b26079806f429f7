"""Figures that the meters must hold, beside other tools:  python -m greentrain_harness.bench.meters

Everything runs on synthetic loads and emulated trees, whose truth is known; no figure says anything about a real
sensor. Other tools (zeus, codecarbon, jtop) run unmodified in Pythons of their own (``--peers``), in a private mount
namespace in which the emulated tree lies over /sys; that needs root. What is not installed is told.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from greentrain.power import Source
from greentrain.reading import Channel, Sample, Scope
from greentrain_harness.bench._peers import peer_rows
from greentrain_harness.meters import open_named
from greentrain_harness.meters._roots import MOST_CORE_RATIO
from greentrain_harness.meters.boards import GAIN_ERROR_RATIO, board_named
from greentrain_harness.meters.ina3221 import RATE_HZ, ROOT_RATE_HZ, UPDATE_S
from greentrain_harness.meters.rapl import RaplMeter, Zone
from greentrain_harness.meters.trees import write_jetson_tree, write_rapl_tree
from greentrain_harness.sampler import Sampler
from greentrain_harness.window import measure

__all__ = [
    "Row",
    "VirtualSensor",
    "constant_error_ratio",
    "coverage_ratio",
    "main",
    "rows",
    "step_error_ratio",
    "wrap_error_j",
]

Load = Callable[[np.ndarray], np.ndarray]

_OFFSET_W = 0.08
_QUANTUM_W = 0.005


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the table.

    Attributes:
        what: What was measured.
        figure: The figure in words.
        bar: What it must hold; empty for a comparison.
        holds: Whether it does; None for a comparison or what could not be run.
    """

    what: str
    figure: str
    bar: str = ""
    holds: bool | None = None


class VirtualSensor:
    """An INA3221-like sensor of a load in virtual time: gain, offset, refresh and last digit are wrong as asked for."""

    def __init__(
        self, load: Load, *, gain: float = 1.0, offset_w: float = 0.0, quantum_w: float = 0.0, refresh_s: float = 0.0
    ) -> None:
        self.t_s = 0.0
        self._load, self._gain, self._offset_w, self._quantum_w = load, gain, offset_w, quantum_w
        self._refresh_s = refresh_s
        self.name = "virtual"
        self.source: Source = "modelled"
        self.scope: Scope = "board"
        self.note = "virtual sensor"
        self.rate_hz = RATE_HZ
        self.channels = (
            Channel(
                name="VDD_IN", quantity="power_w", gain_error_ratio=GAIN_ERROR_RATIO, offset_error_w=_OFFSET_W,
                update_s=refresh_s,
            ),
        )  # fmt: skip

    def sample(self) -> Sample:
        """What the chip last refreshed."""
        refresh_s = self._refresh_s
        refreshed_s = math.floor(self.t_s / refresh_s) * refresh_s if refresh_s else self.t_s
        power_w = float(self._load(np.array([refreshed_s]))[0]) * self._gain + self._offset_w
        if self._quantum_w:
            power_w = round(power_w / self._quantum_w) * self._quantum_w
        return Sample(t_s=self.t_s, values=(max(power_w, 0.0),))

    def close(self) -> None:
        """Nothing is held open."""

    def sampled(self, seconds: float, *, rate_hz: float = RATE_HZ, phase_s: float = 0.0) -> Sampler:
        """A sampler that has looked for so many seconds."""
        sampler = Sampler(self, clock=lambda: self.t_s, rate_hz=rate_hz, background=False)
        for index in range(int(seconds * rate_hz) + 1):
            self.t_s = phase_s + index / rate_hz
            sampler.sample_now()
        return sampler


def constant_error_ratio() -> float:
    """Largest relative error on a constant load over windows of 13 ms to 3 s, sampled at 50 Hz."""
    sampler = VirtualSensor(lambda t_s: np.full_like(t_s, 5.0)).sampled(4.0)
    errors = [
        abs((sampler.span(start_s, start_s + length_s).energy_j or 0.0) / (5.0 * length_s) - 1.0)
        for length_s in (0.013, 0.2, 1.0, 3.0)
        for start_s in np.linspace(0.1, 0.9, 37)
    ]
    return max(errors)


def step_error_ratio(length_s: float, *, rate_hz: float = 100.0, refresh_s: float = 0.0, trials: int = 200) -> float:
    """Largest relative error on 5 W and 15 W in turn every 0.37 s.

    Args:
        length_s: Length of the windows.
        rate_hz: Samples per second.
        refresh_s: How long the sensor holds a value; 0 for one that answers for the very instant.
        trials: Windows at random places.
    """
    random = np.random.default_rng(7)
    worst = 0.0
    for _ in range(trials):
        phase_s = float(random.uniform(0, 1 / rate_hz))
        sampler = VirtualSensor(_steps, refresh_s=refresh_s).sampled(length_s + 1.5, rate_hz=rate_hz, phase_s=phase_s)
        start_s = float(random.uniform(0.05, 1.0))
        truth_j = _truth_j(_steps, start_s, start_s + length_s)
        worst = max(worst, abs((sampler.span(start_s, start_s + length_s).energy_j or 0.0) / truth_j - 1.0))
    return worst


def coverage_ratio(*, shapes: int = 200, seed: int = 11, rate_hz: float = RATE_HZ) -> float:
    """Part of random load shapes, seen by a sensor that is wrong within its stated limits, that the ± covers."""
    random = np.random.default_rng(seed)
    covered = 0
    for _ in range(shapes):
        load = _random_load(random)
        sensor = VirtualSensor(
            load, gain=1 + float(random.uniform(-1, 1)) * GAIN_ERROR_RATIO,
            offset_w=float(random.uniform(-1, 1)) * _OFFSET_W, quantum_w=_QUANTUM_W, refresh_s=UPDATE_S,
        )  # fmt: skip
        sampler = sensor.sampled(4.0, rate_hz=rate_hz, phase_s=float(random.uniform(0, 1 / rate_hz)))
        start_s = float(random.uniform(0.1, 1.0))
        stop_s = start_s + float(random.uniform(0.05, 2.5))
        span = sampler.span(start_s, stop_s)
        truth_j = _truth_j(load, start_s, stop_s)
        covered += abs((span.energy_j or 0.0) - truth_j) <= (span.error_j or 0.0)
    return covered / shapes


def wrap_error_j(folder: Path) -> float:
    """Error over a window in which a RAPL counter wraps twice, joules."""
    range_uj, power_w = 50_000_000, 100.0
    tree = write_rapl_tree(folder, [("intel-rapl:0", "package-0")], range_uj=range_uj, energy_uj=0)
    now_s = 0.0
    meter = RaplMeter((Zone("package-0", tree.zones["intel-rapl:0"]),), note="", clock=lambda: now_s)
    with Sampler(meter, clock=lambda: now_s, background=False) as sampler:
        for index in range(1, 31):
            now_s = index * 0.05
            tree.set_energy_uj("intel-rapl:0", round(power_w * now_s * 1e6) % range_uj)
            sampler.sample_now()
        return abs((sampler.span(0.1, 1.4).energy_j or 0.0) - power_w * 1.3)


def _sample_s(folder: Path) -> float:
    """CPU seconds of one sample of four rails, without the waking up before it."""
    write_jetson_tree(folder, board_named("agx-orin"))
    with Sampler(open_named("jetson", sysroot=folder), background=False) as sampler:
        start_s = time.thread_time()
        for _ in range(1000):
            sampler.sample_now()
        return (time.thread_time() - start_s) / 1000


def _sampler_core_ratio(folder: Path, *, rate_hz: float | None, seconds: float = 1.0) -> float:
    """Share of a core that a running sampler takes for four rails, all else idle; the median of five."""
    write_jetson_tree(folder, board_named("agx-orin"))
    ratios: list[float] = []
    with Sampler(open_named("jetson", sysroot=folder), rate_hz=rate_hz):
        for _ in range(5):
            before_s, start_s = time.process_time(), time.monotonic()
            time.sleep(seconds)
            ratios.append((time.process_time() - before_s) / (time.monotonic() - start_s))
    return statistics.median(ratios)


def _waking_core_ratio(seconds: float = 1.0) -> float:
    """Share of a core that waking up 50 times a second takes with nothing to do; the median of five."""
    ratios: list[float] = []
    for _ in range(5):
        before_s, start_s = time.process_time(), time.monotonic()
        for index in range(1, int(seconds * RATE_HZ) + 1):
            time.sleep(max(start_s + index / RATE_HZ - time.monotonic(), 0.0))
        ratios.append((time.process_time() - before_s) / (time.monotonic() - start_s))
    return statistics.median(ratios)


def _window_overhead_s(folder: Path, windows: int = 2000) -> float:
    """Median time that a part of a window adds to the code in it, while the meter is open."""
    write_jetson_tree(folder, board_named("agx-orin"))
    taken_s: list[float] = []
    with measure(device="jetson", sysroot=folder) as whole:
        for _ in range(windows):
            start_s = time.perf_counter()
            with whole.part():
                pass
            taken_s.append(time.perf_counter() - start_s)
    return float(np.median(taken_s))


def rows(*, peers: Sequence[str] = (sys.executable,)) -> Iterator[Row]:
    """All figures, as they are found."""
    yield _bar("constant load, 13 ms … 3 s windows", constant_error_ratio(), 0.001)
    for length_s, most in ((0.2, 0.05), (1.0, 0.01), (3.0, 0.01)):
        ratio = step_error_ratio(length_s, rate_hz=ROOT_RATE_HZ, refresh_s=UPDATE_S)
        yield _bar(f"steps 5/15 W, {length_s:g} s window, {ROOT_RATE_HZ:g} Hz, sensor of 6.6 ms", ratio, most)
    for rate_hz in (RATE_HZ, 2 * RATE_HZ):
        for length_s in (0.2, 1.0, 3.0):
            # Rails below the total, and a board whose bus or processor is too slow for more.
            ratio = step_error_ratio(length_s, rate_hz=rate_hz, refresh_s=UPDATE_S)
            yield Row(what=f"  {length_s:g} s window, {rate_hz:g} Hz", figure=f"{ratio:.2%}")
    for rate_hz in (RATE_HZ, ROOT_RATE_HZ):
        coverage = coverage_ratio(rate_hz=rate_hz)
        yield Row(
            what=f"stated ± covers the truth, 200 random shapes, {rate_hz:g} Hz",
            figure=f"{coverage:.1%}",
            bar="≥ 95 %",
            holds=coverage >= 0.95,
        )
    with tempfile.TemporaryDirectory() as folder:
        error_j = wrap_error_j(Path(folder) / "wrap")
        yield Row(
            what="RAPL wraps twice in a window", figure=f"{error_j:.2g} J of 130 J", bar="exact", holds=error_j < 1e-6
        )
        sample_s = _sample_s(Path(folder) / "sample")
        yield _bar("reading four rails at 50 Hz, share of a core", 50 * sample_s, 0.01)
        cost = Path(folder) / "cost"
        yield _bar("  the same with waking up 50 times a second", _sampler_core_ratio(cost, rate_hz=RATE_HZ), 0.01)
        yield Row(what="  waking up alone", figure=f"{_waking_core_ratio():.2%}")
        yield _bar(
            f"  the total at up to {ROOT_RATE_HZ:g} Hz besides (the default)",
            _sampler_core_ratio(cost, rate_hz=None),
            MOST_CORE_RATIO,
        )
        overhead_s = _window_overhead_s(Path(folder) / "window")
        yield Row(
            what="part of an open window, overhead",
            figure=f"{overhead_s * 1e6:.1f} µs",
            bar="≤ 50 µs",
            holds=overhead_s <= 50e-6,
        )
        for what, figure in peer_rows(peers, Path(folder) / "peers"):
            yield Row(what=what, figure=figure)


def _bar(what: str, ratio: float, most: float) -> Row:
    return Row(what=what, figure=f"{ratio:.2%}", bar=f"≤ {most:.1%}", holds=ratio <= most)


def _steps(t_s: np.ndarray) -> np.ndarray:
    return np.where(np.floor(t_s / 0.37) % 2 == 1, 15.0, 5.0)


def _random_load(random: np.random.Generator) -> Load:
    """Idle, a wave, steps of random lengths, short spikes: in random strengths."""
    idle_w, wave_w, hertz, phase = (
        random.uniform(2, 6),
        random.uniform(0, 3),
        random.uniform(0.2, 8),
        random.uniform(0, 7),
    )
    edges_s = np.cumsum(random.exponential(random.uniform(0.05, 0.6), size=200))
    levels_w = random.uniform(0, random.choice([0.0, 5.0, 20.0]), size=201)
    spikes_s = random.uniform(0, 4, size=int(random.integers(0, 12)))

    def load(t_s: np.ndarray) -> np.ndarray:
        wave = wave_w * (1 + np.sin(2 * np.pi * hertz * t_s + phase))
        spike = 10.0 * (np.abs(t_s[:, None] - spikes_s[None, :]) < 0.03).any(axis=1)
        return idle_w + wave + levels_w[np.searchsorted(edges_s, t_s)] + spike

    return load


def _truth_j(load: Load, start_s: float, stop_s: float) -> float:
    """Midpoint sum over 20 µs: far finer than any sample."""
    n = max(int((stop_s - start_s) / 2e-5), 1)
    middle_s = start_s + (np.arange(n) + 0.5) * (stop_s - start_s) / n
    return float(load(middle_s).mean() * (stop_s - start_s))


@click.command()
@click.option(
    "--peers", multiple=True, default=(sys.executable,), show_default=True, metavar="PYTHON",
    help="Python that has zeus, codecarbon or jetson-stats; may be given again.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def main(peers: tuple[str, ...], as_json: bool) -> None:
    """Print the table; exits 1 when a figure misses its bar."""
    missed = False
    for row in rows(peers=peers):
        missed = missed or row.holds is False
        mark = {True: "holds", False: "MISSED", None: ""}[row.holds]
        if as_json:
            click.echo(json.dumps({"what": row.what, "figure": row.figure, "bar": row.bar, "holds": row.holds}))
        else:
            click.echo(f"{row.what:<58} {row.figure:>28}  {row.bar:<9} {mark}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
