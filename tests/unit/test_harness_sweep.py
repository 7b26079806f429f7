"""Sweeps of operating points in virtual time: every point measured, resumed, cooled down, put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from problems import make_problem

from greentrain.device import OperatingPoint
from greentrain.errors import NotSupportedError, RunError, UnavailableError
from greentrain.power import Source
from greentrain.probing import Decision
from greentrain.reading import Channel, Sample, Scope
from greentrain_harness.controls import open_control
from greentrain_harness.controls.trees import write_cpufreq_tree, write_nvpmodel_tool, write_thermal_zone
from greentrain_harness.meters import open_named
from greentrain_harness.profilers.device import Pace, TrialPlan
from greentrain_harness.profilers.points import earlier_sweeps, observations, read_points, write_points
from greentrain_harness.profilers.predicted import predicted_times
from greentrain_harness.profilers.search import Search
from greentrain_harness.restore import journal_paths
from greentrain_harness.sweep import Sweep, estimate, hottest_c
from greentrain_harness.trial import interval_ratio, more_trials_needed


@dataclass
class Machine:
    """A virtual machine whose speed and power follow the clock in its tree: 3 W idle, 8 W × (f / 1.5 GHz)² busy."""

    root: Path
    t_s: float = 0.0
    energy_j: float = 0.0
    units: int = 0
    fail_after: int = 10**9
    jitter: float = 0.0
    name: str = "fake"
    source: Source = "measured"
    scope: Scope = "board"
    rate_hz: float = 10.0
    note: str = "virtual machine"
    channels: tuple[Channel, ...] = field(default=(Channel(name="IN", quantity="energy_j"),))
    said: list[str] = field(default_factory=list)

    @property
    def clock_ratio(self) -> float:
        return int((self.root / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq").read_text()) / 1_500_000

    def clock(self) -> float:
        return self.t_s

    def sleep(self, seconds: float) -> None:
        self.t_s += seconds
        self.energy_j += 3.0 * seconds

    def unit(self) -> None:
        self.units += 1
        if self.units > self.fail_after:
            raise RunError("stopped in the middle")
        seconds = 0.01 / self.clock_ratio
        wobble = 1.0 + self.jitter * (1 if int(self.t_s) % 2 else -1)
        self.t_s += seconds
        self.energy_j += (3.0 + 8.0 * self.clock_ratio**2 * wobble) * seconds

    def sample(self) -> Sample:
        self.sleep(1e-6)
        return Sample(t_s=self.t_s, values=(self.energy_j,))

    def close(self) -> None:
        """Nothing is held open."""

    def sweep(self, folder: Path, **changes: object) -> Sweep:
        plan = TrialPlan(pace=Pace(clock=self.clock, sleep=self.sleep, background=False))
        options = {"device_id": "d", "kind": "k", "folder": folder, "sysroot": self.root, "plan": plan, **changes}
        return Sweep(say=self.said.append, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    write_cpufreq_tree(tmp_path, policies=(0,))
    return Machine(tmp_path)


def test_every_point_has_its_own_curve_and_the_clock_is_put_back(machine: Machine, tmp_path: Path) -> None:
    timed: list[OperatingPoint] = []
    sweep = machine.sweep(tmp_path / "p", at_point=timed.append, command="test it")
    profile = sweep.run(machine, open_control("cpufreq", sysroot=tmp_path), load=machine.unit).profile
    names = ["current", "cpu-1500MHz", "cpu-1200MHz", "cpu-900MHz", "cpu-600MHz"]
    assert [point.name for point in profile.device.points] == names
    assert [point.name for point in timed] == names
    assert profile.device.points[3].cpu_hz == 900e6
    busy_w = {name: profile.device.curve(name).busy_w for name in names}
    assert busy_w == pytest.approx(
        {"current": 11.0, "cpu-1500MHz": 11.0, "cpu-1200MHz": 8.12, "cpu-900MHz": 5.88, "cpu-600MHz": 4.28}, rel=0.03
    )
    assert profile.device.power.idle_w == pytest.approx(3.0, rel=0.01)
    assert profile.provenance.trials_n == 3
    assert profile.provenance.command == "test it"
    assert "cpu-600MHz 40/s" in profile.device.power.provenance
    assert machine.clock_ratio == 1.0
    assert not journal_paths(tmp_path)[0].exists()
    sweep.clear()
    assert not sweep.points_folder.exists()


def test_an_interrupted_sweep_goes_on_where_it_stopped(machine: Machine, tmp_path: Path) -> None:
    machine.fail_after = 1000
    control = open_control("cpufreq", sysroot=tmp_path)
    with pytest.raises(RunError, match="stopped in the middle"):
        machine.sweep(tmp_path / "p").run(machine, control, load=machine.unit)
    assert machine.clock_ratio == 1.0, "put back after the error"
    finished = sorted(path.stem for path in (tmp_path / "p/d.sweep").iterdir())
    assert 0 < len(finished) < 5
    planned = estimate(machine.sweep(tmp_path / "p"), machine, control)
    assert set(planned.finished) == set(finished)
    assert len(planned.points) == 5 - len(finished)
    machine.fail_after = 10**9
    machine.said.clear()
    profile = machine.sweep(tmp_path / "p").run(machine, control, load=machine.unit).profile
    assert len(profile.device.points) == 5
    assert sum("kept from the interrupted sweep" in text for text in machine.said) == len(finished)


def test_other_settings_are_measured_again(machine: Machine, tmp_path: Path) -> None:
    control = open_control("cpufreq", sysroot=tmp_path)
    machine.sweep(tmp_path / "p", settings=("threads 1",)).run(machine, control, load=machine.unit)
    assert len(machine.sweep(tmp_path / "p", settings=("threads 1",)).finished("cpufreq", "fake")) == 5
    assert machine.sweep(tmp_path / "p", settings=("threads 2",)).finished("cpufreq", "fake") == {}


def test_the_estimate_is_what_it_takes_and_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    control = open_control("cpufreq", sysroot=tmp_path)
    sweep = machine.sweep(tmp_path / "p")
    planned = estimate(sweep, machine, control)
    assert machine.t_s == 0.0
    assert len(planned.points) == 5
    sweep.run(machine, control, load=machine.unit)
    assert machine.t_s == pytest.approx(planned.least_s, rel=0.1)
    assert planned.most_s > planned.least_s


def test_a_wide_interval_takes_more_trials_and_says_how_many_are_missing(machine: Machine, tmp_path: Path) -> None:
    machine.jitter = 0.5
    profile = (
        machine.sweep(tmp_path / "p").run(machine, open_control("cpufreq", sysroot=tmp_path), load=machine.unit).profile
    )
    assert any("more trials needed for ±5%" in text for text in machine.said)
    assert "more trials needed for ±5 %" in profile.provenance.note
    assert any(text.startswith("trial 5 of 5") for text in machine.said)


def test_points_wait_until_the_board_is_cool_again(machine: Machine, tmp_path: Path) -> None:
    zone = write_thermal_zone(tmp_path, 40.0)
    write_thermal_zone(tmp_path, -256.0, number=1)
    warm = [70.0, 55.0, 42.0]
    sleep = machine.sleep

    def cooling(seconds: float) -> None:
        sleep(seconds)
        if seconds == 2.0 and warm:
            write_thermal_zone(tmp_path, warm.pop(0))

    def heat(point: OperatingPoint) -> None:
        if point.name == "current":
            zone.write_text("80000\n")

    pace = Pace(clock=machine.clock, sleep=cooling, background=False)
    sweep = machine.sweep(tmp_path / "p", plan=TrialPlan(pace=pace), at_point=heat)
    sweep.run(machine, open_control("cpufreq", sysroot=tmp_path), load=machine.unit)
    assert "cooling down from 80 °C to 43 °C" in machine.said
    assert warm == []
    assert hottest_c(tmp_path) == 42.0


def test_a_board_that_stays_hot_goes_on_in_the_end(machine: Machine, tmp_path: Path) -> None:
    zone = write_thermal_zone(tmp_path, 40.0)

    def heat(point: OperatingPoint) -> None:
        del point
        zone.write_text("60000\n")

    sweep = machine.sweep(tmp_path / "p", at_point=heat)
    profile = sweep.run(machine, open_control("cpufreq", sysroot=tmp_path), load=machine.unit).profile
    assert len(profile.device.points) == 5
    assert any("still 60 °C after 120 s" in text for text in machine.said)


def test_a_point_that_is_refused_is_left_out_and_said(machine: Machine, tmp_path: Path) -> None:
    write_nvpmodel_tool(tmp_path, reboot_from=2)
    control = open_control("auto", sysroot=tmp_path)
    assert control.name == "nvpmodel"
    profile = machine.sweep(tmp_path / "p").run(machine, control, load=machine.unit).profile
    assert [point.name for point in profile.device.points] == ["current", "MAXN", "MODE_15W"]
    assert any(text.startswith("point MODE_10W: left out (nvpmodel did not take") for text in machine.said)


@dataclass
class Clocks:
    """Ten clocks of a virtual machine, from 1.5 GHz down to 0.6 GHz."""

    machine: Machine
    refused: tuple[str, ...] = ()
    name: str = "clocks"
    set_to: list[str] = field(default_factory=list)

    def points(self) -> tuple[str, ...]:
        return tuple(f"c{clock}" for clock in range(1500, 599, -100))

    def operating_point(self, name: str) -> OperatingPoint:
        return OperatingPoint(name=name, cpu_hz=float(name[1:]) * 1e6)

    def set(self, point: str) -> None:
        if point in self.refused:
            raise UnavailableError("no")
        self.set_to.append(point)
        path = self.machine.root / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
        path.write_text(f"{int(point[1:]) * 1000}\n")

    def __enter__(self) -> Clocks:
        return self

    def __exit__(self, *error: object) -> None:
        self.set_to.append("put back")


def test_a_search_measures_few_points_and_marks_the_others_as_predicted(machine: Machine, tmp_path: Path) -> None:
    control = Clocks(machine)
    sweep = machine.sweep(tmp_path / "p", search=Search(decision=Decision(minimise="energy"), most_points=5))
    profile, points, outcome, posterior = sweep.run(machine, control, load=machine.unit)
    assert outcome is not None
    assert posterior is not None
    assert points.figures[0].point.name == "current"
    measured = {figures.point.name for figures in points.figures}
    assert len(measured) <= 5
    assert set(outcome.measured) == measured - {"current"}
    assert set(outcome.measured) | set(outcome.predicted) | set(outcome.left_out) == set(control.points())
    assert outcome.predicted
    assert control.set_to[-1] == "put back"
    for name in outcome.predicted:
        curve = profile.device.curve(name)
        ratio = float(name[1:]) / 1500
        assert curve.points_n == 0
        assert curve.fit.startswith("predicted from")
        assert curve.band_w is not None
        assert curve.idle_w == pytest.approx(3.0, rel=0.05)
        assert curve.busy_w == pytest.approx(3 + 8 * ratio**2, rel=0.15)
        assert name in profile.device.power.provenance.split("modelled, not measured: ")[1]
    assert all(profile.device.curve(name).points_n > 0 for name in measured)
    assert f"after {len(outcome.measured)} of 10 points" in outcome.text
    assert f"predicted only: {', '.join(outcome.predicted)}" in profile.provenance.note
    assert any(text.startswith("next c") for text in machine.said)


def test_a_search_goes_on_with_what_an_interrupted_one_has_left(machine: Machine, tmp_path: Path) -> None:
    machine.fail_after = 700
    search = Search(most_points=4)
    with pytest.raises(RunError, match="stopped in the middle"):
        machine.sweep(tmp_path / "p", search=search).run(machine, Clocks(machine), load=machine.unit)
    finished = sorted(path.stem for path in (tmp_path / "p/d.sweep").iterdir())
    assert 0 < len(finished) < 4
    planned = estimate(machine.sweep(tmp_path / "p", search=search), machine, Clocks(machine))
    assert planned.most_points == 4 - len(finished)
    machine.fail_after = 10**9
    control = Clocks(machine)
    result = machine.sweep(tmp_path / "p", search=search).run(machine, control, load=machine.unit)
    assert not set(finished) & set(control.set_to)
    assert set(finished) <= {figures.point.name for figures in result.points.figures}


def test_a_budget_ends_a_search_before_it_is_exceeded(machine: Machine, tmp_path: Path) -> None:
    sweep = machine.sweep(tmp_path / "p", search=Search(budget_s=35.0))
    assert estimate(sweep, machine, Clocks(machine)).most_s == 35.0
    result = sweep.run(machine, Clocks(machine), load=machine.unit)
    assert machine.t_s <= 36.0
    assert 1 < len(result.points.figures) < 11
    assert "ends, one more point would exceed the budget of 35 s" in machine.said


def test_a_budget_for_nothing_measures_the_present_point_alone(machine: Machine, tmp_path: Path) -> None:
    result = machine.sweep(tmp_path / "p", search=Search(budget_s=1.0)).run(machine, Clocks(machine), load=machine.unit)
    assert result.outcome is not None
    assert result.outcome.expected_regret_ratio is None
    assert [point.name for point in result.profile.device.points] == ["current"]
    assert "nothing is known of the other points" in result.outcome.text


def test_a_search_passes_over_points_that_are_refused(machine: Machine, tmp_path: Path) -> None:
    control = Clocks(machine, refused=("c1500", "c600"))
    result = machine.sweep(tmp_path / "p", search=Search(most_points=4)).run(machine, control, load=machine.unit)
    assert result.outcome is not None
    names = {point.name for point in result.profile.device.points}
    assert not names & {"c1500", "c600"}
    assert len(result.points.figures) == 4
    # Beyond the slowest and the fastest that were measured nothing is predicted.
    clocks = [int(name[1:]) for name in result.outcome.measured]
    assert all(min(clocks) < int(name[1:]) < max(clocks) for name in result.outcome.predicted)
    assert all(not min(clocks) < int(name[1:]) < max(clocks) for name in result.outcome.left_out)


def test_times_of_a_model_decide_where_it_was_timed(machine: Machine, tmp_path: Path) -> None:
    def timed(point: OperatingPoint) -> Mapping[str, float]:
        # A model that waits for the disk: the clock does not help it, so that the slowest point takes least energy.
        del point
        return {"m": 0.5}

    sweep = machine.sweep(tmp_path / "p", at_point=timed, search=Search(models=("m",), most_points=6))
    result = sweep.run(machine, Clocks(machine), load=machine.unit)
    assert result.outcome is not None
    assert result.outcome.chosen == "c600"
    seen = observations(result.points.figures, ("m",))
    assert {observation.time_s for observation in seen} == {0.5}
    path = write_points(tmp_path / "p", result.points)
    assert read_points(path) == result.points
    # One sweep in matrix products and one in samples of the model, for another board of that kind.
    assert len(earlier_sweeps(tmp_path / "p", "other", "k")) == 2
    assert earlier_sweeps(tmp_path / "p", "other", "other") == []


def test_figures_that_cannot_be_do_not_lose_the_others(machine: Machine, tmp_path: Path) -> None:
    def timed(point: OperatingPoint) -> Mapping[str, float]:
        return {"m": 500.0 if point.name == "c600" else 0.5}

    sweep = machine.sweep(tmp_path / "p", at_point=timed, search=Search(models=("m",), most_points=4))
    result = sweep.run(machine, Clocks(machine), load=machine.unit)
    assert [figures.point.name for figures in result.points.figures] == ["current", "c1500", "c1400", "c600"]
    assert result.posterior is None
    assert result.outcome is not None
    assert result.outcome.chosen is None
    assert [point.name for point in result.profile.device.points] == ["current", "c1500", "c1400", "c600"]
    assert "next c1400: what was measured says nothing of the others" in machine.said


def test_predicted_layer_times_are_stretched_and_modelled(machine: Machine, tmp_path: Path) -> None:
    times = make_problem(0, devices=1).model.times[0]
    sweep = machine.sweep(tmp_path / "p", search=Search(most_points=4))
    _, _, outcome, posterior = sweep.run(machine, Clocks(machine), load=machine.unit)
    assert outcome is not None
    assert posterior is not None
    measured = [
        msgspec.structs.replace(
            times, point=name, provenance=msgspec.structs.replace(times.provenance, source="measured")
        )
        for name in outcome.measured
    ]
    found = predicted_times(measured, posterior, outcome.predicted, command="test")
    assert [entry.point for entry in found] == list(outcome.predicted)
    for entry in found:
        assert entry.provenance.source == "modelled"
        assert "predicted, not measured" in entry.provenance.note
        ratio = entry.forward_s_LB[0][0] / times.forward_s_LB[0][0]
        near = entry.provenance.note.split("times at ")[1].split()[0]
        assert ratio == pytest.approx(int(near[1:]) / int(entry.point[1:]), rel=0.1)
    assert predicted_times([], posterior, outcome.predicted, command="test") == []


def test_points_of_power_modes_have_the_clocks_of_the_board_s_list(tmp_path: Path) -> None:
    write_nvpmodel_tool(tmp_path)
    # As JetPack writes it: processors in kHz, the others in Hz, 0 and -1 for no limit.
    (tmp_path / "etc/nvpmodel.conf").write_text(
        "< PARAM TYPE=CLOCK NAME=EMC >\nMAX_FREQ /sys/kernel/nvpmodel_emc_cap/emc_iso_cap\n\n"
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_A78_0 MAX_FREQ -1\nGPU MAX_FREQ -1\nEMC MAX_FREQ 0\n\n"
        "< POWER_MODEL ID=1 NAME=MODE_15W >\nCPU_A57 MAX_FREQ 1113600\nCPU_DENVER MAX_FREQ 1400000\n"
        "GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on\nGPU MIN_FREQ 306000000\nGPU MAX_FREQ 408000000\n"
        "EMC MAX_FREQ 2133000000\nDLA0_CORE MAX_FREQ 614400000\n\n< PM_CONFIG DEFAULT=0 >\n"
    )
    control = open_control("nvpmodel", sysroot=tmp_path)
    assert control.points() == ("MAXN", "MODE_15W")
    assert control.operating_point("MAXN") == OperatingPoint(name="MAXN")
    assert control.operating_point("MODE_15W") == OperatingPoint(
        name="MODE_15W", cpu_hz=1.4e9, gpu_hz=408e6, mem_hz=2.133e9, cap_w=15.0
    )


def test_a_model_cannot_tell_points_apart(machine: Machine, tmp_path: Path) -> None:
    control = open_control("cpufreq", sysroot=tmp_path)
    with pytest.raises(NotSupportedError, match="without a sensor"):
        machine.sweep(tmp_path).run(open_named("modelled"), control)
    with pytest.raises(NotSupportedError, match="without a sensor"):
        estimate(machine.sweep(tmp_path), open_named("modelled"), control)


def test_interval_and_missing_trials() -> None:
    # Five values with mean 10 and standard deviation 1: t = 2.776, half width 1.2414.
    values = [10 - 2**0.5, 10.0, 10.0, 10.0, 10 + 2**0.5]
    assert interval_ratio(values) == pytest.approx(0.12415, rel=1e-3)
    missing = more_trials_needed(values, 0.05)
    assert 10 < missing < 20
    assert more_trials_needed(values, 0.2) == 0
    assert more_trials_needed([5.0], 0.05) == 1
    assert interval_ratio([5.0]) == float("inf")
    assert more_trials_needed([4.0, 4.0, 4.0], 0.05) == 0
