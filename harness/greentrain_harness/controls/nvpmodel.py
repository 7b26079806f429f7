"""Power modes of a Jetson: ``nvpmodel -q`` and ``nvpmodel -m ID``, listed in /etc/nvpmodel.conf.

A mode that needs a reboot is not taken: the command's question is answered with nothing, and the mode is
told as refused. The file named by ``sysroot`` may hold a stand-in of the command.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from greentrain.device import OperatingPoint
from greentrain.errors import UnavailableError
from greentrain_harness.controls._base import RestoringControl
from greentrain_harness.controls._journal import CommandSetting, Setting

__all__ = ["detect", "open_control", "run_tool"]

_COMMAND = Path("usr/sbin/nvpmodel")
_MODES = Path("etc/nvpmodel.conf")
_TIMEOUT_S = 60.0
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
# Processors in kHz, the others in Hz; 0 and -1 mean: not limited.
_LIMIT = re.compile(r"^\s*(CPU|GPU|EMC)(?:_\w+)?\s+MAX_FREQ\s+(\d+)", re.MULTILINE)
_WATTS = re.compile(r"(?:^|_)(\d+(?:\.\d+)?)W(?:_|$)")


@dataclass(frozen=True)
class _NvpModel:
    command: Path
    ids: dict[str, int]
    name: str = "nvpmodel"

    def found(self) -> tuple[Setting, ...]:
        return (CommandSetting((str(self.command), "-m", str(_current(self.command)))),)

    def turn(self, point: OperatingPoint) -> None:
        wanted = self.ids[point.name]
        run_tool(self.command, "-m", str(wanted))
        if _current(self.command) != wanted:
            raise UnavailableError(
                f"nvpmodel did not take mode {point.name} (some modes need a reboot).",
                hint=f"Set it yourself: sudo nvpmodel -m {wanted}, reboot, and measure with --points current.",
            )


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when power modes can be set, else one sentence why not."""
    command = sysroot / _COMMAND
    if not command.exists():
        return f"no {command}: this is no Jetson"
    if len(_modes(sysroot)) < 2:
        return f"{sysroot / _MODES} lists no two power modes"
    if sysroot == Path("/") and os.geteuid() != 0:
        return "nvpmodel may only be run by root"
    try:
        _current(command)
    except UnavailableError as error:
        return error.message.rstrip(".")
    return None


def open_control(*, sysroot: Path = Path("/")) -> RestoringControl:
    """Open the power modes.

    Raises:
        UnavailableError: There are none, or no permission.
    """
    why_not = detect(sysroot)
    if why_not is not None:
        hint = "Run the command with sudo." if "by root" in why_not else "Use --points current."
        raise UnavailableError(f"No power modes to set: {why_not}.", hint=hint)
    modes = _modes(sysroot)
    points = tuple(_point(name, text) for name, text in _blocks(sysroot).items())
    return RestoringControl(_NvpModel(sysroot / _COMMAND, modes), points, sysroot)


def _modes(sysroot: Path) -> dict[str, int]:
    """Ids of the modes by name."""
    return {_clean(name): int(number) for number, name in _MODE.findall(_text(sysroot))}


def _blocks(sysroot: Path) -> dict[str, str]:
    """What the list says of each mode, by name."""
    _, *parts = _MODE.split(_text(sysroot))
    # After each "<": id, name, and the lines up to the next mode.
    return {_clean(name): lines for name, lines in zip(parts[1::3], parts[2::3], strict=True)}


def _text(sysroot: Path) -> str:
    try:
        return (sysroot / _MODES).read_text(errors="replace")
    except OSError:
        return ""


def _point(name: str, lines: str) -> OperatingPoint:
    """Clocks and cap of a mode; of several kinds of cores the fastest counts."""
    limits: dict[str, float] = {}
    for part, value in _LIMIT.findall(lines):
        clock_hz = float(value) * (1e3 if part == "CPU" else 1.0)
        if clock_hz > 0:
            limits[part] = max(limits.get(part, 0.0), clock_hz)
    return OperatingPoint(
        name=name, cpu_hz=limits.get("CPU"), gpu_hz=limits.get("GPU"), mem_hz=limits.get("EMC"), cap_w=_cap_w(name)
    )


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "mode"


def _cap_w(name: str) -> float | None:
    """The watts in a mode's name, such as ``MODE_15W_2CORE``; modes without a cap name none."""
    found = _WATTS.search(name)
    return float(found[1]) if found and float(found[1]) > 0 else None


def _current(command: Path) -> int:
    """Id of the present mode: the last number that ``nvpmodel -q`` prints on a line of its own."""
    numbers = [line for line in run_tool(command, "-q").splitlines() if line.strip().isdigit()]
    if not numbers:
        raise UnavailableError(f"{command} -q names no mode.", hint="Run it by hand.")
    return int(numbers[-1])


def run_tool(command: Path, *words: str) -> str:
    """What a tool of the board prints.

    Raises:
        UnavailableError: It cannot be run, or ends with an error.
    """
    try:
        done = subprocess.run(
            [str(command), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"{command} cannot be run ({type(error).__name__}).", hint="Run it by hand.") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        raise UnavailableError(f"{command} {' '.join(words)} ended with {done.returncode} ({said}).", hint="Try sudo.")
    return done.stdout
