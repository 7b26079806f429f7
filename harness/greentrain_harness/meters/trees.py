"""Emulated sensor trees: the files of a Jetson's INA3221 or of RAPL under any folder.

Tests, recordings and the lab write them; the meters read them through their ``sysroot``. Values are
written in place and at a fixed width, so that a reader sees the old or the new number, never a part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greentrain_harness.meters.boards import Board, Driver, Rail

__all__ = ["JetsonTree", "RaplTree", "write_jetson_tree", "write_rapl_tree"]

_VOLTAGE_MV = 5000
# Part of a feeding rail's power that each rail behind it shows; only the roots' sum carries meaning.
_CHILD_PART = 0.4


@dataclass(frozen=True)
class JetsonTree:
    """A written INA3221 tree whose rails can be set.

    Attributes:
        board: The board it imitates.
        driver: ``iio`` (JetPack 4) or ``hwmon`` (JetPack 5 and later).
        folders: Label to the folder of its chip.
        numbers: Label to its number in the chip's file names.
    """

    board: Board
    driver: Driver
    folders: Mapping[str, Path] = field(repr=False)
    numbers: Mapping[str, int] = field(repr=False)

    def set_rail_w(self, label: str, power_w: float) -> None:
        """Let a rail show a power, to the resolution of the driver (1 mW, or 1 mA at 5 V)."""
        folder, number = self.folders[label], self.numbers[label]
        rail = next(rail for rail in self.board.rails if rail.label == label)
        if rail.chip == "ina238":
            _write_number(folder / "power1_input", round(power_w * 1e6))
        elif self.driver == "iio":
            _write_number(folder / f"in_current{number}_input", round(power_w * 1e6 / _VOLTAGE_MV))
            _write_number(folder / f"in_power{number}_input", round(power_w * 1e3))
        else:
            _write_number(folder / f"curr{number}_input", round(power_w * 1e6 / _VOLTAGE_MV))

    def set_total_w(self, power_w: float) -> None:
        """Let the board's total show a power: shared equally among the roots, a fixed part on the rails behind."""
        part_w = power_w / len(self.board.roots)
        for rail in self.board.rails:
            self.set_rail_w(rail.label, part_w if rail.parent is None else part_w * _CHILD_PART)


@dataclass(frozen=True)
class RaplTree:
    """A written powercap tree whose counters can be set."""

    zones: Mapping[str, Path]

    def set_energy_uj(self, zone: str, energy_uj: int) -> None:
        """Set a counter, microjoules."""
        _write_number(self.zones[zone] / "energy_uj", energy_uj)


def write_jetson_tree(
    root: Path, board: Board, *, driver: Driver | None = None, bus: int = 1, first_number: int = 3,
    total_w: float = 5.0,
) -> JetsonTree:  # fmt: skip
    """Write the INA3221 files and the device tree of a board.

    Args:
        root: The sysroot; made when missing.
        board: What to imitate.
        driver: Defaults to the board's newest.
        bus: I²C bus number.
        first_number: Number of the first ``iio:device`` or ``hwmon``.
        total_w: Power shown at first, watts.
    """
    driver = driver or board.drivers[-1]
    folders: dict[str, Path] = {}
    numbers: dict[str, int] = {}
    for index, address in enumerate(sorted({rail.address for rail in board.rails})):
        rails = [rail for rail in board.rails if rail.address == address]
        chip = "ina3221x" if driver == "iio" else rails[0].chip
        device = "iio:device" if driver == "iio" else "hwmon/hwmon"
        folder = root / f"sys/bus/i2c/drivers/{chip}/{bus}-{address:04x}/{device}{first_number + index}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{chip}\n")
        for number, rail in enumerate(rails, start=0 if driver == "iio" else 1):
            _write_rail(folder, rail, number, driver)
            folders[rail.label], numbers[rail.label] = folder, number
    device_tree = root / "proc/device-tree"
    device_tree.mkdir(parents=True, exist_ok=True)
    (device_tree / "model").write_text(f"{board.model}\0")
    (device_tree / "compatible").write_text(f"nvidia,{board.part}-0000\0nvidia,tegra\0")
    tree = JetsonTree(board=board, driver=driver, folders=folders, numbers=numbers)
    tree.set_total_w(total_w)
    return tree


def write_rapl_tree(
    root: Path, zones: Sequence[tuple[str, str]] = (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")), *,
    range_uj: int = 262_143_328_850, energy_uj: int = 1_000_000,
) -> RaplTree:  # fmt: skip
    """Write a powercap tree.

    Args:
        root: The sysroot; made when missing.
        zones: Folder and name of each zone, such as ``("intel-rapl:0:1", "core")``.
        range_uj: Where the counters wrap.
        energy_uj: First value of every counter.
    """
    paths: dict[str, Path] = {}
    for folder_name, name in zones:
        folder = root / "sys/class/powercap" / folder_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        paths[folder_name] = folder
    tree = RaplTree(zones=paths)
    for folder_name, _ in zones:
        tree.set_energy_uj(folder_name, energy_uj)
    return tree


def _write_rail(folder: Path, rail: Rail, number: int, driver: Driver) -> None:
    if rail.chip == "ina238":
        return
    if driver == "iio":
        (folder / f"rail_name_{number}").write_text(f"{rail.label}\n")
        _write_number(folder / f"in_voltage{number}_input", _VOLTAGE_MV)
    else:
        (folder / f"in{number}_label").write_text(f"{rail.label}\n")
        _write_number(folder / f"in{number}_input", _VOLTAGE_MV)


def _write_number(path: Path, value: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(handle, f"{value:<20d}\n".encode(), 0)
    finally:
        os.close(handle)
