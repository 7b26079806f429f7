"""The sections of the page below its headline, each a function of the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from greentrain.ledger import ACTION_CAUSES
from greentrain_reports.choice_pictures import QUANTITIES, Choice, choices, frontier_picture, ratio_picture
from greentrain_reports.comparison import ComparisonRow
from greentrain_reports.energy import CAUSES, DeviceEnergy
from greentrain_reports.energy_pictures import energy_picture
from greentrain_reports.line_pictures import loss_picture, power_lines, power_picture
from greentrain_reports.markup import Html, chip, definitions, details, esc, exact, figure, gap, join, section, table
from greentrain_reports.plan_words import certificate_words
from greentrain_reports.round_pictures import Panel, timeline_panels, timeline_picture
from greentrain_reports.tables import RunReport
from greentrain_reports.timeline import TimelineBar
from greentrain_reports.words import (
    column_of_energies,
    energy,
    joules_per_sample,
    number,
    percent,
    power,
    seconds,
    signed_percent,
    size,
)

__all__ = [
    "comparison_section",
    "energy_section",
    "frontier_section",
    "joules_section",
    "loss_section",
    "power_section",
    "reasons_section",
    "recoveries_section",
    "timeline_section",
]


def joules_section(report: RunReport) -> Html:
    """What these joules are: measured or modelled, by which meter, for every device."""
    what = {
        "measured": "Every joule of this run was read from a sensor of the device that took it.",
        "modelled": "No sensor was read in this run. Every joule is modelled: computed from how long each device was "
        "busy and from a model of its power. Read them as estimates, not as measurements.",
        "mixed": f"{_measured_share(report)} of these joules were read from sensors. The others are modelled: computed "
        "from how long a device was busy and from a model of its power. The list says which is which.",
    }
    sentence = what.get(report.headline.source or "", "No joules were recorded in this run.")
    pairs = [
        (
            device.device,
            join(
                (
                    chip(device.source),
                    esc(f"meter {device.meter}") if device.meter else Html(""),
                    esc(device.note) if device.note and device.note != device.meter else Html(""),
                ),
                " · ",
            ),
        )
        for device in report.devices
    ]
    scope = "They cover the rounds of training, not start-up and evaluation; making the devices is not included."
    return section("joules", "What these joules are", Html(f"<p>{esc(sentence)} {esc(scope)}</p>"), definitions(pairs))


def _measured_share(report: RunReport) -> str:
    known = [(device.energy_j, device.source) for device in report.devices if device.energy_j is not None]
    total_j = sum(energy_j for energy_j, _ in known)
    if total_j <= 0 or any(source == "mixed" for _, source in known):
        return "Some"
    return percent(sum(energy_j for energy_j, source in known if source == "measured") / total_j)


def reasons_section(report: RunReport) -> Html:
    """Why each device takes part or not, in the planner's words."""
    plan = report.run.plan
    if plan is None:
        return section("reasons", "Why these devices", _missing("The plan of this run is not recorded."))
    known = report.run.cluster.devices if report.run.cluster is not None else ()
    names = dict.fromkeys((*plan.devices, *(device.id for device in known), *plan.reasons))
    rows = [
        (
            esc(name),
            esc("takes part" if name in plan.devices else "left out"),
            esc(plan.reasons[name]) if name in plan.reasons else gap(),
        )
        for name in names
    ]
    return section(
        "reasons",
        "Why these devices",
        table("Devices and the planner's reasons", ("device", "in this plan", "reason"), rows),
        Html(f"<p class='small muted' style='margin-top:.8rem'>{esc(certificate_words(plan.certificate))}</p>"),
    )


def comparison_section(report: RunReport) -> Html:
    """Predicted beside measured, with the difference in percent of the prediction."""
    if not report.comparison:
        return section("comparison", "Predicted beside measured", _missing("Neither side is recorded."))
    picture = ratio_picture(report.comparison)
    rows: list[Sequence[Html]] = []
    before = ""
    for row in report.comparison:
        title = QUANTITIES[row.quantity]
        if row.device == "all":
            rows.append((esc(title), *_comparison_cells(row)))
            continue
        if row.quantity != before:
            rows.append((esc(title),))
        rows.append((esc(row.device), *_comparison_cells(row)))
        before = row.quantity
    return section(
        "comparison",
        "Predicted beside measured",
        Html(
            "<p>The prediction was made before the run by the cost model and is always modelled. The difference is "
            "how far the run lies above or below it. Where the joules of the run are modelled too, their agreement "
            "tests the times, not the watts.</p>"
        ),
        figure(picture) if picture is not None else Html(""),
        table(
            "Predicted beside measured figures",
            ("", "predicted", "recorded", "difference", "recorded source"),
            rows,
            numeric=(1, 2, 3),
        ),
    )


def _comparison_cells(row: ComparisonRow) -> tuple[Html, ...]:
    return (
        exact(row.predicted, _in_unit(row.predicted, row.unit)),
        exact(row.measured, _in_unit(row.measured, row.unit)),
        esc(signed_percent(row.difference_percent)),
        chip(row.measured_source),
    )


def _in_unit(value: float | None, unit: str) -> str:
    known = {"J": energy, "J/sample": energy, "s": seconds, "B": size}
    return known[unit](value) if unit in known else number(value)


def energy_section(report: RunReport) -> Html:
    """Joules by device and cause: picture and exact table."""
    picture = energy_picture(report)
    parts = [figure(picture)] if picture is not None else [_missing("No joules are recorded or predicted.")]
    if report.devices:
        parts.append(_energy_table(report.devices, report.headline.energy_j))
    return section("energy", "Energy by device and cause", *parts)


def _energy_table(devices: Sequence[DeviceEnergy], total_j: float | None) -> Html:
    found = {cause for device in devices for cause in (device.cause_j or {})}
    causes = [*(cause for cause in CAUSES if cause in found), *sorted(found - set(CAUSES))]
    unit, shown = column_of_energies(total_j or 0.0)
    rows = [
        (
            esc(device.device),
            _energy_cell(device.energy_j, shown),
            esc(f"± {shown(device.error_j)}") if device.error_j is not None else gap("not known"),
            *(_cause_cell(device, cause, shown) for cause in causes),
            chip(device.source),
        )
        for device in devices
    ]
    last = len(causes) + 3
    blank = (Html(""),) * (len(causes) + 1)
    foot = (esc("all"), _energy_cell(total_j, shown), *blank, Html(""))
    exact_sum = (
        Html(
            f"<p class='small muted' style='margin-top:.6rem'>Exact sum over the whole run: "
            f"<strong>{esc(total_j)} J</strong>, equal to the ledger and to energy_by_device.csv "
            f"to the last microjoule.</p>"
        )
        if total_j is not None
        else Html("")
    )
    return join(
        (
            Html("<h3>Whole run</h3>"),
            table(
                "Energy of the whole run by device and cause",
                ("device", f"energy, {unit}", f"±, {unit}", *(f"{cause}, {unit}" for cause in causes), "source"),
                rows,
                numeric=tuple(range(1, last)),
                foot=foot,
            ),
            exact_sum,
        )
    )


def _energy_cell(energy_j: float | None, shown: Callable[[float], str]) -> Html:
    return gap() if energy_j is None else exact(energy_j, shown(energy_j))


def _cause_cell(device: DeviceEnergy, cause: str, shown: Callable[[float], str]) -> Html:
    if device.cause_j is None:
        return gap("not attributed")
    # A cause that the run did not list is none of its causes, which is not the same as 0 J.
    return _energy_cell(device.cause_j[cause], shown) if cause in device.cause_j else esc("–")


def timeline_section(report: RunReport) -> Html:
    """One round on every device."""
    picture = timeline_picture(report)
    if picture is None:
        shown = _missing("Neither the simulator's nor the run's actions are recorded.")
        return section("timeline", "One round, action by action", shown)
    rows = [row for panel in timeline_panels(report) for row in _panel_rows(panel)]
    heads = ("", "computes", "sends and receives", "waits", "ends at")
    listed = table("Seconds of one round by device", heads, rows, numeric=(1, 2, 3, 4))
    return section("timeline", "One round, action by action", figure(picture), details("The same as a table", listed))


def _panel_rows(panel: Panel) -> list[Sequence[Html]]:
    title, bars = panel
    causes = {bar.action: ACTION_CAUSES.get(bar.action, bar.action) for bar in bars}

    def spent(lane: str, *wanted: str) -> Html:
        found = [bar for bar in bars if bar.lane == lane and causes[bar.action] in wanted]
        return esc(seconds(sum(bar.duration_s for bar in found))) if found else esc("–")

    def end(lane: str) -> TimelineBar:
        return max((bar for bar in bars if bar.lane == lane), key=lambda bar: bar.start_s + bar.duration_s)

    rows: list[Sequence[Html]] = [(esc(title),)]
    for lane in dict.fromkeys(bar.lane for bar in bars):
        last = end(lane)
        rows.append(
            (
                esc(lane), spent(lane, "compute"), spent(lane, "send", "receive"),
                spent(lane, "wait", "idle", "sleep", "recovery"), esc(seconds(last.start_s + last.duration_s)),
            )
        )  # fmt: skip
    return rows


def power_section(report: RunReport) -> Html:
    """Mean power over the run."""
    picture = power_picture(report.rounds, report.recoveries)
    if picture is None:
        shown = _missing("Single rounds have no recorded joules, or there was only one round.")
        return section("power", "Power over time", shown)
    lines = power_lines(report.rounds)
    rows = [
        (
            esc(line.device), exact(line.mean_w, power(line.mean_w)), esc(power(float(np.nanmin(line.power_w_P)))),
            esc(power(float(np.nanmax(line.power_w_P)))), esc(int(np.isnan(line.power_w_P).sum())),
        )
        for line in lines
    ]  # fmt: skip
    heads = ("device", "mean", "lowest point", "highest point", "points not recorded")
    listed = table("Power of each device over the run", heads, rows, numeric=(1, 2, 3, 4))
    return section("power", "Power over time", figure(picture), details("The same as a table", listed))


def recoveries_section(report: RunReport) -> Html:
    """What was lost and mended while the run went on; nothing where nothing was."""
    if not report.recoveries:
        return Html("")
    rows = [
        (
            esc(f"round {it.round}"), esc(", ".join(it.lost) or "–"), esc(", ".join(it.joined) or "–"),
            esc("–") if it.detected_s is None and not it.lost else exact(it.detected_s, seconds(it.detected_s)),
            exact(it.repaired_s, seconds(it.repaired_s)), esc(it.redone_rounds), esc(size(it.moved_bytes)),
            exact(it.energy_j, energy(it.energy_j)),
        )
        for it in report.recoveries
    ]  # fmt: skip
    heads = ("when", "lost", "joined", "noticed after", "mended after", "rounds done again", "moved", "energy")
    return section(
        "recoveries",
        "Devices lost and back",
        Html("<p>The energy is that of the interrupted round, the repair and the rounds that were done again.</p>"),
        table("Recoveries", heads, rows, numeric=(3, 4, 5, 6, 7)),
    )


def frontier_section(report: RunReport) -> Html:
    """Time against energy: what else was known, and where the run lies."""
    found = choices(report)
    picture = frontier_picture(found)
    frontier = report.run.frontier
    if frontier is None:
        said = (
            "The frontier was not worked out before this run (greentrain schedule --frontier does); shown is what is "
            "known."
        )
    elif frontier.exact:
        said = f"Every plan that no other beats in both time and energy: {frontier.method}."
    else:
        said = f"Plans that no known plan beats in both time and energy, not all of them: {frontier.method}."
    if picture is None:
        return section("frontier", "Time against energy", _missing("Fewer than two plans or runs are known."))
    rows = [
        (
            esc(choice.kind), esc(choice.label), exact(choice.samples_per_s, number(choice.samples_per_s)),
            exact(choice.energy_j, joules_per_sample(choice.energy_j)), _point_source(choice, report),
        )
        for choice in found
    ]  # fmt: skip
    listed = table("Plans and the run", ("", "who", "samples/s", "J/sample", "source"), rows, numeric=(2, 3))
    return section(
        "frontier", "Time against energy", Html(f"<p>{esc(said)}</p>"), figure(picture),
        details("The same as a table", listed),
    )  # fmt: skip


def _point_source(choice: Choice, report: RunReport) -> Html:
    return chip(report.headline.source if choice.kind == "recorded" else "modelled")


def loss_section(report: RunReport) -> Html:
    """Training loss."""
    summary = report.run.summary
    losses = summary.loss_by_epoch if summary is not None else ()
    picture = loss_picture(losses)
    if picture is not None:
        shown = figure(picture)
    elif losses:
        shown = Html(f"<p>Mean training loss of the only epoch: {exact(losses[0], number(losses[0]))}.</p>")
    else:
        shown = _missing("The loss is not recorded.")
    return section("loss", "Loss", shown)


def _missing(text: str) -> Html:
    return Html(f"<p>{gap(text)}</p>")
