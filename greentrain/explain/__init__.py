"""Why a plan is as it is: what the best plan would cost without a device, with it, without a limit, on other links."""

from __future__ import annotations

import time
from collections.abc import Callable

from greentrain.explain.changes import change_questions
from greentrain.explain.devices import device_questions
from greentrain.explain.limits import limit_questions
from greentrain.explain.nouns import Explanation, Figures, Reason
from greentrain.explain.runners_up import runner_up_questions, runners_up
from greentrain.explain.search import OutOfTimeError, Search
from greentrain.objective import Problem
from greentrain.plan import Plan

__all__ = ["Explanation", "Figures", "Reason", "explain"]

DEFAULT_BUDGET_S = 2.0


def explain(
    plan: Plan,
    problem: Problem,
    *,
    budget_s: float = DEFAULT_BUDGET_S,
    planning_s: float = 0.0,
    fastest_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Explanation:
    """Ask the planner again about everything that could be otherwise, as far as the time goes.

    Args:
        plan: The chosen plan, priced.
        problem: What it was chosen for.
        budget_s: Seconds for all questions together; what they leave out stands in ``cut_short``.
        planning_s: What the plan itself took; tells whether there is time to search the whole cluster again.
        fastest_s: Length of the fastest round where it is known; saves asking for it with every slowdown.
        stopped: Asked before each question whether to stop.
    """
    begun_s = time.monotonic()
    search = Search(plan, problem, stop_at_s=begun_s + budget_s, fastest_s=fastest_s, whole_s=planning_s)
    questions = [
        *device_questions(search),
        *limit_questions(search),
        *runner_up_questions(search),
        *change_questions(search),
    ]
    found: dict[str, list[Reason]] = {"device": [], "limit": [], "change": [], "runner-up": []}
    cut_short: list[str] = []
    for index, question in enumerate(questions):
        search.questions_left = len(questions) - index
        try:
            if stopped():
                raise OutOfTimeError
            found[question.section].append(question.ask())
        except (OutOfTimeError, KeyboardInterrupt):
            cut_short.append(question.topic)
    return Explanation(
        devices={reason.topic: reason for reason in found["device"]},
        limits=tuple(found["limit"]),
        runners_up=runners_up(search),
        changes=tuple(found["change"]),
        cut_short=tuple(cut_short),
        whole=search.whole,
        took_s=time.monotonic() - begun_s,
    )
