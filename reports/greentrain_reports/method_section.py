"""How the figures came to be: plan, proof, meters, boundaries, versions, hashes."""

from __future__ import annotations

from greentrain.plan import Plan
from greentrain_reports.markup import Html, definitions, details, esc, gap, join, section, table
from greentrain_reports.plan_words import batch_words, certificate_words, objective_words
from greentrain_reports.tables import RunReport
from greentrain_reports.words import size

__all__ = ["method_section"]

_BOUNDARY = (
    "Counted: every device of the list, from the first round of training to the last, with the rails or counters that "
    "its meter sees. Not counted: start-up, evaluation, switches and routers, cooling, screens, and what a meter "
    "cannot see, such as a power supply behind the rails."
)
_ADDING = (
    "Each round's joules come from the device's own meter and are added up in whole microjoules, so that ledger, page, "
    "CSV and JSON agree to the last digit. What was not recorded is left out and named, never taken as 0."
)


def method_section(report: RunReport) -> Html:
    """The whole section."""
    run, plan, summary = report.run, report.run.plan, report.run.summary
    optimum = plan.objective if plan is not None else None
    counted = sorted({device.meter for device in report.devices if device.meter})
    pairs = [
        ("Model", esc(plan.model) if plan else esc(summary.model) if summary else gap()),
        ("Data", esc(summary.dataset) if summary and summary.dataset else gap()),
        ("Split of the work", esc(report.parallelism) if report.parallelism else gap()),
        ("Objective", esc(objective_words(optimum)) if optimum else gap()),
        ("Planner", esc(plan.planner) if plan else gap()),
        ("Proof", esc(certificate_words(plan.certificate)) if plan else gap()),
        ("Batch", esc(batch_words(plan)) if plan else gap()),
        ("Meters", esc(", ".join(counted)) if counted else gap()),
        ("Boundary", esc(_BOUNDARY)),
        ("Adding up", esc(_ADDING)),
        ("Started", esc(summary.started_utc) if summary and summary.started_utc else gap()),
        ("Launched from", esc(summary.host) if summary and summary.host else gap()),
    ]
    parts = [definitions(pairs)]
    parts.append(_stage_table(plan) if plan is not None else Html(""))
    versions = summary.versions if summary is not None else {}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    parts.append(join((Html("<h3>Versions</h3>"), Html(f'<p class="small">{esc(listed) if listed else gap()}</p>'))))
    files = [(name, Html(f"<code>{esc(digest)}</code>")) for name, digest in sorted(run.sha256.items())]
    if summary is not None and summary.plan_sha256:
        files.append(("plan that ran", Html(f"<code>{esc(summary.plan_sha256)}</code>")))
    parts.append(details("SHA-256 of the files behind this report", definitions(files)))
    return section("method", "Method", *parts)


def _stage_table(plan: Plan) -> Html:
    inside = any(stage.sharing != "samples" for stage in plan.stages)
    rows = [
        (
            esc(index),
            esc(f"{stage.start} to {stage.stop - 1}"),
            esc(device),
            esc(
                f"{share} of {plan.micro_batch}"
                if stage.sharing == "samples"
                else f"{share} of {sum(stage.shares)} ({stage.sharing.replace('_', ' and ')})"
            ),
            esc(point),
            esc(stage.in_flight),
            esc(size(stage.param_bytes)),
        )
        for index, stage in enumerate(plan.stages)
        for device, share, point in zip(stage.devices, stage.shares, stage.points, strict=True)
    ]
    shared = "share" if inside else "rows of a micro-batch"
    heads = ("stage", "layers", "device", shared, "operating point", "in flight", "parameters")
    return join((Html("<h3>The plan</h3>"), table("Stages of the plan", heads, rows, numeric=(3, 5, 6))))
