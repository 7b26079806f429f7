"""The study of the parallelisms: rows and their file, plans of every way, who wins, the four questions, the command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from command import Command
from study_rows import GRADIENT, MODEL, lab_row, quick_rows, row

from greentrain.errors import UsageError
from greentrain.files import read_csv
from greentrain.profile import ModelProfile
from greentrain.study import GRADIENT_COLUMNS, STUDY_COLUMNS, WAYS, GradientRow, RowFile, StudyCase, StudyRow
from greentrain_harness.study import run as study_run
from greentrain_harness.study.boards import BoardStudy
from greentrain_harness.study.grid import BANDWIDTHS_MBIT_PER_S, MODELS, lab_cases, simulated_cases
from greentrain_harness.study.plans import why_not
from greentrain_harness.study.run import Asked, Progress, run_study
from greentrain_reports.study_questions import Question, questions
from greentrain_reports.study_report import write_study_report
from greentrain_reports.study_tables import build_study, winner_shares


def test_every_column_is_explained() -> None:
    assert tuple(name for name, _, _ in STUDY_COLUMNS) == StudyRow.__struct_fields__
    assert tuple(name for name, _, _ in GRADIENT_COLUMNS) == GradientRow.__struct_fields__


def test_rows_come_back_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    file = RowFile(path, StudyRow)
    rows = [row("data"), row("tensor", joules=None), lab_row("pipeline")]
    for it in rows:
        file.append(it)
    with path.open("a") as stream:
        stream.write("simulated,toy,mix")
    assert RowFile(path, StudyRow).rows == rows
    assert path.read_text().endswith("\n")
    header, lines = read_csv(path)
    lacking = dict(zip(header, lines[1], strict=True))
    assert (lacking["status"], lacking["energy_j_per_sample"], lacking["samples_per_s"]) == ("out-of-memory", "", "")


@pytest.mark.parametrize(("text", "said"), [("a,b\n1,2\n", "columns differ"), ("", None)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "study.csv"
    path.write_text(text)
    if said is None:
        assert RowFile(path, StudyRow).rows == []
        return
    with pytest.raises(UsageError, match=said):
        RowFile(path, StudyRow)


def test_a_wrong_cell_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    RowFile(path, StudyRow).append(row("data"))
    path.write_text(path.read_text().replace("ok", "fine"))
    with pytest.raises(UsageError, match="line 2: field status"):
        RowFile(path, StudyRow)


def test_the_grid_covers_what_it_should() -> None:
    cases = list(simulated_cases(MODELS, quick=False))
    assert len(set(cases)) == len(cases)
    assert {case.devices_n for case in cases} == {1, 2, 3, 4, 5, 6}
    assert {case.bandwidth_mbit_per_s for case in cases} == set(BANDWIDTHS_MBIT_PER_S)
    assert {case.way for case in cases} == set(WAYS)
    assert {case.mode for case in cases} == {"default", "lowest"}
    assert all((case.way == "single") == (case.devices_n == 1) for case in cases)
    lab = list(lab_cases("bert-small", quick=False))
    assert len(set(lab)) == len(lab)
    assert len({case.quotas_percent for case in lab}) == 2
    assert len({case.bandwidth_mbit_per_s for case in lab}) == 2


def _case(way: str, **fields: object) -> StudyCase:
    return msgspec.convert({**msgspec.structs.asdict(row("data").case), "way": way, **fields}, type=StudyCase)


def test_every_way_takes_all_devices_and_says_its_sources() -> None:
    boards = BoardStudy({"toy": MODEL})
    for way in WAYS[1:]:
        found = boards.row(_case(way, devices_n=4))
        assert (found.status, found.participants_n) == ("ok", 4), way
        assert (found.time_source, found.energy_source) == ("simulated", "modelled")
        assert found.energy_j_per_sample is not None
        assert found.samples_per_s is not None
        assert found.mean_power_w == pytest.approx(found.energy_j_per_sample * found.samples_per_s)
    assert boards.row(_case("single", devices_n=1)).sent_bytes_per_sample == 0


def test_a_plan_that_does_not_fit_is_a_mark() -> None:
    found = BoardStudy({"toy": MODEL}).row(_case("data", memory_limit_mib=160.0, batch=256))
    assert found.status == "out-of-memory"
    assert found.energy_j_per_sample is found.samples_per_s is found.time_source is None
    assert found.peak_memory_bytes is not None
    assert found.lacking_bytes == found.peak_memory_bytes - 160 * 2**20


def test_weights_that_one_device_holds_alone() -> None:
    boards = BoardStudy({"toy": MODEL})
    held = {way: boards.row(_case(way, devices_n=4)).sole_param_bytes for way in WAYS[1:]}
    assert held["data"] == held["sequence"] == 0
    assert held["tensor"] == 5 * 12_000_000 // 4
    assert held["pipeline"] is not None
    assert held["pipeline"] >= 12_000_000


def test_lowest_mode_saves_watts_and_a_shared_medium_costs_time() -> None:
    boards = BoardStudy({"toy": MODEL})
    plain = boards.row(_case("data", devices_n=4))
    slow, shared = (
        boards.row(_case("data", devices_n=4, mode="lowest")),
        boards.row(_case("data", devices_n=4, network="shared")),
    )
    assert plain.mean_power_w is not None
    assert slow.mean_power_w is not None
    assert slow.mean_power_w < plain.mean_power_w
    assert plain.step_s is not None
    assert shared.step_s is not None
    assert shared.step_s > plain.step_s


def test_rooms_lie_between_slow_and_fast_everywhere() -> None:
    boards = BoardStudy({"toy": MODEL})
    rooms = boards.row(_case("pipeline", devices_n=4, network="rooms", bandwidth_mbit_per_s=10.0)).step_s
    slow = boards.row(_case("pipeline", devices_n=4, bandwidth_mbit_per_s=10.0)).step_s
    fast = boards.row(_case("pipeline", devices_n=4, bandwidth_mbit_per_s=1000.0)).step_s
    assert fast is not None
    assert rooms is not None
    assert slow is not None
    assert fast < rooms <= slow


def test_what_cannot_be_shared_is_said() -> None:
    plain = msgspec.structs.replace(
        MODEL, layers=tuple(msgspec.structs.replace(it, heads=0, sequence=0) for it in MODEL.layers)
    )
    assert why_not(plain, "tensor", 2) == "the layers of toy have no heads to share"
    assert why_not(MODEL, "tensor", 9) == "8 heads cannot be shared among 9"
    assert why_not(MODEL, "pipeline", 7) == "6 layers cannot be cut into 7 stages"
    assert why_not(plain, "data", 2) is why_not(plain, "hybrid", 2) is None
    assert BoardStudy({"toy": plain}).row(_case("sequence")).status == "impossible"


def test_winners_by_joules_and_by_time() -> None:
    rows = [
        row("single", devices_n=1, bandwidth=10.0, joules=0.8, speed=5.0),
        row("data", joules=1.0, speed=20.0), row("pipeline", joules=0.5, speed=10.0), row("tensor", joules=None),
        row("data", bandwidth=10.0, joules=3.0, speed=2.0),
        row("data", bandwidth=30.0, joules=None),
    ]  # fmt: skip
    fast, slow, none = build_study(rows, []).cells
    assert [cell.winner("energy") for cell in (fast, slow, none)] == [rows[2], rows[4], None]
    assert fast.winner("time") == rows[1]
    assert [cell.beats_single("energy") for cell in (fast, slow, none)] == [True, False, None]
    assert fast.too_large == ("tensor",)
    assert winner_shares((fast, slow, none), "energy") == {"data": 1, "pipeline": 1}


def _question(rows: list[StudyRow], name: str) -> Question:
    return next(it for it in questions(build_study(rows, [])) if it.name == name)


@pytest.mark.parametrize(
    ("speed", "joules", "verdict"),
    [(30.0, 1.1, "agrees"), (30.0, 2.0, "does not agree"), (11.0, 0.9, "does not agree")],
)
def test_comparable_energy_and_much_faster(speed: float, joules: float, verdict: str) -> None:
    rows = [row("single", devices_n=1, speed=10.0), row("data", joules=joules, speed=speed)]
    claim = _question(rows, "participants").claims[0]
    assert claim.verdict == verdict
    assert claim.cases_n == 1


def test_without_rows_nothing_is_claimed() -> None:
    for question in questions(build_study([], [])):
        assert all(claim.verdict == "cannot be said" for claim in question.claims), question.name


def test_memory_claim_counts_places_where_data_does_not_fit() -> None:
    rows = [row("data", joules=None), row("pipeline"), row("data", bandwidth=10.0, joules=None)]
    claim = _question(rows, "parallelism").claims[3]
    assert (claim.holds_n, claim.cases_n, claim.verdict) == (1, 2, "agrees")


def test_each_way_is_held_against_the_best_that_is_no_mix() -> None:
    rows = [row("data", joules=5.0), row("pipeline", joules=1.2), row("tensor", joules=1.0), row("hybrid", joules=0.1)]
    question = _question(rows, "parallelism")
    pipeline, data = question.claims[:2]
    assert (pipeline.verdict, data.verdict) == ("agrees", "does not agree")
    assert pipeline.cases_n == data.cases_n == 1
    assert "turned out as hybrid in 1" in question.answers[2]


def test_power_modes_and_growth_are_told() -> None:
    rows = [
        row("single", devices_n=1, joules=1.0, speed=10.0), row("data", joules=2.0, speed=15.0),
        row("data", joules=1.0, speed=5.0, mode="lowest"),
    ]  # fmt: skip
    answers = " ".join(_question(rows, "participants").answers)
    assert "2 devices × 2 and × 1.5" in answers
    assert "the joules of the best plan × 0.5 and its time × 3" in answers


def test_topology_compares_rooms_with_a_fast_network() -> None:
    rooms = [
        row("data", network="rooms", bandwidth=10.0, joules=9.0),
        row("pipeline", network="rooms", bandwidth=10.0, joules=2.0),
    ]
    fast = [row("data", bandwidth=1000.0, joules=1.0), row("pipeline", bandwidth=1000.0, joules=1.0)]
    question = _question([*rooms, *fast], "topology")
    assert (question.claims[0].holds_n, question.claims[0].cases_n) == (1, 1)
    assert "data × 9, pipeline × 2" in question.answers[0]


def test_report_files_agree(tmp_path: Path) -> None:
    for name, kind, rows in (
        ("study.csv", StudyRow, [*quick_rows(), lab_row("data")]), ("gradients.csv", GradientRow, [GRADIENT])
    ):  # fmt: skip
        file: RowFile[StudyRow | GradientRow] = RowFile(tmp_path / name, kind)  # pyright: ignore[reportAssignmentType, reportArgumentType]
        for it in rows:
            file.append(it)
    files = write_study_report(tmp_path, command="greentrain study parallelism", host="a machine")
    page = files.page.read_text()
    facts = json.loads(files.summary.read_text())
    rows = RowFile(tmp_path / "study.csv", StudyRow).rows
    lacking = sum(it.status == "out-of-memory" for it in rows)
    assert facts["rows"]["simulated"]["out-of-memory"] == lacking > 0
    assert sum(facts["energy"]["best"].values()) == facts["energy"]["places_n"]
    assert len(facts["questions"]) == 4
    for question in facts["questions"]:
        for claim in question["conclusions"]:
            assert claim["verdict"].capitalize() in page
    for name, digest in facts["sha256"].items():
        assert digest in page, name
    explained = {(file, column) for file, column, _, _ in read_csv(files.dictionary)[1]}
    assert explained == {
        *(("study.csv", name) for name in StudyRow.__struct_fields__),
        *(("gradients.csv", name) for name in GradientRow.__struct_fields__),
    }
    assert len(page) < 1_500_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[StudyCase]:
    cases = [_case(way, devices_n=4) for way in ("data", "tensor", "pipeline")]

    def few(models: Sequence[str], *, quick: bool) -> Iterator[StudyCase]:
        return iter(cases)

    def toy(name: str) -> ModelProfile:
        return MODEL

    monkeypatch.setattr(study_run, "simulated_cases", few)
    monkeypatch.setattr(study_run, "_profile", toy)
    return cases


def test_a_study_that_was_interrupted_goes_on(tmp_path: Path, small: list[StudyCase]) -> None:
    asked = Asked(models=("toy",), lab_model=None, gradients=False)
    told: list[Progress] = []

    def until_the_third(progress: Progress) -> None:
        told.append(progress)
        if progress.done_n == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, asked, until_the_third)
    assert [it.case for it in RowFile(tmp_path / "study.csv", StudyRow).rows] == small[:2]
    told.clear()
    run_study(tmp_path, asked, told.append)
    assert [it.done_n for it in told] == [2]
    assert [it.case for it in RowFile(tmp_path / "study.csv", StudyRow).rows] == small
    told.clear()
    run_study(tmp_path, asked, told.append)
    assert told == []


@pytest.fixture
def greentrain(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "no-such-model", "--no-lab"], 2, "'no-such-model' is not a workload"),
        (["--report-only"], 2, "holds no study.csv"),
    ],
)
def test_wrong_input_is_one_sentence(
    tmp_path: Path, greentrain: Command, words: list[str], code: int, said: str
) -> None:
    ended = greentrain("study", "parallelism", "-o", str(tmp_path / "study"), *words)
    assert ended.code == code
    assert said in ended.sentence
    assert not (tmp_path / "study").exists()


def test_without_root_the_measured_part_is_left_out_with_a_sentence(
    tmp_path: Path, greentrain: Command, small: list[StudyCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("greentrain_harness.study.grid.MODELS", ("digits-cnn",))
    refused = greentrain("study", "parallelism", "--lab", "-o", str(tmp_path / "study"))
    assert refused.code == 4
    assert "needs root" in refused.sentence

    def checked(models: Sequence[ModelProfile]) -> list[GradientRow]:
        return [GRADIENT]

    monkeypatch.setattr("greentrain_harness.study.gradients.verified", checked)
    ended = greentrain("study", "parallelism", "-o", str(tmp_path / "study"))
    assert ended.code == 0
    assert ended.err.count("needs root") == 1
    assert (tmp_path / "study" / "report.html").exists()
    assert len(small) == len(RowFile(tmp_path / "study" / "study.csv", StudyRow).rows)
    facts = json.loads(greentrain("study", "parallelism", "-o", str(tmp_path / "study"), "--json").out)
    assert facts["rows"] == {"simulated": {"ok": 3}}
    again = greentrain("study", "parallelism", "--report-only", "-o", str(tmp_path / "study"))
    assert "How many devices should take part?" in again.out
