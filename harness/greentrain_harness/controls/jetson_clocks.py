"""All clocks of a Jetson at the top of the present power mode: ``jetson_clocks``, ``--store`` and ``--restore``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from greentrain.device import OperatingPoint
from greentrain.errors import UnavailableError
from greentrain.files import writing
from greentrain_harness.controls._base import RestoringControl
from greentrain_harness.controls._journal import CommandSetting, Setting
from greentrain_harness.controls.nvpmodel import run_tool
from greentrain_harness.restore import journal_paths

__all__ = ["POINT", "detect", "open_control"]

POINT = "max-clocks"
_COMMAND = Path("usr/bin/jetson_clocks")
_STORE = "jetson_clocks.store"


@dataclass(frozen=True)
class _JetsonClocks:
    command: Path
    store: Path
    name: str = "jetson_clocks"

    def found(self) -> tuple[Setting, ...]:
        with writing(self.store):
            self.store.parent.mkdir(parents=True, exist_ok=True)
            # The tool asks before it overwrites a file, and nobody answers.
            self.store.unlink(missing_ok=True)
        run_tool(self.command, "--store", str(self.store))
        return (CommandSetting((str(self.command), "--restore", str(self.store))),)

    def turn(self, point: OperatingPoint) -> None:
        del point
        run_tool(self.command)


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when the clocks can be set, else one sentence why not."""
    if not (sysroot / _COMMAND).exists():
        return f"no {sysroot / _COMMAND}: this is no Jetson"
    if sysroot == Path("/") and os.geteuid() != 0:
        return "jetson_clocks may only be run by root"
    return None


def open_control(*, sysroot: Path = Path("/")) -> RestoringControl:
    """Open the clocks; the only point is ``max-clocks``.

    Raises:
        UnavailableError: There are none, or no permission.
    """
    why_not = detect(sysroot)
    if why_not is not None:
        hint = "Run the command with sudo." if "by root" in why_not else "Use --points current."
        raise UnavailableError(f"No clocks to set: {why_not}.", hint=hint)
    knob = _JetsonClocks(sysroot / _COMMAND, journal_paths(sysroot)[0].with_name(_STORE))
    return RestoringControl(knob, (OperatingPoint(name=POINT),), sysroot)
