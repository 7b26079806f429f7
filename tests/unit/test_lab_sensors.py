"""The lab's sensors: CPU time to share to watts to files, with an injected clock."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.errors import NotSupportedError
from greentrain.power import PowerCurve
from greentrain_datasets.catalogue import catalogue_device, catalogue_kinds
from greentrain_harness.lab import driver, sensors
from greentrain_harness.lab.cgroups import NodeCgroup
from greentrain_harness.lab.sensors import NodeSensor, ShareTracker
from greentrain_harness.meters import ina3221

CURVE = PowerCurve(point="15W", share_X=(0.0, 0.5, 1.0), power_w_X=(4.0, 6.0, 15.0))


class FakeNode:
    """A node whose CPU counter and clock the test sets."""

    def __init__(self, folder: Path, *, kind: str = "jetson-orin-nano-8gb", quota_percent: float = 25.0) -> None:
        self.t_s = 100.0
        self.usage = folder / "cpuacct.usage"
        self.use_s(0.0)
        self.sensor = NodeSensor(
            lab="x",
            node="node0",
            kind=kind,
            quota_percent=quota_percent,
            cgroup=NodeCgroup(version=1, cpu=str(folder), cpuacct=str(folder)),
            sysroot=str(folder / "sysroot"),
            curve=CURVE,
        )
        self.driver = driver.open_node(self.sensor, clock=lambda: self.t_s)

    def use_s(self, cpu_s: float) -> None:
        self.usage.write_text(f"{round(cpu_s * 1e9)}\n")

    def look(self, *, after_s: float, cpu_s: float) -> float | None:
        self.t_s += after_s
        self.use_s(cpu_s)
        driver.update(self.driver, clock=lambda: self.t_s)
        return sensors.shown_w(Path(self.sensor.sysroot))

    def close(self) -> None:
        self.driver.counter.close()


def test_the_board_shows_the_curve_at_the_share_of_the_quota(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    assert sensors.shown_w(tmp_path / "sysroot") == pytest.approx(4.0, abs=0.005)
    # 25 % of a core for 20 ms allow 5 ms.
    assert node.look(after_s=0.02, cpu_s=0.0025) == pytest.approx(6.0, abs=0.005)
    assert node.look(after_s=0.02, cpu_s=0.0075) == pytest.approx(15.0, abs=0.005)
    assert node.look(after_s=0.02, cpu_s=0.0075) == pytest.approx(4.0, abs=0.005)
    node.close()


def test_the_rails_behind_the_input_show_less_than_the_input(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.look(after_s=0.02, cpu_s=0.005)
    meter = ina3221.open_meter(sysroot=tmp_path / "sysroot")
    values = dict(zip((channel.name for channel in meter.channels), meter.sample().values, strict=True))
    meter.close()
    node.close()
    total_w, compute_w, soc_w = (values[name] for name in ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"))
    assert total_w is not None
    assert compute_w is not None
    assert soc_w is not None
    assert 0 < compute_w + soc_w < total_w


def test_the_tree_says_that_it_is_emulated(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.close()
    root = tmp_path / "sysroot"
    mark = msgspec.json.decode((root / "etc/greentrain-lab.json").read_bytes())
    assert mark == {"lab": "x", "node": "node0", "kind": "jetson-orin-nano-8gb"}
    meter = ina3221.open_meter(sysroot=root)
    assert meter.source == "modelled"
    meter.close()


def test_an_unchanged_power_is_not_written_again(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    (tree_file,) = (tmp_path / "sysroot").rglob("curr1_input")
    tree_file.write_text("1\n")
    node.look(after_s=0.02, cpu_s=0.0)
    assert tree_file.read_text() == "1\n"
    node.close()


def test_no_time_no_share() -> None:
    tracker = ShareTracker(quota_percent=50, t_s=1.0, cpu_s=0.0)
    assert tracker.share(1.0, 0.01) is None
    # The CPU time of the look without an answer is not lost.
    assert tracker.share(1.1, 0.01) == pytest.approx(0.2)


def test_a_burst_above_the_quota_is_carried_over() -> None:
    tracker = ShareTracker(quota_percent=10, t_s=0.0, cpu_s=0.0)
    # 2 ms are allowed per step; all 6 ms are seen in the first.
    shares = [tracker.share(0.02 * step, 0.006) for step in (1, 2, 3, 4)]
    assert shares == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=1e-9)


@given(
    quota_percent=st.floats(5, 200),
    steps=st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0, 0.5)), min_size=1, max_size=30),
)
def test_no_used_cpu_time_is_lost_or_made_up(quota_percent: float, steps: list[tuple[float, float]]) -> None:
    tracker = ShareTracker(quota_percent=quota_percent, t_s=0.0, cpu_s=0.0)
    t_s = cpu_s = shown_s = 0.0
    for wall_s, used_s in steps:
        t_s, cpu_s = t_s + wall_s, cpu_s + used_s
        share = tracker.share(t_s, cpu_s)
        assert share is not None
        assert 0 <= share <= 1
        shown_s += share * quota_percent / 100 * wall_s
    assert shown_s + tracker.carried_s == pytest.approx(cpu_s, abs=1e-9)


@pytest.mark.parametrize(
    ("t_s", "expected_s"), [(10.0, 10.02), (10.019, 10.02), (10.021, 10.04), (10.5001, 10.52), (10.02, 10.04)]
)
def test_missed_beats_are_left_out(t_s: float, expected_s: float) -> None:
    assert driver.next_tick_s(t_s, first_s=10.0, interval_s=0.02) == pytest.approx(expected_s, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in catalogue_kinds() if kind.startswith("jetson-")])
def test_every_jetson_of_the_catalogue_has_a_board(kind: str, tmp_path: Path) -> None:
    device = catalogue_device(kind, "node0")
    node = FakeNode(tmp_path, kind=device.kind)
    # A sum of rails is met within the rails' own steps.
    assert node.look(after_s=0.02, cpu_s=0.005) == pytest.approx(15.0, abs=0.02)
    node.close()


@pytest.mark.parametrize(
    ("kind", "board"),
    [("jetson-orin-nano-8gb", "orin-nx"), ("jetson-orin-nx-16gb", "orin-nx"), ("jetson-nano-4gb", "nano"),
     ("jetson-tx2-8gb", "tx2"), ("jetson-tx2-nx-4gb", "tx2-nx"), ("jetson-agx-orin-64gb", "agx-orin")],
)  # fmt: skip
def test_kind_to_board(kind: str, board: str) -> None:
    assert sensors.board_of_kind(kind).name == board


def test_other_kinds_are_not_emulated() -> None:
    with pytest.raises(NotSupportedError, match="'raspberry-pi-5' has no INA3221"):
        sensors.board_of_kind("raspberry-pi-5")
