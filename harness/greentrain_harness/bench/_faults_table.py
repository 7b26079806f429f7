"""Rows of the faults' benchmark, their bars, and the tables made of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

__all__ = [
    "DETECTED_S",
    "LOSS_RATIO",
    "RESTART_RATIO",
    "FaultRow",
    "RestartRow",
    "faults_table",
    "loss_difference",
    "repaired_bar_s",
    "restarts_table",
    "spread_lines",
    "spread_of",
]

# The bars.
DETECTED_S = {"kill": 1.0, "freeze": 3.0, "link": 3.0}
_GROUP_S, _LAYERS_S = 1.0, 3.0
RESTART_RATIO = 14.0
# The same sums in another order, over some hundred rounds.
LOSS_RATIO = 1e-4


class FaultRow(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one run.

    Attributes:
        plan: Of :data:`greentrain_harness.bench._faults_plans.PLANS`.
        fault: kill, freeze or link.
        role: The victim's place in the plan.
        trial: Its number.
        victim: The device.
        grouped: Whether others held the same layers, so that none had to move.
        after_round: Rounds done when it happened.
        detected_s: From the victim's last sign of life until its loss was known, as the run's summary says.
        repaired_s: From then until training went on, the slowest device's.
        back_s: From the fault until the first round that was not done before it is done.
        redone_rounds: Completed rounds that were done again.
        moved_bytes: Weights and optimizer state that travelled.
        energy_j: Of all devices in the interrupted round, the repair and what was undone; modelled.
        loss_difference: Largest relative difference to the undisturbed run.
        whole: Whether the run finished with every round.
    """

    plan: str
    fault: str
    role: str
    trial: int
    victim: str
    grouped: bool
    after_round: int
    detected_s: float | None
    repaired_s: float | None
    back_s: float | None
    redone_rounds: int | None
    moved_bytes: int | None
    energy_j: float | None
    loss_difference: float | None
    whole: bool

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the bars that it misses."""
        late = (self.detected_s, DETECTED_S[self.fault]), (self.repaired_s, repaired_bar_s(grouped=self.grouped))
        found = [
            name
            for name, (seen, bar) in zip(("detection", "repair"), late, strict=True)
            if seen is None or seen > bar
        ]  # fmt: skip
        if not self.whole:
            found.append("rounds")
        if self.loss_difference is None or self.loss_difference > LOSS_RATIO:
            found.append("loss")
        return tuple(found)


class RestartRow(msgspec.Struct, frozen=True, kw_only=True):
    """The same kill, and what stopping, planning anew and starting again takes.

    Attributes:
        plan: Of :data:`greentrain_harness.bench._faults_plans.PLANS`.
        role: The victim's place in the plan.
        trial: Its number.
        victim: The device.
        lost_rounds: Rounds since the last checkpoint.
        stopped_s: From the kill until all workers had ended; nothing is taken for noticing it.
        planned_s: From the kill until the new plan was there.
        back_s: From the kill until the first round that was not done before it was done.
    """

    plan: str
    role: str
    trial: int
    victim: str
    lost_rounds: int
    stopped_s: float
    planned_s: float
    back_s: float


def repaired_bar_s(*, grouped: bool) -> float:
    """Longest repair: of a group that goes on with fewer members, or where layers move."""
    return _GROUP_S if grouped else _LAYERS_S


def loss_difference(
    losses: dict[int, float], by_epoch: Sequence[float], undisturbed: Sequence[float], epoch_rounds_n: int
) -> float | None:
    """Largest relative difference of single rounds and of the means of epochs, which hold every round.

    Args:
        losses: By round, counted from 1, as they were told; some may be missing.
        by_epoch: Means of the epochs, as the run's summary has them.
        undisturbed: Of every round.
        epoch_rounds_n: Rounds of an epoch.

    Returns:
        None where there is nothing to compare.
    """
    pairs = [(loss, undisturbed[number - 1]) for number, loss in losses.items()]
    for number, mean in enumerate(by_epoch):
        part = undisturbed[number * epoch_rounds_n : (number + 1) * epoch_rounds_n]
        pairs.append((mean, sum(part) / len(part)))
    return max((abs(seen / expected - 1) for seen, expected in pairs), default=None)


def faults_table(rows: Sequence[FaultRow]) -> str:
    """Every fault with its verdict, then medians and worst of each kind."""
    if not rows:
        return ""
    lines = [
        f"{'plan':9} {'fault':7} {'victim':26} {'detected s':>10} {'bar':>4} {'repaired s':>10} {'bar':>4} "
        f"{'back s':>7} {'redone':>6} {'moved MB':>8} {'joules':>7} {'loss diff':>9}  verdict"
    ]
    lines += [
        f"{row.plan:9} {row.fault:7} {row.victim + ', ' + row.role:26} {_figure(row.detected_s):>10} "
        f"{DETECTED_S[row.fault]:>4.0f} {_figure(row.repaired_s):>10} {repaired_bar_s(grouped=row.grouped):>4.0f} "
        f"{_figure(row.back_s):>7} {'-' if row.redone_rounds is None else row.redone_rounds:>6} "
        f"{'-' if row.moved_bytes is None else f'{row.moved_bytes / 1e6:.2f}':>8} {_figure(row.energy_j, 1):>7} "
        f"{'-' if row.loss_difference is None else f'{row.loss_difference:.0e}':>9}  "
        f"{'misses ' + ', '.join(row.missed) if row.missed else 'met'}"
        for row in rows
    ]
    met_n = sum(not row.missed for row in rows)
    lines += ["", *spread_lines(rows), f"{met_n} of {len(rows)} faults meet every bar", ""]
    return "\n".join(lines)


def spread_lines(rows: Sequence[FaultRow]) -> list[str]:
    """Medians and worst of detection and repair, by kind of fault and by whether layers had to move."""
    lines = [f"{'':34} {'faults':>6} {'median s':>8} {'worst s':>8} {'bar s':>6}"]
    for fault, bar_s in DETECTED_S.items():
        found = [row.detected_s for row in rows if row.fault == fault]
        lines += spread_of(f"detection, {fault}", found, bar_s)
    for grouped, title in ((True, "repair, a group with one less"), (False, "repair, layers move")):
        found = [row.repaired_s for row in rows if row.grouped == grouped]
        lines += spread_of(title, found, repaired_bar_s(grouped=grouped))
    return lines


def spread_of(title: str, values: Sequence[float | None], bar_s: float) -> list[str]:
    """A line of the median and the worst of what is known; none where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return []
    return [f"{title:34} {len(known):>6} {statistics.median(known):>8.2f} {max(known):>8.2f} {bar_s:>6.0f}"]


def restarts_table(rows: Sequence[RestartRow], faults: Sequence[FaultRow]) -> str:
    """Restarts beside the median kill of the same plan and place."""
    if not rows:
        return ""
    lines = [
        f"{'plan':9} {'killed':26} {'stopped s':>9} {'planned s':>9} {'restart: back s':>15} {'repair: back s':>14} "
        f"{'ratio':>6} {'bar':>4}  verdict"
    ]
    for row in rows:
        own = [
            fault.back_s
            for fault in faults
            if (fault.plan, fault.fault, fault.role) == (row.plan, "kill", row.role) and fault.back_s is not None
        ]
        ratio = row.back_s / statistics.median(own) if own else None
        lines.append(
            f"{row.plan:9} {row.victim + ', ' + row.role:26} {row.stopped_s:>9.2f} {row.planned_s:>9.2f} "
            f"{row.back_s:>15.2f} {_figure(statistics.median(own) if own else None):>14} {_figure(ratio, 1):>6} "
            f"{RESTART_RATIO:>4.0f}  {'-' if ratio is None else 'met' if ratio >= RESTART_RATIO else 'misses'}"
        )
    return "\n".join([*lines, ""])


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
