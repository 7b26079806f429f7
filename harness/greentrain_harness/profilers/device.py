"""Device profile: idle power, then power at several shares of the peak throughput, and a curve through them.

The load is a small matrix product, repeated; a share is set by doing that part of the peak's work in every
period and sleeping for the rest, and counted as work done over the peak. Rounds of all shares are repeated until
their means are known well enough, or the trials run out. Without a sensor nothing is loaded: the model's own curve
is written down as modelled.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from greentrain.device import CURRENT_POINT, Device, DeviceProfile, OperatingPoint, Provenance
from greentrain.errors import RunError, UnavailableError
from greentrain.power import PowerCurve, PowerModel, fit_power_curve
from greentrain.reading import Clock, Meter, Span
from greentrain_harness.environment import (
    available_memory_bytes,
    host_description,
    machine_id,
    package_versions,
    usable_cores,
)
from greentrain_harness.meters.modelled import generic_power_model
from greentrain_harness.sampler import Sampler
from greentrain_harness.trial import interval_ratio, more_trials_needed

__all__ = [
    "Load",
    "LoadWindow",
    "Pace",
    "PointFigures",
    "Trial",
    "TrialPlan",
    "matmul_load",
    "measure_point",
    "profile_device",
    "provenance",
]


_SHARES = (1.0, 0.25, 0.75, 0.5)
# A CPU quota is handed out every 100 ms: work is planned over whole such periods.
_PERIOD_S = 0.1
# The sensor and the clocks follow a new load within this time; it is not counted.
_SETTLE_S = 0.2
_SIZE = 192
_TOLERATED_GAP = 0.1
# Wanted half width of the 95 % interval of every mean power.
_TARGET_RATIO = 0.05

# Does one unit of work and returns when it is done.
Load = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Where time comes from; replaced in tests, which do not wait.

    Attributes:
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
        background: Whether the sampler runs a thread.
    """

    clock: Clock = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    background: bool = True


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One loaded (or idle) window.

    Attributes:
        target: Share that was asked for; 0 for idle.
        units_per_s: Units of work done per second.
        power_w: Mean power.
    """

    target: float
    units_per_s: float
    power_w: float


class LoadWindow(NamedTuple):
    """One measured window, as it is kept on disk.

    Attributes:
        share: Work done over this point's own peak; 0 for idle.
        power_w: Mean power.
    """

    share: float
    power_w: float


class PointFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured at one operating point.

    Attributes:
        point: The operating point.
        curve: Power over the share of this point's own peak.
        idle_w: Mean idle power, watts.
        peak_per_s: Units of work per second at full load.
        trials_n: Rounds that were run.
        spread_ratio: Largest standard deviation of a share's power over its mean.
        interval_ratio: Largest half width of a 95 % interval over its mean.
        more_trials: Rounds that are still missing for 5 %; 0 when the interval is tight.
        windows: Every window behind the curve.
        sample_s: Seconds per sample of each model that was timed at this point.
    """

    point: OperatingPoint
    curve: PowerCurve
    idle_w: float
    peak_per_s: float
    trials_n: int
    spread_ratio: float
    interval_ratio: float
    more_trials: int
    windows: tuple[LoadWindow, ...] = ()
    sample_s: dict[str, float] = {}


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """How often and how long, in seconds of a pace.

    Attributes:
        trials: Rounds that are always run; 3 or more for a stated spread.
        most_trials: Rounds after which it ends although an interval is still wide.
        idle_s: Length of every idle window.
        load_s: Length of every loaded window.
        settle_s: Not counted before each window; the sensors' refresh when it is longer.
        pace: Clock and sleep.
    """

    trials: int = 3
    most_trials: int = 5
    idle_s: float = 0.6
    load_s: float = 0.5
    settle_s: float = _SETTLE_S
    pace: Pace = Pace()

    def settled_for(self, meter: Meter) -> TrialPlan:
        """The same plan with enough time for the meter: sensors that average over a second follow late."""
        settle_s = max(self.settle_s, 1.5 * max(channel.update_s for channel in meter.channels))
        return dataclasses.replace(self, settle_s=settle_s)

    def seconds(self, trials: int) -> float:
        """How long so many rounds take, with the warm-up."""
        round_s = self.idle_s + len(_SHARES) * self.load_s + (1 + len(_SHARES)) * self.settle_s
        return self.settle_s + trials * round_s


def profile_device(
    *,
    device_id: str,
    kind: str,
    meter: Meter,
    sysroot: Path = Path("/"),
    plan: TrialPlan | None = None,
    command: str = "greentrain measure",
    device: Device | None = None,
    load: Load | None = None,
    say: Callable[[str], None] | None = None,
    keep: Callable[[PointFigures], None] | None = None,
) -> DeviceProfile:
    """Measure this machine at its present operating point; other points need a control (``sweep.py``).

    Args:
        device_id: Id of the device in the cluster.
        kind: Its kind; a measured device is usually a kind of its own.
        meter: An open meter; it is closed at the end.
        sysroot: Prefix of /sys, /proc and /etc.
        plan: How often and how long.
        command: Written into the provenance.
        device: A known device whose power model stands in when the meter is modelled.
        load: One unit of work; a matrix product where the meter looks when not given.
        say: Told about progress.
        keep: Given what was measured, behind the curve; nothing where nothing was.

    Raises:
        UnavailableError: The meter sees only GPUs and PyTorch cannot use them.
        RunError: The sensor stopped answering.
    """
    if meter.name == "modelled":
        meter.close()
        return _modelled_profile(device_id, kind, meter, command, device, sysroot)
    plan = (plan or TrialPlan()).settled_for(meter)
    point = OperatingPoint(name=CURRENT_POINT)
    with Sampler(meter, clock=plan.pace.clock, background=plan.pace.background) as sampler:
        figures = measure_point(sampler, load or matmul_load(meter), plan, point=point, say=say or _silent)
    if keep is not None:
        keep(figures)
    return DeviceProfile(
        device=Device(
            id=device_id,
            kind=kind,
            memory_bytes=available_memory_bytes(),
            points=(point,),
            power=PowerModel(
                idle_w=figures.idle_w,
                curves=(figures.curve,),
                source=meter.source,
                provenance=f"{figures.curve.points_n} windows of {meter.name}, shares of "
                f"{figures.peak_per_s:.0f} matrix products per second",
            ),
        ),
        provenance=provenance(meter, command, figures.trials_n, figures.spread_ratio, sysroot),
    )


def matmul_load(meter: Meter) -> Load:
    """A small matrix product on the processor that the meter sees.

    Raises:
        UnavailableError: The meter sees only GPUs and PyTorch cannot use them.
    """
    import torch

    on_gpu = meter.name == "nvml"
    if on_gpu and not torch.cuda.is_available():
        raise UnavailableError(
            "the meter sees only the GPU, and this PyTorch cannot use it (torch.cuda.is_available() is false).",
            hint="Install a CUDA build of PyTorch, or measure with --device cpu.",
        )
    size = _SIZE * 16 if on_gpu else _SIZE
    matrix = torch.rand(size, size, device="cuda" if on_gpu else "cpu")

    def unit() -> None:
        torch.mm(matrix, matrix)
        if on_gpu:
            torch.cuda.synchronize()

    return unit


def measure_point(
    sampler: Sampler, unit: Load, plan: TrialPlan, *, point: OperatingPoint, say: Callable[[str], None]
) -> PointFigures:
    """Idle and every share in turn, again and again, so that a slow drift does not look like a share.

    Ends when the mean power of idle and of every share is known to 5 %, or when the trials run out.

    Args:
        sampler: Of the meter that looks on.
        unit: One unit of work.
        plan: How often and how long.
        point: The operating point that is set.
        say: Told about progress.

    Raises:
        RunError: The sensor stopped answering, or no work was done.
    """
    # Warm-up: the first products allocate memory and start threads.
    _work(unit, seconds=plan.settle_s, units_per_s=None, pace=plan.pace)
    peak_per_s = 0.0
    measured: list[Trial] = []
    missing = plan.trials
    rounds = 0
    while rounds < plan.trials or (missing > 0 and rounds < plan.most_trials):
        expected = max(plan.trials, min(rounds + missing, plan.most_trials))
        rounds += 1
        say(f"trial {rounds} of {expected} at {point.name}")
        measured.append(_trial(sampler, unit, 0.0, None, plan))
        for share in _SHARES:
            limit_per_s = None if share == 1.0 else share * peak_per_s
            trial = _trial(sampler, unit, share, limit_per_s, plan)
            peak_per_s = max(peak_per_s, trial.units_per_s)
            measured.append(trial)
        missing = max(more_trials_needed(values, _TARGET_RATIO) for values in _powers_w(measured).values())
    if missing > 0:
        say(f"{point.name}: {missing} more trials needed for ±{_TARGET_RATIO:.0%}")
    return _figures(measured, point, rounds, missing)


def _powers_w(measured: list[Trial]) -> dict[float, list[float]]:
    """Mean powers of the windows, by share."""
    by_target: dict[float, list[float]] = {}
    for trial in measured:
        by_target.setdefault(trial.target, []).append(trial.power_w)
    return by_target


def _trial(sampler: Sampler, unit: Load, target: float, limit_per_s: float | None, plan: TrialPlan) -> Trial:
    """Let the sensor follow the load, then measure a window of it."""

    def run(seconds: float) -> int:
        if target == 0.0:
            plan.pace.sleep(seconds)
            return 0
        return _work(unit, seconds=seconds, units_per_s=limit_per_s, pace=plan.pace)

    run(plan.settle_s)
    sampler.sample_now()
    start_s = sampler.now_s()
    units = run(plan.idle_s if target == 0.0 else plan.load_s)
    span = sampler.span(start_s, sampler.now_s())
    return Trial(target=target, units_per_s=units / span.duration_s, power_w=_covered_w(span))


def _work(unit: Load, *, seconds: float, units_per_s: float | None, pace: Pace) -> int:
    """Do work for a while, at most so much per second; returns the units done."""
    start_s = pace.clock()
    done = 0
    period = 0
    while pace.clock() - start_s < seconds:
        period += 1
        until_s = start_s + period * _PERIOD_S
        while pace.clock() < until_s and (units_per_s is None or done < units_per_s * period * _PERIOD_S):
            unit()
            done += 1
        pace.sleep(max(until_s - pace.clock(), 0.0))
    return done


def _covered_w(span: Span) -> float:
    """Mean power over the time with data.

    Raises:
        RunError: The sensor was silent for a good part of the window.
    """
    covered_s = span.duration_s - span.gap_s
    if span.energy_j is None or covered_s < (1 - _TOLERATED_GAP) * span.duration_s:
        raise RunError(
            f"the meter {span.meter} was silent for {span.gap_s:.2f} s of {span.duration_s:.2f} s.",
            hint="Look at it with greentrain doctor, then measure again.",
        )
    return span.energy_j / covered_s


def _figures(measured: list[Trial], point: OperatingPoint, rounds: int, missing: int) -> PointFigures:
    peak_per_s = max(trial.units_per_s for trial in measured)
    if peak_per_s <= 0:
        raise RunError("the load did no work at all.", hint="Check the CPU quota of this process.")
    shares = [min(trial.units_per_s / peak_per_s, 1.0) for trial in measured]
    powers_w = _powers_w(measured)
    return PointFigures(
        point=point,
        curve=fit_power_curve(point=point.name, share=shares, power_w=[trial.power_w for trial in measured]),
        idle_w=statistics.fmean(powers_w[0.0]),
        peak_per_s=peak_per_s,
        trials_n=rounds,
        spread_ratio=max(_spread_ratio(values) for values in powers_w.values()),
        interval_ratio=max(interval_ratio(values) for values in powers_w.values()),
        more_trials=missing,
        windows=tuple(
            LoadWindow(round(share, 6), round(trial.power_w, 6)) for share, trial in zip(shares, measured, strict=True)
        ),
    )


def _spread_ratio(values: list[float]) -> float:
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if len(values) > 1 and mean > 0 else 0.0


def _modelled_profile(
    device_id: str, kind: str, meter: Meter, command: str, device: Device | None, sysroot: Path
) -> DeviceProfile:
    """The model's own figures: there is nothing to measure."""
    certificate = provenance(meter, command, 0, None, sysroot)
    if device is not None:
        power = msgspec.structs.replace(device.power, source="modelled")
        return DeviceProfile(
            device=msgspec.structs.replace(device, id=device_id, kind=kind, power=power), provenance=certificate
        )
    return DeviceProfile(
        device=Device(
            id=device_id,
            kind=kind,
            memory_bytes=available_memory_bytes(),
            points=(OperatingPoint(name=CURRENT_POINT),),
            power=generic_power_model(usable_cores(), point=CURRENT_POINT),
        ),
        provenance=certificate,
    )


def provenance(meter: Meter, command: str, n: int, spread_ratio: float | None, sysroot: Path) -> Provenance:
    """The birth certificate of figures that this machine gave just now."""
    return Provenance(
        meter=meter.name,
        source=meter.source,
        command=command,
        host=host_description(sysroot),
        versions=package_versions(),
        trials_n=n,
        spread_ratio=spread_ratio,
        note=meter.note,
        machine=machine_id(sysroot),
    )


def _silent(text: str) -> None:
    del text
