"""A plan in words and a small table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from greentrain.cli._common import table_lines
from greentrain.cli._models_plan import is_predicted, plan_findings
from greentrain.explain import Explanation, Reason
from greentrain.objective import Problem
from greentrain.plan import Plan, parallelism_name
from greentrain.units import format_quantity

__all__ = ["device_list", "explanation_text", "plan_text", "price_line"]

_MOST_NAMES = 6


def price_line(plan: Plan) -> str:
    """One line: parallelism, devices, J/sample and samples/s."""
    price = plan.estimate
    assert price is not None
    return (
        f"{parallelism_name(plan)} on {', '.join(plan.devices)}: {price.energy_j_per_sample:.4g} J/sample, "
        f"{price.samples_per_s:.4g} samples/s (modelled)"
    )


def plan_text(plan: Plan, problem: Problem) -> str:
    """The plan as a person wants to read it."""
    price = plan.estimate
    assert price is not None
    lines = [
        f"Plan for {plan.model}: {price_line(plan)}",
        f"  batch {plan.batch} = {plan.micro_batches_n} micro-batches of {plan.micro_batch}; "
        f"round {format_quantity(price.step_s, 'time')}; planner {plan.planner}",
        "",
    ]
    table = [("stage", "layers", "device", "rows", "point", "busy", "energy", "memory")]
    for index, stage in enumerate(plan.stages):
        for device, share, point in zip(stage.devices, stage.shares, stage.points, strict=True):
            energy_j = sum(price.energy_j[device].values()) / plan.batch
            table.append(
                (
                    str(index), f"{stage.start}-{stage.stop - 1}", device, str(share), point,
                    f"{price.busy_s[device] / price.step_s:.0%}", f"{energy_j:.3g} J",
                    format_quantity(price.peak_bytes[device], "bytes"),
                )
            )  # fmt: skip
    lines += table_lines(table, indent="  ")
    sources = {
        problem.cluster.device(device).source_at(point)
        for stage in plan.stages
        for device, point in zip(stage.devices, stage.points, strict=True)
    }
    lines.append(f"  (energy per sample; device power curves: {' and '.join(sorted(sources))})")
    lines += [f"  ({remark})" for remark in _remarks(plan, problem)]
    if plan.certificate is not None:
        lines += ["", f"Proof: {_proof(plan)}"]
    if plan.reasons:
        lines += ["", "Why these devices:"]
        lines += [f"  {devices}: {reason}" for devices, reason in _together(plan.reasons)]
    return "\n".join(lines)


def _together(reasons: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Devices of the same reason in one line."""
    devices: defaultdict[str, list[str]] = defaultdict(list)
    for device, reason in reasons.items():
        devices[reason].append(device)
    return ((device_list(names), reason) for reason, names in devices.items())


def device_list(names: Sequence[str]) -> str:
    """The names, of many devices only the first."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_NAMES - 1])} and {len(names) - _MOST_NAMES + 1} more"


def explanation_text(explanation: Explanation) -> str:
    """Limits, runners-up and changes in a few lines; the devices' reasons are the plan's own."""
    lines = ["What the limits cost:", *_mattering(explanation.limits, "no limit binds")]
    if explanation.runners_up:
        lines += ["", "Next best:", *(f"  {reason.sentence}" for reason in explanation.runners_up)]
    if explanation.changes:
        lines += ["", "What would help:", *_mattering(explanation.changes, "")]
    if not explanation.whole:
        lines.append("  (asked among the plan's devices and those named; the whole cluster would take too long)")
    if explanation.cut_short:
        lines.append(f"  (not told in time: {', '.join(explanation.cut_short)})")
    return "\n".join(lines)


def _mattering(reasons: Iterable[Reason], nothing: str) -> list[str]:
    """The answers that matter; the others in one line."""
    lines = [f"  {reason.sentence}" for reason in reasons if reason.matters]
    others = [reason.topic for reason in reasons if not reason.matters]
    if nothing and not lines and others:
        return [f"  {nothing} (asked: {', '.join(others)})"]
    return [*lines, f"  {', '.join(others)}: nothing changes"] if others else lines


def _remarks(plan: Plan, problem: Problem) -> list[str]:
    """What a reader must know before comparing figures of different origin."""
    found = [f"not measured: {finding.line}" for finding in plan_findings(plan, problem)]
    predicted = {
        (device.kind, point.name)
        for device in problem.cluster.devices
        for point in device.points
        if is_predicted(device, point.name)
    }
    estimated = sorted(
        device.id
        for device in problem.cluster.devices
        if any(
            problem.model.times_of(device.kind, point.name).provenance.source == "modelled"
            and (device.kind, point.name) not in predicted
            for point in device.points
        )
    )
    if estimated:
        found.append(
            f"layer times of {device_list(estimated)}: modelled from the catalogue (a board's GPU where it has one); "
            "the others' were taken on their processors"
        )
    if plan.objective.count_idle_of_unused:
        found.append("devices that are on but unused count with their idle power")
    return found


def _proof(plan: Plan) -> str:
    certificate = plan.certificate
    assert certificate is not None
    if certificate.gap_ratio is None or certificate.lower_bound is None:
        return f"none ({certificate.method})"
    gap = "optimal under the cost model" if certificate.gap_ratio == 0 else f"within {certificate.gap_ratio:.1%}"
    bound = f"lower bound {certificate.lower_bound:.4g} {certificate.unit}"
    return f"{gap}, {bound}; {certificate.method} ({certificate.considered_n} priced)"
