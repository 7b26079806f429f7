"""The same suite for every meter: monotone, finite, unit-sane, closes twice, honest about absence."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from greentrain.errors import UnavailableError
from greentrain.reading import Channel, Meter
from greentrain_harness.meters import METERS, jtop, meter_module, open_named, wall
from greentrain_harness.meters.boards import BOARDS, Board, Driver
from greentrain_harness.meters.combined import CombinedMeter
from greentrain_harness.meters.trees import write_jetson_tree, write_rapl_tree
from greentrain_harness.recording import Recorder

Opener = Callable[[Path], Meter]

FAKE_DRIVER = "GREENTRAIN_TEST_FAKE_NVML"


def _jetson(board: Board, driver: Driver) -> Opener:
    def open_it(root: Path) -> Meter:
        write_jetson_tree(root, board, driver=driver)
        return open_named("jetson", sysroot=root)

    return open_it


def _rapl(root: Path) -> Meter:
    write_rapl_tree(root)
    return open_named("cpu", sysroot=root)


def _replay(root: Path) -> Meter:
    write_jetson_tree(root, BOARDS[0])
    recorder = Recorder(open_named("jetson", sysroot=root), root / "recording.jsonl")
    for _ in range(4):
        recorder.sample()
    recorder.close()
    return open_named("replay", sysroot=root)


def _modelled(root: Path) -> Meter:
    return open_named("modelled", sysroot=root)


def _nvml(root: Path) -> Meter:
    del root
    if FAKE_DRIVER not in os.environ:
        pytest.skip("runs in the process that has the fake driver")
    return open_named("nvidia")


class _JtopClient:
    """What the jtop meter uses of a client; the real one runs in tests/hardware."""

    power = types.MappingProxyType({"rail": {"VDD_SOC": {"power": 900}}, "tot": {"name": "VDD_IN", "power": 6000}})
    memory = types.MappingProxyType({"RAM": {"used": 1}})
    interval = 0.5

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held open."""


def _jtop(root: Path) -> Meter:
    del root
    rails = (("VDD_IN", None), ("VDD_SOC", "VDD_IN"))
    channels = tuple(
        Channel(name=name, quantity="power_w", parent=parent, gain_error_ratio=0.01) for name, parent in rails
    )
    return jtop.JtopMeter(_JtopClient(), channels, interval_s=0.5, note="stand-in")


def _hwmon(root: Path) -> Meter:
    chip = root / "sys/class/hwmon/hwmon2"
    chip.mkdir(parents=True)
    (chip / "name").write_text("amdgpu\n")
    (chip / "power1_average").write_text("31000000\n")
    return open_named("hwmon", sysroot=root)


class _Plug(wall._Plug):
    """A plug that answers without a network; one on a real socket is in the unit tests."""

    def get(self, path: str) -> tuple[int, bytes]:
        return 200, b'{"apower": 12.5}'


def _wall(root: Path) -> Meter:
    del root
    return wall.WallMeter(_Plug("http://127.0.0.1:1"), wall._KINDS[0])


def _combined(root: Path) -> Meter:
    return CombinedMeter((_nvml(root), _rapl(root)))


OPENERS: dict[str, Opener] = {
    **{f"ina3221-{board.name}-{driver}": _jetson(board, driver) for board in BOARDS for driver in board.drivers},
    "jtop": _jtop,
    "hwmon": _hwmon,
    "wall": _wall,
    "rapl": _rapl,
    "nvml": _nvml,
    "combined": _combined,
    "replay": _replay,
    "modelled": _modelled,
}


@pytest.fixture(params=list(OPENERS))
def meter(request: pytest.FixtureRequest, tmp_path: Path) -> Meter:
    return OPENERS[request.param](tmp_path)


def test_every_meter_runs_in_this_suite() -> None:
    assert {name.split("-")[0] for name in OPENERS} == set(METERS)


def test_samples_are_finite_sane_and_monotone(meter: Meter) -> None:
    samples = [meter.sample() for _ in range(3)]
    meter.close()
    for before, after in itertools.pairwise(samples):
        assert after.t_s >= before.t_s
    for index, channel in enumerate(meter.channels):
        values = [sample.values[index] for sample in samples]
        known = [value for value in values if value is not None]
        assert len(known) == 3
        assert all(math.isfinite(value) and value >= 0 for value in known)
        if channel.quantity == "power_w":
            assert max(known) < 10_000
        else:
            assert known == sorted(known)


def test_a_sample_has_one_value_per_channel_and_parents_exist(meter: Meter) -> None:
    names = [channel.name for channel in meter.channels]
    assert len(meter.sample().values) == len(names) == len(set(names))
    assert all(channel.parent is None or channel.parent in names for channel in meter.channels)
    assert any(channel.parent is None for channel in meter.channels)
    assert all(channel.gain_error_ratio > 0 for channel in meter.channels), "no sensor is perfect"
    meter.close()


def test_says_what_it_is(meter: Meter) -> None:
    assert meter.name in METERS
    assert meter.source == ("modelled" if meter.name == "modelled" else "measured")
    assert meter.scope == ("process" if meter.name == "modelled" else "board")
    assert meter.rate_hz >= 0
    assert meter.note
    meter.close()


def test_closes_twice_and_is_silent_afterwards(meter: Meter) -> None:
    meter.close()
    meter.close()
    sample = meter.sample()
    assert len(sample.values) == len(meter.channels)
    if meter.name != "modelled":
        assert set(sample.values) == {None}


@pytest.mark.parametrize("name", [name for name in METERS if name != "modelled"])
def test_is_honest_about_absence(name: str, tmp_path: Path) -> None:
    module = meter_module(name)
    why_not = module.detect(tmp_path)
    assert why_not is not None
    assert str(tmp_path) in why_not, "it says where it looked"
    with pytest.raises(UnavailableError, match=r"No|Nothing") as caught:
        module.open_meter(sysroot=tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message
    assert caught.value.hint


FAKE_NVML = r"""
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>
static double seconds(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9;
}
static int answers(long gpu, const char *what) {  /* FAKE="energy0 power1 ..." */
    char key[32]; const char *list = getenv("FAKE");
    snprintf(key, sizeof key, "%s%ld", what, gpu); return list && strstr(list, key);
}
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { return r == 3 ? "Not Supported" : "Error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) {
    if (!answers((long)d - 1, "energy")) return 3;
    *mj = (unsigned long long)(seconds() * 50e3); return 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) {
    if (!answers((long)d - 1, "power")) return 3;
    *mw = 70000; return 0;
}
typedef struct {
    unsigned field, scope; long long stamp, latency; unsigned type, result; unsigned long long value;
} Field;
int nvmlDeviceGetFieldValues(void *d, int n, Field *f) {
    for (int i = 0; i < n; i++) {
        int fits = f[i].field == 186 && answers((long)d - 1, f[i].scope ? "module" : "instant");
        f[i].type = 1; f[i].result = fits ? 0 : 3; f[i].value = f[i].scope ? 310000 : 90000;
    }
    return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) {
    *now = *next = answers((long)d - 1, "mig"); return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *r) {
    if (!answers((long)d - 1, "reasons")) return 3;
    *r = answers((long)d - 1, "capped") ? 0x1 | 0x4 | 0x40 : 0x1; return 0;
}
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is needed to build a fake libnvidia-ml")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(FAKE_NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(folder / "nvml.c")],
        check=True, timeout=50,
    )  # fmt: skip
    return folder


def _with_driver(folder: Path, answers: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE": answers, FAKE_DRIVER: "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def test_nvml_passes_the_suite_on_a_fake_driver(fake_driver: Path) -> None:
    suite = (
        test_samples_are_finite_sane_and_monotone,
        test_a_sample_has_one_value_per_channel_and_parents_exist,
        test_says_what_it_is,
        test_closes_twice_and_is_silent_afterwards,
    )
    nodes = [f"{__file__}::{test.__name__}[{name}]" for test in suite for name in ("nvml", "combined")]
    done = _with_driver(
        fake_driver, "energy0 power0 power1", "-m", "pytest", "-q", "-p", "no:cacheprovider", *nodes
    )  # fmt: skip
    assert "8 passed" in done.stdout, done.stdout


SHOW = (
    "from greentrain_harness.meters import open_named; m = open_named('nvidia');"
    "print([(c.name, c.quantity) for c in m.channels], m.note)"
)


def test_nvml_prefers_the_counter_and_names_silent_gpus(fake_driver: Path) -> None:
    done = _with_driver(fake_driver, "energy0 power0 power1", "-c", SHOW)
    assert "[('gpu-0', 'energy_j'), ('gpu-1', 'power_w')]" in done.stdout, done.stderr
    assert "1 GPU(s) answer no power query" in done.stdout


def test_nvml_that_starts_but_answers_nothing_is_no_meter(fake_driver: Path) -> None:
    done = _with_driver(fake_driver, "", "-c", SHOW)
    assert "none of 3 GPU(s) answers an energy or power query" in done.stderr


def test_nvml_prefers_instant_power_to_the_average_and_checks_the_field(fake_driver: Path) -> None:
    show = SHOW + "; print(m.sample().values, [c.update_s for c in m.channels])"
    done = _with_driver(fake_driver, "power0 instant0 power1", "-c", show)
    assert "(90.0, 70.0) [0.1, 1.0]" in done.stdout, done.stderr


def test_nvml_tells_what_else_a_counter_holds(fake_driver: Path) -> None:
    done = _with_driver(fake_driver, "energy0 instant0 module0 energy1 mig1 instant1", "-c", SHOW)
    assert "gpu-0: the whole module, with its processor and memory" in done.stdout, done.stderr
    assert "gpu-1: the whole GPU, shared by all its MIG instances" in done.stdout


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("energy0 energy1", "None"),
        ("energy0 energy1 reasons0", "()"),
        ("energy0 energy1 reasons1 capped1", "('gpu-1 hardware thermal slowdown', 'gpu-1 power cap')"),
    ],
)
def test_nvml_tells_why_clocks_are_held_back(answers: str, said: str, fake_driver: Path) -> None:
    show = "import greentrain\nwith greentrain.measure(device='nvidia') as w: pass\nprint(w.throttled)"
    done = _with_driver(fake_driver, answers, "-c", show)
    assert done.stdout.strip() == said, done.stderr


def test_a_legacy_package_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "pynvml").mkdir()
    (tmp_path / "pynvml/__init__.py").write_text("")
    code = "from greentrain_harness.meters import nvml; print(nvml.detect())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50, check=True
    )
    assert "the legacy package pynvml shadows nvidia-ml-py" in done.stdout
