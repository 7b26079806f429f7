from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of

from greentrain.cost import estimate
from greentrain.ledger import LedgerRow, energy_uj, read_ledger, total_energy_j, totals_j, write_ledger
from greentrain.objective import Objective
from greentrain.planners.candidate import Part
from greentrain.power import Source
from greentrain.reading import Scope
from greentrain.runtime.finish import (
    board_split,
    complete_rounds,
    epoch_losses,
    measured_outcome,
    merge_rank_ledgers,
    predicted_outcome,
    round_losses,
    undone,
    unused_rows,
    with_files,
)
from greentrain.runtime.messages import RankResult, rank_ledger_path

PROBLEM = make_problem(3, devices=2, layers=4, batch=8, micro_batches=(4,))
PLAN = plan_of(PROBLEM, 4, [Part(0, 4, ("d0", "d1"), (3, 1), ("p0", "p0"))])


def _row(rank: int, step: int, energy_j: float | None, **changes: object) -> LedgerRow:
    row = LedgerRow(
        run="demo", device=f"d{rank}", rank=rank, step=step, action="step", t_start_s=float(step), duration_s=1.0,
        energy_j=energy_j, error_j=None if energy_j is None else energy_j / 50, bytes=0, source="measured",
        meter="rapl",
    )  # fmt: skip
    return msgspec.structs.replace(row, **changes)


def _result(
    rank: int,
    energies_j: Sequence[float | None],
    cpu_s: Sequence[float],
    *,
    board: str = "pc",
    scope: Scope = "board",
    source: Source = "measured",
) -> RankResult:
    rows = [_row(rank, step, joules, source=source) for step, joules in enumerate(energies_j)]
    rows += [_row(rank, step, None, action="forward", duration_s=0.4) for step in range(len(energies_j))]
    return RankResult(
        device=f"d{rank}", seat=rank, rows=rows, loss_S=[0.5 / (step + 1) for step in range(len(energies_j))],
        cpu_s_S=dict(enumerate(cpu_s)),
        peak_bytes=1000, meter="rapl", source=source, board=board, scope=scope,
    )  # fmt: skip


@given(
    joules=st.lists(st.none() | st.floats(0, 1e4), min_size=1, max_size=4),
    ranks_n=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_ranks_on_one_board_share_the_meter_exactly(joules: list[float | None], ranks_n: int, seed: int) -> None:
    rng = random.Random(seed)
    results = [_result(0, joules, [rng.choice([0.0, rng.random()]) for _ in joules])]
    results += [
        _result(rank, [None] * len(joules), [rng.choice([0.0, rng.random()]) for _ in joules])
        for rank in range(1, ranks_n)
    ]
    rows = board_split(results)
    assert len(rows) == sum(len(result.rows) for result in results)
    for step, whole_j in enumerate(joules):
        parts = [row for row in rows if row.step == step and row.action == "step"]
        assert len(parts) == ranks_n
        if whole_j is None:
            assert [row.energy_j for row in parts] == [None] * ranks_n
            continue
        assert sum(energy_uj(row.energy_j) for row in parts if row.energy_j is not None) == energy_uj(whole_j)
        assert sum(energy_uj(row.error_j) for row in parts if row.error_j is not None) == energy_uj(whole_j / 50)
    # The sum over ranks is the sum over devices and the meter's own, to the last digit.
    whole_uj = sum(energy_uj(one) for one in joules if one is not None)
    for sums in (totals_j(rows, lambda row: str(row.rank)), totals_j(rows, lambda row: row.device)):
        assert sum(energy_uj(part) for part in sums.values()) == whole_uj


def test_a_split_follows_the_processor_time_and_says_so() -> None:
    rows = board_split([_result(0, [10.0], [3.0]), _result(1, [None], [1.0])])
    parts = [row for row in rows if row.action == "step"]
    assert [row.energy_j for row in parts] == [7.5, 2.5]
    assert {row.meter for row in parts} == {"rapl (split by CPU time)"}
    assert {row.source for row in parts} == {"measured"}


def test_meters_of_own_processes_and_own_boards_are_left_alone() -> None:
    own = [_result(0, [1.0], [1.0], scope="process"), _result(1, [2.0], [1.0], scope="process")]
    assert total_energy_j(board_split(own)) == 3.0
    boards = [_result(0, [1.0], [1.0], board="a"), _result(1, [2.0], [1.0], board="b")]
    assert total_energy_j(board_split(boards)) == 3.0


def test_a_modelled_process_on_a_measured_board_is_not_counted_twice() -> None:
    results = [_result(0, [10.0], [1.0]), _result(1, [4.0], [1.0], scope="process", source="modelled")]
    rows = board_split(results)
    assert total_energy_j(rows) == 10.0
    assert {row.source for row in rows if row.action == "step"} == {"measured"}


def test_losses_add_up_over_ranks() -> None:
    assert round_losses([_result(0, [1.0, 1.0], [1, 1]), _result(1, [None, None], [1, 1])]) == [1.0, 0.5]


def test_measured_outcome_keeps_device_totals_exactly() -> None:
    rows = board_split([_result(0, [10.0, 9.0], [3.0, 1.0]), _result(1, [None, None], [1.0, 1.0])])
    outcome = measured_outcome(rows, PLAN, PROBLEM.cluster, duration_s=2.5, peak_bytes={"d0": 5})
    assert outcome.joules_per_sample == 19.0 / 16
    assert outcome.error_j_per_sample == pytest.approx(19.0 / 50 / 16)
    assert outcome.samples_per_s == 16 / 2.5
    assert outcome.step_s == 1.0
    assert outcome.source == "measured"
    for device, total_j in totals_j(rows, lambda row: row.device).items():
        assert sum(energy_uj(part) for part in outcome.energy_j[device].values()) == energy_uj(total_j)
        assert outcome.energy_j[device]["compute"] > 0


def test_a_lost_sensor_is_missing_never_zero() -> None:
    rows = board_split([_result(0, [10.0], [3.0], board="a"), _result(1, [None], [1.0], board="b")])
    outcome = measured_outcome(rows, PLAN, PROBLEM.cluster, duration_s=None, peak_bytes={})
    assert outcome.joules_per_sample is None
    assert set(outcome.energy_j) == {"d0"}
    assert outcome.samples_per_s == 8.0
    nothing = measured_outcome([], PLAN, PROBLEM.cluster, duration_s=None, peak_bytes={})
    assert (nothing.joules_per_sample, nothing.samples_per_s, nothing.step_s) == (None, None, None)


def test_measured_and_modelled_devices_are_mixed() -> None:
    results = [_result(0, [1.0], [1.0], board="a"), _result(1, [2.0], [1.0], board="b", source="modelled")]
    outcome = measured_outcome(board_split(results), PLAN, PROBLEM.cluster, duration_s=1.0, peak_bytes={})
    assert outcome.source == "mixed"


def test_predicted_outcome_is_the_price() -> None:
    price = estimate(PLAN, PROBLEM)
    outcome = predicted_outcome(price)
    assert (outcome.joules_per_sample, outcome.step_s) == (price.energy_j_per_sample, price.step_s)
    assert (outcome.source, outcome.error_j_per_sample) == ("modelled", None)


def test_what_the_ranks_wrote_is_joined_without_the_torn_line(tmp_path: Path) -> None:
    for rank in (0, 1):
        write_ledger(rank_ledger_path(tmp_path, rank), [_row(rank, step, 1.0) for step in (0, 1)])
    torn = rank_ledger_path(tmp_path, 1)
    torn.write_bytes(torn.read_bytes()[:-4])
    merge_rank_ledgers(tmp_path)
    rows = read_ledger(tmp_path / "ledger.csv")
    assert [(row.step, row.rank) for row in rows] == [(0, 0), (0, 1), (1, 0)]


def test_a_sensor_that_falls_silent_makes_fewer_rounds_count_never_lower_joules() -> None:
    rows = [_row(rank, step, 4.0 if step < 5 else None) for rank in (0, 1) for step in range(10)]
    outcome = measured_outcome(rows, PLAN, PROBLEM.cluster, duration_s=10.0, peak_bytes={})
    assert outcome.joules_per_sample == pytest.approx(2 * 4.0 / PLAN.batch)
    assert outcome.samples_per_s == pytest.approx(10 * PLAN.batch / 10.0)


def test_idle_devices_that_count_stand_in_the_ledger_as_modelled() -> None:
    problem = make_problem(3, devices=3, layers=4, batch=8, micro_batches=(4,))
    counting = msgspec.structs.replace(PLAN, objective=Objective(count_idle_of_unused=True))
    rows = [_row(rank, step, 4.0) for rank in (0, 1) for step in range(2)]
    assert unused_rows(rows, PLAN, problem.cluster) == []
    unused = unused_rows(rows, counting, problem.cluster)
    idle_w = problem.cluster.device("d2").power.idle_w
    assert [(row.device, row.rank, row.action, row.source, row.energy_j) for row in unused] == [
        ("d2", -1, "idle", "modelled", pytest.approx(idle_w)) for _ in range(2)
    ]
    outcome = measured_outcome([*rows, *unused], counting, problem.cluster, duration_s=2.0, peak_bytes={})
    assert outcome.joules_per_sample == pytest.approx((8.0 + round(idle_w, 6)) / PLAN.batch, abs=1e-6)
    assert outcome.energy_j["d2"] == {"idle": pytest.approx(2 * idle_w, abs=1e-5)}
    assert outcome.source == "mixed"


def _lost(seat: int, steps: range, undone_from: int) -> RankResult:
    rows = [_row(seat, step, 2.0) for step in steps]
    return RankResult(
        device=f"d{seat}", seat=seat, rows=rows, loss_S=[], cpu_s_S={}, peak_bytes=None, meter="rapl",
        source="measured", board=f"board{seat}", scope="board", undone_from=undone_from,
    )  # fmt: skip


def test_rounds_that_were_done_again_count_once_and_cost_twice() -> None:
    rows = undone([_row(0, step, 1.0) for step in (0, 1, 2, 1, 2, 3)], None)
    assert [(row.step, row.action) for row in rows if row.action == "recovery"] == [(1, "recovery"), (2, "recovery")]
    assert complete_rounds(rows, 1) == 4
    outcome = measured_outcome(rows, PLAN, PROBLEM.cluster, duration_s=6.0, peak_bytes={})
    assert outcome.joules_per_sample == pytest.approx(6.0 / (4 * PLAN.batch))
    assert outcome.energy_j["d0"]["recovery"] == 2.0
    assert sum(outcome.energy_j["d0"].values()) == pytest.approx(6.0)


def test_what_a_lost_device_wrote_counts_up_to_its_end(tmp_path: Path) -> None:
    """It took part in rounds 0 to 3, of which 2 and 3 were done again without it."""
    first = _result(0, [1.0] * 6, [1.0] * 6, board="board0")
    lost = _lost(1, range(3), undone_from=2)  # The others know of three of its rounds; its file has four.
    write_ledger(rank_ledger_path(tmp_path, 1), [_row(1, step, 2.0) for step in range(4)])
    known = with_files([first, lost], tmp_path)[1]
    assert [(row.step, row.action) for row in known.rows] == [
        (0, "step"), (1, "step"), (2, "recovery"), (3, "recovery")
    ]  # fmt: skip
    elsewhere = with_files([first, lost], tmp_path / "elsewhere")[1]
    assert [(row.step, row.action) for row in elsewhere.rows] == [(0, "step"), (1, "step"), (2, "recovery")]
    rows = board_split([first, known])
    assert complete_rounds(rows, 2) == 6
    outcome = measured_outcome(rows, PLAN, PROBLEM.cluster, duration_s=6.0, peak_bytes={})
    assert outcome.joules_per_sample == pytest.approx((6.0 + 8.0) / (6 * PLAN.batch))
    assert outcome.samples_per_s == pytest.approx(PLAN.batch)


def test_losses_by_epoch_of_a_run_that_began_inside_one() -> None:
    assert list(epoch_losses([4.0, 2.0, 1.0], first_round=3, rounds_per_epoch=4)) == [4.0, 1.5]
