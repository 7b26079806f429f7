"""Channel, Sample, Reading, Span; the Meter and Control protocols that the harness implements.

A *meter* gives raw samples. A sampler integrates them to *readings*: cumulative joules at a monotonic
instant. Two readings make a *span*, a measured interval with energy ± error.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol

import msgspec

from greentrain._checks import require, require_non_negative
from greentrain.power import Source

__all__ = ["Channel", "Clock", "Control", "EnergyRecorder", "Meter", "Reading", "Sample", "Scope", "Span"]

Scope = Literal["board", "process"]


class Channel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rail or a counter.

    Attributes:
        name: Unique in its meter, such as ``VDD_IN`` or ``package-0``.
        quantity: ``power_w`` (an instantaneous sensor) or ``energy_j`` (a counter that only rises).
        parent: Channel that already contains this one; None for a root. The total is the sum of the roots.
        gain_error_ratio: Stated gain error, 0.01 for 1 %.
        offset_error_w: Stated offset error, watts.
        update_s: How often the sensor itself refreshes, seconds; 0 when it answers for the very instant.
    """

    name: str
    quantity: Literal["power_w", "energy_j"]
    parent: str | None = None
    gain_error_ratio: float = 0.0
    offset_error_w: float = 0.0
    update_s: float = 0.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One raw look at a meter.

    Attributes:
        t_s: Monotonic instant, seconds.
        values: One value per channel, watts or joules by its quantity; None where the sensor did not answer.
    """

    t_s: float
    values: tuple[float | None, ...]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative joules at a monotonic instant.

    Attributes:
        t_s: Monotonic instant, seconds.
        energy_j: Joules since the sampler was opened, one per channel; None for a channel that never answered.
        error_j: Accumulated ± of each channel, joules; None likewise.
        gap_s: Seconds without data so far, one per channel.
    """

    t_s: float
    energy_j: tuple[float | None, ...]
    error_j: tuple[float | None, ...]
    gap_s: tuple[float, ...]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A measured interval.

    Attributes:
        start_s: Monotonic start, seconds.
        duration_s: Length, seconds.
        energy_j: Joules of the roots together; None when nothing was measured.
        error_j: ± of the energy, joules; None when nothing was measured.
        channels_j: Joules by channel name; None where a channel did not answer.
        gap_s: Longest time without data on a root channel, seconds.
        source: ``measured`` or ``modelled``.
        meter: Name of the meter.
    """

    start_s: float
    duration_s: float
    energy_j: float | None
    error_j: float | None
    channels_j: dict[str, float | None]
    gap_s: float
    source: Source
    meter: str

    def __post_init__(self) -> None:
        require_non_negative(duration_s=self.duration_s, gap_s=self.gap_s, error_j=self.error_j)
        require((self.energy_j is None) == (self.error_j is None), "energy_j and error_j are known together")

    @property
    def mean_w(self) -> float | None:
        """Mean power over the span, watts; None when nothing was measured or the span has no length."""
        if self.energy_j is None or self.duration_s <= 0:
            return None
        return self.energy_j / self.duration_s


class Meter(Protocol):
    """Something that gives raw samples of power or energy.

    Attributes:
        name: File name of the meter (``ina3221``, ``rapl``, …).
        source: ``measured`` when a sensor answers, ``modelled`` otherwise.
        scope: ``board`` when it sees the whole machine, ``process`` when only this process tree.
        channels: The rails or counters, in the order of :attr:`Sample.values`.
        rate_hz: A sensible sampling rate; 0 when sampling at both ends of a window is enough.
        note: What a reader must know, such as an emulated sensor.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> Source: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def channels(self) -> tuple[Channel, ...]: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def note(self) -> str: ...

    def sample(self) -> Sample:
        """Read every channel now. A channel that does not answer gives None; never raises for that."""
        ...

    def close(self) -> None:
        """Release the sensor; a second call does nothing."""
        ...


class EnergyRecorder(Protocol):
    """What the runtime needs of an opened, sampled meter. It never raises: a lost sensor becomes a gap."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> Source: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def note(self) -> str: ...

    def span(self, start_s: float, stop_s: float) -> Span:
        """Energy between two monotonic instants that lie in the recorder's life so far."""
        ...


class Control(Protocol):
    """A knob of a device (power mode, cap, clock) that is always put back."""

    @property
    def name(self) -> str: ...

    def points(self) -> tuple[str, ...]:
        """Names of the operating points that can be set."""
        ...

    def set(self, point: str) -> None:
        """Set an operating point."""
        ...

    def __enter__(self) -> Control: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back what was found."""
        ...


# A monotonic clock in seconds; passed in so that tests need no sleeping.
Clock = Callable[[], float]
