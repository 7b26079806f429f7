"""Power limit and locked clocks of NVIDIA GPUs through NVML (root).

The limit is put back as found. NVML cannot tell whether clocks were locked before, so that they are always
unlocked at the end: a lock that somebody had set is lost, and has to be set again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greentrain.device import OperatingPoint
from greentrain.errors import UnavailableError
from greentrain_harness.controls._base import RestoringControl, spread
from greentrain_harness.controls._journal import NvmlSetting, Setting

__all__ = ["detect", "open_control", "restore_gpu"]

_MOST_POINTS = 4


@dataclass(frozen=True)
class _Gpu:
    """A GPU whose limit can be set; clocks are empty where they cannot be locked."""

    handle: object
    uuid: str
    lowest_mw: int
    highest_mw: int
    clocks_mhz: tuple[int, ...]


@dataclass(frozen=True)
class _NvmlLimit:
    gpus: tuple[_Gpu, ...]
    name: str = "nvml_limit"

    def found(self) -> tuple[Setting, ...]:
        import pynvml

        return tuple(
            NvmlSetting(gpu.uuid, int(pynvml.nvmlDeviceGetPowerManagementLimit(gpu.handle))) for gpu in self.gpus
        )

    def turn(self, point: OperatingPoint) -> None:
        import pynvml

        for gpu in self.gpus:
            try:
                if point.gpu_hz is not None:
                    mhz = round(point.gpu_hz / 1e6)
                    pynvml.nvmlDeviceSetPowerManagementLimit(gpu.handle, gpu.highest_mw)
                    pynvml.nvmlDeviceSetGpuLockedClocks(gpu.handle, mhz, mhz)
                if point.cap_w is not None:
                    _unlock(gpu.handle, locked=bool(gpu.clocks_mhz))
                    wanted_mw = min(max(round(point.cap_w * 1e3), gpu.lowest_mw), gpu.highest_mw)
                    pynvml.nvmlDeviceSetPowerManagementLimit(gpu.handle, wanted_mw)
            except pynvml.NVMLError as error:
                raise UnavailableError(
                    f"{gpu.uuid} refuses point {point.name} ({error}).", hint="Run the command with sudo."
                ) from error


def restore_gpu(uuid: str, limit_mw: int) -> None:
    """Put a power limit back and unlock the clocks.

    Raises:
        UnavailableError: The driver or the GPU is not there, or refuses.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handle: object = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            _unlock(handle, locked=True)
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise UnavailableError(f"NVML refuses ({error}).", hint="Run: sudo greentrain doctor") from error


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when a GPU's power limit can be set, else one sentence why not."""
    outcome = _probe(sysroot)
    if isinstance(outcome, str):
        return outcome
    import pynvml

    pynvml.nvmlShutdown()
    return None if os.geteuid() == 0 else "power limits may only be set by root"


def open_control(*, sysroot: Path = Path("/")) -> RestoringControl:
    """Open the limits of all GPUs; a point holds for each of them. NVML stays initialised until the process ends.

    Raises:
        UnavailableError: There are none, or no permission.
    """
    why_not = detect(sysroot)
    outcome = _probe(sysroot) if why_not is None else why_not
    if isinstance(outcome, str):
        hint = "Run the command with sudo." if "by root" in outcome else "Use --points current."
        raise UnavailableError(f"No GPU power limit to set: {outcome}.", hint=hint)
    first = outcome[0]
    limits_w = [
        round(first.lowest_mw / 1e3 + (first.highest_mw - first.lowest_mw) / 1e3 * step / 3) for step in range(4)
    ]
    caps = (OperatingPoint(name=f"cap-{watts}W", cap_w=float(watts)) for watts in spread(limits_w, _MOST_POINTS))
    clocks = (
        OperatingPoint(name=f"gpu-{mhz}MHz", gpu_hz=mhz * 1e6) for mhz in spread(list(first.clocks_mhz), _MOST_POINTS)
    )
    return RestoringControl(_NvmlLimit(outcome), (*caps, *clocks), sysroot)


def _probe(sysroot: Path) -> tuple[_Gpu, ...] | str:
    """GPUs with a limit (NVML is left initialised), or why there are none."""
    if sysroot != Path("/"):
        return f"NVML sees only the real machine, not a tree under {sysroot}"
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML (libnvidia-ml.so.1) does not start ({error})"
    gpus: list[_Gpu] = []
    reason = "there is no GPU"
    for index in range(int(pynvml.nvmlDeviceGetCount())):
        try:
            gpus.append(_open_gpu(index))
        except pynvml.NVMLError as error:
            reason = str(error)
    if gpus:
        return tuple(gpus)
    pynvml.nvmlShutdown()
    return f"NVML starts, but no GPU has a power limit ({reason})"


def _open_gpu(index: int) -> _Gpu:
    import pynvml

    handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
    lowest_mw, highest_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    pynvml.nvmlDeviceGetPowerManagementLimit(handle)
    return _Gpu(handle, str(pynvml.nvmlDeviceGetUUID(handle)), int(lowest_mw), int(highest_mw), _clocks_mhz(handle))


def _clocks_mhz(handle: object) -> tuple[int, ...]:
    """Graphics clocks at the highest memory clock; empty where the driver lists none."""
    import pynvml

    try:
        memory_mhz = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
        return tuple(int(mhz) for mhz in pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_mhz))
    except (pynvml.NVMLError, ValueError):
        return ()


def _unlock(handle: object, *, locked: bool) -> None:
    import pynvml

    if not locked:
        return
    try:
        pynvml.nvmlDeviceResetGpuLockedClocks(handle)
    except pynvml.NVMLError:
        # Older GPUs cannot lock clocks: then none are locked.
        return
