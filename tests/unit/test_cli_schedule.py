"""``greentrain schedule``: what it writes, and one sentence with file and field for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from command import Command
from work_folder import make_work_folder

from greentrain.cli._measure import MeasureOptions, measure_model
from greentrain.files import read_json
from greentrain.plan import PLAN_SCHEMA, Plan, parallelism_name
from greentrain.profile_files import read_model_profile
from greentrain.workloads import load_workload
from greentrain_harness.profilers import layers


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_work_folder(folder, devices=("a", "b", "c"))
    return folder


@pytest.fixture
def folder(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder that the test may spoil."""
    shutil.copytree(measured, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def greentrain(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_the_plan_and_the_time_optimal_one_beside_it(folder: Path, greentrain: Command) -> None:
    ended = greentrain("schedule", "--json")
    assert ended.code == 0
    printed = json.loads(ended.out)
    plan = json.loads((folder / "plan.json").read_text())
    assert printed["file"] == "plan.json"
    assert {name: plan[name] for name in printed["plan"]} == printed["plan"]
    assert plan["model"] == "toy-net"
    assert plan["batch"] == 16  # The default of the model's own file.
    assert set(plan["reasons"]) == {"a", "b", "c"}
    assert plan["certificate"]["gap_ratio"] == 0
    fastest = json.loads((folder / "plan.time-optimal.json").read_text())
    assert fastest["estimate"]["step_s"] <= plan["estimate"]["step_s"]


def test_the_text_says_why(greentrain: Command) -> None:
    ended = greentrain("schedule", "--exclude", "c")
    assert ended.code == 0
    assert "Why these devices:" in ended.out
    assert "c: left out by --exclude" in ended.out
    assert "Written: plan.json" in ended.out


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("bandwidth", "bandwith", "field link: Object contains unknown field `bandwith`."),
        ("1Gbit", "-1Gbit", "field link.bandwidth: '-1Gbit' must not be below"),
        ("1Gbit", "1000", "field link.bandwidth: '1000' is not a bandwidth."),
        ('"0.1ms"', "1", "field link.latency: Expected `str`, got `int`."),
        ('id = "b"', 'id = "a"', "device ids ['a'] are used twice."),
        ('"local"', '"remote"', "field device[0]: launch is 'remote', expected"),
        (
            'profile = "profiles/a.device.json"',
            'kind = "toaster"',
            "field device[0].kind: unknown device kind 'toaster'",
        ),
        ("profiles/a.device", "profiles/z.device", "field device[0].profile: profiles/z.device.json: no such file."),
        (
            "profiles/a.device",
            "profiles/toy-net.model",
            "field device[0].profile: profiles/toy-net.model.json: schema is",
        ),
        ('name = "home"', "name = home", "not valid TOML"),
    ],
)
def test_a_wrong_cluster_file(old: str, new: str, sentence: str, folder: Path, greentrain: Command) -> None:
    path = folder / "cluster.toml"
    path.write_text(path.read_text().replace(old, new, 1) if old != '"local"' else path.read_text().replace(old, new))
    ended = greentrain("schedule", "--json")
    assert ended.code == 2
    assert ended.sentence.startswith(f"cluster.toml: {sentence}")
    assert json.loads(ended.out)["error"] == ended.sentence
    assert not (folder / "plan.json").exists()


def test_a_model_of_ones_own_is_found_again_after_measuring(
    folder: Path, greentrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = read_model_profile(folder / "profiles", "toy-net").times_of("a", "current")
    monkeypatch.setattr(layers, "time_layers", lambda *_, **__: times)  # pyright: ignore[reportUnknownLambdaType]
    (folder / "profiles" / "toy-net.model.json").unlink()
    options = SimpleNamespace(folder=folder / "profiles", kind="a", command="greentrain measure")
    measure_model(
        cast("MeasureOptions", options), "net.py:workload", load_workload("net.py:workload"), quiet=True
    )  # fmt: skip
    assert read_model_profile(folder / "profiles", "toy-net").workload == "net.py:workload"
    assert greentrain("schedule").code == 0
    (folder / "net.py").unlink()
    ended = greentrain("schedule")
    assert ended.code == 2
    assert ended.sentence == f"{folder}/net.py: no such file, expected a Python file with a Workload."


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "greentrain.model/1"}', "\x00\x01"])
def test_a_damaged_model_profile(content: str, folder: Path, greentrain: Command) -> None:
    (folder / "profiles" / "toy-net.model.json").write_text(content)
    ended = greentrain("schedule")
    assert ended.code == 2
    assert ended.sentence.startswith("profiles/toy-net.model.json: ")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--include", "z"), 2, "unknown device 'z'."),
        (("--exclude", "a", "--exclude", "b", "--exclude", "c"), 3, "no device is left to plan with."),
        (("--include", "a", "--include", "b", "--exclude", "b"), 3, "--include and --exclude both name b."),
        (("--model", "other"), 2, "profiles/other.model.json: no such file; models profiled in profiles: toy-net."),
        (("--profiles", "nowhere"), 2, "nowhere: holds no model profile."),
        (("--cluster", "nowhere.toml"), 2, "nowhere.toml: no such file."),
        (("--micro-batch", "5"), 2, "micro-batch 5 does not divide the batch 16."),
        (("--deadline", "1h"), 2, "--deadline, --energy-budget and --intensity-series need --samples or --epochs"),
        (("--energy-budget", "a=1Wh"), 2, "--deadline, --energy-budget and --intensity-series need"),
        (("--samples", "9", "--epochs", "2"), 2, "--samples and --epochs both say how long the job is"),
        (("--deadline", "soon", "--samples", "9"), 2, "--deadline: 'soon' is not a time."),
        (("--power-cap", "7W"), 2, "--power-cap: '7W' names no device."),
        (("--power-cap", "z=7W"), 2, "unknown device 'z'."),
        (("--power-cap", "a=7W", "--power-cap", "a=8W"), 2, "--power-cap: a is given twice."),
        (("--power-cap", "a=7J"), 2, "--power-cap a: '7J' is not a power."),
        (("--energy-budget", "1Wh", "--energy-budget", "2Wh", "--samples", "9"), 2, "--energy-budget is given twice"),
        (("--max-slowdown", "nan"), 2, "Invalid value for '--max-slowdown': nan is not a finite number."),
        (("--max-slowdown", "0.5"), 3, "--max-slowdown 0.5 asks for a plan faster than the fastest one."),
        (("--output", "."), 2, "Invalid value for '-o' / '--output': File '.' is a directory."),
        (
            ("--planner", "data", "--time-limit", "3"),
            2,
            "--time-limit and --gap go with the planners auto, exact, beam.",
        ),
        (("--planner", "beam", "--frontier"), 2, "--frontier is made by the exact planner"),
        (("--start-after", "2026-05-01T00:00Z"), 2, "--start-after goes with --intensity-series."),
        (("--pick", "1"), 2, "plan.frontier.json: no such file."),
    ],
)
def test_a_wrong_wish(arguments: tuple[str, ...], code: int, sentence: str, greentrain: Command) -> None:
    ended = greentrain("schedule", *arguments)
    assert ended.code == code
    assert ended.sentence.startswith(sentence)


@pytest.mark.parametrize("planner", ["auto", "data", "pipeline", "single"])
@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (("--deadline", "1s"), "the deadline is missed by "),
        (("--energy-budget", "1J"), "the energy budget is exceeded by "),
    ],
)
def test_a_limit_that_cannot_be_kept_is_named_with_what_would_do(
    planner: str, limit: tuple[str, str], sentence: str, folder: Path, greentrain: Command
) -> None:
    ended = greentrain("schedule", "--planner", planner, *limit, "--samples", "1000000", "--json")
    assert ended.code == 3
    assert sentence in ended.sentence
    told = json.loads(ended.out)
    assert told["error"] == ended.sentence
    assert not (folder / "plan.json").exists()
    enough = re.search(r"Allow ([\d.]+ \w+)", told["hint"])
    assert enough is not None
    relaxed = (limit[0], enough[1])
    assert greentrain("schedule", "--planner", planner, *relaxed, "--samples", "1000000", "--no-explain").code == 0


def test_a_power_cap_that_leaves_nothing_names_the_smallest_that_works(greentrain: Command) -> None:
    ended = greentrain("schedule", "--include", "a", "--power-cap", "a=3W", "--json")
    assert ended.code == 3
    enough = re.search(r"Allow a ([\d.]+ W)", json.loads(ended.out)["hint"])
    assert enough is not None
    assert greentrain("schedule", "--include", "a", "--power-cap", f"a={enough[1]}", "--no-explain").code == 0


def test_a_capped_device_is_left_out_with_the_reason(greentrain: Command) -> None:
    ended = greentrain("schedule", "--power-cap", "a=3W", "--json")
    plan = json.loads(ended.out)["plan"]
    assert ended.code == 0
    assert plan["objective"]["power_cap_w"] == {"a": 3.0}
    assert all("a" not in stage["devices"] for stage in plan["stages"])
    assert plan["reasons"]["a"].startswith("out: its power cap of 3 W is below every operating point")


def test_a_plan_by_rule_is_not_explained_by_searches_of_other_plans(greentrain: Command) -> None:
    assert json.loads(greentrain("schedule", "--planner", "exact", "--json").out)["explanation"] is not None
    assert json.loads(greentrain("schedule", "--planner", "data", "--json").out)["explanation"] is None


@pytest.mark.parametrize("parallelism", ["single", "data", "pipeline"])
def test_only_plans_of_the_parallelism(parallelism: str, folder: Path, greentrain: Command) -> None:
    arguments = ("--parallelism", parallelism, "--no-explain", "--micro-batch", "8")
    assert greentrain("schedule", *arguments).code == 0
    plan = read_json(folder / "plan.json", Plan, schema=PLAN_SCHEMA)
    assert parallelism_name(plan) == parallelism


def test_the_whole_job_in_epochs_of_the_data(greentrain: Command) -> None:
    ended = greentrain("schedule", "--epochs", "3", "--intensity", "56", "--energy-budget", "b=1kWh", "--json")
    printed = json.loads(ended.out)
    price, job = printed["plan"]["estimate"], printed["job"]
    assert job["samples"] == 3 * 160
    assert printed["plan"]["objective"]["device_budget_j"] == {"b": 3.6e6}
    assert job["energy_j"] == pytest.approx(480 * price["energy_j_per_sample"])
    assert job["duration_s"] == pytest.approx(30 * price["step_s"])
    assert job["co2e_kg"] == pytest.approx(job["energy_j"] / 3.6e6 * 0.056)
    assert "Job of 480 samples: " in greentrain("schedule", "--epochs", "3", "--no-explain").out


def test_the_explanation_is_told_and_can_be_left_out(greentrain: Command) -> None:
    ended = greentrain("schedule", "--json")
    explanation = json.loads(ended.out)["explanation"]
    assert set(explanation) >= {"devices", "limits", "runners_up", "changes", "cut_short", "whole", "took_s"}
    assert explanation["took_s"] < 4
    ended = greentrain("schedule", "--no-explain", "--json")
    assert json.loads(ended.out)["explanation"] is None
    assert json.loads(ended.out)["plan"]["reasons"] == {}


def test_the_simulated_round_stands_beside_the_formula(greentrain: Command) -> None:
    printed = json.loads(greentrain("schedule", "--no-explain", "--json").out)
    simulated, price = printed["simulated"], printed["plan"]["estimate"]
    assert simulated["method"] == "simulator"
    assert simulated["step_s"] == pytest.approx(price["step_s"], rel=0.05)
    assert "Simulated: a round of " in greentrain("schedule", "--no-explain").out


def test_a_gap_that_is_good_enough_and_no_time(greentrain: Command) -> None:
    plan = json.loads(greentrain("schedule", "--objective", "edp", "--gap", "0.2", "--no-explain", "--json").out)[
        "plan"
    ]
    assert plan["certificate"]["gap_ratio"] <= 0.2 + 1e-9
    plan = json.loads(greentrain("schedule", "--objective", "edp", "--time-limit", "0", "--json").out)["plan"]
    assert plan["certificate"]["gap_ratio"] > 0.2


def test_ctrl_c_takes_the_best_plan_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, devices=tuple("abcdefghi"))
    sizes = [word for size in (4, 8, 16, 32, 64, 128) for word in ("--micro-batch", str(size))]
    arguments = (
        "schedule",
        "--planner",
        "exact",
        "--objective",
        "edp",
        "--batch",
        "1920",
        "--micro-batch",
        "60",
        *sizes[:-4],
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "greentrain.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "Ctrl-C takes the best plan so far" in line:
                process.send_signal(signal.SIGINT)
                break
        printed = process.stdout.read()
        assert process.wait(timeout=40) == 0, process.stderr.read()
    assert printed.startswith("Interrupted: this is the best plan so far")
    plan = read_json(tmp_path / "plan.json", Plan, schema=PLAN_SCHEMA)
    assert plan.certificate is not None
    assert plan.certificate.gap_ratio is not None
    # The search may have closed its last window just before the signal.
    assert plan.certificate.gap_ratio >= 0


def test_a_pipe_is_written_to_and_never_replaced(folder: Path, greentrain: Command) -> None:
    os.mkfifo(folder / "pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((folder / "pipe").read_text()))
    reader.start()
    # A time-optimal plan would go to a file of its own.
    assert greentrain("schedule", "--objective", "time", "-o", "pipe").code == 0
    reader.join(timeout=10)
    assert json.loads(found[0])["schema"] == "greentrain.plan/1"
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
