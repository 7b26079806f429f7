"""``greentrain models``: what the profiles hold, what is wrong with them, and what a plan rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from command import Command
from work_folder import PROVENANCE, make_work_folder

from greentrain.device import Device, DeviceProfile, OperatingPoint, Provenance
from greentrain.files import read_json
from greentrain.power import PowerCurve, PowerModel, Source, fit_power_curve
from greentrain.profile import LayerTimes
from greentrain.profile_files import LAYERS_SCHEMA, write_device_profile, write_layer_times
from greentrain_harness.controls.trees import write_cpufreq_tree
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree
from greentrain_harness.profilers.device import LoadWindow, PointFigures
from greentrain_harness.profilers.points import MeasuredPoints, write_points

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
CLOCKS_MHZ = (1500, 1200, 900, 600)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def greentrain(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    del folder
    return Command(capsys)


def busy_w(mhz: int) -> float:
    return 3.0 + 8.0 * (mhz / 1500) ** 2


def figures(mhz: int, *, shares: Sequence[float] = SHARES, factor: float = 1.0) -> PointFigures:
    """A point as a sensor would see it: 3 W idle, power linear in the share."""
    windows = tuple(LoadWindow(share, factor * (3.0 + (busy_w(mhz) - 3.0) * share)) for share in shares)
    curve = fit_power_curve(point=f"c{mhz}", share=list(shares), power_w=[window.power_w for window in windows])
    return PointFigures(
        point=OperatingPoint(name=f"c{mhz}", cpu_hz=mhz * 1e6), curve=curve, idle_w=3.0, peak_per_s=float(mhz),
        trials_n=1, spread_ratio=0.0, interval_ratio=0.0, more_trials=0, windows=windows,
    )  # fmt: skip


def write_device(
    folder: Path, seen: Sequence[PointFigures], predicted: Sequence[PowerCurve] = (), *, source: Source = "measured"
) -> None:
    device = Device(
        id="a",
        kind="a",
        memory_bytes=1 << 30,
        points=(*(it.point for it in seen), *(OperatingPoint(name=curve.point, cpu_hz=1e9) for curve in predicted)),
        power=PowerModel(
            idle_w=3.0, curves=(*(it.curve for it in seen), *predicted), source=source, provenance="a test"
        ),
    )
    provenance = msgspec.structs.replace(PROVENANCE, meter="fake", source=source)
    write_device_profile(folder / "profiles", DeviceProfile(device=device, provenance=provenance))
    points = MeasuredPoints(
        device_id="a", kind="a", control="cpufreq", meter="fake", source=source, figures=tuple(seen)
    )  # fmt: skip
    write_points(folder / "profiles", points)


def write_times(
    folder: Path, point: str, *, batch_B: tuple[int, ...] = (1, 32, 64), provenance: Provenance | None = None
) -> None:
    """Times of the model at a point, measured when nothing else is said."""
    path = folder / "profiles" / "a.current.toy-net.layers.json"
    times = read_json(path, LayerTimes, schema=LAYERS_SCHEMA)
    layers = range(len(times.update_s_L))
    changed = msgspec.structs.replace(
        times,
        point=point,
        batch_B=batch_B,
        forward_s_LB=tuple(tuple(1e-4 * size for size in batch_B) for _ in layers),
        backward_s_LB=tuple(tuple(2e-4 * size for size in batch_B) for _ in layers),
        provenance=provenance or msgspec.structs.replace(times.provenance, source="measured"),
    )
    write_layer_times(folder / "profiles", changed)


def findings(ended_out: str) -> set[tuple[str, str]]:
    return {(finding["name"], finding["where"]) for finding in json.loads(ended_out)["findings"]}


def test_show_lists_every_curve_and_the_layer_times(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    write_device(folder, [figures(mhz) for mhz in CLOCKS_MHZ])
    ended = greentrain("models", "show", "--json")
    assert ended.code == 0
    shown = json.loads(ended.out)
    assert [row["point"] for row in shown["curves"]] == ["c1500", "c1200", "c900", "c600"]
    top = shown["curves"][0]
    assert top["idle_w"] == pytest.approx(3.0, rel=1e-3)
    assert top["busy_w"] == pytest.approx(11.0, rel=1e-3)
    assert top["points_n"] == 5
    assert top["loo_ratio"] == pytest.approx(0.0, abs=0.01)
    assert (top["share_low"], top["share_high"], top["source"]) == (0.0, 1.0, "measured")
    assert top["band_w"] is not None
    [times] = shown["times"]
    assert (times["model"], times["batch_low"], times["batch_high"], times["source"]) == ("toy-net", 1, 64, "modelled")
    # A straight line would be exact, but two sizes leave none over to test it.
    assert times["loo_ratio"] is None
    text = greentrain("models", "show").out
    assert "c900" in text
    assert "measured" in text


def test_the_page_draws_points_curves_and_bands(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    seen = [figures(mhz) for mhz in CLOCKS_MHZ]
    shape = msgspec.structs.replace(seen[1].curve, point="c1000", fit="predicted from 4 points", points_n=0)
    write_device(folder, seen, [shape])
    ended = greentrain("models", "show", "-o", "out/curves.html")
    assert ended.code == 0
    assert "wrote out/curves.html" in ended.out
    page = (folder / "out/curves.html").read_text()
    assert page.count("<svg") == 6
    assert "Seconds per sample of toy-net on a over the batch size: current (modelled)" in page
    assert page.count("<script") == 1, "its own, which its policy names"
    assert 'src="' not in page
    assert "c1000 (modelled)" in page
    assert "hollow dots are predicted: c1000" in page
    # Five windows at each of the four measured points and none at the predicted one, in both sizes of the picture.
    assert page.count('xlink:href="') == 0
    assert page.count("<use ") >= 2 * 5 * 4


def test_a_device_of_its_own(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a", "b"))
    rows = json.loads(greentrain("models", "show", "--device", "b", "--json").out)
    assert {row["device"] for row in rows["curves"]} == {"b"}
    assert {row["kind"] for row in rows["times"]} == {"b"}
    ended = greentrain("models", "show", "--device", "c")
    assert ended.code == 2
    assert ended.sentence == "profiles: no profile of device 'c'."


@pytest.mark.parametrize("action", ["show", "check"])
def test_without_profiles_it_says_what_to_do(action: str, folder: Path, greentrain: Command) -> None:
    ended = greentrain("models", action)
    assert ended.code == 2
    assert ended.sentence == "profiles: no such folder."
    (folder / "profiles").mkdir()
    ended = greentrain("models", action)
    assert ended.code == 2
    assert ended.sentence == "profiles: holds no device profile."
    assert "greentrain measure" in ended.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.device.json", "{"),
        ("a.points.json", '{"schema": "greentrain.points/9"}'),
        ("a.points.json", '{"schema": "greentrain.points/1", "device_id": 3}'),
        ("a.current.toy-net.layers.json", "[]"),
    ],
)
@pytest.mark.parametrize("action", ["show", "check"])
def test_a_damaged_file_is_named(action: str, name: str, content: str, folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    (folder / "profiles" / name).write_text(content)
    ended = greentrain("models", action)
    assert ended.code == 2
    assert ended.sentence.startswith(f"profiles/{name}: ")


def test_measured_models_are_fine(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    write_device(folder, [figures(mhz) for mhz in CLOCKS_MHZ])
    for mhz in CLOCKS_MHZ:
        write_times(folder, f"c{mhz}")
    (folder / "profiles" / "a.current.toy-net.layers.json").unlink()
    ended = greentrain("models", "check")
    assert (ended.code, ended.out) == (0, "all models are fine\n")
    assert json.loads(greentrain("models", "check", "--json").out) == {"fine": True, "findings": []}


def test_what_was_never_measured_is_told(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    ended = greentrain("models", "check", "--json")
    assert ended.code == 0
    assert findings(ended.out) == {("modelled-only", "a"), ("modelled-only", "toy-net on a at current")}
    assert "modelled-only: a: nothing was measured" in greentrain("models", "check").out


def test_every_fault_has_a_name(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    write_times(folder, "current", batch_B=(8,))
    good, few, part, falling = (figures(mhz) for mhz in CLOCKS_MHZ)
    few = figures(1200, shares=(0.0, 1.0))
    part = figures(900, shares=(0.3, 0.5, 0.7))
    bent = msgspec.structs.replace(falling.curve, power_w_X=tuple(reversed(falling.curve.power_w_X)), band_w=2.0)
    falling = msgspec.structs.replace(falling, curve=bent)
    predicted = msgspec.structs.replace(good.curve, point="c1000", fit="predicted", points_n=0)
    write_device(folder, [good, few, part, falling], [predicted])
    found = findings(greentrain("models", "check", "--json").out)
    assert found >= {
        ("few-points", "a at c1200"),
        ("extrapolated-share", "a at c900"),
        ("falling-power", "a at c600"),
        ("wide-band", "a at c600"),
        ("predicted-point", "a at c1000"),
        ("few-points", "toy-net on a at current"),
    }
    assert not {where for _, where in found} & {"a at c1500"}


def test_milliwatts_among_watts_are_told(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    write_device(folder, [*(figures(mhz) for mhz in CLOCKS_MHZ[:3]), figures(600, factor=1000.0)])
    found = findings(greentrain("models", "check", "--json").out)
    assert ("power-unit", "a at c600") in found
    assert ("unit-slip", "a") in found


def test_a_plan_names_what_it_rests_on(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    seen = [figures(1500)]
    # The scheduler will choose the point that is only predicted, since it takes less power for the same time.
    low = tuple(3.0 + share for share in seen[0].curve.share_X)
    predicted = msgspec.structs.replace(
        seen[0].curve, point="c1000", fit="predicted from 1 points by physics", points_n=0, power_w_X=low, band_w=1.0
    )
    write_device(folder, seen, [predicted])
    write_times(folder, "c1500")
    modelled = msgspec.structs.replace(PROVENANCE, note="predicted, not measured: made up")
    write_times(folder, "c1000", provenance=modelled)
    ended = greentrain("schedule", "--batch", "128", "--micro-batch", "128")
    assert ended.code == 0
    assert "(not measured: predicted-point: a at c1000: 4 W ± 25% were not measured" in ended.out
    assert "(not measured: predicted-times: a at c1000: the layer times were not measured)" in ended.out
    assert (
        "(not measured: extrapolated-batch: a at c1000: 128 rows, but the layers were timed with 1 to 64)" in ended.out
    )
    assert "modelled from the catalogue" not in ended.out
    ended = greentrain("models", "check", "--plan", "plan.json", "--json")
    assert ended.code == 0
    names = {name for name, where in findings(ended.out) if where == "plan.json: a at c1000"}
    assert names == {"predicted-point", "predicted-times", "extrapolated-batch"}
    assert greentrain("schedule", "--batch", "16", "--micro-batch", "16").code == 0
    within = findings(greentrain("models", "check", "--plan", "plan.json", "--json").out)
    assert ("extrapolated-batch", "plan.json: a at c1000") not in within


def test_a_plan_that_is_none(folder: Path, greentrain: Command) -> None:
    make_work_folder(folder, devices=("a",))
    ended = greentrain("models", "check", "--plan", "none.json")
    assert ended.code == 2
    assert ended.sentence == "none.json: no such file."
    (folder / "plan.json").write_text("{}")
    ended = greentrain("models", "check", "--plan", "plan.json")
    assert ended.code == 2
    assert ended.sentence.startswith("plan.json: schema is None")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--points", "some"], "--points is 'some', expected current, all, or a number of at least 2."),
        (["--points", "1"], "--points is '1', expected current, all, or a number of at least 2."),
        (["--points", "²"], "--points is '²', expected current, all, or a number of at least 2."),
        (["--points", "current", "--budget", "5m"], "--budget and --points current were both given."),
        (["--budget", "5 parsecs"], "--budget"),
        (["--budget", "0s"], "--budget"),
    ],
)
def test_measure_refuses_what_it_cannot_search(
    words: list[str], sentence: str, folder: Path, greentrain: Command
) -> None:
    ended = greentrain("measure", "--device", "modelled", *words)
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)
    assert not list(folder.iterdir())


def emulated_board(folder: Path) -> str:
    write_jetson_tree(folder / "tree", board_named("orin-nx"), total_w=6.0)
    write_cpufreq_tree(folder / "tree")
    return str(folder / "tree")


def test_a_dry_run_says_how_many_points_and_how_long(folder: Path, greentrain: Command) -> None:
    words = ["measure", "--device", "jetson", "--model", "none", "--sysroot", emulated_board(folder), "--dry-run"]
    ended = greentrain(*words, "--points", "3")
    assert ended.code == 0
    assert ended.out.startswith("at most 3 of 5 points with cpufreq: current, cpu-1500MHz")
    planned = json.loads(greentrain(*words, "--budget", "9s", "--json").out)
    assert planned["most_s"] == 9.0
    assert planned["most_points"] == 5
    assert not (folder / "profiles").exists()


@pytest.mark.slow
def test_measuring_three_points_ends_with_the_expected_regret(folder: Path, greentrain: Command) -> None:
    tree = emulated_board(folder)
    words = ["measure", "--device", "jetson", "--model", "none", "--sysroot", tree, "--id", "d", "--window", "0.02"]
    ended = greentrain(*words, "--points", "3", "--objective", "time", "--json")
    assert ended.code == 0
    result = json.loads(ended.out)
    search = result["search"]
    assert len(search["measured"]) == 2
    assert len(search["predicted"]) + len(search["left_out"]) == 2
    assert 0 <= search["expected_regret_ratio"] < 1
    assert "profiles/d.points.json" in result["files"]
    assert not (folder / "profiles/d.sweep").exists()
    provenance = json.loads((folder / "profiles/d.device.json").read_text())["provenance"]
    assert "--points 3 --control auto --objective time" in provenance["command"]
    assert "of 4 points (and the present one)" in provenance["note"]
    # The next sweep of this board begins with what is known.
    again = greentrain(*words, "--points", "2")
    assert again.code == 0
    assert "best so far" in again.out
    shown = json.loads(greentrain("models", "show", "--json").out)
    assert {row["source"] for row in shown["curves"] if row["points_n"] == 0} <= {"modelled"}
