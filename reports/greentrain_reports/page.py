"""The page: one self-contained HTML file out of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from greentrain.files import utc_now
from greentrain.version import VERSION
from greentrain_reports.markup import Html, card, chip, esc, exact, gap, join, section, table
from greentrain_reports.sections import (
    comparison_section,
    energy_section,
    joules_section,
    loss_section,
    method_section,
    power_section,
    reasons_section,
    timeline_section,
)
from greentrain_reports.tables import RunReport, Saving, measured_saving
from greentrain_reports.words import (
    GAP,
    carbon_mass,
    count,
    energy,
    joules_per_sample,
    number,
    percent,
    seconds,
    signed_percent,
    with_error,
)

__all__ = ["render_page"]

_HERE = Path(__file__).parent


def render_page(reports: Sequence[RunReport], *, against: RunReport | None = None, now_utc: str | None = None) -> str:
    """The whole page. The first run is shown in full; the others stand beside it in a table.

    Args:
        reports: At least one run.
        against: The run that the others are compared with; it need not be among them.
        now_utc: When the page was made; now when not given.
    """
    first = reports[0]
    beside = [*reports, *([against] if against is not None and against not in reports else [])]
    body = join(
        (
            _header(first),
            _cards(first, against),
            _remarks(beside),
            runs_section(beside, against or first) if len(beside) > 1 else Html(""),
            joules_section(first),
            reasons_section(first),
            comparison_section(first),
            energy_section(first),
            timeline_section(first),
            power_section(first),
            loss_section(first),
            method_section(first),
            Html(
                f"<footer>Made by greentrain {esc(VERSION)} on {esc(now_utc or utc_now())}. It needs no network; "
                "the figures behind it lie beside it as CSV, explained in data_dictionary.csv.</footer>"
            ),
        )
    )
    return Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        version=esc(VERSION),
        title=esc(f"{first.run.name}: energy report"),
        css=(_HERE / "report.css").read_text(encoding="utf-8"),
        body=body,
    )


def _header(report: RunReport) -> Html:
    run = report.run
    model = run.summary.model if run.summary else run.plan.model if run.plan else None
    names = [device.device for device in report.devices if device.ranks or report.run.rows is None]
    devices = f"{len(names)} device{'' if len(names) == 1 else 's'}"
    facts = [f"Model {model}" if model else "Model not recorded", f"{devices}: {', '.join(names)}" if names else ""]
    if report.parallelism:
        facts.append(f"split: {report.parallelism}")
    if report.headline.duration_s is not None:
        facts.append(f"{seconds(report.headline.duration_s)} of training")
    if run.summary is not None and run.summary.started_utc:
        facts.append(run.summary.started_utc[:10])
    lede = " · ".join(fact for fact in facts if fact)
    return Html(
        f'<header><p class="eyebrow">greentrain energy report</p><h1>{esc(run.name)}</h1>'
        f'<p class="lede">{esc(lede)}</p></header>'
    )


def _cards(report: RunReport, against: RunReport | None) -> Html:
    saving = None if against is None or against is report else measured_saving(report, against)
    cards = [
        _energy_card(report),
        _saving_card(saving or report.saving),
        _speed_card(report),
        _carbon_card(report),
        _accuracy_card(report),
    ]
    return Html(f'<div class="cards">{join(cards)}</div>')


def _energy_card(report: RunReport) -> Html:
    head = report.headline
    shown, unit = with_error(head.joules_per_sample, head.error_j_per_sample)
    value, separator, error = shown.partition(" ± ")
    figure = exact(head.joules_per_sample, value)
    if separator:
        figure = Html(f'{figure} <span class="error">± {esc(error)}</span>')
    over = f"over {count(head.samples)} samples" if head.samples else "in all, samples not recorded"
    text = join(
        (
            chip(head.source),
            esc(f"{energy(head.energy_j)} {over}") if head.energy_j is not None else Html(""),
            Html("") if head.complete else Html("<strong>incomplete, see the remarks</strong>"),
        ),
        " · ",
    )
    return card("Energy per sample", figure, f"{unit}/sample" if unit else "", text, lead=True)


def _speed_card(report: RunReport) -> Html:
    head = report.headline
    rounds = f"{count(head.rounds)} rounds of {seconds(head.round_s)} (median)" if head.rounds else f"rounds {GAP}"
    unit = "samples/s" if head.samples_per_s is not None else ""
    return card("Speed", exact(head.samples_per_s, number(head.samples_per_s)), unit, esc(rounds))


def _carbon_card(report: RunReport) -> Html:
    place = report.intensity
    shown, unit = carbon_mass(report.headline.co2e_kg)
    text = f"at {place.kg_per_kwh:g} kg/kWh · {place.place}, {place.year or 'year not stated'} · {place.source}"
    return card("Carbon", exact(report.headline.co2e_kg, shown), f"{unit} CO₂e" if unit else "", esc(text))


def _accuracy_card(report: RunReport) -> Html:
    head = report.headline
    guess = f"always guessing the most frequent class: {percent(head.accuracy_baseline)}"
    tested = f" · {count(head.test_samples)} held-out samples" if head.test_samples else ""
    return card("Accuracy", exact(head.accuracy, percent(head.accuracy)), "", esc(f"{guess}{tested}"))


def _saving_card(saving: Saving | None) -> Html:
    if saving is None:
        return card("Saved", gap("not known"), "", esc("The fastest plan was not recorded beside this one."))
    if saving.same_plan:
        return card("Saved", esc("0 %"), "", esc("This plan is also the fastest one: there was nothing to trade."))
    more = "less" if saving.energy_percent >= 0 else "more"
    figure = exact(saving.energy_percent, f"{abs(saving.energy_percent):.1f} %")
    pace = ""
    if saving.slower_percent is not None:
        pace = f", {abs(saving.slower_percent):.1f} % {'slower' if saving.slower_percent >= 0 else 'faster'}"
    basis = (
        "both predicted by the cost model; the other did not run"
        if saving.basis == "predicted"
        else "as both runs recorded"
    )
    sides = f"{joules_per_sample(saving.joules_per_sample)} against {joules_per_sample(saving.other_joules_per_sample)}"
    return card(f"Against {saving.other}", figure, f"{more} energy", esc(f"{sides}{pace} · {basis}"))


def _remarks(reports: Sequence[RunReport]) -> Html:
    named = len(reports) > 1
    items = [
        esc(f"{report.run.name}: {remark}" if named else remark) for report in reports for remark in report.remarks
    ]
    if not items:
        return Html("")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return Html(f'<aside class="remarks"><h2>Please note</h2><ul>{listed}</ul></aside>')


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
    listed = table("Runs side by side", heads, [cells(report) for report in reports], numeric=(1, 2, 3, 4, 5, 6))
    return section("runs", "Runs side by side", listed)
