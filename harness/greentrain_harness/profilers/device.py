"""Device profile: idle power, then power at several shares of the peak throughput, and a curve through them.

The load is a small matrix product, repeated; a share is set by doing that part of the peak's work in every
period and sleeping for the rest, and counted as work done over the peak. Without a sensor nothing is loaded:
the model's own curve is written down as modelled.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from greentrain.device import Device, DeviceProfile, OperatingPoint, Provenance
from greentrain.errors import NotSupportedError, RunError, UnavailableError
from greentrain.power import PowerModel, fit_power_curve
from greentrain.reading import Clock, Meter, Span
from greentrain_harness.environment import available_memory_bytes, host_description, package_versions, usable_cores
from greentrain_harness.meters.modelled import generic_power_model
from greentrain_harness.sampler import Sampler

__all__ = ["CURRENT_POINT", "Load", "Pace", "Trial", "matmul_load", "profile_device"]

CURRENT_POINT = "current"

_SHARES = (1.0, 0.25, 0.75, 0.5)
# A CPU quota is handed out every 100 ms: work is planned over whole such periods.
_PERIOD_S = 0.1
# The sensor and the clocks follow a new load within this time; it is not counted.
_SETTLE_S = 0.2
_SIZE = 192
_TOLERATED_GAP = 0.1

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


def profile_device(
    *,
    device_id: str,
    kind: str,
    meter: Meter,
    sysroot: Path = Path("/"),
    points: str = CURRENT_POINT,
    trials: int = 3,
    idle_s: float = 0.6,
    load_s: float = 0.5,
    command: str = "greentrain measure",
    device: Device | None = None,
    load: Load | None = None,
    say: Callable[[str], None] | None = None,
    pace: Pace | None = None,
) -> DeviceProfile:
    """Measure this machine at its present operating point.

    Args:
        device_id: Id of the device in the cluster.
        kind: Its kind; a measured device is usually a kind of its own.
        meter: An open meter; it is closed at the end.
        sysroot: Prefix of /sys, /proc and /etc.
        points: ``current``; other points need controls.
        trials: Trials of every share, 3 or more for a stated spread.
        idle_s: Seconds of every idle window.
        load_s: Seconds of every loaded window.
        command: Written into the provenance.
        device: A known device whose power model stands in when the meter is modelled.
        load: One unit of work; a matrix product where the meter looks when not given.
        say: Told about progress.
        pace: Clock and sleep; the real ones when not given.

    Raises:
        NotSupportedError: Operating points other than the present one are wished for.
        UnavailableError: The meter sees only GPUs and PyTorch cannot use them.
        RunError: The sensor stopped answering.
    """
    if points != CURRENT_POINT:
        meter.close()
        raise NotSupportedError(
            f"operating points {points!r} cannot be measured: no control sets power modes and clocks yet.",
            hint="Set the power mode yourself (nvpmodel, nvidia-smi, cpupower) and measure with --points current.",
        )
    if meter.name == "modelled":
        meter.close()
        return _modelled_profile(device_id, kind, meter, command, device, sysroot)
    pace = pace or Pace()
    with Sampler(meter, clock=pace.clock, background=pace.background) as sampler:
        plan = _TrialPlan(trials=trials, idle_s=idle_s, load_s=load_s, settle_s=_settle_s(meter), pace=pace)
        measured = _run_trials(sampler, load or matmul_load(meter), plan, say or _silent)
    power, spread_ratio = _power_model(measured, meter)
    return DeviceProfile(
        device=Device(
            id=device_id,
            kind=kind,
            memory_bytes=available_memory_bytes(),
            points=(OperatingPoint(name=CURRENT_POINT),),
            power=power,
        ),
        provenance=_provenance(meter, command, trials, spread_ratio, sysroot),
    )


@dataclass(frozen=True, kw_only=True)
class _TrialPlan:
    """How long everything takes, in seconds of a pace."""

    trials: int
    idle_s: float
    load_s: float
    settle_s: float
    pace: Pace


def _settle_s(meter: Meter) -> float:
    """Sensors that average over a second need longer to follow."""
    return max(_SETTLE_S, 1.5 * max(channel.update_s for channel in meter.channels))


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


def _run_trials(sampler: Sampler, unit: Load, plan: _TrialPlan, say: Callable[[str], None]) -> list[Trial]:
    """Idle and every share in turn, again and again, so that a slow drift does not look like a share."""
    # Warm-up: the first products allocate memory and start threads.
    _work(unit, seconds=plan.settle_s, units_per_s=None, pace=plan.pace)
    peak_per_s = 0.0
    measured: list[Trial] = []
    for number in range(plan.trials):
        say(f"trial {number + 1} of {plan.trials}: idle, then shares {', '.join(f'{share:g}' for share in _SHARES)}")
        measured.append(_trial(sampler, unit, 0.0, None, plan))
        for share in _SHARES:
            limit_per_s = None if share == 1.0 else share * peak_per_s
            trial = _trial(sampler, unit, share, limit_per_s, plan)
            peak_per_s = max(peak_per_s, trial.units_per_s)
            measured.append(trial)
    return measured


def _trial(sampler: Sampler, unit: Load, target: float, limit_per_s: float | None, plan: _TrialPlan) -> Trial:
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


def _power_model(measured: list[Trial], meter: Meter) -> tuple[PowerModel, float]:
    """The fitted model, and the largest spread of the power of one share over its trials."""
    peak_per_s = max(trial.units_per_s for trial in measured)
    if peak_per_s <= 0:
        raise RunError("the load did no work at all.", hint="Check the CPU quota of this process.")
    shares = [min(trial.units_per_s / peak_per_s, 1.0) for trial in measured]
    curve = fit_power_curve(point=CURRENT_POINT, share=shares, power_w=[trial.power_w for trial in measured])
    by_target: dict[float, list[float]] = {}
    for trial in measured:
        by_target.setdefault(trial.target, []).append(trial.power_w)
    idle_w = statistics.fmean(by_target[0.0])
    model = PowerModel(
        idle_w=idle_w,
        curves=(curve,),
        source=meter.source,
        provenance=f"{len(measured)} windows of {meter.name}, shares of {peak_per_s:.0f} matrix products per second",
    )
    return model, max(_spread_ratio(values) for values in by_target.values())


def _spread_ratio(values: list[float]) -> float:
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if len(values) > 1 and mean > 0 else 0.0


def _modelled_profile(
    device_id: str, kind: str, meter: Meter, command: str, device: Device | None, sysroot: Path
) -> DeviceProfile:
    """The model's own figures: there is nothing to measure."""
    provenance = _provenance(meter, command, 0, None, sysroot)
    if device is not None:
        power = msgspec.structs.replace(device.power, source="modelled")
        return DeviceProfile(
            device=msgspec.structs.replace(device, id=device_id, kind=kind, power=power), provenance=provenance
        )
    return DeviceProfile(
        device=Device(
            id=device_id,
            kind=kind,
            memory_bytes=available_memory_bytes(),
            points=(OperatingPoint(name=CURRENT_POINT),),
            power=generic_power_model(usable_cores(), point=CURRENT_POINT),
        ),
        provenance=provenance,
    )


def _provenance(meter: Meter, command: str, n: int, spread_ratio: float | None, sysroot: Path) -> Provenance:
    return Provenance(
        meter=meter.name,
        source=meter.source,
        command=command,
        host=host_description(sysroot),
        versions=package_versions(),
        trials_n=n,
        spread_ratio=spread_ratio,
        note=meter.note,
    )


def _silent(text: str) -> None:
    del text
