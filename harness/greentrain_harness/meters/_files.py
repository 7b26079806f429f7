"""Sensor files that are read many times a second: kept open, a failed read is None."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["SensorFile", "read_text"]

_READ_BYTES = 64
# Looking whether the file was replaced costs as much as reading it.
_LOOK_EVERY = 10


class SensorFile:
    """An integer in a small file, read with one system call.

    The file stays open. It is opened again after an error (the driver was bound anew) and within ten reads
    after it was replaced by another file of the same name (recorded and emulated trees).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._reads = 0
        self._closed = False

    def read(self) -> int | None:
        """The integer; None when the file cannot be read now or holds no integer."""
        if self._closed:
            return None
        try:
            self._reads += 1
            if self._fd is not None and self._reads % _LOOK_EVERY == 0 and os.fstat(self._fd).st_nlink == 0:
                self._drop()
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self._fd, _READ_BYTES, 0))
        except OSError:
            self._drop()
            return None
        except ValueError:
            return None

    def close(self) -> None:
        """Close for good; a second call does nothing."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None


def read_text(path: Path) -> str | None:
    """A small text file without white space around it; None when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip().strip("\0")
    except OSError:
        return None
