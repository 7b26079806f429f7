from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from greentrain.device import Device, OperatingPoint
from greentrain.errors import UnavailableError, UsageError
from greentrain.power import PowerCurve, PowerModel
from greentrain.reading import Meter
from greentrain_harness.meters import choose, ina3221, modelled, open_named, rapl
from greentrain_harness.meters.boards import BOARDS, Board, Driver, board_named, identify_board
from greentrain_harness.meters.trees import write_jetson_tree, write_rapl_tree


def total(meter: Meter) -> float:
    values = zip(meter.channels, meter.sample().values, strict=True)
    return sum(value or 0.0 for channel, value in values if channel.parent is None)


def jetson(root: Path) -> Meter:
    return ina3221.open_meter(sysroot=root)


@pytest.mark.parametrize(
    ("board", "driver"), [(board, driver) for board in BOARDS for driver in board.drivers],
    ids=lambda value: value.name if isinstance(value, Board) else str(value),
)  # fmt: skip
def test_board_total_counts_every_root_once(board: Board, driver: Driver, tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board, driver=driver, total_w=12.0)
    meter = jetson(tmp_path)
    assert total(meter) == pytest.approx(12.0, abs=0.02)
    assert {channel.name for channel in meter.channels} == board.labels
    tree.set_total_w(7.0)
    assert total(meter) == pytest.approx(7.0, abs=0.02)


def test_rails_of_agx_orin_are_volts_times_amperes(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("agx-orin"))
    for label, power_w in (("VDD_GPU_SOC", 10.0), ("VDD_CPU_CV", 5.0), ("VIN_SYS_5V0", 4.0), ("VDDQ_VDD2_1V8AO", 1.5)):
        tree.set_rail_w(label, power_w)
    meter = jetson(tmp_path)
    assert meter.sample().values == pytest.approx((10.0, 5.0, 4.0, 1.5))
    assert total(meter) == pytest.approx(19.0), "the DRAM rail is behind the 5 V rail"


def test_bus_and_hwmon_numbers_do_not_matter(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("agx-orin"), bus=7, first_number=11, total_w=9.0)
    assert total(jetson(tmp_path)) == pytest.approx(9.0, abs=0.02)


def test_found_through_the_hwmon_class(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path / "a", board_named("orin-nx"), total_w=6.0)
    chip = next((tmp_path / "a").glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"))
    (tmp_path / "b/sys/class/hwmon").mkdir(parents=True)
    chip.rename(tmp_path / "b/sys/class/hwmon/hwmon4")
    assert total(jetson(tmp_path / "b")) == pytest.approx(6.0)


def test_shunt_and_sum_channels_are_not_rails(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    folder = tree.folders["VDD_IN"]
    (folder / "in4_label").write_text("sum of shunt voltages\n")
    (folder / "in4_input").write_text("99\n")
    (folder / "curr4_input").write_text("99999\n")
    assert total(jetson(tmp_path)) == pytest.approx(6.0)


def test_missing_label_of_an_inner_rail_leaves_the_total(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    (tree.folders["VDD_SOC"] / f"in{tree.numbers['VDD_SOC']}_label").unlink()
    meter = jetson(tmp_path)
    assert [channel.name for channel in meter.channels] == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert total(meter) == pytest.approx(6.0)


def test_missing_label_of_a_root_is_no_partial_total(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("agx-orin"))
    (tree.folders["VIN_SYS_5V0"] / f"in{tree.numbers['VIN_SYS_5V0']}_label").unlink()
    with pytest.raises(UnavailableError, match="lacks the rail VIN_SYS_5V0"):
        jetson(tmp_path)


@pytest.mark.parametrize("fault", ["", "nonsense\n"])
def test_an_empty_or_damaged_read_is_a_gap(fault: str, tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    meter = jetson(tmp_path)
    (tree.folders["VDD_IN"] / "curr1_input").write_text(fault)
    values = meter.sample().values
    assert values[0] is None
    assert values[1] is not None
    tree.set_total_w(6.0)
    assert meter.sample().values[0] == pytest.approx(6.0)


def test_an_input_output_error_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    meter = jetson(tmp_path)

    def broken(fd: int, n: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        assert meter.sample().values == (None, None, None)
    assert total(meter) == pytest.approx(6.0), "it recovers by itself"


def test_a_replaced_file_is_opened_again(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=5.0)
    meter = jetson(tmp_path)
    assert total(meter) == pytest.approx(5.0)
    path = tree.folders["VDD_IN"] / "curr1_input"
    path.with_name("new").write_text("2000\n")
    path.with_name("new").replace(path)
    seen = [total(meter) for _ in range(10)]
    assert seen[-1] == pytest.approx(10.0), "within ten reads"


def test_silent_sensor_is_not_usable(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"))
    (tree.folders["VDD_IN"] / "curr1_input").write_text("")
    assert "does not answer" in (ina3221.detect(tmp_path) or "")


def test_unknown_board_with_an_input_rail_counts_only_that(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=8.0)
    (tmp_path / "proc/device-tree/compatible").unlink()
    (tree.folders["VDD_SOC"] / "in3_label").write_text("VDD_SOMETHING_NEW\n")
    assert total(jetson(tmp_path)) == pytest.approx(8.0)


def test_unknown_board_without_an_input_rail_counts_all(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"))
    (tmp_path / "proc/device-tree/compatible").unlink()
    for number, label in enumerate(("VDD_A", "VDD_B", "VDD_C"), start=1):
        (tree.folders["VDD_IN"] / f"in{number}_label").write_text(f"{label}\n")
        (tree.folders["VDD_IN"] / f"curr{number}_input").write_text("200\n")
    assert total(jetson(tmp_path)) == pytest.approx(3.0)


def test_carrier_rails_are_left_out_and_named(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("tx1"), driver="iio", total_w=5.0)
    other = tree.folders["VDD_IN"].parent.parent / "1-0042/iio:device9"
    other.mkdir(parents=True)
    (other / "rail_name_0").write_text("VDD_MUX\n")
    (other / "in_power0_input").write_text("9000\n")
    meter = jetson(tmp_path)
    assert total(meter) == pytest.approx(5.0)
    assert "VDD_MUX" in meter.note


def test_part_number_decides_between_boards_with_the_same_rails() -> None:
    labels = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    board = identify_board(compatible=["nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"], labels=labels)
    assert board == board_named("orin-nx")


@pytest.mark.parametrize("content", ['{"lab": "home", "node": "n3", "kind": "k"}', "{broken"])
def test_a_lab_tree_is_modelled(content: str, tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/greentrain-lab.json").write_text(content)
    meter = jetson(tmp_path)
    assert meter.source == "modelled"
    assert "emulated INA3221 driven by real CPU time of lab node" in meter.note


def test_rapl_takes_packages_and_dram_only(tmp_path: Path) -> None:
    write_rapl_tree(
        tmp_path,
        [
            ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "uncore"),
            ("intel-rapl:0:2", "dram"), ("intel-rapl:1", "package-1"), ("intel-rapl:1:0", "dram"),
            ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0"),
        ],
    )  # fmt: skip
    meter = rapl.open_meter(sysroot=tmp_path)
    names = ["package-0", "package-0-dram", "package-1", "package-1-dram"]
    assert [channel.name for channel in meter.channels] == names


def test_rapl_wrap_is_exact(tmp_path: Path) -> None:
    tree = write_rapl_tree(tmp_path, [("intel-rapl:0", "package-0")], range_uj=1_000_000, energy_uj=900_000)
    ticks = iter(float(second) for second in range(100))
    meter = rapl.RaplMeter(
        (rapl.Zone("package-0", tmp_path / "sys/class/powercap/intel-rapl:0"),), note="", clock=lambda: next(ticks)
    )
    energies_j: list[float | None] = []
    for raw_uj in (999_999, 100, 500_000, 499_999):
        tree.set_energy_uj("intel-rapl:0", raw_uj)
        energies_j.append(meter.sample().values[0])
    assert energies_j == [0.099999, 0.1001, 0.6, 1.599999]


def test_rapl_reset_starts_again_at_nothing() -> None:
    counter = rapl.Unwrapper(range_uj=262_143_328_850)
    assert counter.energy_j(0.0, 5_000_000) == 0.0
    assert counter.energy_j(1.0, 25_000_000) == 20.0
    assert counter.energy_j(2.0, 1_000) == 0.0, "no machine draws 262 kJ in a second: not a wrap"
    assert counter.energy_j(3.0, None) is None
    assert counter.energy_j(4.0, 2_001_000) == 2.0


def test_rapl_says_how_to_get_the_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rapl_tree(tmp_path)

    def denied(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UnavailableError, match="only be read by root") as caught:
        rapl.open_meter(sysroot=tmp_path)
    assert "udev" in (caught.value.hint or "")


def test_rapl_counts_mirrored_dies_once(tmp_path: Path) -> None:
    write_rapl_tree(
        tmp_path,
        [("intel-rapl:0", "package-0-die-0"), ("intel-rapl:1", "package-0-die-1"), ("intel-rapl:2", "package-1-die-0")],
    )
    meter = rapl.open_meter(sysroot=tmp_path)
    assert [channel.name for channel in meter.channels] == ["package-0-die-0", "package-1-die-0"]
    assert "package-0-die-1" in meter.note


def curve(idle_w: float, busy_w: float) -> PowerCurve:
    return PowerCurve(point="current", share_X=(0.0, 1.0), power_w_X=(idle_w, busy_w))


class Machine:
    """A clock and a counter of CPU time that tests turn by hand."""

    def __init__(self) -> None:
        self.t_s = 100.0
        self.cpu_s = 5.0

    def run(self, seconds: float, cpu_s: float) -> None:
        self.t_s += seconds
        self.cpu_s += cpu_s

    def meter(self, cores: float) -> modelled.ModelledMeter:
        return modelled.ModelledMeter(
            curve(4.0, 12.0), cores=cores, gain_error_ratio=0.4, note="test",
            clock=lambda: self.t_s, cpu_s=lambda: self.cpu_s,
        )  # fmt: skip


def test_modelled_is_idle_power_plus_busy_share() -> None:
    machine = Machine()
    meter = machine.meter(cores=2)
    assert meter.sample().values == (0.0,)
    machine.run(10.0, cpu_s=0.0)
    assert meter.sample().values == (40.0,)
    machine.run(10.0, cpu_s=10.0)
    assert meter.sample().values == (120.0,)
    assert meter.source == "modelled"
    assert meter.scope == "process"


def test_modelled_keeps_cpu_time_that_came_in_one_lump() -> None:
    machine = Machine()
    meter = machine.meter(cores=1)
    machine.run(1.0, cpu_s=2.0)
    machine.run(0.0, cpu_s=0.0)
    first = meter.sample().values[0]
    machine.run(1.0, cpu_s=0.0)
    assert first == 12.0
    assert meter.sample().values == (24.0,)


def test_modelled_takes_the_power_of_a_known_device() -> None:
    device = Device(
        id="d", kind="board", memory_bytes=1, points=(OperatingPoint(name="current"),),
        power=PowerModel(idle_w=3.0, curves=(curve(3.0, 9.0),), source="measured", provenance="test"),
    )  # fmt: skip
    meter = modelled.open_meter(device=device)
    assert "power curve of board" in meter.note
    assert meter.channels[0].gain_error_ratio < modelled.GENERIC_ERROR_RATIO


def test_generic_model_says_that_it_is_a_guess() -> None:
    model = modelled.generic_power_model(4)
    assert (model.idle_w, model.curves[0].busy_w) == (8.0, 32.0)
    assert model.source == "modelled"
    assert "guess" in model.provenance


def test_cpu_time_of_this_process_counts() -> None:
    before_s = modelled.tree_cpu_s()
    sum(range(300_000))
    assert modelled.tree_cpu_s() > before_s


def test_auto_takes_the_best_sensor_and_else_the_model(tmp_path: Path) -> None:
    assert choose("auto", sysroot=tmp_path) == "modelled"
    write_rapl_tree(tmp_path)
    assert choose("auto", sysroot=tmp_path) == "rapl"
    write_jetson_tree(tmp_path, board_named("nano"))
    assert choose("auto", sysroot=tmp_path) == "ina3221"


def test_an_unknown_meter_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown meter 'jetsn'") as caught:
        open_named("jetsn")
    assert "ina3221" in (caught.value.hint or "")


def test_boards_are_consistent() -> None:
    for board in BOARDS:
        assert board.roots, board.name
        assert all(rail.parent in board.labels for rail in board.rails if rail.parent), board.name
        assert len(board.labels) == len(board.rails), board.name
        assert not board.labels & board.carrier, board.name
        assert msgspec.json.encode(board)


def test_agx_thor_is_its_input_in_microwatts(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("agx-thor"), bus=2, first_number=5, total_w=42.5)
    assert (tree.folders["VIN"] / "power1_input").read_text().strip() == "42500000"
    meter = jetson(tmp_path)
    assert total(meter) == pytest.approx(42.5)
    assert [channel.name for channel in meter.channels if channel.parent is None] == ["VIN"]


def test_thor_without_its_input_sensor_has_no_total(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("agx-thor"))
    (tree.folders["VIN"] / "power1_input").unlink()
    assert "does not answer" in (ina3221.detect(tmp_path) or "")
