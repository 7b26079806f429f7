"""NVIDIA GPUs through NVML (package nvidia-ml-py, imported as pynvml, only when asked for).

NVML initialises on boards where it then answers no power query, so a value is probed, never just init.
The counter of joules (Volta and newer) is preferred to the instant power, and that to the power that newer
GPUs average over a second. On a Grace-Hopper module the counter holds processor and memory too; under MIG
there is one counter for all instances of a GPU. Both are told in the note.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._throttle import united

__all__ = ["LEGACY_MEND", "NvmlMeter", "detect", "open_meter"]

_RATE_HZ = 20.0
_COUNTER_UPDATE_S = 0.1
_INSTANT_UPDATE_S = 0.1
_AVERAGE_UPDATE_S = 1.0
# Watts under 10 kW, and the scopes of a power field.
_MOST_MW = 10_000_000
_SCOPE_GPU, _SCOPE_MODULE = 0, 1
_GAIN_ERROR_RATIO = 0.05

# Bits of NVML's clock event reasons; the first one, an idle GPU, holds nothing back.
_EVENT_REASONS = {
    0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake", 0x100: "display clock",
}  # fmt: skip

LEGACY_MEND = "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py"


@dataclass(frozen=True)
class _Gpu:
    """One GPU and the query that it answers, in millijoules or milliwatts."""

    channel: Channel
    handle: object
    query: Callable[[Any], int]
    remark: str | None = None


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

    def throttled(self) -> tuple[str, ...] | None:
        """Why the GPUs hold their clocks back now; None when none of them tells."""
        return None if self._closed else united(_event_reasons(gpu) for gpu in self._gpus)

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
    remarks = ["GPU boards, not the rest of the machine", *(gpu.remark for gpu in gpus if gpu.remark)]
    if silent:
        remarks.append(f"{silent} GPU(s) answer no power query and are not counted")
    return NvmlMeter(gpus, note="; ".join(remarks))


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
        (_channel(name, "energy_j", _COUNTER_UPDATE_S), pynvml.nvmlDeviceGetTotalEnergyConsumption),
        (_channel(name, "power_w", _INSTANT_UPDATE_S), _instant_power_mw),
        (_channel(name, "power_w", _AVERAGE_UPDATE_S), pynvml.nvmlDeviceGetPowerUsage),
    )
    for channel, query in queries:
        try:
            query(handle)
        except pynvml.NVMLError:
            continue
        return _Gpu(channel=channel, handle=handle, query=query, remark=_remark(name, handle, channel))
    return None


def _event_reasons(gpu: _Gpu) -> tuple[str, ...] | None:
    import pynvml

    # The second is the name of the first in older drivers and bindings.
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        query: Callable[[object], int] | None = getattr(pynvml, name, None)
        if query is not None:
            with contextlib.suppress(pynvml.NVMLError):
                bits = query(gpu.handle)
                return tuple(f"{gpu.channel.name} {reason}" for bit, reason in _EVENT_REASONS.items() if bits & bit)
    return None


def _channel(name: str, quantity: Literal["energy_j", "power_w"], update_s: float) -> Channel:
    return Channel(name=name, quantity=quantity, gain_error_ratio=_GAIN_ERROR_RATIO, update_s=update_s)


def _instant_power_mw(handle: object, scope: int = _SCOPE_GPU) -> int:
    """Power of this instant; a field query succeeds even where the field in it does not.

    Raises:
        NVMLError: The driver or the GPU has no such field.
    """
    import pynvml

    try:
        field: Any = pynvml.nvmlDeviceGetFieldValues(handle, [(pynvml.NVML_FI_DEV_POWER_INSTANT, scope)])[0]
    except (AttributeError, TypeError):
        # Older bindings know neither the field nor scopes.
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED) from None
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(field.nvmlReturn)
    # The field is a union: a type that is not unsigned would read as something else.
    if field.valueType != pynvml.NVML_VALUE_TYPE_UNSIGNED_INT or not 0 <= field.value.uiVal < _MOST_MW:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
    return int(field.value.uiVal)


def _remark(name: str, handle: object, channel: Channel) -> str | None:
    """What a figure of this GPU holds beside the GPU's own, if anything."""
    import pynvml

    remarks: list[str] = []
    with contextlib.suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
            remarks.append("the whole GPU, shared by all its MIG instances")
    if channel.quantity == "energy_j":
        with contextlib.suppress(pynvml.NVMLError):
            # Only modules that hold more than the GPU answer for the module; a load makes no part of it negative.
            if _instant_power_mw(handle, _SCOPE_MODULE) > _instant_power_mw(handle, _SCOPE_GPU):
                remarks.append("the whole module, with its processor and memory")
    return f"{name}: {' and '.join(remarks)}" if remarks else None


def _shutdown() -> None:
    import pynvml

    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        # The driver is gone; there is nothing left to release.
        return
