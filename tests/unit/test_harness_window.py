from __future__ import annotations

import logging
from pathlib import Path

import pytest

import greentrain
from greentrain.errors import UsageError
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.window import Window, measure


def test_a_window_has_its_figures_after_exit(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    with measure("block", sysroot=tmp_path) as window:
        assert window.energy_j is None
        sum(range(100_000))
    assert window.mean_w == pytest.approx(6.0, rel=1e-3)
    assert window.energy_j == pytest.approx(6.0 * window.duration_s, rel=1e-3)
    assert window.error_j is not None
    assert window.error_j > 0
    assert window.source == "measured"
    assert window.meter == "ina3221"
    assert set(window.channels) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert window.gap_s == 0.0


def test_a_decorator_keeps_one_window_per_call() -> None:
    joules = measure(device="modelled")

    @joules
    def add(left: int, *, right: int) -> int:
        """Add."""
        return left + right

    assert add(1, right=2) == 3
    assert add(4, right=5) == 9
    assert add.__name__ == "add"
    assert [window.source for window in joules.calls] == ["modelled", "modelled"]
    assert all(window.energy_j is not None and window.label == "add" for window in joules.calls)


def test_errors_of_the_block_pass_through_and_are_measured() -> None:
    with pytest.raises(ZeroDivisionError), measure(device="modelled") as window:
        _ = 1 / 0
    assert window.energy_j is not None


def test_a_missing_sensor_does_not_stop_the_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="greentrain"), measure(device="jetson", sysroot=tmp_path) as window:
        reached = True
    assert reached
    assert (window.energy_j, window.source, window.channels) == (None, None, {})
    assert "no INA3221" in window.note
    assert "no INA3221" in caplog.text


def test_a_misspelt_meter_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="unknown meter"), measure(device="jetsn"):
        pass


def test_parts_share_the_meter_and_add_up(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    with measure("epoch", sysroot=tmp_path) as epoch:
        with epoch.part("forward") as forward:
            assert forward.energy_j is None
            with forward.part("layer") as layer:
                sum(range(50_000))
        early_j = forward.energy_j
        with epoch.part("backward") as backward:
            sum(range(50_000))
    assert forward.energy_j == early_j, "the figures of an ended window do not change"
    for window in (forward, layer, backward):
        assert window.mean_w == pytest.approx(6.0, rel=1e-3)
        assert window.source == "measured"
    assert forward.energy_j is not None
    assert backward.energy_j is not None
    assert epoch.energy_j is not None
    assert forward.energy_j + backward.energy_j <= epoch.energy_j


def test_parts_without_a_meter_are_unknown(tmp_path: Path) -> None:
    with measure(device="jetson", sysroot=tmp_path) as whole, whole.part() as part:
        pass
    assert part.energy_j is None
    assert "no INA3221" in part.note


def test_the_device_is_waited_for_at_both_ends() -> None:
    waits: list[str] = []
    with measure(device="modelled", synchronize=lambda: waits.append("wait")):
        waits.append("block")
    assert waits == ["wait", "block", "wait"]


def test_a_failed_block_is_not_waited_for() -> None:
    waits: list[str] = []

    @measure(device="modelled", synchronize=lambda: waits.append("wait"))
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert waits == ["wait"]


def test_is_exported_lazily() -> None:
    assert greentrain.measure is measure
    assert isinstance(greentrain.measure(), Window)
