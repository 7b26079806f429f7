from __future__ import annotations

import logging
from pathlib import Path

import pytest

import greentrain
from greentrain.errors import UsageError
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.window import Window, local_rank, measure

RANK_NAMES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_NAMES:
        monkeypatch.delenv(name, raising=False)


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


def test_over_current_events_of_the_window_are_told(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    counter = tmp_path / "sys/class/hwmon/hwmon7/oc3_event_cnt"
    counter.parent.mkdir(parents=True)
    counter.write_text("4\n")
    alarm = tree.folders["VDD_IN"] / "curr1_crit_alarm"
    alarm.write_text("0\n")
    with measure(sysroot=tmp_path) as before:
        assert before.throttled is None, "not known while the block runs"
    assert before.throttled == ()
    with measure(sysroot=tmp_path) as window:
        counter.write_text("6\n")
        alarm.write_text("1\n")
    assert window.throttled == ("over-current VDD_IN", "over-current oc3")


def test_a_board_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    with measure(sysroot=tmp_path) as window:
        pass
    assert window.throttled is None


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


@pytest.mark.parametrize("name", RANK_NAMES[:3])
def test_ranks_of_one_board_sum_to_the_board(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    windows: list[Window] = []
    for rank in range(3):
        monkeypatch.setenv(name, str(rank))
        with measure(sysroot=tmp_path) as window, window.part() as part:
            pass
        windows.append(window)
        assert (part.energy_j is None) == (rank > 0)
    assert windows[0].energy_j == pytest.approx(6.0 * windows[0].duration_s, rel=1e-3)
    for rank in (1, 2):
        assert (windows[rank].energy_j, windows[rank].error_j, windows[rank].source) == (None, None, None)
        assert windows[rank].duration_s > 0
        assert f"local rank {rank}" in windows[rank].note
        assert "local rank 0 counts" in windows[rank].note


def test_every_rank_counts_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with measure(device="modelled") as window:
        sum(range(10_000))
    assert window.energy_j is not None


def test_the_first_rank_of_a_later_board_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    for name, value in (("RANK", "4"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "0"), ("SLURM_LOCALID", "3")):
        monkeypatch.setenv(name, value)
    with measure(sysroot=tmp_path) as window:
        pass
    assert window.energy_j is not None
    assert "RANK" not in window.note


def test_a_rank_of_an_unknown_board_counts_and_says_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    monkeypatch.setenv("RANK", "2")
    with measure(sysroot=tmp_path) as window:
        pass
    assert window.energy_j is not None
    assert "LOCAL_RANK is not" in window.note


def test_ranks_that_are_no_numbers_are_no_ranks() -> None:
    assert local_rank({}) is None
    assert local_rank({"LOCAL_RANK": "", "SLURM_LOCALID": "x"}) is None
    assert local_rank({"LOCAL_RANK": "-1", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}) == 2


def test_is_exported_lazily() -> None:
    assert greentrain.measure is measure
    assert isinstance(greentrain.measure(), Window)
