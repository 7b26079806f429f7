from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.errors import UsageError
from greentrain.power import Source
from greentrain.reading import Channel, EnergyRecorder, Sample, Scope, Span
from greentrain_harness.integration import power_energy
from greentrain_harness.meters._roots import next_looks
from greentrain_harness.meters._wall_side import at_wall
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.ina3221 import open_meter
from greentrain_harness.meters.replay import open_recording
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.recording import Recorder, read_recording
from greentrain_harness.sampler import Sampler

Load = Callable[[float], float | None]


class FakeMeter:
    """Watts (or joules) that are functions of a clock turned by hand."""

    def __init__(self, *loads: Load, channels: tuple[Channel, ...] | None = None, rate_hz: float = 100.0) -> None:
        self.t_s = 0.0
        self.loads = loads
        self.name = "fake"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.note = "test"
        self.rate_hz = rate_hz
        self.channels = channels or tuple(
            Channel(name=f"rail{index}", quantity="power_w") for index in range(len(loads))
        )
        self.closed = 0

    def sample(self) -> Sample:
        return Sample(t_s=self.t_s, values=tuple(load(self.t_s) for load in self.loads))

    def close(self) -> None:
        self.closed += 1


def sampled(meter: FakeMeter, seconds: float, *, rate_hz: float = 100.0, phase_s: float = 0.0) -> Sampler:
    sampler = Sampler(meter, clock=lambda: meter.t_s, rate_hz=rate_hz, background=False)
    for index in range(int(seconds * rate_hz) + 1):
        meter.t_s = phase_s + index / rate_hz
        sampler.sample_now()
    return sampler


def known(span: Span) -> tuple[float, float]:
    assert span.energy_j is not None
    assert span.error_j is not None
    return span.energy_j, span.error_j


def test_is_an_energy_recorder() -> None:
    recorder: EnergyRecorder = Sampler(FakeMeter(lambda _: 5.0), background=False)
    assert (recorder.name, recorder.source, recorder.scope, recorder.note) == ("fake", "measured", "board", "test")


@pytest.mark.parametrize("window_s", [0.013, 0.2, 1.0, 3.0])
def test_constant_load_is_exact_at_every_length(window_s: float) -> None:
    sampler = sampled(FakeMeter(lambda _: 5.0), 4.0)
    for start_s in (0.1, 0.1037, 0.5011):
        span = sampler.span(start_s, start_s + window_s)
        assert span.energy_j == pytest.approx(5.0 * window_s, rel=1e-3)
        assert span.mean_w == pytest.approx(5.0, rel=1e-3)
        assert span.gap_s == 0.0


def steps(t_s: float) -> float:
    """5 W and 15 W in turn, for 0.37 s each."""
    return 15.0 if int(t_s / 0.37) % 2 else 5.0


def steps_energy_j(start_s: float, stop_s: float) -> float:
    edges = [index * 0.37 for index in range(int(stop_s / 0.37) + 2)]
    points = [start_s, *(edge for edge in edges if start_s < edge < stop_s), stop_s]
    return sum(steps((low + high) / 2) * (high - low) for low, high in itertools.pairwise(points))


def test_steps_are_close_and_the_stated_error_covers_the_truth() -> None:
    random = np.random.default_rng(7)
    covered = 0
    trials = 200
    for _ in range(trials):
        sampler = sampled(FakeMeter(steps), 3.2, phase_s=float(random.uniform(0, 0.01)))
        start_s = float(random.uniform(0.05, 1.0))
        for window_s, tolerance in ((0.2, 0.05), (1.0, 0.01), (2.0, 0.01)):
            truth_j = steps_energy_j(start_s, start_s + window_s)
            energy_j, error_j = known(sampler.span(start_s, start_s + window_s))
            assert energy_j == pytest.approx(truth_j, rel=tolerance)
            covered += abs(energy_j - truth_j) <= error_j + 1e-9
    assert covered / (3 * trials) >= 0.95


@pytest.mark.parametrize("update_s", [0.0, 0.0066, 0.1])
def test_a_value_belongs_to_the_middle_of_the_time_it_is_held(update_s: float) -> None:
    """On a ramp, a sensor that is late by half its refresh reads too low; the joules are not."""
    t_s = [index * 0.02 for index in range(101)]
    shown_w = [100.0 + 50.0 * (instant_s - update_s / 2) for instant_s in t_s]
    channel = Channel(name="a", quantity="power_w", update_s=update_s)
    ramp = power_energy(t_s, shown_w, 0.5, 1.5, channel=channel, gap_s=0.2)
    assert ramp.energy_j == pytest.approx(150.0, rel=1e-9)
    held = power_energy(t_s, shown_w, 0.0, 2.0, channel=channel, gap_s=0.2)
    assert held.gap_s == 0.0, "the last value holds until it was read"


@settings(deadline=None, max_examples=50)
@given(cut_s=st.floats(min_value=0.2, max_value=1.8))
def test_energy_adds_up_over_windows(cut_s: float) -> None:
    sampler = sampled(FakeMeter(lambda t_s: 5.0 + 3.0 * math.sin(7 * t_s)), 2.0)
    whole, _ = known(sampler.span(0.1, 1.9))
    first, _ = known(sampler.span(0.1, cut_s))
    second, _ = known(sampler.span(cut_s, 1.9))
    assert first + second == pytest.approx(whole, rel=1e-9)


def test_total_is_the_roots_and_channels_are_all() -> None:
    channels = (
        Channel(name="IN", quantity="power_w", gain_error_ratio=0.01, offset_error_w=0.1),
        Channel(name="GPU", quantity="power_w", parent="IN"),
    )
    sampler = sampled(FakeMeter(lambda _: 10.0, lambda _: 4.0, channels=channels), 2.0)
    span = sampler.span(0.5, 1.5)
    assert span.energy_j == pytest.approx(10.0)
    assert span.channels_j == pytest.approx({"IN": 10.0, "GPU": 4.0})
    assert span.error_j == pytest.approx(0.01 * 10.0 + 0.1 * 1.0)


def test_a_long_silence_is_a_gap_and_not_extrapolated() -> None:
    sampler = sampled(FakeMeter(lambda t_s: None if 1.0 <= t_s < 2.0 else 5.0), 4.0)
    span = sampler.span(0.5, 3.5)
    assert span.gap_s == pytest.approx(1.0, abs=0.03)
    assert span.energy_j == pytest.approx(5.0 * (3.0 - span.gap_s))


def test_a_few_missed_samples_are_bridged() -> None:
    sampler = sampled(FakeMeter(lambda t_s: None if 1.0 <= t_s < 1.05 else 5.0), 2.0)
    span = sampler.span(0.5, 1.5)
    assert span.gap_s == 0.0
    assert span.energy_j == pytest.approx(5.0)


def test_a_window_inside_a_gap_has_no_energy() -> None:
    sampler = sampled(FakeMeter(lambda t_s: None if 1.0 <= t_s < 2.0 else 5.0), 3.0)
    span = sampler.span(1.2, 1.8)
    assert (span.energy_j, span.error_j, span.mean_w) == (None, None, None)
    assert span.gap_s == pytest.approx(0.6)


def test_a_window_before_the_first_sample_is_partly_unknown() -> None:
    sampler = sampled(FakeMeter(lambda _: 5.0), 2.0, phase_s=1.0)
    span = sampler.span(0.5, 1.5)
    assert span.energy_j == pytest.approx(2.5)
    assert span.gap_s == pytest.approx(0.5)


def test_a_lost_root_makes_the_total_unknown_but_not_the_other_channels() -> None:
    sampler = sampled(FakeMeter(lambda _: 5.0, lambda _: None), 2.0)
    span = sampler.span(0.5, 1.5)
    assert span.energy_j is None
    assert span.channels_j == {"rail0": pytest.approx(5.0), "rail1": None}
    assert span.gap_s == pytest.approx(1.0)


def test_a_stop_after_the_last_sample_takes_a_fresh_one() -> None:
    meter = FakeMeter(lambda _: 5.0)
    sampler = sampled(meter, 1.0)
    meter.t_s = 1.05
    span = sampler.span(0.5, 1.05)
    assert span.energy_j == pytest.approx(5.0 * 0.55)
    assert span.gap_s == 0.0


def test_odd_windows_never_raise() -> None:
    sampler = sampled(FakeMeter(lambda _: 5.0), 1.0)
    assert sampler.span(0.5, 0.5).energy_j == 0.0
    assert sampler.span(0.8, 0.2).duration_s == 0.0
    assert sampler.span(100.0, 101.0).energy_j is None
    assert Sampler(FakeMeter(lambda _: None), background=False).span(0.0, 1.0).energy_j is None


def test_a_meter_that_raises_is_a_gap() -> None:
    def broken(t_s: float) -> float:
        if t_s > 1.0:
            raise RuntimeError("sensor on fire")
        return 5.0

    sampler = sampled(FakeMeter(broken), 2.0)
    span = sampler.span(0.5, 2.0)
    assert span.energy_j == pytest.approx(2.5)
    assert span.gap_s == pytest.approx(1.0)
    assert sampler.fault == "RuntimeError: sensor on fire"


def counter(load: Load, rate_hz: float = 10.0) -> FakeMeter:
    channel = Channel(name="package-0", quantity="energy_j", gain_error_ratio=0.05, update_s=0.001)
    return FakeMeter(load, channels=(channel,), rate_hz=rate_hz)


def test_counters_are_exact_at_samples_and_interpolated_between() -> None:
    sampler = sampled(counter(lambda t_s: 1e6 + 20.0 * t_s), 5.0, rate_hz=10.0)
    assert sampler.span(1.0, 2.0).energy_j == pytest.approx(20.0)
    assert sampler.span(1.037, 1.071).energy_j == pytest.approx(20.0 * 0.034)


def test_counters_bridge_missed_reads() -> None:
    sampler = sampled(counter(lambda t_s: None if 1.0 < t_s < 4.0 else 20.0 * t_s), 5.0, rate_hz=10.0)
    span = sampler.span(0.5, 4.5)
    assert span.energy_j == pytest.approx(80.0)
    assert span.gap_s == 0.0


def test_a_reset_counter_is_a_gap() -> None:
    sampler = sampled(counter(lambda t_s: 20.0 * t_s if t_s < 2.0 else 20.0 * (t_s - 2.0)), 4.0, rate_hz=10.0)
    span = sampler.span(1.0, 3.0)
    assert span.energy_j == pytest.approx(20.0 * (2.0 - span.gap_s))
    assert span.gap_s == pytest.approx(0.1)


def test_a_counter_in_coarse_steps_states_its_step() -> None:
    meter = FakeMeter(
        lambda t_s: 100.0 * math.floor(t_s / 0.1 + 1e-9) * 0.1,
        channels=(Channel(name="gpu-0", quantity="energy_j", update_s=0.1),),
    )
    random = np.random.default_rng(3)
    sampler = sampled(meter, 5.0, rate_hz=20.0, phase_s=0.013)
    for start_s in random.uniform(0.2, 2.0, size=100):
        energy_j, error_j = known(sampler.span(float(start_s), float(start_s) + 1.5))
        assert abs(energy_j - 150.0) <= error_j


def test_background_thread_samples_until_closed() -> None:
    enough = threading.Event()

    class Counting(FakeMeter):
        def sample(self) -> Sample:
            self.t_s += 0.001
            if self.t_s > 0.01:
                enough.set()
            return super().sample()

    meter = Counting(lambda _: 5.0)
    before = threading.active_count()
    with Sampler(meter, rate_hz=1000.0) as sampler:
        assert enough.wait(timeout=20)
        assert sampler.samples_n > 5
    sampler.close()
    assert meter.closed == 1
    assert threading.active_count() == before
    assert sampler.span(0.002, 0.006).energy_j == pytest.approx(5.0 * 0.004), "the past can still be asked for"


def test_one_sample_of_six_rails_costs_little(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("agx-xavier"), driver="hwmon")
    sampler = Sampler(open_meter(sysroot=tmp_path), background=False)
    batches_s: list[float] = []
    for _ in range(5):
        start_s = time.thread_time()
        for _ in range(100):
            sampler.sample_now()
        batches_s.append((time.thread_time() - start_s) / 100)
    sampler.close()
    assert min(batches_s) < 0.01 / 50, "1 % of a core at 50 Hz"


class RootsFirst(FakeMeter):
    """A board's total, and one rail below it that is read less often."""

    root_rate_hz = 150.0

    def __init__(self, *loads: Load) -> None:
        channels = (Channel(name="IN", quantity="power_w"), Channel(name="GPU", quantity="power_w", parent="IN"))
        super().__init__(*loads, channels=channels, rate_hz=50.0)

    def sample_roots(self) -> Sample:
        return Sample(t_s=self.t_s, values=(self.loads[0](self.t_s), None))


def test_roots_that_are_read_oftener_leave_no_gap_in_the_rest(tmp_path: Path) -> None:
    meter = RootsFirst(steps, lambda t_s: steps(t_s) / 2)
    recorder = Recorder(at_wall(meter, scale=2.0, offset_w=1.0), tmp_path / "r.jsonl")
    assert recorder.root_rate_hz == 150.0
    sampler = Sampler(recorder, clock=lambda: meter.t_s, background=False)
    for index in range(450):
        meter.t_s = index / 150
        sampler.sample_now(roots=index % 3 > 0)
    assert sampler.rate_hz == 150.0
    truth_j = steps_energy_j(0.5, 2.5)
    span = sampler.span(0.5, 2.5)
    assert span.gap_s == 0.0
    assert span.channels_j["IN"] == pytest.approx(truth_j, rel=0.01)
    assert span.energy_j == pytest.approx(2.0 * truth_j + 2.0, rel=0.01)
    assert span.channels_j["GPU"] == pytest.approx(truth_j / 2, rel=0.03)
    sampler.close()
    samples = read_recording(tmp_path / "r.jsonl").samples
    assert sum(sample.values[2] is None for sample in samples) == 300


def test_the_currents_of_the_total_are_read_alone(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    meter = open_meter(sysroot=tmp_path)
    assert meter.sample_roots().values == (None, None, None), "without a voltage there are no watts"
    whole = meter.sample()
    assert meter.sample_roots().values == (whole.values[0], None, None)
    (tree.folders["VDD_IN"] / "in1_input").write_text("")
    assert meter.sample().values[0] is None
    assert meter.sample_roots().values[0] is None, "nor with one that was lost"
    meter.close()


@pytest.mark.parametrize(
    ("text", "update_s"), [("7", 0.007), ("106", 0.106), ("", 0.0066), ("0", 0.0066), ("9999", 0.0066)]
)
def test_a_chip_that_averages_says_how_often_it_refreshes(text: str, update_s: float, tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"))
    (tree.folders["VDD_IN"] / "update_interval").write_text(f"{text}\n")
    meter = open_meter(sysroot=tmp_path)
    assert {channel.update_s for channel in meter.channels} == {update_s}
    meter.close()


@pytest.mark.parametrize(
    ("looks", "core_ratio", "busy_ratio", "then"),
    [(3, 0.031, 0.0, 2), (3, 0.0, 0.31, 2), (1, 0.5, 0.9, 1), (2, 0.015, 0.1, 3), (2, 0.02, 0.1, 2), (3, 0.0, 0.0, 3)],
)
def test_the_total_is_read_as_often_as_processor_and_bus_bear(
    looks: int, core_ratio: float, busy_ratio: float, then: int
) -> None:
    assert next_looks(looks, 3, core_ratio=core_ratio, busy_ratio=busy_ratio) == then


def test_the_thread_reads_roots_between_looks_at_all_channels() -> None:
    enough = threading.Event()

    class Counting(RootsFirst):
        looks = ""

        def sample(self) -> Sample:
            self.t_s += 0.001
            self.looks += "a"
            if len(self.looks) > 40:
                enough.set()
            return super().sample()

        def sample_roots(self) -> Sample:
            self.t_s += 0.001
            self.looks += "r"
            return super().sample_roots()

    meter = Counting(lambda _: 5.0, lambda _: 2.0)
    with Sampler(meter):
        assert enough.wait(timeout=20)
    assert "arra" in meter.looks


def test_old_samples_become_means_and_keep_their_joules() -> None:
    """Also of a rail that is read less often, of a counter, and across a silence."""
    channels = (
        Channel(name="IN", quantity="power_w"), Channel(name="GPU", quantity="power_w", parent="IN"),
        Channel(name="package", quantity="energy_j", parent="IN"),
    )  # fmt: skip

    def load(t_s: float) -> float | None:
        return None if 40.0 <= t_s < 42.0 else steps(t_s)

    def span_of(full_n: int) -> tuple[Span, int]:
        meter = FakeMeter(load, lambda t_s: steps(t_s) / 2, lambda t_s: 20.0 * t_s, channels=channels, rate_hz=50.0)
        sampler = Sampler(meter, clock=lambda: meter.t_s, background=False, full_n=full_n)
        for index in range(5000):
            meter.t_s = index / 50
            sampler.sample_now()
        return sampler.span(1.0, 90.0), sampler.samples_n

    full, full_n = span_of(1_000_000)
    thin, thin_n = span_of(1000)
    assert full_n == 5000
    assert thin_n < 1000 + 5000 / 5
    assert thin.gap_s == pytest.approx(full.gap_s, abs=0.2)
    assert known(thin)[0] == pytest.approx(known(full)[0], rel=0.003)
    assert thin.channels_j["GPU"] == pytest.approx(full.channels_j["GPU"], rel=1e-4)
    assert thin.channels_j["package"] == pytest.approx(full.channels_j["package"], rel=1e-9)


def test_a_week_of_six_rails_fits_in_250_mb() -> None:
    meter = RootsFirst(*([steps] * 6))
    meter.channels = tuple(Channel(name=f"rail{index}", quantity="power_w") for index in range(6))
    sampler = Sampler(meter, clock=lambda: meter.t_s, background=False, full_n=1000)
    for index in range(30_000):
        meter.t_s = index / 150
        sampler.sample_now()
    kept_ratio = (sampler.samples_n - 1000) / 30_000
    assert kept_ratio < 1 / 14
    assert sampler.bytes_per_sample * (1_000_000 + 7 * 86400 * 150 / 15) < 250e6


def test_recording_replays_bit_equal(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    meter = FakeMeter(lambda t_s: math.sin(t_s) + 2, lambda t_s: None if int(t_s * 100) % 7 == 0 else math.pi * t_s)
    recorder = Recorder(meter, path)
    live = Sampler(recorder, clock=lambda: meter.t_s, background=False)
    for index in range(200):
        meter.t_s = index / 97
        live.sample_now()
    expected = live.span(0.1, 2.0)
    live.close()
    replayed = open_recording(path)
    again = Sampler(replayed, background=False)
    while replayed.left:
        again.sample_now()
    span = again.span(0.1, 2.0)
    assert (span.energy_j, span.error_j, span.channels_j) == (expected.energy_j, expected.error_j, expected.channels_j)
    assert span.meter == "replay"
    assert span.source == "measured"
    assert "fake" in again.note


def test_a_cut_recording_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    meter = FakeMeter(lambda _: 5.0)
    recorder = Recorder(meter, path)
    recorder.sample()
    recorder.sample()
    recorder.close()
    path.write_bytes(path.read_bytes()[:-4])
    assert len(read_recording(path).samples) == 1


@pytest.mark.parametrize(
    ("schema", "added", "message"),
    [
        ("samples/9", "", "schema is"),
        ("samples/1", "[1.0, [1.0, 2.0]]\n", "line 3: 2 values, expected 1"),
        ("samples/1", "[oops\n", "line 3"),
        ("samples/1\n", "", "line 1"),
    ],
)
def test_a_damaged_recording_names_the_line(schema: str, added: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    recorder = Recorder(FakeMeter(lambda _: 5.0), path)
    recorder.sample()
    recorder.close()
    path.write_text(path.read_text().replace("samples/1", schema) + added)
    with pytest.raises(UsageError, match=message):
        read_recording(path)
