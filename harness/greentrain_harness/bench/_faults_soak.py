"""Many random faults in one run: nothing may be lost, and nothing may be left over."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from greentrain.summary import Recovery
from greentrain_harness.bench._faults_crew import FAULTS, START_S, Crew, Fault, Seen, Span, told_change
from greentrain_harness.bench._faults_runs import losses_against, summary_of
from greentrain_harness.bench._faults_setting import Setting
from greentrain_harness.bench._faults_table import DETECTED_S, LOSS_RATIO, spread_of

__all__ = ["Hit", "Soak", "grown", "matched", "soak", "soak_table"]

# How long a device stands still, or is cut off.
_HOLD_S = (3.0, 5.0)
_PAUSE_S = 2.0
# A fault that nobody has noticed so long after its end never will be.
_UNNOTICED_S = 10.0
_END_S = 1200.0
# Threads that look a second time come and go.
SLACK_N = 2


class Hit(NamedTuple):
    """A fault of the soak: whether it was noticed, and whether the device came back."""

    fault: Fault
    victim: str
    noticed: bool
    back: bool


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak has left.

    Attributes:
        plan: Which one.
        hits: The faults in order.
        recoveries: Of the summary; None where there is none.
        status: Exit status of each worker's last process.
        rounds: Rounds done, of how many.
        loss_difference: Largest relative difference to the undisturbed run.
        grown: Most descriptors and threads that a process has gained between two quiet moments.
        left_over_n: Processes in the nodes after the end.
        said: Last errors of the workers.
    """

    plan: str
    hits: tuple[Hit, ...]
    recoveries: tuple[Recovery, ...] | None
    status: dict[str, int | None]
    rounds: tuple[int, int]
    loss_difference: float | None
    grown: Span
    left_over_n: int
    said: str


def soak(setting: Setting, plan: str, faults_n: int, rounds_n: int, rng: random.Random) -> Soak:
    """One run with so many faults, one after the other; it ends when its rounds are done.

    Raises:
        RunError: The run did not begin.
    """
    hits: list[Hit] = []
    spans: dict[tuple[str, int], list[Span]] = {}
    with setting.crew(plan, rounds_n) as crew:
        crew.await_round(3)
        for number in range(faults_n):
            _note_spans(crew, spans)
            time.sleep(rng.uniform(0, _PAUSE_S))
            fault, victim = rng.choice(FAULTS), rng.choice(list(crew.devices))
            hit = _strike(crew, fault, victim, rng.uniform(*_HOLD_S))
            hits.append(hit)
            sys.stderr.write(f"{number + 1}/{faults_n}: {hit}, round {crew.reached}\n")
            if len(crew.running()) < len(crew.devices) or (hit.noticed and not hit.back):
                break
        _note_spans(crew, spans)
        status = crew.await_end(crew.devices, within_s=_END_S)
        said = crew.last_words()
        left_over_n = len(crew.left_over())
    summary = summary_of(setting, crew)
    return Soak(
        plan=plan, hits=tuple(hits), recoveries=None if summary is None else summary.recoveries, status=status,
        rounds=(0 if summary is None else summary.rounds, rounds_n), said=said, left_over_n=left_over_n,
        loss_difference=None if summary is None else losses_against(setting, crew, summary),
        grown=grown(list(spans.values())),
    )  # fmt: skip


def _strike(crew: Crew, fault: Fault, victim: str, hold_s: float) -> Hit:
    """One fault, until the device is back and two rounds are done with it."""
    told_n = len(crew.seen)

    def lost(seen: Seen) -> bool:
        return told_change(seen, victim, "lost")

    crew.harm(fault, victim)
    if fault != "kill":
        time.sleep(hold_s)
    crew.mend(fault, victim)
    noticed = crew.await_seen(lost, since=told_n, within_s=_UNNOTICED_S)
    if noticed is None:
        return Hit(fault, victim, noticed=False, back=True)
    joined = crew.await_seen(lambda seen: told_change(seen, victim, "joined"), since=told_n, within_s=START_S)
    if joined is None:
        return Hit(fault, victim, noticed=True, back=False)
    reached = joined.progress.step
    crew.await_seen(
        lambda seen: seen.progress.event is None and seen.progress.step >= reached + 2, since=told_n, within_s=START_S
    )
    return Hit(fault, victim, noticed=True, back=True)


def _note_spans(crew: Crew, spans: dict[tuple[str, int], list[Span]]) -> None:
    for device in crew.running():
        spans.setdefault((device, crew.pid(device)), []).append(crew.span(device))


def grown(spans: Sequence[Sequence[Span]]) -> Span:
    """Most that one process has gained since its first quiet moment."""
    return Span(
        max((part[-1].descriptors_n - part[0].descriptors_n for part in spans), default=0),
        max((part[-1].threads_n - part[0].threads_n for part in spans), default=0),
    )


def matched(hits: Sequence[Hit], recoveries: Sequence[Recovery]) -> list[tuple[Hit, Recovery | None]]:
    """Each noticed fault with its recovery: the first loss of its victim belongs to the first fault, and so on."""
    used: Counter[str] = Counter()
    found: list[tuple[Hit, Recovery | None]] = []
    for hit in hits:
        if hit.noticed:
            own = [one for one in recoveries if hit.victim in one.lost]
            found.append((hit, own[used[hit.victim]] if used[hit.victim] < len(own) else None))
            used[hit.victim] += 1
    return found


def soak_table(found: Soak, wanted_n: int) -> str:
    """Medians and worst by kind of fault, and what must hold in the end."""
    pairs = [(hit, recovery) for hit, recovery in matched(found.hits, found.recoveries or ()) if recovery is not None]
    lines = [f"soak of {found.plan}: {len(found.hits)} faults", f"{'':34} {'faults':>6} {'median s':>8} {'worst s':>8}"]
    for fault, bar_s in DETECTED_S.items():
        own = [recovery for hit, recovery in pairs if hit.fault == fault]
        lines += spread_of(f"detection, {fault}", [one.detected_s for one in own], bar_s)
        lines += spread_of(f"repair, {fault}", [one.repaired_s for one in own], 3.0)
    checks = {
        f"{len(found.hits)} of {wanted_n} faults struck": len(found.hits) == wanted_n,
        f"{sum(hit.back for hit in found.hits)} devices came back": all(hit.back for hit in found.hits),
        f"{found.rounds[0]} of {found.rounds[1]} rounds": found.rounds[0] == found.rounds[1],
        f"largest loss difference {found.loss_difference}": (found.loss_difference or 1.0) <= LOSS_RATIO,
        f"exit status {found.status}": set(found.status.values()) == {0},
        f"a process gained at most {found.grown.descriptors_n} descriptors, {found.grown.threads_n} threads": (
            max(found.grown) <= SLACK_N
        ),
        f"{found.left_over_n} processes left": found.left_over_n == 0,
    }
    lines += [f"{'ok    ' if holds else 'MISSED'} {text}" for text, holds in checks.items()]
    return "\n".join([*lines, *([found.said] if found.said else []), ""])
