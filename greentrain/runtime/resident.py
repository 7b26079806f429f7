"""Memory that this process really holds, and the most that it held since a reset."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

__all__ = ["give_back", "peak_bytes", "reset_peak", "resident_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
# Linux: "the peak starts anew", proc(5).
_RESET_PEAK = "5"


def resident_bytes() -> int:
    """What the process holds now; where the system does not tell, the most that it ever held."""
    found = _status_bytes("VmRSS")
    return _ever_bytes() if found is None else found


def peak_bytes() -> int:
    """The most that it held since :func:`reset_peak`, or ever where the system cannot forget."""
    found = _status_bytes("VmHWM")
    return _ever_bytes() if found is None else found


def give_back() -> None:
    """Let glibc return what was freed to the system, as the blocks of other devices; does nothing elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Let the peak start anew at what is held now; does nothing where the system cannot."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK)


def _status_bytes(name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) * 1024


def _ever_bytes() -> int:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
