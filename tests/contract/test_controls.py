"""The same suite for every control: it changes something, and puts everything back however the block ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greentrain.errors import RunError, UnavailableError, UsageError
from greentrain_harness import controls
from greentrain_harness.controls import CONTROLS, control_module, restore_after_crash, trees
from greentrain_harness.controls._journal import FileSetting, keep
from greentrain_harness.controls._product import ProductControl
from greentrain_harness.restore import journal_paths

ROOT = Path("/")
FAKE_NVML = r"""
#include <stdio.h>
#include <stdlib.h>
/* Limit and lock of one GPU live in files, as they live in a driver: they outlast the process. */
static long get(const char *name, long otherwise) {
    char path[512]; long value = otherwise; snprintf(path, sizeof path, "%s/%s", getenv("FAKE_GPU"), name);
    FILE *file = fopen(path, "r"); if (file) { if (fscanf(file, "%ld", &value) != 1) value = otherwise; fclose(file); }
    return value;
}
static int put(const char *name, long value) {
    char path[512]; snprintf(path, sizeof path, "%s/%s", getenv("FAKE_GPU"), name);
    FILE *file = fopen(path, "w"); if (!file) return 4; fprintf(file, "%ld\n", value); fclose(file); return 0;
}
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { return "Error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *u, void **d) { *d = (void *)1; return 0; }
int nvmlDeviceGetUUID(void *d, char *b, unsigned n) { snprintf(b, n, "GPU-fake"); return 0; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *d, unsigned *a, unsigned *b) {
    *a = 100000; *b = 400000; return 0;
}
int nvmlDeviceGetPowerManagementLimit(void *d, unsigned *mw) { *mw = get("limit", 350000); return 0; }
int nvmlDeviceSetPowerManagementLimit(void *d, unsigned mw) { return put("limit", mw); }
int nvmlDeviceGetSupportedMemoryClocks(void *d, unsigned *n, unsigned *c) {
    if (*n < 1) { *n = 1; return 7; } *n = 1; c[0] = 2600; return 0;
}
int nvmlDeviceGetSupportedGraphicsClocks(void *d, unsigned m, unsigned *n, unsigned *c) {
    if (*n < 2) { *n = 2; return 7; } *n = 2; c[0] = 1500; c[1] = 900; return 0;
}
int nvmlDeviceSetGpuLockedClocks(void *d, unsigned low, unsigned high) { return put("lock", high); }
int nvmlDeviceResetGpuLockedClocks(void *d) { return put("lock", 0); }
"""

WRITERS: dict[str, Callable[[Path], object]] = {
    "nvpmodel": trees.write_nvpmodel_tool,
    "cpufreq": trees.write_cpufreq_tree,
    "devfreq": trees.write_devfreq_tree,
    "jetson_clocks": trees.write_jetson_clocks_tool,
}


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def settings(root: Path) -> dict[str, str]:
    """Everything but what a control keeps for itself."""
    return {name: text for name, text in contents(root).items() if not name.startswith("var/lib/greentrain")}


def _write_grid(root: Path) -> None:
    trees.write_cpufreq_tree(root)
    trees.write_devfreq_tree(root)


GRID = "cpufreq+devfreq"


@pytest.fixture(params=[*WRITERS, GRID])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    WRITERS.get(request.param, _write_grid)(tmp_path)
    return request.param


def test_every_control_runs_in_this_suite() -> None:
    assert {*WRITERS, "nvml_limit"} == set(CONTROLS)


def test_every_point_can_be_set_and_all_is_put_back(name: str, tmp_path: Path) -> None:
    before = settings(tmp_path)
    with controls.open_control(name, sysroot=tmp_path) as control:
        assert settings(tmp_path) == before, "opening changes nothing"
        assert control.points()
        changed = False
        for point in control.points():
            control.set(point)
            assert control.operating_point(point).name == point
            assert journal_paths(tmp_path)[0].exists()
            changed = changed or settings(tmp_path) != before
        assert changed
    assert settings(tmp_path) == before
    assert not journal_paths(tmp_path)[0].exists()


def test_an_exception_puts_back_and_passes_through(name: str, tmp_path: Path) -> None:
    before = settings(tmp_path)

    def change_and_fail() -> None:
        with controls.open_control(name, sysroot=tmp_path) as control:
            control.set(control.points()[-1])
            assert settings(tmp_path) != before
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert settings(tmp_path) == before


def test_an_unknown_point_is_a_usage_error_and_changes_nothing(name: str, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with (
        controls.open_control(name, sysroot=tmp_path) as control,
        pytest.raises(UsageError, match="has no point 'warp'"),
    ):
        control.set("warp")
    assert contents(tmp_path) == before


CHANGE = """
import sys, signal
from pathlib import Path
from greentrain_harness.controls import open_control
with open_control(sys.argv[1], sysroot=Path(sys.argv[2])) as control:
    control.set(control.points()[-1])
    print("changed", flush=True)
    signal.pause()
"""


@pytest.fixture
def changer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that change a setting, say so, and wait to be stopped."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, root: Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHANGE, name, str(root)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "changed\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_sigterm_puts_back(name: str, tmp_path: Path, changer: Callable[..., subprocess.Popen[str]]) -> None:
    before = settings(tmp_path)
    process = changer(name, tmp_path)
    assert settings(tmp_path) != before
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert settings(tmp_path) == before
    assert not journal_paths(tmp_path)[0].exists()


def test_after_sigkill_the_next_start_puts_back(
    name: str, tmp_path: Path, changer: Callable[..., subprocess.Popen[str]]
) -> None:
    before = settings(tmp_path)
    process = changer(name, tmp_path)
    assert restore_after_crash(tmp_path) == (), "a living process is left alone"
    process.kill()
    process.wait(timeout=20)
    assert settings(tmp_path) != before
    remarks = restore_after_crash(tmp_path)
    assert len(remarks) == 1
    assert all(part in remarks[0] for part in name.split("+"))
    assert "everything was put back" in remarks[0]
    assert settings(tmp_path) == before
    assert restore_after_crash(tmp_path) == ()


def test_only_one_process_at_a_time(tmp_path: Path, changer: Callable[..., subprocess.Popen[str]]) -> None:
    trees.write_cpufreq_tree(tmp_path)
    process = changer("cpufreq", tmp_path)
    after = settings(tmp_path)
    with (
        pytest.raises(UnavailableError, match=f"process {process.pid} is changing clocks"),
        controls.open_control("cpufreq", sysroot=tmp_path) as control,
    ):
        control.set(control.points()[0])
    assert settings(tmp_path) == after
    assert restore_after_crash(tmp_path) == ()


@pytest.mark.parametrize("name", CONTROLS)
def test_is_honest_about_absence(name: str, tmp_path: Path) -> None:
    module = control_module(name)
    why_not = module.detect(tmp_path)
    assert why_not is not None
    assert str(tmp_path) in why_not
    with pytest.raises(UnavailableError) as caught:
        module.open_control(sysroot=tmp_path)
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_two_controls_at_once_are_both_put_back(tmp_path: Path) -> None:
    trees.write_cpufreq_tree(tmp_path)
    trees.write_devfreq_tree(tmp_path)
    before = settings(tmp_path)
    with controls.open_control("cpufreq", sysroot=tmp_path) as cpu, controls.open_control(
        "devfreq", sysroot=tmp_path
    ) as gpu:  # fmt: skip
        cpu.set(cpu.points()[-1])
        gpu.set(gpu.points()[-1])
        journal = json.loads(journal_paths(tmp_path)[0].read_text())
        assert set(journal["settings"]) == {"cpufreq", "devfreq"}
    assert settings(tmp_path) == before
    assert not journal_paths(tmp_path)[0].exists()


def test_a_grid_of_cpu_and_gpu_clocks(tmp_path: Path) -> None:
    _write_grid(tmp_path)
    control = controls.open_control(GRID, sysroot=tmp_path)
    assert control.name == GRID
    assert len(control.points()) == 4 * 3
    assert control.points()[:2] == ("cpu1.5GHz-gpu0.918GHz", "cpu1.5GHz-gpu0.51GHz")
    point = control.operating_point("cpu1.2GHz-gpu0.306GHz")
    assert (point.cpu_hz, point.gpu_hz, point.cap_w) == (1.2e9, 306e6, None)
    with control:
        control.set(point.name)
        journal = json.loads(journal_paths(tmp_path)[0].read_text())
        assert set(journal["settings"]) == {"cpufreq", "devfreq"}
        assert (tmp_path / "sys/class/devfreq/17000000.gpu/max_freq").read_text() == "306000000\n"
        assert (tmp_path / "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq").read_text() == "1200000\n"


@pytest.mark.parametrize("lost", ["sys/class/devfreq/17000000.gpu", "sys/devices/system/cpu/cpufreq/policy4"])
def test_of_a_grid_both_are_put_back_even_when_one_fails(lost: str, tmp_path: Path) -> None:
    _write_grid(tmp_path)
    before = settings(tmp_path)

    def change_and_lose() -> None:
        with controls.open_control(GRID, sysroot=tmp_path) as control:
            control.set(control.points()[-1])
            shutil.rmtree(tmp_path / lost)

    with pytest.raises(RunError, match="not everything was put back"):
        change_and_lose()
    assert settings(tmp_path) == {name: text for name, text in before.items() if not name.startswith(lost)}
    assert journal_paths(tmp_path)[0].exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cpufreq+cpufreq", "names one twice"), ("cpufreq+auto", "names one twice, or auto"),
        ("cpufreq+warp", "unknown control 'warp'"), ("cpufreq+", "unknown control ''"),
    ],
)  # fmt: skip
def test_a_combination_that_makes_no_sense_is_told(words: str, message: str, tmp_path: Path) -> None:
    _write_grid(tmp_path)
    with pytest.raises(UsageError, match=message):
        controls.open_control(words, sysroot=tmp_path)


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ("cpu-900MHz", "cpufreq"), ("gpu-510MHz", "devfreq"), ("cpu1.2GHz-gpu0.306GHz", GRID), ("warp", "cpufreq"),
    ],
)  # fmt: skip
def test_the_control_that_offers_a_point_is_found(point: str, name: str, tmp_path: Path) -> None:
    _write_grid(tmp_path)
    assert controls.control_with(point, sysroot=tmp_path).name == name


def test_without_any_control_no_point_can_be_set(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No operating points can be set here"):
        controls.control_with("cpu-900MHz", sysroot=tmp_path)


def test_two_controls_of_one_thing_are_no_grid(tmp_path: Path) -> None:
    _write_grid(tmp_path)
    twice = (controls.open_control("cpufreq", sysroot=tmp_path), controls.open_control("cpufreq", sysroot=tmp_path))
    with pytest.raises(UsageError, match="both set cpu_hz"):
        ProductControl(twice)


def test_cpufreq_sets_every_policy_and_lowers_the_floor_first(tmp_path: Path) -> None:
    folders = trees.write_cpufreq_tree(tmp_path)
    (folders[0] / "scaling_min_freq").write_text("1200000\n")
    before = settings(tmp_path)
    with controls.open_control("cpufreq", sysroot=tmp_path) as control:
        assert control.points() == ("cpu-1500MHz", "cpu-1200MHz", "cpu-900MHz", "cpu-600MHz")
        control.set("cpu-900MHz")
        assert control.operating_point("cpu-900MHz").cpu_hz == 900e6
        assert [(folder / "scaling_max_freq").read_text() for folder in folders] == ["900000\n"] * 2
        assert (folders[0] / "scaling_min_freq").read_text() == "900000\n"
        assert (folders[1] / "scaling_min_freq").read_text() == "600000\n"
    assert settings(tmp_path) == before


def test_a_cpu_without_a_list_of_clocks_gets_four_of_its_range(tmp_path: Path) -> None:
    (folder,) = trees.write_cpufreq_tree(tmp_path, clocks_khz=(400_000, 4_000_000), policies=(0,))
    (folder / "scaling_available_frequencies").unlink()
    with controls.open_control("cpufreq", sysroot=tmp_path) as control:
        assert control.points() == ("cpu-4000MHz", "cpu-2800MHz", "cpu-1600MHz", "cpu-400MHz")


def test_devfreq_finds_the_gpu_by_name_in_hertz(tmp_path: Path) -> None:
    folder = trees.write_devfreq_tree(tmp_path)
    with controls.open_control("devfreq", sysroot=tmp_path) as control:
        assert control.points() == ("gpu-918MHz", "gpu-510MHz", "gpu-306MHz")
        control.set("gpu-510MHz")
        assert (folder / "max_freq").read_text() == "510000000\n"


def test_a_mode_that_needs_a_reboot_is_refused(tmp_path: Path) -> None:
    state = trees.write_nvpmodel_tool(tmp_path, reboot_from=2)
    with controls.open_control("nvpmodel", sysroot=tmp_path) as control:
        assert control.points() == ("MAXN", "MODE_15W", "MODE_10W")
        assert control.operating_point("MODE_15W").cap_w == 15.0
        assert control.operating_point("MAXN").cap_w is None
        control.set("MODE_15W")
        assert state.read_text() == "1\n"
        with pytest.raises(UnavailableError, match="did not take mode MODE_10W"):
            control.set("MODE_10W")
    assert state.read_text() == "0\n"


def test_a_kernel_that_takes_another_clock_is_told(tmp_path: Path) -> None:
    folders = trees.write_cpufreq_tree(tmp_path)
    (folders[1] / "scaling_max_freq").unlink()
    (folders[1] / "scaling_max_freq").symlink_to("/dev/null")
    with (
        controls.open_control("cpufreq", sysroot=tmp_path) as control,
        pytest.raises(UnavailableError, match="took None instead of 900000"),
    ):
        control.set("cpu-900MHz")
    assert (folders[0] / "scaling_max_freq").read_text() == "1500000\n"


def test_what_cannot_be_put_back_is_told_and_kept(tmp_path: Path) -> None:
    folders = trees.write_cpufreq_tree(tmp_path)

    def change_and_lose() -> None:
        with controls.open_control("cpufreq", sysroot=tmp_path) as control:
            control.set("cpu-600MHz")
            shutil.rmtree(folders[1])

    with pytest.raises(RunError, match="not everything was put back"):
        change_and_lose()
    assert (folders[0] / "scaling_max_freq").read_text() == "1500000\n", "the rest is put back all the same"
    assert journal_paths(tmp_path)[0].exists()


def test_a_damaged_journal_is_told_not_guessed(tmp_path: Path) -> None:
    path = journal_paths(tmp_path)[0]
    path.parent.mkdir(parents=True)
    path.write_text('{"pid": 1')
    assert "Check clocks and caps by hand" in restore_after_crash(tmp_path)[0]
    assert path.exists()


def test_journals_of_people_and_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert journal_paths(ROOT)[0] == tmp_path / "state/greentrain/restore.json"
    keep("cpufreq", (FileSetting("/x", "1"),), ROOT)
    assert journal_paths(ROOT)[0].exists()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert journal_paths(ROOT) == (Path("/var/lib/greentrain/restore.json"),)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    own = Path("/home/ann/.local/state/greentrain/restore.json")
    assert journal_paths(ROOT) == (own, Path("/var/lib/greentrain/restore.json")), "root's is seen, too"


@pytest.fixture
def fake_gpu(tmp_path: Path) -> dict[str, str]:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is needed to build a fake libnvidia-ml")
    if os.geteuid() != 0:
        pytest.skip("power limits are set by root only")
    (tmp_path / "nvml.c").write_text(FAKE_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(tmp_path / "nvml.c")],
        check=True, timeout=50,
    )  # fmt: skip
    return {
        "LD_LIBRARY_PATH": str(tmp_path), "FAKE_GPU": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip


def test_nvml_limit_and_locked_clocks_are_put_back(fake_gpu: dict[str, str]) -> None:
    folder = Path(fake_gpu["FAKE_GPU"])
    code = (
        "from pathlib import Path; from greentrain_harness.controls import open_control\n"
        f"limit, lock = Path({str(folder / 'limit')!r}), Path({str(folder / 'lock')!r})\n"
        "with open_control('auto', meter='nvml') as control:\n"
        "    print(control.points())\n"
        "    control.set('cap-200W'); print(limit.read_text())\n"
        "    control.set('gpu-900MHz'); print(lock.read_text(), limit.read_text())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **fake_gpu}, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert "('cap-400W', 'cap-300W', 'cap-200W', 'cap-100W', 'gpu-1500MHz', 'gpu-900MHz')" in done.stdout, done.stderr
    assert done.stdout.split()[-3:] == ["200000", "900", "400000"]
    assert ((folder / "limit").read_text(), (folder / "lock").read_text()) == ("350000\n", "0\n")
    assert not (folder / "state/greentrain/restore.json").exists()


def test_nvml_limit_is_put_back_after_sigkill(
    fake_gpu: dict[str, str], changer: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = Path(fake_gpu["FAKE_GPU"])
    process = changer("nvml_limit", ROOT, **fake_gpu)
    assert (folder / "lock").read_text() == "900\n"
    process.kill()
    process.wait(timeout=20)
    code = "from greentrain_harness.controls import restore_after_crash; print(restore_after_crash())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **fake_gpu}, capture_output=True, text=True, timeout=50,
        check=True,
    )  # fmt: skip
    assert "everything was put back" in done.stdout
    assert ((folder / "limit").read_text(), (folder / "lock").read_text()) == ("350000\n", "0\n")


def test_every_command_puts_back_first_and_says_so(
    tmp_path: Path, changer: Callable[..., subprocess.Popen[str]]
) -> None:
    trees.write_cpufreq_tree(tmp_path)
    before = settings(tmp_path)
    for words in (["doctor", "--json", "--sysroot", str(tmp_path)], ["--version"]):
        process = changer("cpufreq", tmp_path)
        process.kill()
        process.wait(timeout=20)
        assert settings(tmp_path) != before
        environment = {**os.environ, **({"GREENTRAIN_SYSROOT": str(tmp_path)} if words == ["--version"] else {})}
        done = subprocess.run(
            [sys.executable, "-m", "greentrain.cli", *words], env=environment, capture_output=True, text=True,
            timeout=50, check=True,
        )  # fmt: skip
        assert f"Process {process.pid} was killed while it had changed cpufreq: everything was put back." in done.stderr
        assert settings(tmp_path) == before
