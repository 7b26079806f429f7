"""What the members of a run say to each other over the control plane, as JSON. Nothing else is ever decoded."""

from __future__ import annotations

import msgspec

from greentrain.plan import Plan
from greentrain.power import Source
from greentrain.reading import Scope
from greentrain.runtime.control import Fate
from greentrain.runtime.handshake import Hello
from greentrain.runtime.messages import Digest
from greentrain.summary import Recovery

__all__ = [
    "Answer", "Commit", "Done", "Excluded", "Form", "Halt", "Holding", "Kept", "Member", "Message", "Ready",
    "Report", "Wish", "decode", "encode",
]  # fmt: skip


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device that takes part.

    Attributes:
        device: Its id.
        host: Address at which the others reach it.
        port: Port of its control plane.
        board: Devices of one board share a meter.
        seat: Its number in the ledger: the same in every generation.
        meter: Name and note of its meter.
        source: Of its joules.
        scope: Of its meter.
    """

    device: str
    host: str
    port: int
    board: str
    seat: int
    meter: str = "none"
    source: Source = "modelled"
    scope: Scope = "process"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the weights and optimizer state of the layers [start, stop) after ``round`` rounds."""

    start: int
    stop: int
    round: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """A member's gradients of a round are complete; with its part of the loss (None where it is no number).

    Its last round's digest comes along.
    """

    generation: int
    round: int
    loss: float | None
    digest: Digest | None


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag="commit"):
    """All members were ready: everybody updates. With the exact mean loss, and everybody's digests.

    ``pause``: all meet again after this round, since somebody wants to join. ``loss`` is None where it is no number.
    """

    generation: int
    round: int
    loss: float | None
    digests: dict[str, Digest]
    pause: bool


class Halt(msgspec.Struct, frozen=True, kw_only=True, tag="halt"):
    """The sender has lost a peer: come to rest and report."""

    generation: int


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What a member at rest knows and has.

    Attributes:
        generation: The last one that it took part in.
        member: The sender.
        members: Devices of that generation, by rank.
        lost: Whom it cannot reach, and how they seem.
        done: Rounds whose update it has applied.
        ready: Whether it holds the complete gradients of round ``done``.
        own: The layers [start, stop) that it trains; None before it trains any.
        holdings: Further copies that it has.
        last_loss: Mean loss of round ``done`` − 1; None where it does not know it.
    """

    generation: int
    member: Member
    members: tuple[str, ...]
    lost: dict[str, Fate]
    done: int
    ready: bool
    own: tuple[int, int] | None
    holdings: tuple[Holding, ...]
    last_loss: float | None = None


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that the new generation starts from."""

    device: str
    start: int
    stop: int


class Form(msgspec.Struct, frozen=True, kw_only=True, tag="form"):
    """The leader's decision: how all go on.

    Attributes:
        generation: Its number.
        members: By rank.
        plan: The new plan.
        round: The next round; copies after so many rounds are started from.
        reached: Rounds that were done when all came to rest; those beyond ``round`` are redone.
        kept: Where these copies are.
        host: Address of the store of this generation.
        port: Its port.
        recoveries: Earlier ones, without their joules.
        lost: Who is no longer a member.
        joined: Who is new.
        elapsed_s: Seconds since the start of the run.
        losses: Losses of the rounds that stand, for those who join.
    """

    generation: int
    members: tuple[Member, ...]
    plan: Plan
    round: int
    reached: int
    kept: tuple[Kept, ...]
    host: str
    port: int
    recoveries: tuple[Recovery, ...]
    lost: tuple[str, ...]
    joined: tuple[str, ...]
    elapsed_s: float
    losses: tuple[float, ...]


class Wish(msgspec.Struct, frozen=True, kw_only=True, tag="wish"):
    """A device wants to join. It asks again until it is taken or refused."""

    hello: Hello
    member: Member


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """What a member says to a wish.

    Attributes:
        leads: Whether it leads; else the leader is the one to ask.
        leader: Where.
        runs: Whether the run has begun.
        refused: Why not; None while there is hope.
        hint: What to do about it.
    """

    leads: bool
    leader: tuple[str, int]
    runs: bool
    refused: str | None = None
    hint: str | None = None


class Excluded(msgspec.Struct, frozen=True, kw_only=True, tag="excluded"):
    """The others go on without the receiver."""

    generation: int
    reason: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The leader has all that the run leaves: the others may go."""

    generation: int


Message = Ready | Commit | Halt | Report | Form | Excluded | Wish | Answer | Done

_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as JSON."""
    return msgspec.json.encode(message)


def decode(payload: bytes) -> Message:
    """The inverse of :func:`encode`.

    Raises:
        msgspec.MsgspecError: It is no message.
    """
    return _DECODER.decode(payload)
