"""What a run saved: against the fastest plan, against one device, against another run."""

from __future__ import annotations

import msgspec

from greentrain.plan import Plan
from greentrain_reports.run_folder import RunFolder

__all__ = ["Saving", "planned_savings"]


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """This run beside another way to train.

    Attributes:
        other: What it is compared with.
        basis: ``predicted`` (cost model on both sides) or ``recorded`` (both ran).
        energy_percent: Energy per sample saved (+) or lost (−), percent of the other.
        slower_percent: Time per sample added (+) or saved (−), percent of the other.
        joules_per_sample: Energy per sample of this side.
        other_joules_per_sample: Energy per sample of the other.
        same_plan: Both sides are the same decision.
    """

    other: str
    basis: str
    energy_percent: float
    slower_percent: float | None
    joules_per_sample: float
    other_joules_per_sample: float
    same_plan: bool = False


def planned_savings(run: RunFolder) -> tuple[Saving, ...]:
    """This plan beside the fastest one and beside the best single device, both as predicted; what is known of it."""
    found: list[Saving] = []
    fastest = run.time_optimal
    if fastest is None and run.plan is not None and run.plan.objective.minimise == "time":
        # Nothing lies beside a plan that was made to be the fastest.
        fastest = run.plan
    for other, name in ((fastest, "the fastest plan"), (run.single, "one device")):
        if other is not None:
            saving = _predicted(run.plan, other, f"{name}, {other.devices[0]}" if other is run.single else name)
            found += [saving] if saving is not None else []
    return tuple(found)


def _predicted(plan: Plan | None, other: Plan, name: str) -> Saving | None:
    mine = plan.estimate if plan is not None else None
    theirs = other.estimate
    if plan is None or mine is None or theirs is None or theirs.energy_j_per_sample <= 0:
        return None
    return Saving(
        other=name,
        basis="predicted",
        energy_percent=(1 - mine.energy_j_per_sample / theirs.energy_j_per_sample) * 100,
        slower_percent=(theirs.samples_per_s / mine.samples_per_s - 1) * 100 if mine.samples_per_s > 0 else None,
        joules_per_sample=mine.energy_j_per_sample,
        other_joules_per_sample=theirs.energy_j_per_sample,
        same_plan=_decision(plan) == _decision(other),
    )


def _decision(plan: Plan) -> tuple[object, ...]:
    return (plan.stages, plan.batch, plan.micro_batch, plan.schedule)
