from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from greentrain.errors import RunError, UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Sample, Scope
from greentrain_harness.meters import open_named
from greentrain_harness.profilers.device import Pace, TrialPlan, profile_device
from greentrain_harness.profilers.link import measure_link, serve_link

UNIT_S = 0.001


@dataclass
class Board:
    """A board in virtual time: 4 W idle, and 6 W more while a unit of work runs."""

    t_s: float = 0.0
    energy_j: float = 0.0
    lost_after_s: float = 1e9
    closed: int = 0
    name: str = "fake"
    source: Source = "measured"
    scope: Scope = "board"
    rate_hz: float = 10.0
    note: str = "virtual board"
    channels: tuple[Channel, ...] = field(default=(Channel(name="IN", quantity="energy_j"),))

    def clock(self) -> float:
        return self.t_s

    def sleep(self, seconds: float) -> None:
        self.t_s += seconds
        self.energy_j += 4.0 * seconds

    def unit(self) -> None:
        self.t_s += UNIT_S
        self.energy_j += 10.0 * UNIT_S

    def sample(self) -> Sample:
        # An instant of its own for every look.
        self.sleep(1e-6)
        return Sample(t_s=self.t_s, values=(self.energy_j if self.t_s < self.lost_after_s else None,))

    def close(self) -> None:
        self.closed += 1

    def plan(self, **changes: Any) -> TrialPlan:
        return TrialPlan(pace=Pace(clock=self.clock, sleep=self.sleep, background=False), **changes)


def test_profile_finds_idle_and_busy_power() -> None:
    board = Board()
    profile = profile_device(
        device_id="b", kind="b", meter=board, load=board.unit, plan=board.plan(), command="test it"
    )
    curve = profile.device.power.curve("current")
    assert profile.device.power.idle_w == pytest.approx(4.0, rel=1e-3)
    assert curve.power_w(0.5) == pytest.approx(7.0, rel=0.02)
    assert curve.busy_w == pytest.approx(10.0, rel=0.01)
    assert curve.band_w is not None
    assert curve.band_w < 0.1
    assert profile.device.power.source == profile.provenance.source == "measured"
    assert profile.provenance.command == "test it"
    assert profile.provenance.trials_n == 3
    assert profile.provenance.spread_ratio == pytest.approx(0.0, abs=0.01)
    assert profile.device.memory_bytes > 0
    assert board.closed == 1
    assert board.t_s < 13, "the default stays within about 12 s"


def test_a_meter_driven_by_a_lab_stays_modelled() -> None:
    board = Board(source="modelled")
    profile = profile_device(device_id="b", kind="b", meter=board, load=board.unit, plan=board.plan())
    assert profile.device.power.source == profile.provenance.source == "modelled"


def test_a_lost_sensor_is_told() -> None:
    board = Board(lost_after_s=5.0)
    with pytest.raises(RunError, match="meter fake was silent"):
        profile_device(device_id="b", kind="b", meter=board, load=board.unit, plan=board.plan())
    assert board.closed == 1


def test_without_a_sensor_nothing_is_loaded() -> None:
    def never() -> None:
        raise AssertionError("a modelled profile needs no load")

    profile = profile_device(device_id="m", kind="m", meter=open_named("modelled"), load=never)
    assert profile.device.power.source == profile.provenance.source == "modelled"
    assert profile.provenance.meter == "modelled"
    assert profile.provenance.trials_n == 0
    assert profile.device.power.curve("current").busy_w > profile.device.power.idle_w


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_link_over_loopback() -> None:
    port, stop, ready = free_port(), threading.Event(), threading.Event()
    options = {"host": "127.0.0.1", "identity": "far", "stop": stop, "ready": ready}
    server = threading.Thread(target=serve_link, args=(port,), kwargs=options, daemon=True)
    server.start()
    assert ready.wait(timeout=10)
    figures = measure_link("127.0.0.1", port, seconds=0.05)
    stop.set()
    server.join(timeout=10)
    assert not server.is_alive()
    assert figures.upload_bytes_per_s > 1e7
    assert figures.download_bytes_per_s > 1e7
    assert figures.bandwidth_bytes_per_s == min(figures.upload_bytes_per_s, figures.download_bytes_per_s)
    assert 0 < figures.latency_s < 0.1
    assert figures.peer == "far"


def test_link_without_a_server_is_told() -> None:
    port = free_port()
    with pytest.raises(UnavailableError, match=f"no link server answers at 127.0.0.1:{port}"):
        measure_link("127.0.0.1", port, timeout_s=2.0)


def test_link_that_falls_silent_is_told_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start_s = time.monotonic()
        with pytest.raises(RunError, match="broke while it was measured"):
            measure_link("127.0.0.1", int(silent.getsockname()[1]), timeout_s=0.1)
        assert time.monotonic() - start_s < 10


def test_port_in_use_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnavailableError, match="cannot be opened"),
    ):
        serve_link(int(taken.getsockname()[1]), host="127.0.0.1")
