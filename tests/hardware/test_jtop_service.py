"""The real jtop service and client (package jetson-stats) on an emulated board, in a mount namespace of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from greentrain_harness.bench._jtop_peer import jtop_says, run_beside_jtop, write_machine
from greentrain_harness.meters.boards import board_named

RAILS = {"VDD_IN": (5000, 1640), "VDD_CPU_GPU_CV": (5000, 520), "VDD_SOC": (5000, 310)}

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
    write_machine(root)
    files: dict[str, str] = {}
    chip = "bus/i2c/devices/1-0040"
    files[f"{chip}/name"] = "ina3221"
    for number, (label, (voltage_mv, current_ma)) in enumerate(RAILS.items(), start=1):
        files |= {
            f"{chip}/hwmon/hwmon3/in{number}_label": label,
            f"{chip}/hwmon/hwmon3/in{number}_input": str(voltage_mv),
            f"{chip}/hwmon/hwmon3/curr{number}_input": str(current_ma),
        }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def need_jtop() -> None:
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed (pip install jetson-stats)")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare for a mount namespace of its own")


@pytest.mark.root
@pytest.mark.slow
def test_jtop_stands_in_the_table_of_the_bench(tmp_path: Path) -> None:
    need_jtop()
    assert jtop_says(tmp_path, sys.executable, board_named("orin-nx"), total_w=12.0) == "total 12.00 W"


@pytest.mark.root
@pytest.mark.slow
def test_the_real_jtop_service_on_an_emulated_board(tmp_path: Path) -> None:
    need_jtop()
    write_tree(tmp_path)
    done = run_beside_jtop(tmp_path, sys.executable, CLIENT)
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
