"""The bars of the benchmark, in their tolerant version, and sensors that say anything at all."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.errors import UnavailableError
from greentrain.reading import Meter
from greentrain_harness.bench import meters as bench
from greentrain_harness.bench._peers import peer_rows
from greentrain_harness.meters import hwmon, ina3221, rapl
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree, write_rapl_tree
from greentrain_harness.sampler import Sampler


def test_constant_load() -> None:
    assert bench.constant_error_ratio() <= 0.001


@pytest.mark.parametrize(("length_s", "most"), [(0.2, 0.05), (1.0, 0.01)])
def test_steps(length_s: float, most: float) -> None:
    assert bench.step_error_ratio(length_s, trials=60) <= most


@pytest.mark.parametrize(
    ("rate_hz", "length_s", "most"),
    [(150.0, 0.2, 0.05), (150.0, 1.0, 0.01), (150.0, 3.0, 0.01), (50.0, 0.2, 0.1), (50.0, 1.0, 0.026)],
)
def test_steps_of_a_sensor_that_refreshes_now_and_then(rate_hz: float, length_s: float, most: float) -> None:
    assert bench.step_error_ratio(length_s, rate_hz=rate_hz, refresh_s=0.0066, trials=200) <= most


@pytest.mark.parametrize("rate_hz", [50.0, 150.0])
def test_stated_error_covers_the_truth(rate_hz: float) -> None:
    assert bench.coverage_ratio(shapes=100, seed=5, rate_hz=rate_hz) >= 0.95


def test_wrapping_twice_in_a_window_is_exact(tmp_path: Path) -> None:
    assert bench.wrap_error_j(tmp_path) < 1e-6


def test_peers_that_are_not_installed_are_told(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    rows = list(peer_rows([str(empty)], tmp_path))
    assert dict(rows[:3]) == dict.fromkeys(("zeus", "codecarbon", "jtop (jetson-stats)"), "not installed")
    assert all("not run" in figure for _, figure in rows[3:])
    assert sys.executable != str(empty)


ANYTHING = st.one_of(
    st.binary(max_size=80),
    st.integers().map(lambda value: str(value).encode()),
    st.sampled_from([b"", b"\n", b"nan", b"inf", b"-5\n", b"1e9", b"9" * 63, b"\xff\xfe", b"0x10", b"1_000"]),
)
FUZZ = settings(max_examples=40, deadline=None)


def assert_sane(meter: Meter, files: list[Path], contents: list[bytes]) -> None:
    """Whatever the files say, no sample raises, and no energy is negative or not finite."""
    with Sampler(meter, background=False) as sampler:
        start_s = sampler.now_s()
        for text in contents:
            for path in files:
                path.write_bytes(text)
            sampler.sample_now()
        span = sampler.span(start_s, sampler.now_s())
    for value in (span.energy_j, span.error_j, *span.channels_j.values()):
        assert value is None or (math.isfinite(value) and value >= 0)


@FUZZ
@given(contents=st.lists(ANYTHING, min_size=2, max_size=6))
def test_jetson_files_may_say_anything(contents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("fuzz")
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    folder = tree.folders["VDD_IN"]
    assert_sane(ina3221.open_meter(sysroot=tmp_path), [folder / "curr1_input", folder / "in2_input"], contents)


@FUZZ
@given(contents=st.lists(ANYTHING, min_size=2, max_size=6))
def test_rapl_files_may_say_anything(contents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("fuzz")
    tree = write_rapl_tree(tmp_path)
    assert_sane(rapl.open_meter(sysroot=tmp_path), [zone / "energy_uj" for zone in tree.zones.values()], contents)


@FUZZ
@given(contents=st.lists(ANYTHING, min_size=2, max_size=6))
def test_hwmon_files_may_say_anything(contents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("fuzz")
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True, exist_ok=True)
    (chip / "name").write_text("amdgpu\n")
    (chip / "power1_average").write_text("5000000\n")
    assert_sane(hwmon.open_meter(sysroot=tmp_path), [chip / "power1_average"], contents)


@FUZZ
@given(texts=st.lists(ANYTHING, min_size=4, max_size=4))
def test_what_describes_a_sensor_may_say_anything(texts: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Labels, names and ranges: the meter opens, or says in one sentence why not."""
    tmp_path = tmp_path_factory.mktemp("fuzz")
    tree = write_jetson_tree(tmp_path / "j", board_named("orin-nx"))
    (tree.folders["VDD_IN"] / "in1_label").write_bytes(texts[0])
    (tmp_path / "j/proc/device-tree/compatible").write_bytes(texts[1])
    powercap = write_rapl_tree(tmp_path / "r")
    for zone, (name, text) in zip(
        powercap.zones.values(), itertools.product(("name", "max_energy_range_uj"), texts[2:]), strict=False
    ):
        (zone / name).write_bytes(text)
    for module, root in ((ina3221, tmp_path / "j"), (rapl, tmp_path / "r")):
        with contextlib.suppress(UnavailableError):
            module.open_meter(sysroot=root).close()
        assert "\n" not in (module.detect(root) or "")
