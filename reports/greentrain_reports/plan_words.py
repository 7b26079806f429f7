"""A plan, its objective and its proof in words."""

from __future__ import annotations

from greentrain.objective import Objective
from greentrain.plan import Certificate, Plan
from greentrain_reports.words import energy, joules_per_sample, number, seconds

__all__ = ["batch_words", "certificate_words", "objective_words"]


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


def objective_words(objective: Objective) -> str:
    """What was minimised, within which limits."""
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


def batch_words(plan: Plan) -> str:
    """How a round is cut into micro-batches."""
    return (
        f"{plan.batch} samples per round in {plan.micro_batches_n} micro-batches of {plan.micro_batch}, "
        f"schedule {plan.schedule}, optimizer {plan.optimizer}"
    )
