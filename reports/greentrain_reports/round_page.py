"""One simulated round of a plan as a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence

from greentrain.files import utc_now
from greentrain.ledger import LedgerRow
from greentrain.plan import Estimate, Plan, parallelism_name
from greentrain.version import VERSION
from greentrain_reports.ledger_table import table_of_rows
from greentrain_reports.markup import Html, esc, figure, join, section
from greentrain_reports.page_frame import whole_page
from greentrain_reports.round_pictures import round_picture
from greentrain_reports.timeline import timeline
from greentrain_reports.words import joules_per_sample, seconds

__all__ = ["round_page"]


def round_page(plan: Plan, rows: Sequence[LedgerRow], price: Estimate, *, now_utc: str | None = None) -> str:
    """The whole page.

    Args:
        plan: What is simulated.
        rows: The simulator's rows of one round.
        price: What they add up to.
        now_utc: When the page was made; now when not given.
    """
    picture = round_picture([(f"{parallelism_name(plan)} (simulator)", timeline(table_of_rows(rows), 0))])
    lede = (
        f"One round of {plan.batch} samples on {', '.join(plan.devices)}: {seconds(price.step_s)}, "
        f"{joules_per_sample(price.energy_j_per_sample)} (simulated, modelled power)"
    )
    head = Html(
        f'<header><p class="eyebrow">greentrain simulate</p><h1>{esc(plan.model)}</h1>'
        f'<p class="lede">{esc(lede)}</p></header>'
    )
    foot = Html(f"<footer>Made by greentrain {esc(VERSION)} on {esc(now_utc or utc_now())}.</footer>")
    return whole_page(
        f"{plan.model}: one round",
        join((head, section("timeline", "One round, action by action", figure(picture)), foot)),
    )
