"""From a study's rows to its files: page, JSON summary, data dictionary."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from greentrain.files import file_sha256, write_csv, write_json, write_text
from greentrain.study import GRADIENT_COLUMNS, STUDY_COLUMNS, GradientRow, RowFile, StudyRow
from greentrain_reports.study_page import study_page
from greentrain_reports.study_questions import Question, questions
from greentrain_reports.study_tables import Cell, Measure, Study, build_study, winner_shares

__all__ = ["StudyFiles", "StudySummary", "write_study_report"]

_SCHEMA = "greentrain.study/1"
_ROWS, _GRADIENTS = "study.csv", "gradients.csv"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A published conclusion and what the rows say."""

    published: str
    verdict: str
    holds_n: int
    cases_n: int
    figures: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the four questions."""

    name: str
    asked: str
    answers: tuple[str, ...]
    conclusions: tuple[Verdict, ...]


class Wins(msgspec.Struct, frozen=True, kw_only=True):
    """In how many places of the map each way is best, and in how many it also beats one device."""

    places_n: int
    best: dict[str, int]
    beats_one_device_n: int
    compared_n: int


class StudySummary(msgspec.Struct, frozen=True, kw_only=True):
    """``summary.json`` of a study.

    Attributes:
        rows: Rows by part and status.
        energy: Who wins by joules per sample.
        time: Who wins by samples per second.
        questions: The four questions.
        gradients_equal_n: Ways with verified equal gradients.
        gradients_n: Ways that were verified.
        largest_gradient_difference_ratio: Of all of them; None without a check.
        command: What makes the study again.
        host: The machine that made it.
        sha256: Hashes of the CSV files.
        energy_source: Always modelled.
    """

    rows: dict[str, dict[str, int]]
    energy: Wins
    time: Wins
    questions: tuple[Answer, ...]
    gradients_equal_n: int
    gradients_n: int
    largest_gradient_difference_ratio: float | None
    command: str
    host: str
    sha256: dict[str, str]
    energy_source: str = "modelled"


class StudyFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    page: Path
    rows: Path
    summary: Path
    dictionary: Path
    facts: StudySummary


def write_study_report(folder: Path, *, command: str, host: str, now_utc: str | None = None) -> StudyFiles:
    """Make the page, the summary and the data dictionary of the rows in a folder.

    Args:
        folder: Where ``study.csv`` and ``gradients.csv`` lie.
        command: What makes the study again, for the page.
        host: The machine that made it, for the page.
        now_utc: When the page was made; now when not given.

    Raises:
        UsageError: A file there is no table of a study.
        UnavailableError: The folder may not be written.
    """
    rows, gradients = RowFile(folder / _ROWS, StudyRow).rows, RowFile(folder / _GRADIENTS, GradientRow).rows
    study = build_study(rows, gradients)
    asked = questions(study)
    sha256 = {name: file_sha256(folder / name) for name in (_ROWS, _GRADIENTS)}
    facts = _summary(study, asked, command, host, sha256)
    files = StudyFiles(
        page=folder / "report.html", rows=folder / _ROWS, summary=folder / "summary.json",
        dictionary=folder / "data_dictionary.csv", facts=facts,
    )  # fmt: skip
    write_text(files.page, study_page(study, asked, sha256=sha256, command=command, host=host, now_utc=now_utc))
    write_json(files.summary, facts, schema=_SCHEMA)
    described = ((_ROWS, STUDY_COLUMNS), (_GRADIENTS, GRADIENT_COLUMNS))
    explained = [(name, *column) for name, columns in described for column in columns]
    write_csv(files.dictionary, ("file", "column", "unit", "meaning"), explained)
    return files


def _summary(
    study: Study, asked: tuple[Question, ...], command: str, host: str, sha256: dict[str, str]
) -> StudySummary:
    counts: dict[str, Counter[str]] = {}
    for row in study.rows:
        counts.setdefault(row.part, Counter())[row.status] += 1
    differences = [row.largest_difference_ratio for row in study.gradients]
    return StudySummary(
        rows={part: dict(found) for part, found in counts.items()},
        energy=_wins(study.cells, "energy"),
        time=_wins(study.cells, "time"),
        questions=tuple(_answer(question) for question in asked),
        gradients_equal_n=sum(row.equal for row in study.gradients),
        gradients_n=len(differences),
        largest_gradient_difference_ratio=max(differences, default=None),
        command=command,
        host=host,
        sha256=sha256,
    )


def _wins(cells: tuple[Cell, ...], measure: Measure) -> Wins:
    compared = [better for cell in cells if (better := cell.beats_single(measure)) is not None]
    best = winner_shares(cells, measure)
    return Wins(
        places_n=sum(best.values()),
        best={str(way): wins for way, wins in best.items()},
        beats_one_device_n=sum(compared),
        compared_n=len(compared),
    )


def _answer(question: Question) -> Answer:
    verdicts = tuple(
        Verdict(
            published=claim.published, verdict=claim.verdict, holds_n=claim.holds_n, cases_n=claim.cases_n,
            figures=claim.figures,
        )
        for claim in question.claims
    )  # fmt: skip
    return Answer(name=question.name, asked=question.asked, answers=question.answers, conclusions=verdicts)
