"""Action and lower(plan): one list of actions per device that simulator, runtime and drawings all consume.

Text form, one action per word: ``<stage><kind><micro-batch>@<device>``, then for transfers the peer,
the half-open row range and the bytes, as in ``2F0@jetson-1[0:3)`` and ``0SF2@a>b[0:3):12288``. A pass of a group that
shares work inside a sample has the bytes that the device sends and receives in rings, ``1F0@a[0:4):8192/6144``:

    F  forward      SF  send activations      RF  receive activations
    B  backward     SB  send gradients        RB  receive gradients
    AR sum of the gradients over the group    U   optimizer update
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, cast, get_args

import msgspec

from greentrain._checks import require
from greentrain.errors import UsageError
from greentrain.plan import Cut, Plan, Stage, cut
from greentrain.sharing import Direction, common_piece_bytes, ring_pass_bytes, slices

__all__ = ["Action", "ActionKind", "format_actions", "lower", "parse_actions", "validate"]

ActionKind = Literal["F", "B", "SF", "RF", "SB", "RB", "AR", "U"]

_TRANSFERS = ("SF", "RF", "SB", "RB")
_PARTNER: dict[ActionKind, ActionKind] = {"SF": "RF", "RF": "SF", "SB": "RB", "RB": "SB"}
_TEXT = re.compile(
    r"(?P<stage>\d+)(?P<kind>SF|RF|SB|RB|AR|F|B|U)(?P<micro>\d+)@(?P<device>[^>:\[]+)"
    r"(?:>(?P<peer>[^\[:]+))?(?:\[(?P<first>\d+):(?P<last>\d+)\))?(?::(?P<bytes>\d+)(?:/(?P<received>\d+))?)?"
)


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that one device does.

    Attributes:
        device: Who acts.
        kind: What is done.
        stage: Stage of the acting device.
        micro_batch: Micro-batch, from 0; 0 for AR and U.
        bytes: Payload of a transfer, the gradient bytes that are summed, or what a pass sends in the group's rings.
        received_bytes: What a pass receives in the group's rings.
        peer: The other end of a transfer.
        first_row: First row of the micro-batch that is moved or computed.
        last_row: One past the last row.
    """

    device: str
    kind: ActionKind
    stage: int
    micro_batch: int
    bytes: int = 0
    peer: str | None = None
    first_row: int = 0
    last_row: int = 0
    received_bytes: int = 0

    def __post_init__(self) -> None:
        require(self.kind in get_args(ActionKind), f"unknown action kind {self.kind!r}")
        require((self.peer is not None) == (self.kind in _TRANSFERS), "exactly the transfers have a peer")
        require(0 <= self.first_row <= self.last_row, "rows must be a half-open range")

    def __str__(self) -> str:
        text = f"{self.stage}{self.kind}{self.micro_batch}@{self.device}"
        if self.peer is not None:
            text += f">{self.peer}"
        if self.last_row:
            text += f"[{self.first_row}:{self.last_row})"
        if self.received_bytes:
            return f"{text}:{self.bytes}/{self.received_bytes}"
        return f"{text}:{self.bytes}" if self.bytes else text


def lower(plan: Plan, *, forward_only: bool = False) -> dict[str, list[Action]]:
    """Turn a plan into the actions of one round, per device, in the order of execution.

    1F1B: a stage first computes as many forwards as it may hold in flight, then alternates backward
    and forward. Between groups with different shares every pair moves just what both hold (M-to-N), all tensors
    of the cut in one message. Where a group shares work inside a sample, F and B are actions of the whole group
    and carry the bytes that the device itself sends and receives in the group's rings, and AR sums only those
    gradients that :mod:`greentrain.sharing` names, which also says who holds what at a cut. For inference
    (``forward_only``) there are the forward passes and their transfers only.
    """
    return {
        device: _device_actions(plan, index, position, forward_only=forward_only)
        for index, stage in enumerate(plan.stages)
        for position, device in enumerate(stage.devices)
    }


def _device_actions(plan: Plan, index: int, position: int, *, forward_only: bool) -> list[Action]:
    stage = plan.stages[index]
    before = plan.stages[index - 1] if index > 0 else None
    after = plan.stages[index + 1] if index + 1 < len(plan.stages) else None
    rows = plan.micro_batch
    inward = (cut(before, stage, rows, forward=True), cut(before, stage, rows, forward=False)) if before else None
    outward = (cut(stage, after, rows, forward=True), cut(stage, after, rows, forward=False)) if after else None
    seat = _Seat(plan, index, position)
    actions: list[Action] = []
    for direction, micro in _one_forward_one_backward(plan.micro_batches_n, stage.in_flight):
        if direction == "F":
            actions += seat.transfers("RF", micro, before, inward and inward[0])
            actions.append(seat.action("F", micro))
            actions += seat.transfers("SF", micro, after, outward and outward[0])
        elif not forward_only:
            actions += seat.transfers("RB", micro, after, outward and outward[1])
            actions.append(seat.action("B", micro))
            actions += seat.transfers("SB", micro, before, inward and inward[1])
    if forward_only:
        return actions
    device = stage.devices[position]
    if stage.sum_bytes > 0:
        actions.append(Action(device=device, kind="AR", stage=index, micro_batch=0, bytes=stage.sum_bytes))
    actions.append(Action(device=device, kind="U", stage=index, micro_batch=0))
    return actions


class _Seat(NamedTuple):
    """A device's place in a plan."""

    plan: Plan
    stage: int
    position: int

    def action(self, kind: Literal["F", "B"], micro: int) -> Action:
        stage, rows = self.plan.stages[self.stage], self.plan.micro_batch
        taken = slices(stage.sharing, stage.shares, rows, sends=False)[self.position]
        direction: Direction = "forward" if kind == "F" else "backward"
        sent, received = ring_pass_bytes(stage.rings, stage.shares, self.position, rows, direction)
        return Action(
            device=stage.devices[self.position], kind=kind, stage=self.stage, micro_batch=micro, bytes=sent,
            received_bytes=received, first_row=taken.first_row, last_row=taken.last_row,
        )  # fmt: skip

    def transfers(self, kind: ActionKind, micro: int, other: Stage | None, way: Cut | None) -> list[Action]:
        """One transfer per device of the other stage that has something in common."""
        if other is None or way is None:
            return []
        stage = self.plan.stages[self.stage]
        ours, theirs = (way.sent, way.taken) if kind in ("SF", "SB") else (way.taken, way.sent)
        own = ours[self.position]
        found: list[Action] = []
        for peer, piece in zip(other.devices, theirs, strict=True):
            size = common_piece_bytes(own, piece, way.hidden_bytes, way.side_bytes)
            if size > 0:  # Without anything trainable before the cut no gradient goes back.
                rows = own.hidden, piece.hidden
                found.append(
                    Action(
                        device=stage.devices[self.position], kind=kind, stage=self.stage, micro_batch=micro, peer=peer,
                        first_row=max(row.first_row for row in rows), last_row=min(row.last_row for row in rows),
                        bytes=size,
                    )
                )  # fmt: skip
        return found


def _one_forward_one_backward(micro_batches_n: int, in_flight: int) -> Iterable[tuple[Literal["F", "B"], int]]:
    warm_up = min(in_flight, micro_batches_n)
    for micro in range(warm_up):
        yield "F", micro
    for micro in range(micro_batches_n):
        yield "B", micro
        if micro + warm_up < micro_batches_n:
            yield "F", micro + warm_up


def validate(actions: Mapping[str, Sequence[Action]]) -> None:
    """Check that every send has its receive, in an order that can be executed.

    Raises:
        UsageError: A transfer lacks its other half, or the lists wait for each other for ever. The
            message shows where each device stands.
    """
    halves = {_transfer_key(action) for listed in actions.values() for action in listed if action.peer is not None}
    for listed in actions.values():
        for action in listed:
            if action.peer is not None and _partner_key(action) not in halves:
                raise UsageError(f"action {action} has no other half on {action.peer}.", hint="Lower the plan again.")
    position = dict.fromkeys(actions, 0)
    sent: set[tuple[str, ...]] = set()
    moved = True
    while moved:
        moved = False
        for device, listed in actions.items():
            while position[device] < len(listed):
                action = listed[position[device]]
                if action.kind in ("RF", "RB") and _partner_key(action) not in sent:
                    break
                if action.kind in ("SF", "SB"):
                    sent.add(_transfer_key(action))
                position[device] += 1
                moved = True
    stuck = {device: listed[position[device]] for device, listed in actions.items() if position[device] < len(listed)}
    if stuck:
        grid = "; ".join(f"{device} waits at --> {action}" for device, action in stuck.items())
        raise UsageError(f"the actions wait for each other for ever: {grid}.", hint="Check the order of the schedule.")


def _transfer_key(action: Action) -> tuple[str, ...]:
    rows = (str(action.first_row), str(action.last_row))
    return (action.kind, str(action.micro_batch), action.device, cast("str", action.peer), *rows, str(action.bytes))


def _partner_key(action: Action) -> tuple[str, ...]:
    rows = (str(action.first_row), str(action.last_row))
    kind = _PARTNER[action.kind]
    return (kind, str(action.micro_batch), cast("str", action.peer), action.device, *rows, str(action.bytes))


def format_actions(actions: Iterable[Action]) -> str:
    """The text form, one space between actions."""
    return " ".join(str(action) for action in actions)


def parse_actions(text: str) -> list[Action]:
    """Read the text form; the inverse of :func:`format_actions`.

    Raises:
        UsageError: A word is no action.
    """
    parsed: list[Action] = []
    for number, word in enumerate(text.split()):
        match = _TEXT.fullmatch(word)
        if match is None:
            raise UsageError(f"word {number} is {word!r}, expected an action such as '2F0@jetson-1'.")
        try:
            parsed.append(
                Action(
                    device=match["device"],
                    kind=cast("ActionKind", match["kind"]),
                    stage=int(match["stage"]),
                    micro_batch=int(match["micro"]),
                    bytes=int(match["bytes"] or 0),
                    received_bytes=int(match["received"] or 0),
                    peer=match["peer"],
                    first_row=int(match["first"] or 0),
                    last_row=int(match["last"] or 0),
                )
            )
        except ValueError as error:
            raise UsageError(f"word {number} is {word!r}: {error}.") from error
    return parsed
