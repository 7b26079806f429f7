from __future__ import annotations

import msgspec
import pytest
from problems import make_device

from greentrain.device import Device, OperatingPoint
from greentrain.errors import UsageError


def _device(**changes: object) -> Device:
    device = make_device("a", kind="nano", points=2, memory_bytes=1 << 30, idle_w=2, busy_w=10)
    return msgspec.structs.replace(device, **changes)


def test_curve_of_a_point() -> None:
    assert _device().curve("p1").point == "p1"
    with pytest.raises(UsageError, match=r"device 'a' has no operating point 'p9'\. It has: p0, p1"):
        _device().curve("p9")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"memory_bytes": 0}, "memory_bytes is 0, expected a finite number above 0"),
        ({"points": ()}, "needs at least one operating point"),
        ({"points": (OperatingPoint(name="p0"), OperatingPoint(name="p0"))}, "must differ"),
        ({"points": (OperatingPoint(name="other"),)}, "no power curve for operating points"),
        ({"wake_s": -1.0}, "wake_s is -1.0"),
        ({"id": ""}, "device id is ''"),
        ({"id": "a b"}, "device id is 'a b'"),
        ({"id": "a@b"}, "without spaces or any of"),
        ({"id": "a/b"}, "without spaces or any of"),
        ({"id": "a\u00a0b"}, "without spaces or any of"),
        ({"id": "a\rb"}, "without spaces or any of"),
        ({"id": "a\x00"}, "without spaces or any of"),
        ({"kind": "x,y"}, "device kind is 'x,y'"),
    ],
)
def test_devices_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _device(**changes)


@pytest.mark.parametrize("field", ["cpu_hz", "gpu_hz", "mem_hz", "cap_w"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_clocks_and_caps_are_positive_or_not_set(field: str, value: float) -> None:
    assert getattr(OperatingPoint(name="p"), field) is None
    with pytest.raises(ValueError, match=f"{field} is"):
        OperatingPoint(name="p", **{field: value})
