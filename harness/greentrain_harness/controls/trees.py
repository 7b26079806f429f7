"""Emulated clocks and tools of a board under any folder, for tests and for trying the controls out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "write_cpufreq_tree",
    "write_devfreq_tree",
    "write_jetson_clocks_tool",
    "write_nvpmodel_tool",
    "write_thermal_zone",
]

_NVPMODEL = """\
#!/bin/sh
# Emulates nvpmodel: -q prints the mode, -m ID sets it; a mode above {reboot_from} would need a reboot.
state={state}
case "$1" in
  -q) echo "NV Power Mode: emulated"; cat "$state";;
  -m) [ "$2" -lt {reboot_from} ] && echo "$2" > "$state"; exit 0;;
  *) exit 1;;
esac
"""
_JETSON_CLOCKS = """\
#!/bin/sh
# Emulates jetson_clocks: the clock of the tree is one file.
clock={clock}
case "$1" in
  --store) [ -e "$2" ] && exit 1; cp "$clock" "$2";;
  --restore) cp "$2" "$clock";;
  "") echo 2000 > "$clock";;
  *) exit 1;;
esac
"""


def write_cpufreq_tree(
    root: Path,
    *,
    clocks_khz: Sequence[int] = (600_000, 900_000, 1_200_000, 1_500_000),
    policies: Sequence[int] = (0, 4),
) -> tuple[Path, ...]:
    """Write CPU clock policies at their highest clock; returns their folders."""
    folders: list[Path] = []
    for number in policies:
        folder = root / f"sys/devices/system/cpu/cpufreq/policy{number}"
        folder.mkdir(parents=True, exist_ok=True)
        low, high = min(clocks_khz), max(clocks_khz)
        for name, text in (
            ("scaling_available_frequencies", " ".join(map(str, clocks_khz)) + " "),
            ("cpuinfo_min_freq", str(low)), ("cpuinfo_max_freq", str(high)),
            ("scaling_min_freq", str(low)), ("scaling_max_freq", str(high)), ("scaling_governor", "schedutil"),
        ):  # fmt: skip
            (folder / name).write_text(text + "\n")
        folders.append(folder)
    return tuple(folders)


def write_devfreq_tree(
    root: Path, *, name: str = "ga10b", clocks_hz: Sequence[int] = (306_000_000, 510_000_000, 918_000_000)
) -> Path:
    """Write a GPU's clock node beside one of something else; returns the GPU's folder."""
    for node, kind in (("15340000.vic", "vic"), ("17000000.gpu", name)):
        folder = root / "sys/class/devfreq" / node
        (folder / "device/of_node").mkdir(parents=True, exist_ok=True)
        (folder / "device/of_node/name").write_text(f"{kind}\0")
        (folder / "available_frequencies").write_text(" ".join(map(str, clocks_hz)) + "\n")
        (folder / "min_freq").write_text(f"{min(clocks_hz)}\n")
        (folder / "max_freq").write_text(f"{max(clocks_hz)}\n")
    return root / "sys/class/devfreq/17000000.gpu"


def write_nvpmodel_tool(
    root: Path, *, modes: Sequence[str] = ("MAXN", "MODE_15W", "MODE_10W"), mode: int = 0, reboot_from: int = 99
) -> Path:
    """Write a stand-in of nvpmodel and its list of modes; returns the file that holds the present mode."""
    state = root / "var/lib/nvpmodel/status"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(f"{mode}\n")
    lines = [f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1" for number, name in enumerate(modes)]
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/nvpmodel.conf").write_text("\n".join(lines) + f"\n< PM_CONFIG DEFAULT={mode} >\n")
    _write_tool(root / "usr/sbin/nvpmodel", _NVPMODEL.format(state=state, reboot_from=reboot_from))
    return state


def write_jetson_clocks_tool(root: Path) -> Path:
    """Write a stand-in of jetson_clocks; returns the file that holds the clock."""
    clock = root / "sys/clock"
    clock.parent.mkdir(parents=True, exist_ok=True)
    clock.write_text("800\n")
    _write_tool(root / "usr/bin/jetson_clocks", _JETSON_CLOCKS.format(clock=clock))
    return clock


def write_thermal_zone(root: Path, temperature_c: float, *, number: int = 0, name: str = "cpu-thermal") -> Path:
    """Write a thermal zone; returns the file that holds its millidegrees."""
    folder = root / f"sys/class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text(f"{name}\n")
    path = folder / "temp"
    path.write_text(f"{round(temperature_c * 1e3)}\n")
    return path


def _write_tool(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
