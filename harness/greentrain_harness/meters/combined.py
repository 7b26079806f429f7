"""A PC with RAPL and NVML: processor packages, DRAM and GPUs together, none of which contains another."""

from __future__ import annotations

from pathlib import Path

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Meter, Sample, Scope
from greentrain_harness.meters import nvml, rapl
from greentrain_harness.meters._throttle import throttled_now, united

__all__ = ["CombinedMeter", "detect", "open_meter"]


class CombinedMeter:
    """Several meters that look at separate parts of one machine, as one meter."""

    def __init__(self, meters: tuple[Meter, ...]) -> None:
        self._meters = meters
        self.name = "combined"
        modelled = any(meter.source == "modelled" for meter in meters)
        self.source: Source = "modelled" if modelled else "measured"
        self.scope: Scope = "board"
        self.rate_hz = max(meter.rate_hz for meter in meters)
        self.note = "; ".join(f"{meter.name}: {meter.note}" for meter in meters)
        self.channels = tuple(channel for meter in meters for channel in meter.channels)

    def sample(self) -> Sample:
        """Read all meters; the instant is the middle of their instants."""
        samples = [meter.sample() for meter in self._meters]
        t_s = sum(sample.t_s for sample in samples) / len(samples)
        return Sample(t_s=t_s, values=tuple(value for sample in samples for value in sample.values))

    def throttled(self) -> tuple[str, ...] | None:
        """Why any of them holds its clocks back; None when none tells."""
        return united(throttled_now(meter) for meter in self._meters)

    def close(self) -> None:
        """Close all meters."""
        for meter in self._meters:
            meter.close()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when both RAPL and NVML answer, else one sentence why not."""
    reasons = [why_not for why_not in (rapl.detect(sysroot), nvml.detect(sysroot)) if why_not is not None]
    return " and ".join(reasons) or None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> CombinedMeter:
    """Open RAPL and NVML together.

    Args:
        sysroot: Prefix of /sys; must be the real root for NVML.
        device: Not needed.

    Raises:
        UnavailableError: One of them is missing.
    """
    del device
    why_not = detect(sysroot)
    if why_not is not None:
        raise UnavailableError(f"No combined sensor: {why_not}.", hint="Use --device auto.")
    return CombinedMeter((rapl.open_meter(sysroot=sysroot), nvml.open_meter(sysroot=sysroot)))
