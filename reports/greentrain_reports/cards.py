"""The head of the page: title, the figures that are quoted first, and what must be known about them."""

from __future__ import annotations

from collections.abc import Sequence

from greentrain_reports.markup import Html, card, chip, esc, exact, gap, join
from greentrain_reports.savings import Saving
from greentrain_reports.tables import RunReport, measured_saving
from greentrain_reports.words import (
    GAP,
    carbon_mass,
    count,
    energy,
    joules_per_sample,
    number,
    percent,
    seconds,
    with_error,
)

__all__ = ["cards", "grid_words", "header", "remarks"]


def header(report: RunReport) -> Html:
    """Name of the run and what it was, in one line."""
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


def cards(report: RunReport, against: RunReport | None) -> Html:
    """The quoted figures, each with its source and what it is compared with."""
    recorded = None if against is None or against is report else measured_saving(report, against)
    known = [*([recorded] if recorded is not None else []), *report.savings]
    others = " ".join(saving.other for saving in report.savings)
    shown = [_energy_card(report), *map(_saving_card, known)]
    if "fastest" not in others:
        shown.append(
            card("Against the fastest plan", gap("not known"), "", esc("It was not recorded beside this one."))
        )
    if "one device" not in others:
        shown.append(card("Against one device", gap("not known"), "", esc("Its price was not recorded.")))
    shown += [_speed_card(report), _carbon_card(report), _accuracy_card(report)]
    columns = {0: "", 2: " two", 1: " three"}[len(shown) % 3]
    return Html(f'<div class="cards{columns}">{join(shown)}</div>')


def remarks(reports: Sequence[RunReport]) -> Html:
    """What a reader must know before quoting a figure."""
    named = len(reports) > 1
    items = [
        esc(f"{report.run.name}: {remark}" if named else remark) for report in reports for remark in report.remarks
    ]
    if not items:
        return Html("")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return Html(f'<aside class="remarks"><h2>Please note</h2><ul>{listed}</ul></aside>')


def grid_words(report: RunReport) -> str:
    """The carbon intensity with place, year and source."""
    place = report.carbon.intensity
    if place is None:
        return "intensity of the grid not known for this run"
    return f"{place.kg_per_kwh:.4g} kg/kWh · {place.place}, {place.year or 'year not stated'} · {place.source}"


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
    account = report.carbon
    shown, unit = carbon_mass(account.operational_kg)
    per_sample, sample_unit = carbon_mass(account.operational_kg_per_sample)
    lead = f"{per_sample} {sample_unit} per sample, at " if account.operational_kg_per_sample is not None else "at "
    lead = lead if report.headline.complete else f"incomplete, as the joules are; {lead}"
    text = esc(f"{lead}{grid_words(report)}. Operation only; the making of the devices is under Carbon.")
    return card("Carbon", exact(account.operational_kg, shown), f"{unit} CO₂e" if unit else "", text)


def _accuracy_card(report: RunReport) -> Html:
    head = report.headline
    guess = f"always guessing the most frequent class: {percent(head.accuracy_baseline)}"
    tested = f" · {count(head.test_samples)} held-out samples" if head.test_samples else ""
    return card("Accuracy", exact(head.accuracy, percent(head.accuracy)), "", esc(f"{guess}{tested}"))


def _saving_card(saving: Saving) -> Html:
    title = f"Against {saving.other}"
    if saving.same_plan:
        return card(title, esc("0 %"), "", esc("This is that plan: there was nothing to trade."))
    more = "less" if saving.energy_percent >= 0 else "more"
    figure = exact(saving.energy_percent, f"{abs(saving.energy_percent):.1f} %")
    basis = (
        "both predicted by the cost model; the other did not run"
        if saving.basis == "predicted"
        else "as both runs recorded"
    )
    sides = f"{joules_per_sample(saving.joules_per_sample)} against {joules_per_sample(saving.other_joules_per_sample)}"
    return card(title, figure, f"{more} energy", esc(f"{sides}{_pace(saving)} · {basis}"))


def _pace(saving: Saving) -> str:
    if saving.slower_percent is None:
        return ""
    if saving.slower_percent >= 0:
        return f", {saving.slower_percent:.1f} % more time"
    return f", {-saving.slower_percent:.1f} % less time"
