"""What an executed action leaves in the ledger: one table for the simulator and the runtime."""

from __future__ import annotations

from typing import NamedTuple

from greentrain.actions import Action, ActionKind
from greentrain.parallel.data import gradient_sum_bytes

__all__ = ["RowPart", "row_parts"]

_COMPUTE: dict[ActionKind, str] = {"F": "forward", "B": "backward", "U": "update"}


class RowPart(NamedTuple):
    """One row of an action.

    Attributes:
        action: The ledger's action.
        bytes: Payload bytes moved.
        lasts: Whether the action's seconds belong to this row; the others take no time of the device.
    """

    action: str
    bytes: int
    lasts: bool


def row_parts(action: Action, group_n: int) -> tuple[RowPart, ...]:
    """The rows of an action of a device in a group of ``group_n``.

    A receive waits for its message; a gradient sum waits for the group and moves the bytes of a ring, as does a
    pass of a group that shares work inside a sample.
    """
    if action.kind in _COMPUTE:
        computed = RowPart(_COMPUTE[action.kind], 0, True)
        if action.bytes == 0:
            return (computed,)
        return (computed, RowPart("send", action.bytes, False), RowPart("receive", action.received_bytes, False))
    if action.kind == "AR":
        moved = round(gradient_sum_bytes(group_n, action.bytes))
        return (RowPart("sum", 0, True), RowPart("send", moved, False), RowPart("receive", moved, False))
    if action.kind in ("SF", "SB"):
        return (RowPart("send", action.bytes, True),)
    return (RowPart("wait", 0, True), RowPart("receive", action.bytes, False))
