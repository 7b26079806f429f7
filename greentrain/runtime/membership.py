"""Who takes part: losses, the agreement of the survivors, and what they may go on from. No sockets, no clock.

Every change of the members has a generation number. When a peer is lost all come to rest and report to the
leader, the lowest-ranked member that they know alive; it decides from the reports alone. So the next leader can
take over at any moment, whatever its predecessor had done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from greentrain.errors import RunError
from greentrain.runtime.control import Fate, Loss
from greentrain.runtime.wire import Excluded, Form, Halt, Kept, Member, Message, Report

__all__ = ["Decision", "Membership", "NoMajorityError", "NothingLeftError", "check_majority", "common_round"]


class NoMajorityError(RunError):
    """This side of a split is the smaller one: the other goes on."""


class NothingLeftError(RunError):
    """Layers are lost with all their copies."""


class Decision(NamedTuple):
    """What the leader decided from the reports.

    Attributes:
        generation: The new generation's number.
        members: Who goes on, by their old rank.
        lost: Who does not.
        round: The round to go on with.
        reached: Rounds that were done.
        kept: The copies to start from.
    """

    generation: int
    members: tuple[Member, ...]
    lost: tuple[str, ...]
    round: int
    reached: int
    kept: tuple[Kept, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """Who goes on."""
        return tuple(member.device for member in self.members)


class Sent(NamedTuple):
    """A message to a device."""

    device: str
    message: Message


@dataclass
class Membership:
    """One member's view. Not thread-safe.

    Attributes:
        device: This device.
        layers_n: Layers of the model.
        generation: The present one.
        members: Its members by rank.
        lost: Members that this one cannot reach any more.
        halted: Whether this generation's rounds are over.
        reports: What members at rest have said to this one.
    """

    device: str
    layers_n: int
    generation: int
    members: tuple[Member, ...]
    lost: dict[str, Fate] = field(default_factory=dict[str, Fate])
    halted: bool = False
    reports: dict[str, Report] = field(default_factory=dict[str, Report])

    @property
    def devices(self) -> tuple[str, ...]:
        """Members by rank."""
        return tuple(member.device for member in self.members)

    @property
    def leader(self) -> str:
        """The lowest-ranked member that is not known to be lost."""
        return next(device for device in self.devices if device not in self.lost)

    @property
    def leads(self) -> bool:
        """Whether that is this device."""
        return self.leader == self.device

    @property
    def others(self) -> tuple[str, ...]:
        """The members that can be talked to."""
        return tuple(device for device in self.devices if device not in self.lost and device != self.device)

    def enter(self, form: Form) -> list[Sent]:
        """Begin a new generation; it is over at once where somebody was lost while it was decided."""
        self.generation = form.generation
        self.members = form.members
        still = set(self.devices) - set(form.joined)
        self.lost = {device: fate for device, fate in self.lost.items() if device in still}
        self.halted = False
        self.reports = {}
        return self.halt() if self.lost else []

    def lose(self, loss: Loss) -> list[Sent]:
        """A peer is gone: tell the others to come to rest, and report to whoever leads now."""
        if loss.device not in self.devices or loss.device in self.lost:
            return []
        self.lost[loss.device] = loss.fate
        own = self.reports.get(self.device)
        if own is not None:
            # The last report named fewer losses, or went to a leader that is gone.
            return self.rest(msgspec.structs.replace(own, lost=dict(self.lost)))
        return self.halt()

    def halt(self) -> list[Sent]:
        """The rounds of this generation are over."""
        if self.halted:
            return []
        self.halted = True
        return [Sent(device, Halt(generation=self.generation)) for device in self.others]

    def rest(self, report: Report) -> list[Sent]:
        """This member is at rest."""
        sent = self.halt()
        self.reports[self.device] = report
        return sent if self.leads else [*sent, Sent(self.leader, report)]

    def hear(self, sender: str, message: Report | Halt) -> list[Sent]:
        """Another member is at rest, or wants all to be."""
        if isinstance(message, Report):
            self.reports[sender] = message
        return self.halt() if message.generation >= self.generation else []

    def waits_for(self) -> tuple[str, ...]:
        """Members that are alive and have not reported yet."""
        return tuple(device for device in (self.device, *self.others) if device not in self.reports)

    def decide(self) -> Decision:
        """The leader's decision. Call when nobody is waited for, or no longer.

        Raises:
            NoMajorityError: The members who reported are too few to go on.
            NothingLeftError: Layers are lost with all their copies.
        """
        last = max(self.reports.values(), key=lambda report: report.generation)
        own = self.reports[self.device]
        base = last.members if last.generation > own.generation else self.devices
        kept = _mutual([device for device in base if device in self.reports and device not in self.lost], self.reports)
        check_majority(self.device, base, kept, self.lost)
        reports = {device: self.reports[device] for device in kept}
        round_, reached, copies = common_round(reports, self.layers_n)
        return Decision(
            generation=max(report.generation for report in self.reports.values()) + 1,
            members=tuple(reports[device].member for device in kept),
            lost=tuple(device for device in base if device not in kept),
            round=round_,
            reached=reached,
            kept=copies,
        )

    def turned_away(self, form: Form) -> list[Sent]:
        """Tell those who still talk to this member that the new generation is without them."""
        names = {member.device for member in form.members}
        gone = [device for device in (*self.devices, *self.reports) if device not in names and device != self.device]
        message = Excluded(
            generation=form.generation,
            reason=f"the others did not hear from it and go on with {', '.join(sorted(names))}",
        )
        return [Sent(device, message) for device in dict.fromkeys(gone)]


def _mutual(kept: Sequence[str], reports: Mapping[str, Report]) -> list[str]:
    """The members without those that a lower-ranked one cannot reach: all must reach each other."""
    found: list[str] = []
    for device in kept:
        if all(device not in reports[other].lost and other not in reports[device].lost for other in found):
            found.append(device)
    return found


def check_majority(device: str, members: Sequence[str], kept: Sequence[str], lost: Mapping[str, Fate]) -> None:
    """Of two halves that cannot reach each other only one may go on.

    Whoever is known to be dead or frozen has no vote. On a tie the half with the lowest rank goes on.

    Raises:
        NoMajorityError: It is not this one.
    """
    voters = [member for member in members if lost.get(member) in (None, "unreachable")]
    if 2 * len(kept) > len(voters) or (2 * len(kept) == len(voters) and voters[0] in kept):
        return
    away = ", ".join(member for member in voters if member not in kept)
    raise NoMajorityError(
        f"{device}: {away} cannot be reached, and may go on without this device.",
        hint="Check the network; start the worker again to join the others.",
    )


def common_round(reports: Mapping[str, Report], layers_n: int) -> tuple[int, int, tuple[Kept, ...]]:
    """The latest round after which all layers are still there, the round that was reached, and the copies.

    A member that was ready for the last update counts as if it had it: the others prove that all were.

    Raises:
        NothingLeftError: There is no such round.
    """
    reached = max(report.done for report in reports.values())
    copies: dict[int, list[Kept]] = {}
    for device, report in reports.items():
        if report.own is not None:
            done = reached if report.ready and report.done == reached - 1 else report.done
            copies.setdefault(done, []).append(Kept(device=device, start=report.own[0], stop=report.own[1]))
        for held in report.holdings:
            copies.setdefault(held.round, []).append(Kept(device=device, start=held.start, stop=held.stop))
    for round_ in sorted(copies, reverse=True):
        if _covered(copies[round_], layers_n):
            return round_, reached, tuple(copies[round_])
    raise NothingLeftError(
        "layers are lost with all their copies.",
        hint="Go on from the last checkpoint: greentrain train PLAN --resume runs/NAME",
    )


def _covered(copies: Iterable[Kept], layers_n: int) -> bool:
    held = {layer for copy in copies for layer in range(copy.start, copy.stop)}
    return len(held) == layers_n
