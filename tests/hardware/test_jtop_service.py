"""The real jtop service and client (package jetson-stats) on an emulated board, in a mount namespace of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What the service reads when JTOP_TESTING is set: these files below /fake_sys.
CPU_FILES = {
    "scaling_governor": "schedutil", "scaling_min_freq": "115200", "scaling_max_freq": "1510400",
    "scaling_cur_freq": "1190400", "cpuinfo_min_freq": "115200", "cpuinfo_max_freq": "1510400",
    "cpuinfo_cur_freq": "1190400",
}  # fmt: skip
RAILS = {"VDD_IN": (5000, 1640), "VDD_CPU_GPU_CV": (5000, 520), "VDD_SOC": (5000, 310)}

ENTER = r"""
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

CLIENT = r"""
import json, os, signal, sys, threading
from pathlib import Path
from greentrain_harness.meters import choose, open_named
from greentrain_harness.meters.jtop import detect
from greentrain_harness.sampler import Sampler

service = int(sys.argv[1])
pause = threading.Event()
for _ in range(150):
    if detect() is None:
        break
    pause.wait(0.1)
with Sampler(open_named("jtop")) as sampler:
    start_s = sampler.now_s()
    pause.wait(2.2)
    span = sampler.span(start_s, sampler.now_s())
    Path("/fake_sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input").write_text("2640\n")
    pause.wait(1.5)
    raised = sampler.span(sampler.now_s(), sampler.now_s())
    later_s = sampler.now_s()
    pause.wait(1.5)
    raised = sampler.span(later_s, sampler.now_s())
meter = open_named("jtop")
os.kill(service, signal.SIGKILL)
gone = meter.sample().values
for _ in range(150):
    if set(gone) == {None}:
        break
    pause.wait(0.1)
    gone = meter.sample().values
print(json.dumps({
    "mean_w": span.mean_w, "channels": span.channels_j, "duration_s": span.duration_s, "source": span.source,
    "gap_s": span.gap_s, "raised_w": raised.mean_w, "gone": gone,
    "parents": [channel.parent for channel in meter.channels], "note": meter.note,
}), flush=True)
os._exit(0)
"""


def write_tree(root: Path) -> None:
    """An Orin Nano as the service sees it."""
    files = {
        "stat": "cpu  100 0 100 1000 0 0 0 0 0 0\n" + "".join(f"cpu{n} 50 0 50 500 0 0 0 0 0 0\n" for n in range(2))
    }
    for number in range(2):
        files |= {f"devices/system/cpu/cpu{number}/cpufreq/{name}": text for name, text in CPU_FILES.items()}
    gpu = "devices/platform/17000000.gpu/devfreq/17000000.gpu"
    files |= {f"{gpu}/{name}": text for name, text in (
        ("cur_freq", "306000000"), ("max_freq", "624750000"), ("min_freq", "306000000"), ("governor", "nvhost_podgov"),
        ("device/of_node/name", "gpu"), ("device/railgate_enable", "0"), ("device/tpc_pg_mask", "0"),
        ("device/enable_3d_scaling", "1"), ("device/load", "0"),
    )}  # fmt: skip
    chip = "bus/i2c/devices/1-0040"
    files[f"{chip}/name"] = "ina3221"
    for number, (label, (voltage_mv, current_ma)) in enumerate(RAILS.items(), start=1):
        files |= {
            f"{chip}/hwmon/hwmon3/in{number}_label": label,
            f"{chip}/hwmon/hwmon3/in{number}_input": str(voltage_mv),
            f"{chip}/hwmon/hwmon3/curr{number}_input": str(current_ma),
        }
    for number, name in enumerate(("cpu-thermal", "gpu-thermal")):
        files |= {f"class/thermal/thermal_zone{number}/type": name, f"class/thermal/thermal_zone{number}/temp": "41000"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "class/devfreq").mkdir(parents=True)
    (root / "class/devfreq/17000000.gpu").symlink_to(Path("../..") / gpu)


@pytest.mark.root
@pytest.mark.slow
def test_the_real_jtop_service_on_an_emulated_board(tmp_path: Path) -> None:
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed (pip install jetson-stats)")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare for a mount namespace of its own")
    mount_point = Path("/fake_sys")
    made = not mount_point.exists()
    mount_point.mkdir(exist_ok=True)
    write_tree(tmp_path)
    try:
        done = subprocess.run(
            ["unshare", "-m", "-p", "-f", "--mount-proc", "--propagation", "private", "bash", "-c", ENTER],
            env={**os.environ, "TREE": str(tmp_path), "PYTHON": sys.executable, "CLIENT": CLIENT},
            capture_output=True, text=True, timeout=55, check=False,
        )  # fmt: skip
    finally:
        if made:
            mount_point.rmdir()
    log = tmp_path / "service.log"
    assert done.stdout, done.stderr + (log.read_text() if log.exists() else "")
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["mean_w"] == pytest.approx(8.2, rel=1e-3)
    assert {name: energy_j / seen["duration_s"] for name, energy_j in seen["channels"].items()} == pytest.approx(
        {"VDD_IN": 8.2, "VDD_CPU_GPU_CV": 2.6, "VDD_SOC": 1.55}, rel=1e-3
    )
    assert seen["parents"].count(None) == 1
    assert (seen["source"], seen["gap_s"]) == ("measured", 0)
    assert seen["raised_w"] == pytest.approx(13.2, rel=0.02), "it follows the sensor"
    assert set(seen["gone"]) == {None}, "a dead service is silence, not its last words"
