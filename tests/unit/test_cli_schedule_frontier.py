"""``greentrain schedule --frontier``, ``--pick`` and the start by the grid's intensity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command
from work_folder import make_work_folder

from greentrain.cli._schedule_frontier import FRONTIER_SCHEMA, FrontierFile
from greentrain.files import read_json
from greentrain.plan import PLAN_SCHEMA, Plan


@pytest.fixture
def greentrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    make_work_folder(tmp_path, devices=("a", "b"))
    return Command(capsys)


def _frontier() -> FrontierFile:
    return read_json(Path("plan.frontier.json"), FrontierFile, schema=FRONTIER_SCHEMA)


def _plan() -> Plan:
    return read_json(Path("plan.json"), Plan, schema=PLAN_SCHEMA)


def test_the_rows_run_from_the_fastest_to_the_leanest(greentrain: Command) -> None:
    ended = greentrain("schedule", "--frontier", "--no-explain")
    assert ended.code == 0
    file = _frontier()
    assert file.exact
    assert len(file.rows) >= 3
    assert [row.number for row in file.rows] == list(range(1, len(file.rows) + 1))
    assert [row.step_s for row in file.rows] == sorted(row.step_s for row in file.rows)
    energies = [row.energy_j_per_sample for row in file.rows]
    assert energies == sorted(energies, reverse=True)
    assert "time" in file.rows[0].marks
    assert {"energy", "chosen"} <= set(file.rows[-1].marks)
    products = [row.step_s * row.energy_j_per_sample for row in file.rows]
    assert "EDP knee" in file.rows[products.index(min(products))].marks
    lines = [line for line in ended.out.splitlines() if line.split(" ")[0].isdigit()]
    assert len(lines) == len(file.rows)
    assert lines[0].endswith("< time")


@pytest.mark.parametrize("objective", ["energy", "edp", "time"])
def test_the_chosen_row_is_the_planners_plan_and_proven(objective: str, greentrain: Command) -> None:
    assert greentrain("schedule", "--objective", objective, "--no-explain").code == 0
    alone = _plan()
    assert greentrain("schedule", "--objective", objective, "--frontier", "--no-explain").code == 0
    plan = _plan()
    assert plan.estimate is not None
    assert alone.estimate is not None
    assert plan.estimate.step_s == pytest.approx(alone.estimate.step_s)
    assert plan.estimate.energy_j_per_sample == pytest.approx(alone.estimate.energy_j_per_sample)
    assert plan.certificate is not None
    assert plan.certificate.gap_ratio == 0


def test_any_row_can_be_picked_later(greentrain: Command) -> None:
    assert greentrain("schedule", "--frontier", "--no-explain").code == 0
    rows = _frontier().rows
    assert greentrain("schedule", "--pick", "2").code == 0
    assert _plan().stages == rows[1].plan.stages
    marks = [row.marks for row in _frontier().rows]
    assert "chosen" in marks[1]
    assert sum("chosen" in own for own in marks) == 1
    assert greentrain("schedule", "--check", "plan.json").code == 0


def test_the_best_row_within_limits_is_picked(greentrain: Command) -> None:
    assert greentrain("schedule", "--frontier", "--no-explain").code == 0
    rows = _frontier().rows
    slowdown = rows[1].step_s / rows[0].step_s * 1.0001
    assert greentrain("schedule", "--pick", "best", "--max-slowdown", str(slowdown)).code == 0
    assert _plan().stages == rows[1].plan.stages
    deadline = rows[0].step_s * 1.0001
    assert greentrain("schedule", "--pick", "best", "--samples", "16000", "--deadline", f"{deadline * 1000}s").code == 0
    assert _plan().stages == rows[0].plan.stages
    ended = greentrain("schedule", "--pick", "best", "--samples", "16000", "--deadline", f"{deadline * 900}s")
    assert ended.code == 3
    assert ended.sentence.startswith("no plan of the frontier keeps the limits; the fastest: the deadline is missed by")
    assert greentrain("schedule", "--pick", "1", "--samples", "16000", "--deadline", "1ms").code == 3


@pytest.mark.parametrize("pick", ["0", "99", "first"])
def test_a_row_that_is_not_there(pick: str, greentrain: Command) -> None:
    ended = greentrain("schedule", "--frontier", "--pick", pick, "--no-explain")
    assert ended.code == 2
    assert ended.sentence.startswith(f"--pick is '{pick}', expected best or a number from 1 to ")


def test_a_frontier_of_other_profiles_is_priced_with_the_present(greentrain: Command) -> None:
    assert greentrain("schedule", "--frontier", "--no-explain").code == 0
    text = Path("cluster.toml").read_text()
    Path("cluster.toml").write_text(text.replace("1Gbit", "1Mbit"))
    ended = greentrain("schedule", "--pick", "1")
    assert ended.code == 0
    assert "Remark: the frontier was made from other profiles or devices" in ended.err
    price = _plan().estimate
    assert price is not None
    assert greentrain("schedule", "--check", "plan.json").code == 0


SERIES = "time,g_per_kwh\n" + "".join(
    f"2026-05-01T{hour:02}:00Z,{grams}\n" for hour, grams in enumerate([500, 400, 50, 450, 500, 500])
)


def test_the_start_that_emits_least(greentrain: Command) -> None:
    Path("grid.csv").write_text(SERIES)
    # About half an hour of training.
    arguments = ("--objective", "carbon", "--samples", "4000000", "--intensity-series", "grid.csv",
                 "--start-after", "2026-05-01T00:10Z")  # fmt: skip
    ended = greentrain("schedule", *arguments, "--deadline", "5h", "--json")
    printed = json.loads(ended.out)
    assert printed["start"]["start_utc"] == "2026-05-01T02:00:00Z"
    assert printed["start"]["co2e_kg"] == pytest.approx(printed["job"]["energy_j"] / 3.6e6 * 0.05)
    assert printed["start"]["now_co2e_kg"] == pytest.approx(10 * printed["start"]["co2e_kg"], rel=0.2)
    assert printed["start"]["tried_n"] == len(printed["frontier"]["rows"])
    assert "starting at the earliest instant would emit" in greentrain("schedule", *arguments, "--deadline", "5h").out
    # Nothing cleaner begins before this deadline.
    early = greentrain("schedule", *arguments, "--deadline", "45min", "--json")
    assert json.loads(early.out)["start"]["start_utc"] == "2026-05-01T00:10:00Z"
    assert "no later start emits less" in greentrain("schedule", *arguments, "--deadline", "45min").out


def test_a_faster_plan_can_emit_less_where_the_clean_hour_is_short(greentrain: Command) -> None:
    Path("grid.csv").write_text(
        "time,g_per_kwh\n2026-05-01T00:00Z,900\n2026-05-01T02:00Z,10\n2026-05-01T02:31Z,900\n2026-05-01T09:00Z,900\n"
    )
    arguments = ("--samples", "4400000", "--intensity-series", "grid.csv", "--start-after", "2026-05-01T00:00Z")
    printed = json.loads(greentrain("schedule", "--objective", "carbon", *arguments, "--json").out)
    rows = printed["frontier"]["rows"]
    assert printed["start"]["number"] < len(rows) - 1
    assert printed["start"]["co2e_kg"] < printed["start"]["leanest_co2e_kg"]


def test_with_another_objective_only_the_start_is_chosen(greentrain: Command) -> None:
    Path("grid.csv").write_text(SERIES)
    arguments = ("--samples", "4000000", "--intensity-series", "grid.csv", "--start-after", "2026-05-01T00:10Z")
    printed = json.loads(greentrain("schedule", "--objective", "time", *arguments, "--json").out)
    assert printed["frontier"] is None
    assert printed["start"]["tried_n"] == 1
    start = printed["start"]
    assert start["co2e_kg"] == start["leanest_co2e_kg"] < start["now_co2e_kg"]
    assert printed["explanation"] is not None


def test_a_series_that_is_too_short(greentrain: Command) -> None:
    Path("grid.csv").write_text(SERIES)
    ended = greentrain(
        "schedule", "--samples", "400000000", "--intensity-series", "grid.csv", "--start-after", "2026-05-01T00:00Z"
    )
    assert ended.code == 2
    assert ended.sentence.startswith("grid.csv, column 'g_per_kwh': does not cover the ")
