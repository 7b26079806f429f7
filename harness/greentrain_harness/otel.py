"""Joules as OpenTelemetry metrics (extra ``otel``; imported only here), after its conventions for hardware.

``hw.energy`` (counter, J) and ``hw.power`` (gauge, W; the mean of the window) by channel, with ``hw.id``, ``hw.name``,
``hw.type`` and ``hw.parent``. A channel with a parent is contained in it: the total is the sum of those without.
Which program receives the metrics is up to the provider that the user has set:

    instruments = EnergyInstruments()
    with greentrain.measure("epoch") as epoch:
        ...
    instruments.record(epoch.span, epoch.rails)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from greentrain.errors import UnavailableError
from greentrain.reading import Channel, Span

__all__ = ["EnergyInstruments", "hardware_type"]

# Words in the names of rails and counters, and the well-known type they stand for; the first that fits.
_TYPES = (
    ("memory", ("dram", "ddr", "vddq", "mem")),
    ("gpu", ("gpu",)),
    ("cpu", ("cpu", "package", "core")),
    ("battery", ("bat",)),
)  # fmt: skip


class EnergyInstruments:
    """The two instruments, made once per process.

    Args:
        provider: A meter provider of OpenTelemetry; the global one when not given.

    Raises:
        UnavailableError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            metrics: Any = importlib.import_module("opentelemetry.metrics")
        except ImportError as error:
            raise UnavailableError(
                "OpenTelemetry is not installed.", hint='Run: pip install "greentrain[otel]"'
            ) from error
        meter = (provider or metrics.get_meter_provider()).get_meter("greentrain")
        self._energy = meter.create_counter("hw.energy", unit="J", description="Energy consumed by the component")
        self._power = meter.create_gauge("hw.power", unit="W", description="Mean power of the last window")

    def record(self, span: Span | None, channels: Iterable[Channel]) -> None:
        """Add a window that has ended; what was not measured is left out, never 0.

        Args:
            span: The window; windows must not overlap, or their joules are counted twice.
            channels: The meter's channels.
        """
        if span is None:
            return
        for channel in channels:
            energy_j = span.channels_j.get(channel.name)
            if energy_j is None:
                continue
            attributes = {
                "hw.id": f"{span.meter}/{channel.name}",
                "hw.name": channel.name,
                "hw.type": hardware_type(channel.name),
                "greentrain.source": span.source,
            }
            if channel.parent is not None:
                attributes["hw.parent"] = f"{span.meter}/{channel.parent}"
            self._energy.add(energy_j, attributes)
            if span.duration_s > 0:
                self._power.set(energy_j / span.duration_s, attributes)


def hardware_type(name: str) -> str:
    """The conventions' type of a rail or counter; ``power_supply`` for a rail that feeds several things."""
    lower = name.lower()
    fitting = [kind for kind, words in _TYPES if any(word in lower for word in words)]
    return fitting[0] if fitting and not {"cpu", "gpu"} <= set(fitting) else "power_supply"
