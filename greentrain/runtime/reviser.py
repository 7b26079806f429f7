"""Holding measured rounds against the plan while training goes on; a better plan is taken after a round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from greentrain.plan import Plan
from greentrain.runtime.job import Revision
from greentrain.runtime.live import UsualRound, usual_round
from greentrain.runtime.messages import Digest

__all__ = ["ROUNDS_N", "Reviser"]

# A usual round is the median of so many; the first ones after a change warm up and do not count.
ROUNDS_N = 12
_WARM_UP_N = 3


@dataclass
class Reviser:
    """Looks at the rounds of one plan after the other, in a thread of its own.

    Attributes:
        revise: See :class:`greentrain.runtime.job.Recovering`.
    """

    revise: Callable[[Plan, UsualRound], Revision]
    _plan: Plan | None = None
    _since: int = 0
    _found: list[Revision] = field(default_factory=list[Revision])
    _thread: threading.Thread | None = None

    def look(self, plan: Plan, done: int, digests: Mapping[str, Mapping[int, Digest]]) -> Revision | None:
        """Call after each round.

        Args:
            plan: The present plan.
            done: Rounds that are done.
            digests: Rounds by device, as far as they are known.

        Returns:
            What the last look has found, once; None while there is nothing new.
        """
        if plan is not self._plan:
            self._plan, self._since = plan, done
            self._found.clear()
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            return self._found.pop() if self._found else None
        # The last round is not known yet: it travels with the next one's end.
        first = max(self._since + _WARM_UP_N, done - 1 - ROUNDS_N)
        if done - 1 - first >= ROUNDS_N:
            seen = usual_round(digests, plan.devices, range(first, done - 1))
            if seen is not None:
                self._since = done
                self._thread = threading.Thread(target=self._revise, args=(plan, seen), daemon=True)
                self._thread.start()
        return None

    def _revise(self, plan: Plan, seen: UsualRound) -> None:
        revision = self.revise(plan, seen)
        if plan is self._plan:
            self._found.append(revision)
