"""NVIDIA GPUs through NVML (package nvidia-ml-py, imported as pynvml, only when asked for).

NVML initialises on boards where it then answers no power query, so a value is probed, never just init.
The counter of joules (Volta and newer) is preferred to watts, which newer GPUs average over a second.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope

__all__ = ["LEGACY_MEND", "NvmlMeter", "detect", "open_meter"]

_RATE_HZ = 20.0
_COUNTER_UPDATE_S = 0.1
_POWER_UPDATE_S = 1.0
_GAIN_ERROR_RATIO = 0.05

LEGACY_MEND = "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"


@dataclass(frozen=True)
class _Gpu:
    """One GPU and the query that it answers, in millijoules or milliwatts."""

    channel: Channel
    handle: object
    query: Callable[[Any], int]


class NvmlMeter:
    """Joules (or watts) of every GPU that answers."""

    def __init__(self, gpus: tuple[_Gpu, ...], *, note: str, clock: Clock = time.monotonic) -> None:
        import pynvml

        self._nvml = pynvml
        self._gpus = gpus
        self._clock = clock
        self._closed = False
        self.name = "nvml"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.rate_hz = _RATE_HZ
        self.note = note
        self.channels = tuple(gpu.channel for gpu in gpus)

    def sample(self) -> Sample:
        """Ask every GPU; one that does not answer gives None."""
        before_s = self._clock()
        values = tuple(self._value(gpu) for gpu in self._gpus)
        return Sample(t_s=(before_s + self._clock()) / 2, values=values)

    def _value(self, gpu: _Gpu) -> float | None:
        if self._closed:
            return None
        try:
            return gpu.query(gpu.handle) / 1e3
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        """Shut NVML down; a second call does nothing."""
        if not self._closed:
            self._closed = True
            _shutdown()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when a GPU answers an energy or power query, else one sentence why not."""
    outcome = _probe(sysroot)
    if isinstance(outcome, str):
        return outcome
    _shutdown()
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> NvmlMeter:
    """Open every GPU that answers.

    Args:
        sysroot: Must be the real root: NVML has no files.
        device: Not needed.

    Raises:
        UnavailableError: No driver, no GPU, or none that answers.
    """
    del device
    outcome = _probe(sysroot)
    if isinstance(outcome, str):
        hint = f"Run: {LEGACY_MEND}" if "legacy" in outcome else "Use --device auto, or --device modelled."
        raise UnavailableError(f"No NVIDIA GPU sensor: {outcome}.", hint=hint)
    gpus, silent = outcome
    remark = f"; {silent} GPU(s) answer no power query and are not counted" if silent else ""
    return NvmlMeter(gpus, note=f"GPU boards, not the rest of the machine{remark}")


def _probe(sysroot: Path) -> tuple[tuple[_Gpu, ...], int] | str:
    """GPUs that answer and the number of silent ones (NVML is left initialised), or why there are none."""
    if sysroot != Path("/"):
        return f"NVML sees only the real machine, not a tree under {sysroot}"
    spec = importlib.util.find_spec("pynvml")
    if spec is None:
        return "the package nvidia-ml-py is not installed"
    if spec.submodule_search_locations is not None:
        # nvidia-ml-py is a single module; a package of that name is the old one.
        return "the legacy package pynvml shadows nvidia-ml-py"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML (libnvidia-ml.so.1) does not start ({error})"
    try:
        count = pynvml.nvmlDeviceGetCount()
        found = [_open_gpu(index) for index in range(count)]
    except pynvml.NVMLError as error:
        _shutdown()
        return f"NVML starts but lists no GPU ({error})"
    gpus = tuple(gpu for gpu in found if gpu is not None)
    if not gpus:
        _shutdown()
        return f"NVML starts, but none of {count} GPU(s) answers an energy or power query"
    return gpus, count - len(gpus)


def _open_gpu(index: int) -> _Gpu | None:
    import pynvml

    name = f"gpu-{index}"
    try:
        handle: object = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None
    queries: tuple[tuple[Channel, Callable[[Any], int]], ...] = (
        (
            Channel(name=name, quantity="energy_j", gain_error_ratio=_GAIN_ERROR_RATIO, update_s=_COUNTER_UPDATE_S),
            pynvml.nvmlDeviceGetTotalEnergyConsumption,
        ),
        (
            Channel(name=name, quantity="power_w", gain_error_ratio=_GAIN_ERROR_RATIO, update_s=_POWER_UPDATE_S),
            pynvml.nvmlDeviceGetPowerUsage,
        ),
    )
    for channel, query in queries:
        try:
            query(handle)
        except pynvml.NVMLError:
            continue
        return _Gpu(channel=channel, handle=handle, query=query)
    return None


def _shutdown() -> None:
    import pynvml

    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        # The driver is gone; there is nothing left to release.
        return
