"""The page: one self-contained HTML file out of one or several runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from greentrain.files import utc_now
from greentrain.version import VERSION
from greentrain_reports.carbon_section import carbon_section
from greentrain_reports.cards import cards, header, remarks
from greentrain_reports.curves_section import curves_section
from greentrain_reports.energy_pictures import runs_picture
from greentrain_reports.markup import Html, chip, esc, exact, figure, gap, join, section, table
from greentrain_reports.method_section import method_section
from greentrain_reports.page_frame import whole_page
from greentrain_reports.sections import (
    comparison_section,
    energy_section,
    frontier_section,
    joules_section,
    loss_section,
    power_section,
    reasons_section,
    recoveries_section,
    timeline_section,
)
from greentrain_reports.tables import RunReport, measured_saving
from greentrain_reports.words import carbon_mass, energy, number, percent, signed_percent, with_error

__all__ = ["render_page"]


def render_page(reports: Sequence[RunReport], *, against: RunReport | None = None, now_utc: str | None = None) -> str:
    """The whole page. The first run is shown in full; the others stand beside it in a table and a picture.

    Args:
        reports: At least one run.
        against: The run that the others are compared with; it need not be among them.
        now_utc: When the page was made; now when not given.
    """
    first = reports[0]
    beside = list(reports)
    if against is not None and all(report is not against for report in reports):
        beside.append(against)
    sections = [
        runs_section(beside, against or first) if len(beside) > 1 else Html(""),
        joules_section(first),
        energy_section(first),
        timeline_section(first),
        power_section(first),
        recoveries_section(first),
        comparison_section(first),
        frontier_section(first),
        reasons_section(first),
        curves_section(first),
        carbon_section(first),
        loss_section(first),
        method_section(first),
    ]
    foot = Html(
        f"<footer>Made by greentrain {esc(VERSION)} on {esc(now_utc or utc_now())}. It needs no network; "
        "the figures behind it lie beside it as CSV, explained in data_dictionary.csv.</footer>"
    )
    parts = (header(first), cards(first, against), remarks(beside), _contents(sections), *sections, foot)
    return whole_page(f"{first.run.name}: energy report", join(parts))


def _contents(sections: Sequence[Html]) -> Html:
    """Links to the sections, as their headings name them."""
    found = [match for part in sections if (match := re.search(r'<h2 id="([^"]+)-title">(.*?)</h2>', part)) is not None]
    links = "".join(f'<li><a href="#{match[1]}">{match[2]}</a></li>' for match in found)
    return Html(f'<nav aria-label="Sections"><ul>{links}</ul></nav>')


def runs_section(reports: Sequence[RunReport], base: RunReport) -> Html:
    """Several runs side by side."""

    def cells(report: RunReport) -> tuple[Html, ...]:
        head = report.headline
        saving = None if report is base else measured_saving(report, base)
        shown, unit = with_error(head.joules_per_sample, head.error_j_per_sample)
        mass, mass_unit = carbon_mass(head.co2e_kg)
        return (
            esc(report.run.name),
            exact(head.joules_per_sample, f"{shown} {unit}"),
            esc("base" if report is base else signed_percent(-saving.energy_percent if saving else None)),
            exact(head.samples_per_s, number(head.samples_per_s)),
            exact(head.energy_j, energy(head.energy_j)),
            exact(head.co2e_kg, f"{mass} {mass_unit}"),
            exact(head.accuracy, percent(head.accuracy)),
            esc(report.parallelism) if report.parallelism else gap(),
            chip(head.source),
        )

    heads = (
        "run", "J/sample", f"against {base.run.name}", "samples/s", "energy", "CO₂e", "accuracy", "split", "source",
    )  # fmt: skip
    listed = table("Figures of every run", heads, [cells(report) for report in reports], numeric=(1, 2, 3, 4, 5, 6))
    picture = runs_picture(reports)
    same = len({report.run.plan.model for report in reports if report.run.plan is not None}) <= 1
    warning = Html("" if same else "<p>These runs trained different models: their samples are not alike.</p>")
    return section("runs", "Runs side by side", warning, listed, figure(picture) if picture is not None else Html(""))
