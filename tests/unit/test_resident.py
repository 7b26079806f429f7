"""Memory of this process, and its peak since a reset."""

from __future__ import annotations

import mmap
import sys

import pytest

from greentrain.runtime.resident import peak_bytes, reset_peak, resident_bytes

MIB = 1 << 20


def _hold(size_bytes: int) -> mmap.mmap:
    """Memory from the system itself: an allocator would hand out what other tests of this process freed."""
    block = mmap.mmap(-1, size_bytes)
    for start in range(0, size_bytes, mmap.PAGESIZE):
        block[start] = 1
    return block


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_the_peak_is_of_what_came_after_the_reset() -> None:
    _hold(64 * MIB).close()
    reset_peak()
    before = resident_bytes()
    assert peak_bytes() < before + 32 * MIB
    block = _hold(48 * MIB)
    assert peak_bytes() >= before + 40 * MIB
    block.close()
    assert peak_bytes() >= before + 40 * MIB
