"""Memory of this process, and its peak since a reset."""

from __future__ import annotations

import sys

import pytest

from greentrain.runtime.resident import peak_bytes, reset_peak, resident_bytes

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_the_peak_is_of_what_came_after_the_reset() -> None:
    block = bytearray(64 * MIB)
    del block
    reset_peak()
    before = resident_bytes()
    assert peak_bytes() < before + 32 * MIB
    block = bytearray(48 * MIB)
    assert peak_bytes() >= before + 40 * MIB
    del block
    assert peak_bytes() >= before + 40 * MIB
