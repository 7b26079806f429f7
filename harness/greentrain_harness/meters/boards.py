"""Jetson boards as data: their INA3221 rails, and which rail already contains which.

Only roots are added up: a rail is never added to the rail that feeds it. Offsets are the chip's 80 µV
of shunt offset over the board's shunt at the rail's voltage; the ones of the AGX boards' high-voltage
rails and of the TX boards are not confirmed by a board file. The inner rails of AGX Thor are not confirmed
either; its total does not depend on them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

__all__ = [
    "BOARDS",
    "GAIN_ERROR_RATIO",
    "Board",
    "Chip",
    "Driver",
    "Rail",
    "board_named",
    "identify_board",
    "unknown_board",
]

Chip = Literal["ina3221", "ina238"]
Driver = Literal["iio", "hwmon"]

# 0.25 % of the chip and 1 % of the shunt.
GAIN_ERROR_RATIO = 0.0125


class Rail(msgspec.Struct, frozen=True, kw_only=True):
    """One measured rail.

    Attributes:
        label: As the driver names it.
        address: I²C address of its chip.
        chip: An INA3221 gives millivolts and milliamperes of three rails, an INA238 microwatts of one.
        parent: Label of the rail that feeds it; None when it is a part of the board's total.
        offset_error_w: Stated offset error, watts.
    """

    label: str
    address: int = 0x40
    chip: Chip = "ina3221"
    parent: str | None = None
    offset_error_w: float = 0.08


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A Jetson module.

    Attributes:
        name: Short name.
        model: What ``/proc/device-tree/model`` says.
        part: Part number in ``/proc/device-tree/compatible``, such as ``p3767``.
        drivers: Kernel drivers that this board is found with.
        rails: All rails of the module.
        carrier: Labels of the development kit's carrier board; read by nobody here, because they partly
            contain and partly lie beside the module.
    """

    name: str
    model: str
    part: str
    drivers: tuple[Driver, ...]
    rails: tuple[Rail, ...]
    carrier: frozenset[str] = frozenset()

    @property
    def labels(self) -> frozenset[str]:
        """Labels of all rails."""
        return frozenset(rail.label for rail in self.rails)

    @property
    def roots(self) -> tuple[Rail, ...]:
        """The rails whose sum is the board's total."""
        return tuple(rail for rail in self.rails if rail.parent is None)


def _input_rail(root: str, *fed: str) -> tuple[Rail, ...]:
    return (Rail(label=root), *(Rail(label=label, parent=root) for label in fed))


_NX_RAILS = _input_rail("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")

BOARDS: tuple[Board, ...] = (
    Board(
        name="nano",
        model="NVIDIA Jetson Nano Developer Kit",
        part="p3450",
        drivers=("iio",),
        rails=_input_rail("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"),
    ),
    Board(
        name="tx1",
        model="NVIDIA Jetson TX1",
        part="p2371",
        drivers=("iio",),
        rails=(
            Rail(label="VDD_IN", offset_error_w=0.3),
            Rail(label="VDD_GPU", parent="VDD_IN"),
            Rail(label="VDD_CPU", parent="VDD_IN"),
        ),
        carrier=frozenset(
            {"VDD_MUX", "VDD_5V_IO_SYS", "VDD_3V3_SYS", "VDD_3V3_IO_SLEEP", "VDD_1V8_IO", "VDD_M2_IN"}
        ),
    ),
    Board(
        name="tx2",
        model="NVIDIA Jetson TX2",
        part="p2771",
        drivers=("iio",),
        rails=(
            Rail(label="VDD_SYS_GPU", parent="VDD_IN"),
            Rail(label="VDD_SYS_SOC", parent="VDD_IN"),
            Rail(label="VDD_4V0_WIFI", parent="VDD_IN"),
            Rail(label="VDD_IN", address=0x41, offset_error_w=0.3),
            Rail(label="VDD_SYS_CPU", address=0x41, parent="VDD_IN"),
            Rail(label="VDD_SYS_DDR", address=0x41, parent="VDD_IN"),
        ),
        carrier=frozenset(
            {"VDD_MUX", "VDD_5V0_IO_SYS", "VDD_3V3_SYS", "VDD_3V3_IO_SLP", "VDD_1V8_IO", "VDD_3V3_SYS_M2"}
        ),
    ),
    Board(name="tx2-nx", model="NVIDIA Jetson TX2 NX", part="p3636", drivers=("iio",), rails=_NX_RAILS),
    Board(
        name="xavier-nx", model="NVIDIA Jetson Xavier NX", part="p3668", drivers=("iio", "hwmon"), rails=_NX_RAILS
    ),
    Board(
        name="agx-xavier",
        model="NVIDIA Jetson AGX Xavier",
        part="p2972",
        drivers=("iio", "hwmon"),
        rails=tuple(
            Rail(label=label, address=address, offset_error_w=0.3)
            for label, address in (
                ("GPU", 0x40), ("CPU", 0x40), ("SOC", 0x40), ("CV", 0x41), ("VDDRQ", 0x41), ("SYS5V", 0x41),
            )
        ),
    ),
    Board(name="orin-nx", model="NVIDIA Jetson Orin NX / Orin Nano", part="p3767", drivers=("hwmon",), rails=_NX_RAILS),
    Board(
        name="agx-orin",
        model="NVIDIA Jetson AGX Orin",
        part="p3701",
        drivers=("hwmon",),
        rails=(
            Rail(label="VDD_GPU_SOC", offset_error_w=0.8),
            Rail(label="VDD_CPU_CV", offset_error_w=0.8),
            Rail(label="VIN_SYS_5V0", offset_error_w=0.2),
            # Appears to be fed from the 5 V rail; adding it would count it twice.
            Rail(label="VDDQ_VDD2_1V8AO", address=0x41, parent="VIN_SYS_5V0", offset_error_w=0.2),
        ),
    ),
    Board(
        name="agx-thor",
        model="NVIDIA Jetson AGX Thor Developer Kit",
        part="p3834",
        drivers=("hwmon",),
        rails=(
            Rail(label="VDD_GPU", parent="VIN", offset_error_w=0.8),
            Rail(label="VDD_CPU_SOC_MSS", parent="VIN", offset_error_w=0.8),
            Rail(label="VIN_SYS_5V0", parent="VIN", offset_error_w=0.2),
            Rail(label="VIN", address=0x44, chip="ina238", offset_error_w=0.8),
        ),
    ),
)  # fmt: skip


def board_named(name: str) -> Board:
    """The board of a short name.

    Raises:
        KeyError: There is none.
    """
    for board in BOARDS:
        if board.name == name:
            return board
    raise KeyError(name)


def identify_board(*, compatible: Collection[str], labels: Collection[str]) -> Board | None:
    """Which board this is: by part number where known, else by the set of rails.

    Args:
        compatible: Entries of ``/proc/device-tree/compatible``, such as ``nvidia,p3768-0000+p3767-0000``
            (carrier and module).
        labels: Labels that the driver offers.
    """
    for board in BOARDS:
        by_part = any(board.part in entry for entry in compatible)
        if by_part and any(rail.label in labels for rail in board.rails):
            return board
    fitting = [board for board in BOARDS if board.labels <= set(labels)]
    return max(fitting, key=lambda board: len(board.rails), default=None)


def unknown_board(labels: Collection[str]) -> Board:
    """A board that is not listed: its input rail is the root where it has one, else all rails are."""
    root = next((label for label in ("VIN", "VDD_IN", "POM_5V_IN") if label in labels), None)
    return Board(
        name="unknown",
        model="unknown board",
        part="",
        drivers=("iio", "hwmon"),
        rails=tuple(
            Rail(label=label, parent=root if label != root else None, offset_error_w=0.3) for label in sorted(labels)
        ),
    )
