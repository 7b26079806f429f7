"""No sensor: joules modelled from the CPU time that this process tree really used.

power = curve(share of the allowed cores that was busy), integrated between two looks. Without a known
device the curve is a guess with a wide error; every figure says ``source = modelled``.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from greentrain.device import CURRENT_POINT, Device
from greentrain.power import PowerCurve, PowerModel, Source, physical_curve
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.environment import usable_cores

__all__ = ["GENERIC_ERROR_RATIO", "ModelledMeter", "detect", "generic_power_model", "open_meter", "tree_cpu_s"]

# Enough for the sampler to place a window's ends between two looks.
_RATE_HZ = 0.0
GENERIC_ERROR_RATIO = 0.4
_DEVICE_ERROR_RATIO = 0.2
_IDLE_W_PER_CORE = 2.0
_BUSY_W_PER_CORE = 8.0


class ModelledMeter:
    """One counter: joules that the model ascribes to this process tree since the meter was opened."""

    def __init__(
        self, curve: PowerCurve, *, cores: float, gain_error_ratio: float, note: str,
        clock: Clock = time.monotonic, cpu_s: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._curve = curve
        self._cores = cores
        self._clock = clock
        self._cpu_s = cpu_s or tree_cpu_s
        self._energy_j = 0.0
        self._carried_s = 0.0
        self._last_s = clock()
        self._last_cpu_s = self._cpu_s()
        self.name = "modelled"
        self.source: Source = "modelled"
        self.scope: Scope = "process"
        self.rate_hz = _RATE_HZ
        self.note = note
        self.channels = (Channel(name="cpu-time", quantity="energy_j", gain_error_ratio=gain_error_ratio),)

    def sample(self) -> Sample:
        """Bring the counter up to this instant."""
        cpu_s = self._cpu_s()
        t_s = self._clock()
        duration_s = t_s - self._last_s
        if duration_s > 0:
            # A child's time may be seen twice, or late, around the moment that it ends.
            busy_s = self._carried_s + max(cpu_s - self._last_cpu_s, 0.0)
            # Quotas are handed out in slices: what a short look sees above the share goes to the next one.
            counted_s = min(busy_s, duration_s * self._cores)
            self._energy_j += self._curve.power_w(counted_s / (duration_s * self._cores)) * duration_s
            self._carried_s = busy_s - counted_s
            self._last_s, self._last_cpu_s = t_s, max(cpu_s, self._last_cpu_s)
        return Sample(t_s=t_s, values=(self._energy_j,))

    def close(self) -> None:
        """Nothing is held open."""


def detect(sysroot: Path = Path("/")) -> str | None:
    """Always None: a model needs no sensor."""
    del sysroot
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> ModelledMeter:
    """Open the model of a device, or of a machine about which only the number of cores is known.

    Args:
        sysroot: Not needed.
        device: Gives the power curve (of its first operating point).
    """
    del sysroot
    cores = usable_cores()
    if device is not None:
        curve = device.curve(device.points[0].name)
        stated = curve.band_w / curve.busy_w if curve.band_w is not None and curve.busy_w > 0 else 0.0
        return ModelledMeter(
            curve,
            cores=cores,
            gain_error_ratio=max(stated, _DEVICE_ERROR_RATIO),
            note=f"no sensor: CPU time of this process tree through the power curve of {device.kind} ({curve.fit})",
        )
    model = generic_power_model(cores)
    return ModelledMeter(
        model.curves[0],
        cores=cores,
        gain_error_ratio=GENERIC_ERROR_RATIO,
        note=f"no sensor: CPU time of this process tree × {model.provenance}",
    )


def generic_power_model(cores: float, *, point: str = CURRENT_POINT) -> PowerModel:
    """A guess for a machine of which only the number of cores is known: 2 W idle and 8 W busy per core.

    Both are proportional to the cores, so that workers which share a machine out among them add up to
    the machine. Laptops lie below and servers above: take it as ±40 %.

    Args:
        cores: Cores that may be used; fractions under a quota.
        point: Name of the only operating point.
    """
    curve = physical_curve(
        point=point,
        idle_w=_IDLE_W_PER_CORE * cores,
        busy_w=_BUSY_W_PER_CORE * cores,
        cubic_share=0.0,
        fit="guess: 2 W idle, 8 W busy per core",
    )
    # The guess keeps its error when it goes through a profile.
    curve = msgspec.structs.replace(curve, band_w=GENERIC_ERROR_RATIO * curve.busy_w)
    return PowerModel(
        idle_w=curve.idle_w,
        curves=(curve,),
        source="modelled",
        provenance=f"a guess of 2 W idle and 8 W busy per core for {cores:g} cores (±40 %)",
    )


def tree_cpu_s() -> float:
    """CPU seconds of this process, of its ended children and of its living descendants."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living_s = _descendants_cpu_s(os.getpid())
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + living_s


def _descendants_cpu_s(pid: int) -> float:
    """CPU seconds of the living descendants and of those that they waited for; 0 where /proc hides them."""
    total_s = 0.0
    for child in _children(pid):
        try:
            # Fields after the command's name, which may itself hold spaces and brackets.
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total_s += sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S + _descendants_cpu_s(child)
    return total_s


def _children(pid: int) -> list[int]:
    """Children of every thread of a process."""
    children: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return children
    for thread in threads:
        try:
            children += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:
            continue
    return children


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
