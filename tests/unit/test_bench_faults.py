"""The pure parts of the faults' benchmark: plans by hand, verdicts, tables, and what a soak comes to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from problems import make_problem

from greentrain.cost import CostTables
from greentrain.errors import UsageError
from greentrain.plan import Plan, check_model
from greentrain.planners.candidate import Part, assemble
from greentrain.profile import ModelProfile
from greentrain.runtime.messages import Progress
from greentrain.summary import Recovery
from greentrain_harness.bench._faults_crew import Seen, Span, told_change
from greentrain_harness.bench._faults_plans import PLANS, hand_plan, single_plan, victims
from greentrain_harness.bench._faults_soak import Hit, Soak, grown, matched, soak_table
from greentrain_harness.bench._faults_table import (
    FaultRow,
    RestartRow,
    faults_table,
    loss_difference,
    restarts_table,
)
from greentrain_harness.bench._row_files import read_rows, write_rows

ROW = FaultRow(
    plan="data", fault="kill", role="member", trial=0, victim="b", grouped=True, after_round=7, detected_s=0.2,
    repaired_s=0.4, back_s=1.0, redone_rounds=0, moved_bytes=0, energy_j=3.0, loss_difference=1e-6, whole=True,
)  # fmt: skip
LATE = msgspec.structs.replace(ROW, fault="freeze", detected_s=3.5, repaired_s=1.5, loss_difference=0.1, whole=False)
RESTART = RestartRow(
    plan="data", role="member", trial=0, victim="b", lost_rounds=3, stopped_s=1.0, planned_s=5.0, back_s=20.0
)


def recovery(*lost: str) -> Recovery:
    return Recovery(
        round=5, lost=lost, joined=(), detected_s=0.5, repaired_s=0.25, redone_rounds=0, moved_bytes=0, energy_j=1.0
    )


def data_plan_and_model() -> tuple[Plan, ModelProfile]:
    """Data parallelism over four devices of the toy model, of which the first does half of the work."""
    problem = make_problem(0, devices=4, layers=6, batch=16)
    parts = [Part(0, 6, ("d0", "d1", "d2", "d3"), (8, 4, 2, 2), ("p0",) * 4)]
    return assemble(problem, "data", 16, parts, CostTables(problem)), problem.model


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_by_hand_has_every_device_row_and_layer(name: str) -> None:
    base, model = data_plan_and_model()
    plan = hand_plan(name, base, model)
    assert plan.devices == base.devices
    assert [sum(stage.shares) for stage in plan.stages] == [plan.micro_batch] * len(plan.stages)
    assert plan.stages[-1].stop == len(model.layers)
    check_model(plan, model)
    assert single_plan(plan, model).devices == ("d0",)


def test_victims_hold_every_place_once() -> None:
    base, model = data_plan_and_model()
    roles = {name: [(one.device, one.role) for one in victims(hand_plan(name, base, model))] for name in PLANS}
    assert roles == {
        "data": [("d0", "coordinator member"), ("d1", "member")],
        "pipeline": [("d0", "coordinator first stage"), ("d1", "middle stage"), ("d3", "last stage")],
        "hybrid": [
            ("d0", "coordinator first member"), ("d1", "first member"), ("d2", "middle stage"), ("d3", "last stage"),
        ],
    }  # fmt: skip


def test_a_row_names_the_bars_that_it_misses() -> None:
    assert ROW.missed == ()
    assert LATE.missed == ("detection", "repair", "rounds", "loss")
    assert msgspec.structs.replace(ROW, repaired_s=1.5, grouped=False).missed == ()
    assert msgspec.structs.replace(ROW, detected_s=None, loss_difference=None).missed == ("detection", "loss")


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.csv"
    assert read_rows(path, FaultRow) == []
    unknown = msgspec.structs.replace(ROW, detected_s=None)
    write_rows(path, [ROW, LATE, unknown])
    assert read_rows(path, FaultRow) == [ROW, LATE, unknown]
    with pytest.raises(UsageError, match="no table of this benchmark"):
        read_rows(path, RestartRow)


def test_the_table_tells_the_verdicts_and_the_worst() -> None:
    table = faults_table([ROW, LATE])
    assert "met" in table.splitlines()[1]
    assert table.splitlines()[2].endswith("misses detection, repair, rounds, loss")
    repair = next(line for line in table.splitlines() if line.startswith("repair, a group"))
    assert repair.split()[-4:] == ["2", "0.95", "1.50", "1"]
    assert "1 of 2 faults meet every bar" in table


def test_a_restart_stands_beside_the_kill_of_the_same_place() -> None:
    row = restarts_table([RESTART], [ROW, LATE]).splitlines()[1]
    assert row.split()[-5:] == ["20.00", "1.00", "20.0", "14", "met"]
    slow = msgspec.structs.replace(ROW, back_s=2.0)
    assert restarts_table([RESTART], [slow]).splitlines()[1].endswith("misses")
    assert restarts_table([RESTART], []).splitlines()[1].split()[-4:] == ["-", "-", "14", "-"]


def test_the_loss_of_an_untold_round_shows_in_its_epoch() -> None:
    undisturbed = [4.0, 3.0, 2.0, 1.0]
    assert loss_difference({1: 4.0, 2: 3.0, 3: 2.0}, [3.5, 1.5], undisturbed, 2) == 0.0
    assert loss_difference({1: 4.0, 2: 3.0, 3: 2.0}, [3.5, 1.8], undisturbed, 2) == pytest.approx(0.2)
    assert loss_difference({}, [], undisturbed, 2) is None


def test_hits_find_their_recoveries_in_order() -> None:
    first, second, other = recovery("a"), recovery("a"), recovery("b")
    hits = [
        Hit("kill", "a", noticed=True, back=True), Hit("freeze", "a", noticed=False, back=True),
        Hit("link", "b", noticed=True, back=True), Hit("link", "a", noticed=True, back=True),
    ]  # fmt: skip
    found = matched(hits, [first, other, second])
    assert [(hit.fault, one) for hit, one in found] == [("kill", first), ("link", other), ("link", second)]
    assert found[0][1] is first
    assert matched(hits, [first])[1:] == [(hits[2], None), (hits[3], None)]


def test_a_soak_is_met_only_when_all_holds() -> None:
    good = Soak(
        plan="data", hits=(Hit("kill", "a", noticed=True, back=True),), recoveries=(recovery("a"),),
        status={"a": 0, "b": 0}, rounds=(20, 20), loss_difference=1e-6, grown=Span(0, 1), left_over_n=0, said="",
    )  # fmt: skip
    assert "MISSED" not in soak_table(good, 1)
    for change in (
        {"left_over_n": 1}, {"grown": Span(9, 0)}, {"rounds": (19, 20)}, {"status": {"a": 0, "b": 5}},
        {"loss_difference": None}, {"hits": (Hit("kill", "a", noticed=True, back=False),)},
    ):  # fmt: skip
        assert soak_table(msgspec.structs.replace(good, **change), 1).count("MISSED") == 1, change


def test_growth_is_of_one_process() -> None:
    assert grown([[Span(10, 3), Span(12, 3)], [Span(30, 9)]]) == Span(2, 0)
    assert grown([]) == Span(0, 0)


def test_a_change_is_told_of_those_it_names() -> None:
    event = "a, b lost and c joined; d, c go on with round 7 after 0.20 s"
    seen = Seen(0.0, Progress(step=6, steps=9, epoch=1, loss=None, elapsed_s=1.0, event=event))
    told = {device: [what for what in ("lost", "joined") if told_change(seen, device, what)] for device in "abcd"}
    assert told == {"a": ["lost"], "b": ["lost"], "c": ["joined"], "d": []}
