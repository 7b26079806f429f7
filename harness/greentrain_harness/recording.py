"""Recordings of raw samples as JSON lines, and a meter that records another one while it is read.

line 1   {"schema": "greentrain.samples/1", "meter": …, "source": …, "scope": …, "rate_hz": …, "channels": […], …}
others   [t_s, [value or null, …]]

Numbers are written with as many digits as they need to come back bit-equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from greentrain.errors import UsageError
from greentrain.files import writing
from greentrain.power import Source
from greentrain.reading import Channel, Meter, Sample, Scope
from greentrain_harness.meters._roots import RootMeter, root_rate_hz
from greentrain_harness.meters._throttle import throttled_now

__all__ = ["SAMPLES_SCHEMA", "Recorder", "Recording", "read_recording"]

SAMPLES_SCHEMA = "greentrain.samples/1"


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First line of a recording."""

    schema: str
    meter: str
    source: Source
    scope: Scope
    rate_hz: float
    note: str
    channels: tuple[Channel, ...]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recorded meter.

    Attributes:
        meter: Name of the meter that was recorded.
        source: ``measured`` or ``modelled`` at that time.
        scope: What the meter saw.
        rate_hz: Its rate.
        note: Its note.
        channels: Its channels.
        samples: All samples, in order.
    """

    meter: str
    source: Source
    scope: Scope
    rate_hz: float
    note: str
    channels: tuple[Channel, ...]
    samples: tuple[Sample, ...]


class Recorder:
    """A meter that passes another meter's samples on and writes each of them to a file.

    A disk that refuses ends the recording, never the measurement: :attr:`fault` then says why.
    """

    def __init__(self, meter: Meter, path: Path) -> None:
        self._meter = meter
        self.fault: str | None = None
        header = _Header(
            schema=SAMPLES_SCHEMA, meter=meter.name, source=meter.source, scope=meter.scope, rate_hz=meter.rate_hz,
            note=meter.note, channels=meter.channels,
        )  # fmt: skip
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("wb")
            self._stream.write(msgspec.json.encode(header) + b"\n")

    @property
    def name(self) -> str:
        """Name of the recorded meter."""
        return self._meter.name

    @property
    def source(self) -> Source:
        """Source of the recorded meter."""
        return self._meter.source

    @property
    def scope(self) -> Scope:
        """Scope of the recorded meter."""
        return self._meter.scope

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Channels of the recorded meter."""
        return self._meter.channels

    @property
    def rate_hz(self) -> float:
        """Rate of the recorded meter."""
        return self._meter.rate_hz

    @property
    def note(self) -> str:
        """Note of the recorded meter."""
        return self._meter.note

    @property
    def root_rate_hz(self) -> float:
        """Rate of the recorded meter's roots."""
        return root_rate_hz(self._meter)

    def sample(self) -> Sample:
        """Sample the meter and write what it said."""
        return self._written(self._meter.sample())

    def sample_roots(self) -> Sample:
        """Sample the roots, where the meter can read them alone, and write what it said."""
        meter = self._meter
        return self._written(meter.sample_roots() if isinstance(meter, RootMeter) else meter.sample())

    def _written(self, sample: Sample) -> Sample:
        if self.fault is None:
            try:
                self._stream.write(msgspec.json.encode([sample.t_s, sample.values]) + b"\n")
            except (OSError, ValueError) as error:
                self.fault = str(error)
        return sample

    def throttled(self) -> tuple[str, ...] | None:
        """Why clocks are held back, as the meter says."""
        return throttled_now(self._meter)

    def close(self) -> None:
        """Close the file and the meter; a second call does nothing."""
        try:
            self._stream.close()
        except OSError as error:
            self.fault = str(error)
        self._meter.close()


def read_recording(path: Path) -> Recording:
    """Read a recording; a last line that was cut short is left out.

    Raises:
        UsageError: The file is missing, or a line is damaged; the line is named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}).", hint="Give a recording of raw samples."
        ) from error
    try:
        header = msgspec.json.decode(lines[0], type=_Header)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: line 1: {error}.", hint="Give a recording of raw samples.") from error
    if header.schema != SAMPLES_SCHEMA:
        raise UsageError(f"{path}: schema is {header.schema!r}, expected {SAMPLES_SCHEMA!r}.")
    samples: list[Sample] = []
    # A complete file ends with a line feed, so what follows the last one is empty or cut short.
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            t_s, values = msgspec.json.decode(line, type=tuple[float, tuple[float | None, ...]])
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}: line {number}: {error}.", hint="The recording is damaged there.") from error
        if len(values) != len(header.channels):
            raise UsageError(
                f"{path}: line {number}: {len(values)} values, expected {len(header.channels)}, one per channel."
            )
        samples.append(Sample(t_s=t_s, values=values))
    return Recording(
        meter=header.meter, source=header.source, scope=header.scope, rate_hz=header.rate_hz, note=header.note,
        channels=header.channels, samples=tuple(samples),
    )  # fmt: skip
