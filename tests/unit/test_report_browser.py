"""Report pages in a real browser: nothing is fetched, nothing complains, figures are there and equal the files."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Generator

import pytest
from browser import CONTRAST, Browser, open_browser
from report_runs import GRID, html_of, make_run

from greentrain.files import read_csv
from greentrain.ledger import read_ledger, total_energy_j
from greentrain_reports.report import ReportFiles, write_report

FIGURES = ("runs", "energy", "timeline", "power", "ratios", "frontier", "curves-fast", "curves-slow", "loss")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder / "one")
    return write_report([first], basis=GRID, against=make_run(folder / "two", rounds_s=(0.2, 0.24, 0.28)))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser, None, None]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def _csv(files: ReportFiles, name: str) -> list[dict[str, str]]:
    with files.csv[name].open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("width_px", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_is_fetched_nothing_complains_and_every_figure_is_seen(
    browser: Browser, files: ReportFiles, width_px: int, dark: bool
) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(html_of(files), width_px=width_px, dark=dark)
    assert browser.complaints == []
    assert browser.requests == [html_of(files).as_uri()]
    seen = browser.ask(
        "[...document.querySelectorAll('figure')].map(it => [it.id, [...it.querySelectorAll('svg')]"
        ".filter(svg => svg.getBoundingClientRect().height > 60).length])"
    )
    assert dict(seen) == {f"figure-{name}": 1 for name in FIGURES}
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_figures_equal_csv_json_and_ledger(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files))
    values = set(browser.ask("[...document.querySelectorAll('data')].map(it => it.value)"))
    ledger_j = total_energy_j(read_ledger(html_of(files).parent / "ledger.csv"))
    run = _csv(files, "runs.csv")[0]
    assert files.json is not None
    facts = json.loads(files.json.read_text())["runs"][0]
    assert float(run["energy_j"]) == facts["headline"]["energy_j"] == ledger_j
    assert sum(device["energy_j"] for device in facts["devices"]) == pytest.approx(ledger_j, abs=1e-9)
    for name in ("energy_j", "energy_j_per_sample", "samples_per_s", "co2e_kg", "co2e_kg_per_sample", "accuracy_ratio"):
        assert run[name] in values, name
    for row in _csv(files, "energy_by_device.csv"):
        if row["run"] == run["run"]:
            assert row["energy_j"] in values
    for row in _csv(files, "comparison.csv"):
        if row["run"] == run["run"]:
            assert {cell for cell in (row["predicted"], row["measured"]) if cell} <= values, row
    header, rows = read_csv(files.csv["emissions.csv"])
    assert float(rows[0][header.index("emissions")]) == facts["headline"]["co2e_kg"]


def _middle(browser: Browser, selector: str) -> tuple[float, float]:
    found = browser.ask(
        f"(() => {{ const all = [...document.querySelectorAll({json.dumps(selector)})].filter(it => "
        "it.getClientRects().length); all[0].scrollIntoView({block: 'center'}); "
        "const box = all[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return found[0], found[1]


def test_pointing_at_a_bar_tells_its_figure(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files))
    assert browser.ask("document.querySelector('.tip').hidden")
    browser.point(*_middle(browser, "#figure-energy [data-key=compute]"))
    assert not browser.ask("document.querySelector('.tip').hidden")
    assert browser.ask("document.querySelector('.tip').textContent").startswith("fast, measured: compute 888 mJ")
    browser.point(2, 2)
    assert browser.ask("document.querySelector('.tip').hidden")


def test_a_legend_entry_switches_its_parts_off_and_on(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files))
    visible = (
        "[...document.querySelectorAll('#figure-energy .wide [data-key=wait]')].filter(it => "
        "it.getClientRects().length).length"
    )
    before = browser.ask(visible)
    assert before > 0
    browser.point(*_middle(browser, "#figure-energy [data-switch=wait] button"), click=True)
    assert browser.ask(visible) == 0
    assert browser.ask("document.querySelector('#figure-energy [data-switch=wait] button').ariaPressed") == "false"
    browser.point(*_middle(browser, "#figure-energy [data-switch=wait] button"), click=True)
    assert browser.ask(visible) == before


def test_arrow_keys_walk_through_a_picture(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files))
    browser.ask("document.querySelector('#figure-power .plot').focus()")
    browser.press("ArrowRight")
    first = browser.ask("document.querySelector('.tip').textContent")
    browser.press("ArrowRight")
    second = browser.ask("document.querySelector('.tip').textContent")
    assert "fast 11.1 W, slow 5.7 W" in first
    assert first != second
    browser.press("Escape")
    assert browser.ask("document.querySelector('.tip').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_every_letter_stands_out_from_its_ground(browser: Browser, files: ReportFiles, dark: bool) -> None:
    browser.open(html_of(files), dark=dark)
    assert browser.ask(CONTRAST) == []


def test_on_paper_it_is_light_and_has_no_links_to_sections(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files), width_px=794, dark=True)
    browser.media(dark=True, kind="print")
    try:
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert browser.ask("getComputedStyle(document.querySelector('figure .wide')).display") == "block"
    finally:
        browser.media()


def test_headings_and_landmarks_are_in_order(browser: Browser, files: ReportFiles) -> None:
    browser.open(html_of(files))
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3')].map(it => Number(it.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.ask("document.documentElement.lang") == "en"
    assert browser.ask("document.querySelectorAll('main').length") == 1
    links = browser.ask("[...document.querySelectorAll('nav a')].map(it => it.getAttribute('href'))")
    assert len(links) >= 10
    assert all(browser.ask(f"document.querySelectorAll({json.dumps(link)}).length") == 1 for link in links)
