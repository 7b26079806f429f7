"""Joules of a running process for Prometheus (extra ``prometheus``; imported only here).

    with serve_energy(9101):
        train()

``http://127.0.0.1:9101/metrics`` then answers in the Prometheus and the OpenMetrics format. Names and labels are
those of :mod:`greentrain_harness.export`.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from greentrain.errors import UnavailableError
from greentrain.reading import Clock
from greentrain_harness.meters import open_named
from greentrain_harness.sampler import Sampler

__all__ = ["EnergyCollector", "serve_energy"]


class EnergyCollector:
    """A collector for a registry of ``prometheus_client``: joules since it was made, by channel.

    Args:
        sampler: An open sampler.
        device: Id of the device.
        clock: The sampler's clock.

    Raises:
        UnavailableError: prometheus_client is not installed.
    """

    def __init__(self, sampler: Sampler, *, device: str, clock: Clock = time.monotonic) -> None:
        self._core = _client("prometheus_client.core")
        self._sampler, self._device, self._clock = sampler, device, clock
        self._last_s = clock()
        # A scrape adds what came since the last one: a counter must never fall, and old samples are thinned out.
        self._sums_j: dict[str, float] = {}
        self._gap_s = 0.0
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Any]:
        """The families; a channel that never answered is absent, never 0."""
        with self._lock:
            now_s = self._clock()
            span = self._sampler.span(self._last_s, now_s)
            self._last_s = now_s
            self._gap_s += span.gap_s
            for name, energy_j in span.channels_j.items():
                if energy_j is not None:
                    self._sums_j[name] = self._sums_j.get(name, 0.0) + max(energy_j, 0.0)
            common = (self._device, span.meter, span.source)
            energy = self._core.CounterMetricFamily(
                "greentrain_energy_joules", 'Energy by channel; the total is the sum of root="true".',
                labels=("device", "meter", "source", "channel", "root"),
            )  # fmt: skip
            for channel in self._sampler.channels:
                if channel.name in self._sums_j:
                    root = str(channel.parent is None).lower()
                    energy.add_metric((*common, channel.name, root), self._sums_j[channel.name])
            gap = self._core.CounterMetricFamily(
                "greentrain_gap_seconds", "Seconds without data, which the energy leaves out.",
                labels=("device", "meter", "source"),
            )  # fmt: skip
            gap.add_metric(common, self._gap_s)
        return [energy, gap]


@contextlib.contextmanager
def serve_energy(
    port: int, *, address: str = "127.0.0.1", device: str = "auto", name: str = "", sysroot: Path = Path("/")
) -> Generator[int, None, None]:
    """Answer scrapes while the block runs; gives the port.

    Args:
        port: Where to listen; 0 for any free one.
        address: Only this machine may ask unless another address is named: the endpoint has no password.
        device: Meter, as of ``greentrain.measure``.
        name: Id of the device; the host's name when not given.
        sysroot: Prefix of /sys, /proc and /etc.

    Raises:
        UnavailableError: prometheus_client or the meter is not there.
    """
    client = _client("prometheus_client")
    from greentrain_harness.environment import device_id

    with Sampler(open_named(device, sysroot=sysroot)) as sampler:
        registry = client.CollectorRegistry()
        registry.register(EnergyCollector(sampler, device=name or device_id()))
        server, thread = client.start_http_server(port, addr=address, registry=registry)
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _client(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            "prometheus_client is not installed.", hint='Run: pip install "greentrain[prometheus]"'
        ) from error
