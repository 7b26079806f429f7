"""Plays a recording of raw samples back, bit-equal: everything above a meter runs without hardware.

The recording is ``<sysroot>/recording.jsonl``, or the file named as ``replay:FILE``.
"""

from __future__ import annotations

from pathlib import Path

from greentrain.device import Device
from greentrain.errors import UnavailableError, UsageError
from greentrain.power import Source
from greentrain.reading import Channel, Sample, Scope
from greentrain_harness.recording import Recording, read_recording

__all__ = ["RECORDING_FILE", "ReplayMeter", "detect", "open_meter", "open_recording"]

RECORDING_FILE = Path("recording.jsonl")


class ReplayMeter:
    """Gives the recorded samples one after the other, with the instants of the recording."""

    def __init__(self, recording: Recording) -> None:
        self._samples = recording.samples
        self._next = 0
        self._closed = False
        self.name = "replay"
        self.source: Source = recording.source
        self.scope: Scope = recording.scope
        self.channels: tuple[Channel, ...] = recording.channels
        self.rate_hz = recording.rate_hz
        self.note = f"replay of {len(recording.samples)} samples of {recording.meter}: {recording.note}"

    @property
    def left(self) -> int:
        """Samples not played yet."""
        return 0 if self._closed else len(self._samples) - self._next

    @property
    def window_s(self) -> tuple[float, float]:
        """First and last instant of the recording; both 0 when it is empty."""
        return (self._samples[0].t_s, self._samples[-1].t_s) if self._samples else (0.0, 0.0)

    def sample(self) -> Sample:
        """The next recorded sample; nothing but None after the last one."""
        if self.left == 0:
            return Sample(t_s=self.window_s[1], values=(None,) * len(self.channels))
        self._next += 1
        return self._samples[self._next - 1]

    def close(self) -> None:
        """Play nothing more; a second call does nothing."""
        self._closed = True


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when a readable recording lies there, else one sentence why not."""
    path = sysroot / RECORDING_FILE
    if not path.exists():
        return f"no recording was found at {path}"
    try:
        return None if read_recording(path).samples else f"{path} holds no samples"
    except UsageError as error:
        return error.message.rstrip(".")


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> ReplayMeter:
    """Open the recording of a sysroot.

    Args:
        sysroot: Folder of the recording.
        device: Not needed.

    Raises:
        UnavailableError: There is none.
    """
    del device
    why_not = detect(sysroot)
    if why_not is not None:
        raise UnavailableError(f"Nothing to replay: {why_not}.", hint="Name a recording as replay:FILE.")
    return open_recording(sysroot / RECORDING_FILE)


def open_recording(path: Path) -> ReplayMeter:
    """Open a recording by its path.

    Raises:
        UsageError: The file is missing or damaged.
    """
    return ReplayMeter(read_recording(path))
