"""The sections of the page below its headline, each a function of the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greentrain.objective import Objective
from greentrain.plan import Certificate, Plan
from greentrain_reports.energy import CAUSES, DeviceEnergy
from greentrain_reports.markup import Html, chip, definitions, esc, exact, figure, gap, join, section, table
from greentrain_reports.pictures import energy_picture, loss_picture, power_picture, timeline_picture
from greentrain_reports.tables import ComparisonRow, RunReport
from greentrain_reports.words import (
    column_of_energies,
    energy,
    joules_per_sample,
    number,
    percent,
    seconds,
    signed_percent,
    size,
)

__all__ = [
    "comparison_section",
    "energy_section",
    "joules_section",
    "loss_section",
    "method_section",
    "power_section",
    "reasons_section",
    "timeline_section",
]

_QUANTITIES = {
    "energy_j_per_sample": "Energy per sample",
    "samples_per_s": "Samples per second",
    "round_s": "Length of a round",
    "energy_j_per_round": "Energy of a round",
    "compute_s_per_round": "Computing time of a round",
    "sent_bytes_per_round": "Bytes sent in a round",
    "peak_memory_bytes": "Peak training memory",
}


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
    rows: list[Sequence[Html]] = []
    before = ""
    for row in report.comparison:
        title = _QUANTITIES[row.quantity]
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
    shown = figure(picture) if picture is not None else _missing("Neither the simulator's nor the run's actions are.")
    return section("timeline", "One round, action by action", shown)


def power_section(report: RunReport) -> Html:
    """Mean power over the rounds."""
    picture = power_picture(report.rounds)
    missing = "Single rounds have no recorded joules, or there was only one round."
    return section("power", "Power over the rounds", figure(picture) if picture is not None else _missing(missing))


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


def method_section(report: RunReport) -> Html:
    """How the figures came to be: plan, proof, meters, versions, hashes."""
    run, plan, summary = report.run, report.run.plan, report.run.summary
    optimum = plan.objective if plan is not None else None
    place = report.intensity
    pairs = [
        ("Model", esc(plan.model) if plan else esc(summary.model) if summary else gap()),
        ("Data", esc(summary.dataset) if summary and summary.dataset else gap()),
        ("Split of the work", esc(report.parallelism) if report.parallelism else gap()),
        ("Objective", esc(_objective_words(optimum)) if optimum else gap()),
        ("Planner", esc(plan.planner) if plan else gap()),
        ("Proof", esc(certificate_words(plan.certificate)) if plan else gap()),
        ("Batch", esc(_batch_words(plan)) if plan else gap()),
        ("Energy", esc("Each round's joules come from the device's meter. Sums are made in whole microjoules.")),
        (
            "Carbon",
            esc(
                f"{place.kg_per_kwh:g} kg CO₂e per kWh ({place.place}, {place.year or 'year not stated'}; "
                f"{place.source}). Operation only: the making of the devices (M of the Software Carbon Intensity, "
                "ISO/IEC 21031) is not recorded."
            ),
        ),
        ("Started", esc(summary.started_utc) if summary and summary.started_utc else gap()),
        ("Launched from", esc(summary.host) if summary and summary.host else gap()),
    ]
    parts = [definitions(pairs)]
    parts.append(_stage_table(plan) if plan is not None else Html(""))
    versions = summary.versions if summary is not None else {}
    if versions:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        parts.append(Html(f"<h3>Versions</h3><p class='small'>{esc(listed)}</p>"))
    files = [(name, Html(f"<code>{esc(digest)}</code>")) for name, digest in sorted(run.sha256.items())]
    if summary is not None and summary.plan_sha256:
        files.append(("plan that ran", Html(f"<code>{esc(summary.plan_sha256)}</code>")))
    parts.append(Html(f"<details><summary>SHA-256 of the files behind this report</summary>{definitions(files)}"))
    parts.append(Html("</details>"))
    return section("method", "Method", *parts)


def _stage_table(plan: Plan) -> Html:
    rows = [
        (
            esc(index),
            esc(f"{stage.start} to {stage.stop - 1}"),
            esc(device),
            esc(f"{share} of {plan.micro_batch}"),
            esc(point),
            esc(stage.in_flight),
            esc(size(stage.param_bytes)),
        )
        for index, stage in enumerate(plan.stages)
        for device, share, point in zip(stage.devices, stage.shares, stage.points, strict=True)
    ]
    heads = ("stage", "layers", "device", "rows of a micro-batch", "operating point", "in flight", "parameters")
    return join((Html("<h3>The plan</h3>"), table("Stages of the plan", heads, rows, numeric=(3, 5, 6))))


def certificate_words(certificate: Certificate | None) -> str:
    """How good the plan provably is, in one sentence."""
    if certificate is None:
        return "No proof was recorded for this plan."
    how = f"{certificate.method}; {certificate.considered_n} plans were priced"
    if certificate.lower_bound is None or certificate.gap_ratio is None:
        return f"No bound is known for this plan ({how})."
    least = certificate.lower_bound
    shown = joules_per_sample(least) if certificate.unit == "J/sample" else f"{number(least)} {certificate.unit}"
    bound = f"no plan of the searched space needs less than {shown}"
    if certificate.gap_ratio <= 1e-9:
        return f"Proven best under the cost model: {bound} ({how})."
    return f"At most {certificate.gap_ratio * 100:.2g} % above the best possible under the cost model: {bound} ({how})."


def _objective_words(objective: Objective) -> str:
    words = {"energy": "least energy", "time": "least time", "edp": "least energy × time", "carbon": "least CO₂e"}
    text = words[objective.minimise]
    if objective.max_slowdown is not None:
        text += f", at most {objective.max_slowdown:g} × the round of the fastest plan"
    if objective.deadline_s is not None:
        text += f", the whole job within {seconds(objective.deadline_s)}"
    if objective.budget_j is not None:
        text += f", the whole job within {energy(objective.budget_j)}"
    counted = "counted" if objective.count_idle_of_unused else "not counted"
    return f"{text}; idle power of unused devices {counted}"


def _batch_words(plan: Plan) -> str:
    return (
        f"{plan.batch} samples per round in {plan.micro_batches_n} micro-batches of {plan.micro_batch}, "
        f"schedule {plan.schedule}, optimizer {plan.optimizer}"
    )


def _missing(text: str) -> Html:
    return Html(f"<p>{gap(text)}</p>")
