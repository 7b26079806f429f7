"""Sampler: turns a meter's raw samples into the joules of any window, with a stated ±.

Watts are integrated by trapezoids over time-stamped samples and interpolated at both ends of the
window; counters are interpolated at both ends. Time without data is a gap: its energy is unknown, is
not counted, and is told as ``gap_s``.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from types import TracebackType

from greentrain.power import Source
from greentrain.reading import Channel, Clock, Meter, Scope, Span
from greentrain_harness.integration import ChannelEnergy, counter_energy, group_means, power_energy
from greentrain_harness.meters._roots import RootMeter, next_looks, root_rate_hz
from greentrain_harness.meters._throttle import throttled_now, united

__all__ = ["Sampler"]

# A counter is looked at this often when its meter names no rate.
_COUNTER_RATE_HZ = 10.0
# This many missed samples in a row are a gap.
_GAP_PERIODS = 10.0
# A counter keeps counting unseen, but after this long a wrap could pass unnoticed.
_COUNTER_GAP_S = 60.0
# A sensor that hangs in its driver must not hold up training.
_PATIENCE_S = 1.0
# So many samples are kept as they are, which is two hours at 150 Hz; of older ones the means over half a gap.
_FULL_N = 1_000_000
# How often it is asked why clocks are held back.
_THROTTLE_S = 1.0
# Sleeping wakes up for less than waiting for an event does; longer than this would hold up the end.
_SLEEP_S = 0.05


class Sampler:
    """Samples a meter in the background and answers for any window of its life; never raises for a lost sensor.

    Use as a context manager; leaving it closes the meter. Samples of the last hours are kept as they are, of older
    ones the means over five looks: six channels take 32 MB, and 28 MB more for every day.

    A meter whose roots can be read alone (a board's total) has them read oftener than the rest, as long as the
    sampling takes no more than 3 % of a core and 30 % of the time of the sensor's bus.

    Args:
        meter: Any meter; the sampler owns it from here on.
        clock: Monotonic seconds; must be the clock of the meter's time stamps.
        rate_hz: Samples per second of all channels; the meter's own rates when not given.
        background: Sample in a thread. Without it only :meth:`sample_now` and :meth:`span` sample.
        full_n: Samples that are kept as they are.
    """

    def __init__(
        self, meter: Meter, *, clock: Clock = time.monotonic, rate_hz: float | None = None, background: bool = True,
        full_n: int = _FULL_N,
    ) -> None:  # fmt: skip
        self._meter = meter
        self._clock = clock
        self._rate_hz = rate_hz or meter.rate_hz or _COUNTER_RATE_HZ
        # Looks at the roots per look at all channels.
        self._most_looks = 1 if rate_hz else max(round(root_rate_hz(meter) / self._rate_hz), 1)
        self._looks = self._most_looks
        self._full_n = full_n
        self._thinned_n = 0
        self._sample_roots = meter.sample_roots if isinstance(meter, RootMeter) else meter.sample
        self._background = background
        self._t_s = array("d")
        # Watts need few digits; counters need all of them.
        self._values = [array("f" if channel.quantity == "power_w" else "d") for channel in meter.channels]
        # Instants at which clocks were held back, and why; nothing of the others, so that it stays short.
        self._throttled: list[tuple[float, tuple[str, ...]]] = []
        self._tells_throttling = False
        self._lock = threading.Lock()
        self._meter_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.fault: str | None = None

    @property
    def name(self) -> str:
        """Name of the meter."""
        return self._meter.name

    @property
    def source(self) -> Source:
        """``measured`` or ``modelled``."""
        return self._meter.source

    @property
    def scope(self) -> Scope:
        """What the meter sees."""
        return self._meter.scope

    @property
    def note(self) -> str:
        """What a reader must know."""
        return self._meter.note

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Channels of the meter."""
        return self._meter.channels

    @property
    def counts(self) -> bool:
        """Whether a channel is a counter."""
        return any(channel.quantity == "energy_j" for channel in self._meter.channels)

    @property
    def samples_n(self) -> int:
        """Samples taken so far."""
        return len(self._t_s)

    @property
    def bytes_per_sample(self) -> int:
        """Memory that one sample takes, bytes."""
        return self._t_s.itemsize + sum(values.itemsize for values in self._values)

    def __enter__(self) -> Sampler:
        """Take the first sample and start sampling."""
        self.sample_now()
        self.look_at_clocks()
        if self._background and self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"sampler-{self.name}", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling and close the meter."""
        self.close()

    def close(self) -> None:
        """Stop sampling and close the meter; spans of the past can still be asked for."""
        if self._closed:
            return
        self.sample_now()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
        self._closed = True
        with contextlib.suppress(OSError):
            self._meter.close()

    @property
    def rate_hz(self) -> float:
        """How often the roots are read at present."""
        return self._rate_hz * self._looks

    def sample_now(self, *, roots: bool = False) -> None:
        """Take a sample at this instant; a meter that fails or hangs leaves a gap.

        Args:
            roots: Only the roots, where the meter can read them alone.
        """
        if self._closed or not self._meter_lock.acquire(timeout=_PATIENCE_S):
            return
        try:
            sample = self._sample_roots() if roots else self._meter.sample()
            if not self._t_s or sample.t_s > self._t_s[-1]:
                with self._lock:
                    self._t_s.append(sample.t_s)
                    for values, value in zip(self._values, sample.values, strict=True):
                        values.append(math.nan if value is None else value)
                    if len(self._t_s) - self._thinned_n > self._full_n:
                        self._thin()
        except Exception as error:
            # The contract says that meters do not raise; training must outlive one that does.
            self.fault = f"{type(error).__name__}: {error}"
        finally:
            self._meter_lock.release()

    def look_at_clocks(self) -> None:
        """Ask the meter why clocks are held back; the thread does once a second, the owner of a window at its ends."""
        if self._closed or not self._meter_lock.acquire(timeout=_PATIENCE_S):
            return
        try:
            t_s, reasons = self._clock(), throttled_now(self._meter)
            if reasons is not None:
                self._tells_throttling = True
            if reasons:
                self._throttled.append((t_s, reasons))
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"
        finally:
            self._meter_lock.release()

    def throttled(self, start_s: float, stop_s: float) -> tuple[str, ...] | None:
        """Why clocks were held back between two instants, as far as anyone looked (:meth:`look_at_clocks`).

        Args:
            start_s: Monotonic start, seconds.
            stop_s: Monotonic stop, seconds.

        Returns:
            Sorted reasons; empty when there was none, None when the meter cannot tell.
        """
        if not self._tells_throttling:
            return None
        return united([(), *(reasons for t_s, reasons in list(self._throttled) if start_s <= t_s <= stop_s)])

    def now_s(self) -> float:
        """The present instant on the sampler's clock, to mark the ends of a window."""
        return self._clock()

    def span(self, start_s: float, stop_s: float) -> Span:
        """Energy between two instants of the sampler's life so far.

        Args:
            start_s: Monotonic start, seconds.
            stop_s: Monotonic stop, seconds; a fresh sample is taken when it lies after the last one.

        Returns:
            The span. ``energy_j`` holds only what was seen; it is None when a root channel gave nothing.
        """
        if not self._t_s or stop_s > self._t_s[-1]:
            self.sample_now()
        stop_s = max(stop_s, start_s)
        parts = {
            channel.name: self._channel_energy(index, channel, start_s, stop_s)
            for index, channel in enumerate(self._meter.channels)
        }
        roots = [parts[channel.name] for channel in self._meter.channels if channel.parent is None]
        energies = [root.energy_j for root in roots if root.energy_j is not None]
        # A total without one of its parts would be too low: then it is not known.
        complete = len(energies) == len(roots) > 0
        return Span(
            start_s=start_s,
            duration_s=stop_s - start_s,
            energy_j=sum(energies) if complete else None,
            error_j=_total_error_j(roots) if complete else None,
            channels_j={name: part.energy_j for name, part in parts.items()},
            gap_s=max((root.gap_s for root in roots), default=stop_s - start_s),
            source=self.source,
            meter=self.name,
        )

    def _channel_energy(self, index: int, channel: Channel, start_s: float, stop_s: float) -> ChannelEnergy:
        integrate, gap_s = (
            (power_energy, _GAP_PERIODS / self._rate_hz)
            if channel.quantity == "power_w"
            else (counter_energy, _COUNTER_GAP_S)
        )
        with self._lock:
            # Neighbours outside the window are needed for its ends, beyond as many missed samples as make a gap.
            low = max(bisect_left(self._t_s, start_s - gap_s) - 1, 0)
            high = bisect_right(self._t_s, stop_s + gap_s) + 1
            t_s, values = self._t_s[low:high], self._values[index][low:high]
        return integrate(t_s, values, start_s, stop_s, channel=channel, gap_s=gap_s)

    def _thin(self) -> None:
        """Replace the older half of the full samples by means; neighbours stay closer than a gap."""
        group_n = round(_GAP_PERIODS / 2) * self._most_looks
        start = self._thinned_n
        stop = start + self._full_n // 2 // group_n * group_n
        for column in (self._t_s, *self._values):
            column[start:stop] = array(column.typecode, group_means(column[start:stop], group_n))
        self._thinned_n = start + (stop - start) // group_n

    def _run(self) -> None:
        pace = _Pace(self._rate_hz)
        due_s, look = time.monotonic(), 0
        look_s = due_s + _THROTTLE_S
        while True:
            # After a stall the missed samples are not made up for.
            due_s = max(due_s + 1.0 / self.rate_hz, time.monotonic())
            if self._stopped_before(due_s):
                return
            start_s = time.monotonic()
            self.sample_now(roots=look > 0)
            pace.busy_s += time.monotonic() - start_s
            if start_s >= look_s and self._tells_throttling:
                self.look_at_clocks()
                look_s = start_s + _THROTTLE_S
            look = (look + 1) % self._looks
            if look == 0 and self._most_looks > 1:
                self._looks = pace.looks(self._looks, self._most_looks)

    def _stopped_before(self, due_s: float) -> bool:
        left_s = max(due_s - time.monotonic(), 0.0)
        if left_s > _SLEEP_S:
            return self._stop.wait(left_s)
        time.sleep(left_s)
        return self._stop.is_set()


class _Pace:
    """What sampling costs its thread, looked at once a second."""

    def __init__(self, rounds_hz: float) -> None:
        self._every = max(round(rounds_hz), 1)
        self._rounds = 0
        self._since_s, self._cpu_s = time.monotonic(), time.thread_time()
        self.busy_s = 0.0

    def looks(self, now: int, most: int) -> int:
        """Looks per round from here on, after another round."""
        self._rounds += 1
        if self._rounds % self._every:
            return now
        seconds, cpu_s = time.monotonic() - self._since_s, time.thread_time() - self._cpu_s
        looks = next_looks(now, most, core_ratio=cpu_s / seconds, busy_ratio=self.busy_s / seconds)
        self._since_s, self._cpu_s, self.busy_s = time.monotonic(), time.thread_time(), 0.0
        return looks


def _total_error_j(roots: list[ChannelEnergy]) -> float:
    """Gains and offsets are shared by a meter's channels and add up; sampling errors are independent."""
    systematic_j = sum(root.systematic_j for root in roots)
    return systematic_j + math.sqrt(sum(root.sampling_j**2 for root in roots))
