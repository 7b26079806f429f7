"""A meter whose total can be read more often than all of its channels, and how often that is worth it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from greentrain.reading import Meter, Sample

__all__ = ["MOST_BUSY_RATIO", "MOST_CORE_RATIO", "RootMeter", "next_looks", "root_rate_hz"]

# Reading the roots oftener than the rest may take sampling to this share of a core, and of the time of its bus.
MOST_CORE_RATIO = 0.03
MOST_BUSY_RATIO = 0.3
# One more look is taken up again only when it fits with some room.
_ROOM = 0.8


@runtime_checkable
class RootMeter(Meter, Protocol):
    """A meter that also reads its root channels alone.

    Attributes:
        root_rate_hz: A sensible rate for that; not above ``rate_hz`` when it has none.
    """

    @property
    def root_rate_hz(self) -> float: ...

    def sample_roots(self) -> Sample:
        """Read the root channels now; the others are None. Never raises for a silent sensor."""
        ...


def root_rate_hz(meter: Meter) -> float:
    """How often the roots of a meter should be read; its own rate when they cannot be read alone."""
    return max(meter.root_rate_hz, meter.rate_hz) if isinstance(meter, RootMeter) else meter.rate_hz


def next_looks(looks: int, most: int, *, core_ratio: float, busy_ratio: float) -> int:
    """Looks at the roots per look at all channels from here on: one fewer, as many, or one more.

    Args:
        looks: As many as there were.
        most: As many as the meter has a use for.
        core_ratio: Share of a core that sampling took.
        busy_ratio: Share of the time that sampling waited for the sensor.
    """
    load = max(core_ratio / MOST_CORE_RATIO, busy_ratio / MOST_BUSY_RATIO)
    if load > 1.0:
        return max(looks - 1, 1)
    fits = load * (looks + 1) / looks < _ROOM
    return min(looks + 1, most) if fits else looks
