"""Runs a study: what its files hold already is not done again, every row is on disk before the next one begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from greentrain.profile import ModelProfile
from greentrain.study import GradientRow, Part, RowFile, StudyCase, StudyRow
from greentrain_harness.study.grid import lab_cases, simulated_cases
from greentrain_harness.study.plans import why_not

__all__ = ["GRADIENTS_FILE", "ROWS_FILE", "Asked", "Progress", "run_study"]

ROWS_FILE = "study.csv"
GRADIENTS_FILE = "gradients.csv"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a study is to cover.

    Attributes:
        models: Workloads of the simulated part and of the check of gradients.
        lab_model: Workload of the measured part; None without one.
        quick: A grid for two minutes; gradients of the first model only.
        gradients: Whether gradients are verified.
    """

    models: tuple[str, ...]
    lab_model: str | None
    quick: bool = False
    gradients: bool = True


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a study is: rows done of those wanted in a part, and what is going on."""

    part: Part
    done_n: int
    wanted_n: int
    text: str


def run_study(folder: Path, asked: Asked, report: Callable[[Progress], None]) -> None:
    """Do what is missing in a folder.

    Args:
        folder: Where ``study.csv`` and ``gradients.csv`` lie or come to lie.
        asked: What is to be covered.
        report: Told how far it is, row by row.

    Raises:
        UsageError: A file there is no table of a study, or a model is unknown.
        RunError: The check of the gradients failed, or the lab could not be set up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, gradients = RowFile(folder / ROWS_FILE, StudyRow), RowFile(folder / GRADIENTS_FILE, GradientRow)
    done = {row.case for row in rows.rows}
    profiles: dict[str, ModelProfile] = {}

    def profile(name: str) -> ModelProfile:
        if name not in profiles:
            profiles[name] = _profile(name)
        return profiles[name]

    wanted = [
        case
        for case in simulated_cases(asked.models, quick=asked.quick)
        # A network without heads is not asked thousands of times to share them.
        if case.way == "single" or why_not(profile(case.model), case.way, 2) is None
    ]
    missing = [case for case in wanted if case not in done]
    checked = asked.models[: 1 if asked.quick else None] if asked.gradients else ()
    unverified = [name for name in checked if all(row.model != name for row in gradients.rows)]
    if unverified:
        report(Progress(part="simulated", done_n=0, wanted_n=len(wanted), text="verifying gradients"))
        from greentrain_harness.study.gradients import verified

        for row in verified([profile(name) for name in unverified]):
            gradients.append(row)
    if missing:
        _simulate(missing, len(wanted), rows, {case.model: profile(case.model) for case in missing}, report)
    if asked.lab_model is not None:
        cases = list(lab_cases(asked.lab_model, quick=asked.quick))
        _measure([case for case in cases if case not in done], len(cases), rows, folder / "lab", report)


def _profile(name: str) -> ModelProfile:
    from greentrain.workloads import load_workload
    from greentrain_harness.profilers.layers import profile_model

    return profile_model(load_workload(name))


def _simulate(
    missing: Sequence[StudyCase], wanted_n: int, rows: RowFile[StudyRow], profiles: dict[str, ModelProfile],
    report: Callable[[Progress], None],
) -> None:  # fmt: skip
    from greentrain_harness.study.boards import BoardStudy

    boards = BoardStudy(profiles)
    done_n = wanted_n - len(missing)
    for case in missing:
        report(Progress(part="simulated", done_n=done_n, wanted_n=wanted_n, text=_words(case)))
        rows.append(boards.row(case))
        done_n += 1


def _measure(
    missing: Sequence[StudyCase], wanted_n: int, rows: RowFile[StudyRow], folder: Path,
    report: Callable[[Progress], None],
) -> None:  # fmt: skip
    from greentrain_harness.study.lab import LabCluster

    done_n = wanted_n - len(missing)

    def say(text: str) -> None:
        report(Progress(part="lab", done_n=done_n, wanted_n=wanted_n, text=text))

    for _, group in groupby(missing, key=lambda case: (case.quotas_percent, case.bandwidth_mbit_per_s)):
        cases = list(group)
        with LabCluster(folder, cases[0], say) as lab:
            for case in cases:
                say(_words(case))
                rows.append(lab.row(case))
                done_n += 1


def _words(case: StudyCase) -> str:
    where = f"{case.devices_n} × {case.boards}" if case.part == "simulated" else f"quotas {case.quotas_percent} %"
    return f"{case.model}, {case.way} on {where} at {case.bandwidth_mbit_per_s:g} Mbit/s"
