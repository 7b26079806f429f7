"""``greentrain study parallelism``: the energy demand of the parallelisms, swept and reported."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from greentrain.cli._common import emit_json, json_option, say
from greentrain.errors import UnavailableError, UsageError
from greentrain.units import format_quantity

if TYPE_CHECKING:
    from greentrain_harness.study.run import Asked, Progress

__all__ = ["command"]

_DEFAULT_FOLDER = Path("study")
_DEFAULT_LAB_MODEL = "bert-small"
_LINE_EVERY_S = 5.0


@click.group("study")
def command() -> None:
    """Studies: many plans side by side, swept and reported."""


@command.command("parallelism")
@click.option(
    "--model", "models", multiple=True, help="Workload (again for more) [bert-small, gpt2-small, mobilenetv2]."
)
@click.option("--quick", is_flag=True, help="A small grid: about two minutes.")
@click.option("--lab/--no-lab", "lab", default=None, help="With the measured part (root); by default where it can be.")
@click.option("--report-only", is_flag=True, help="Run nothing: make the report of the rows that are there.")
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), default=_DEFAULT_FOLDER,
    show_default=True, help="Folder of rows and report; rows that it holds are not run again.",
)  # fmt: skip
@json_option
def _parallelism(
    models: tuple[str, ...], quick: bool, lab: bool | None, report_only: bool, folder: Path, as_json: bool
) -> None:
    """Energy, speed, bytes and memory of every way to share work, over devices and networks.

    The same models are planned under data, sequence, tensor, tensor+sequence, pipeline and hybrid parallelism with one
    global batch; gradients are verified against the unsplit model. Catalogue Jetson boards are simulated; some plans
    are also trained on emulated nodes (root). Ctrl-C keeps the rows; the same command goes on.
    """
    from greentrain_harness.environment import host_description
    from greentrain_harness.study.run import ROWS_FILE, run_study
    from greentrain_reports.study_report import write_study_report

    if report_only:
        if not (folder / ROWS_FILE).exists():
            raise UsageError(f"{folder}: holds no {ROWS_FILE}.", hint="Run it without --report-only first.")
    else:
        asked = _asked(models, quick=quick, lab=lab)
        with _Lines(quiet=as_json) as lines:
            run_study(folder, asked, lines.report)
    names = "".join(f" --model {name}" for name in models)
    files = write_study_report(
        folder, command=f"greentrain study parallelism{names}{' --quick' if quick else ''}", host=host_description()
    )
    if as_json:
        emit_json(files.facts)
        return
    for question in files.facts.questions:
        click.echo(question.asked)
        for text in question.answers:
            click.echo(f"  {text}")
        for claim in question.conclusions:
            click.echo(f"  {claim.verdict} ({claim.holds_n} of {claim.cases_n}): {claim.published}")
    for name, path in (("page", files.page), ("table", files.rows), ("json", files.summary)):
        click.echo(f"{name:<10}{path}")


def _asked(models: tuple[str, ...], *, quick: bool, lab: bool | None) -> Asked:
    from greentrain.workloads import load_workload
    from greentrain_harness.study.grid import MODELS, QUICK_MODELS
    from greentrain_harness.study.lab import why_no_lab
    from greentrain_harness.study.run import Asked

    chosen = models or (QUICK_MODELS if quick else MODELS)
    for name in chosen:
        load_workload(name)  # Says at once what is wrong with a name.
    reason = why_no_lab() if lab is not False else None
    if lab and reason is not None:
        raise UnavailableError(reason, hint="Run it as root, or leave out --lab.")
    if reason is not None:
        say(reason)
    with_lab = lab is not False and reason is None
    return Asked(models=chosen, lab_model=_lab_model(chosen) if with_lab else None, quick=quick)


def _lab_model(models: tuple[str, ...]) -> str:
    return _DEFAULT_LAB_MODEL if _DEFAULT_LAB_MODEL in models else models[0]


class _Lines:
    """Progress: one live line on a terminal, a line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._line_s = 0.0
        self._shown = 0
        self._begun: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shown:
            click.echo("", err=True)

    def report(self, progress: Progress) -> None:
        """Show how far it is."""
        now_s = time.monotonic()
        begun_s, begun_n = self._begun.setdefault(progress.part, (now_s, progress.done_n))
        if progress.done_n == begun_n:
            # The first row has not begun yet, or is going on: what comes before it tells nothing of the others.
            self._begun[progress.part] = (now_s, begun_n)
        # Rows of the lab take most of a minute each: every one is told.
        if self._quiet or (progress.part == "simulated" and now_s - self._line_s < self._every_s()):
            return
        self._line_s = now_s
        done_n = progress.done_n - begun_n
        left = ""
        if done_n >= 3:
            left_s = (now_s - begun_s) / done_n * (progress.wanted_n - progress.done_n)
            left = f", about {format_quantity(left_s, 'time')} left"
        line = f"{progress.part} {progress.done_n}/{progress.wanted_n}{left}: {progress.text}"
        if sys.stderr.isatty():
            click.echo(f"\r{line:{self._shown}}", err=True, nl=False)
            self._shown = len(line)
        else:
            click.echo(line, err=True)

    def _every_s(self) -> float:
        return 0.2 if sys.stderr.isatty() else _LINE_EVERY_S
