"""The study's page in a real browser: nothing is fetched, nothing complains, figures are there and equal the CSV."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from pathlib import Path

import pytest
from browser import CONTRAST, Browser, open_browser
from study_rows import GRADIENT, lab_row, quick_rows

from greentrain.study import WAYS, GradientRow, RowFile, StudyRow
from greentrain_reports.study_report import StudyFiles, write_study_report


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    folder = tmp_path_factory.mktemp("study")
    rows = RowFile(folder / "study.csv", StudyRow)
    for it in (*quick_rows(), *(lab_row(way) for way in WAYS)):
        rows.append(it)
    RowFile(folder / "gradients.csv", GradientRow).append(GRADIENT)
    return write_study_report(folder, command="greentrain study parallelism --quick", host="a machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser, None, None]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize(("width_px", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_is_fetched_nothing_complains_and_every_figure_is_seen(
    browser: Browser, files: StudyFiles, width_px: int, dark: bool
) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(files.page, width_px=width_px, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [files.page.as_uri()]
    browser.ask("document.querySelectorAll('details').forEach(it => { it.open = true; })")
    seen = dict(
        browser.ask(
            "[...document.querySelectorAll('figure')].map(it => [it.id, [...it.querySelectorAll('svg')]"
            ".filter(svg => svg.getBoundingClientRect().height > 60).length])"
        )
    )
    assert set(seen.values()) == {1}
    assert {"figure-map-toy", "figure-devices-toy", "figure-memory", "figure-lab"} <= set(seen)
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_figures_equal_the_csv(browser: Browser, files: StudyFiles) -> None:
    browser.open(files.page)
    values = {float(value) for value in browser.ask("[...document.querySelectorAll('data')].map(it => it.value)")}
    rows = RowFile(files.rows, StudyRow).rows
    for it in rows:
        if it.part == "lab":
            assert {it.energy_j_per_sample, it.mean_power_w, it.samples_per_s, it.peak_memory_bytes} <= values
    assert sum(it.status == "out-of-memory" for it in rows) in values
    text = browser.ask("document.body.textContent")
    assert "out of memory" in text
    for question in files.facts.questions:
        for claim in question.conclusions:
            assert f"{claim.holds_n} of {claim.cases_n}" in text


def test_a_field_of_the_map_tells_its_figures(browser: Browser, files: StudyFiles) -> None:
    browser.open(files.page)
    tips = browser.ask("[...document.querySelectorAll('#figure-map-toy .wide [data-tip]')].map(it => it.dataset.tip)")
    cells_n = 2 * 2 * 2 * 3  # energy and time, boards, numbers of devices, bandwidths
    assert len(tips) == cells_n
    assert all("J/sample" in tip and "samples/s" in tip for tip in tips)


@pytest.mark.parametrize("dark", [False, True])
def test_every_letter_stands_out_from_its_ground(browser: Browser, files: StudyFiles, dark: bool) -> None:
    browser.open(files.page, dark=dark)
    assert browser.ask(CONTRAST) == []


def test_headings_are_in_order(browser: Browser, files: StudyFiles) -> None:
    browser.open(files.page)
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3')].map(it => Number(it.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_small(files: StudyFiles) -> None:
    assert Path(files.page).stat().st_size < 1_500_000
