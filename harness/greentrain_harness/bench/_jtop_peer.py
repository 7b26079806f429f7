"""The real jtop service and client (package jetson-stats) on an emulated board, in a mount namespace of their own.

With ``JTOP_TESTING`` set the service reads its files below ``/fake_sys``; the rest of what it needs of a Jetson is
put together here. Needs root and ``unshare``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from greentrain_harness.meters.boards import Board
from greentrain_harness.meters.trees import write_jetson_tree

__all__ = ["jtop_says", "run_beside_jtop", "write_machine"]

_TIMEOUT_S = 55.0
_MOUNT_POINT = Path("/fake_sys")
_CPU_FILES = {
    "scaling_governor": "schedutil", "scaling_min_freq": "115200", "scaling_max_freq": "1510400",
    "scaling_cur_freq": "1190400", "cpuinfo_min_freq": "115200", "cpuinfo_max_freq": "1510400",
    "cpuinfo_cur_freq": "1190400",
}  # fmt: skip

_ENTER = r"""
set -eu
mount -t tmpfs none /run; mkdir -p /run/lock
mount --bind "$TREE" /fake_sys
cp /etc/group /run/group
grep -q '^jtop:' /run/group || echo 'jtop:x:990:root' >> /run/group
mount --bind /run/group /etc/group
mount -t tmpfs none /sys/devices/virtual
mkdir -p /sys/devices/virtual/dmi/id; echo 'Emulated Jetson' > /sys/devices/virtual/dmi/id/product_name
export JTOP_TESTING=1
JTOP_SERVICE=1 "$PYTHON" -c 'from jtop.__main__ import main; main()' --force > "$TREE/service.log" 2>&1 &
service=$!
trap 'kill $service 2>/dev/null || true; wait $service 2>/dev/null || true' EXIT
"$PYTHON" -c "$CLIENT" $service
"""

# Nothing but jtop's own interface; its total is what it calls so.
_CLIENT = r"""
import json, os, threading
from jtop import jtop
pause = threading.Event()
for _ in range(150):
    if os.path.exists("/run/jtop.sock"):
        break
    pause.wait(0.1)
with jtop(interval=0.5) as client:
    for _ in range(3):
        client.ok()
    power = client.power
said = {name: rail["power"] / 1e3 for name, rail in power["rail"].items()}
print(json.dumps({"total_w": power["tot"]["power"] / 1e3, "rails_w": said}), flush=True)
os._exit(0)
"""


def run_beside_jtop(tree: Path, python: str, client: str) -> subprocess.CompletedProcess[str]:
    """Run Python code beside a jtop service that sees a tree; the service's number is its argument.

    Args:
        tree: Becomes ``/fake_sys``; the service's output goes to ``service.log`` in it.
        python: A Python that has jetson-stats.
        client: The code.

    Raises:
        TimeoutExpired: It took longer than 55 s.
    """
    made = not _MOUNT_POINT.exists()
    _MOUNT_POINT.mkdir(exist_ok=True)
    try:
        return subprocess.run(
            ["unshare", "-m", "-p", "-f", "--mount-proc", "--propagation", "private", "bash", "-c", _ENTER],
            env={**os.environ, "TREE": str(tree), "PYTHON": python, "CLIENT": client},
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    finally:
        if made:
            _MOUNT_POINT.rmdir()


def jtop_says(folder: Path, python: str, board: Board, *, total_w: float) -> str:
    """The total that jtop shows of a board, in words, or why there is none.

    Args:
        folder: For the emulated tree.
        python: A Python that has jetson-stats.
        board: What to imitate.
        total_w: What the board draws.
    """
    tree = folder / "fake_sys"
    write_machine(tree)
    write_jetson_tree(folder, board, driver="hwmon", total_w=total_w)
    for chip in (folder / "sys/bus/i2c/drivers/ina3221").iterdir():
        target = tree / "bus/i2c/devices" / chip.name
        shutil.copytree(chip, target)
        (target / "name").write_text("ina3221\n")
    try:
        done = run_beside_jtop(tree, python, _CLIENT)
    except subprocess.TimeoutExpired:
        return f"hung for {_TIMEOUT_S:g} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        log = tree / "service.log"
        said = done.stderr.strip() or (log.read_text(errors="replace").strip() if log.exists() else "")
        return f"failed: {(said.splitlines() or ['no output'])[-1][:60]}"
    return f"total {json.loads(lines[-1])['total_w']:.2f} W"


def write_machine(root: Path) -> None:
    """What the service wants to see of an Orin Nano beside its power monitors."""
    files = {
        "stat": "cpu  100 0 100 1000 0 0 0 0 0 0\n" + "".join(f"cpu{n} 50 0 50 500 0 0 0 0 0 0\n" for n in range(2))
    }
    for number in range(2):
        files |= {f"devices/system/cpu/cpu{number}/cpufreq/{name}": text for name, text in _CPU_FILES.items()}
    gpu = "devices/platform/17000000.gpu/devfreq/17000000.gpu"
    files |= {f"{gpu}/{name}": text for name, text in (
        ("cur_freq", "306000000"), ("max_freq", "624750000"), ("min_freq", "306000000"), ("governor", "nvhost_podgov"),
        ("device/of_node/name", "gpu"), ("device/railgate_enable", "0"), ("device/tpc_pg_mask", "0"),
        ("device/enable_3d_scaling", "1"), ("device/load", "0"),
    )}  # fmt: skip
    for number, name in enumerate(("cpu-thermal", "gpu-thermal")):
        files |= {f"class/thermal/thermal_zone{number}/type": name, f"class/thermal/thermal_zone{number}/temp": "41000"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "class/devfreq").mkdir(parents=True)
    (root / "class/devfreq/17000000.gpu").symlink_to(Path("../..") / gpu)
