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
        self._fd = -1
        self._left = 0
        self._closed = False

    def read(self) -> int | None:
        """The integer; None when the file cannot be read now or holds no integer."""
        # This runs hundreds of times a second on a cold processor: one test on the way, all else behind it.
        self._left -= 1
        if self._left < 0 and not self._look():
            return None
        try:
            return int(os.pread(self._fd, _READ_BYTES, 0))
        except OSError:
            self._drop()
            return None
        except ValueError:
            return None

    def _look(self) -> bool:
        """Open the file, again when it was replaced; whether it can be read."""
        if self._closed:
            return False
        try:
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                self._drop()
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._drop()
            return False
        self._left = _LOOK_EVERY - 1
        return True

    def close(self) -> None:
        """Close for good; a second call does nothing."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        self._left = 0
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def read_text(path: Path) -> str | None:
    """A small text file without white space around it; None when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip().strip("\0")
    except OSError:
        return None
