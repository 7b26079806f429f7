"""Options: ways to run one stage, as columns of arrays; many at a time.

Axis legend: O options, G places in a group (padded with −1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from greentrain.plan import Sharing
from greentrain.planners.pareto import undominated_rows

__all__ = ["SHARINGS", "Options", "Shares", "Window", "joined", "undominated"]

Shares = Literal["all", "cheapest", "ends"]

SHARINGS: tuple[Sharing, ...] = ("samples", "tensor_sequence", "tensor", "sequence")


class Window(NamedTuple):
    """The rounds that a search looks at: from ``low_s`` to ``high_s`` seconds."""

    low_s: float
    high_s: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ways to run a stage, one per row.

    Attributes:
        span_O: Span of layers.
        group_O: Count vector of the group.
        slot_OG: Slot of every place in the group, −1 beyond its size.
        units_OG: Share units of every place.
        forward_s: Slowest device's forward seconds per micro-batch.
        backward_s: Slowest device's backward seconds per micro-batch.
        both_s: Forward and backward seconds of the device that is slowest in both together.
        first_forward_s: Fastest device's forward seconds per micro-batch.
        first_backward_s: Fastest device's backward seconds per micro-batch.
        tail_s: Gradient sum and slowest update per round.
        busy_j: Joules above waiting per round, those of waking and of what the group sends inside included.
        wait_w: Waiting watts of the group, above those that count anyway.
        most_s: Longest round that the devices' own energy budgets allow.
        sent_rows: Most rows, or parts of rows, that one device hands over at a cut behind or in front of a shared
            layer; :class:`greentrain.planners.cuts.Cuts` knows of those that every device computes whole.
        taken_rows: Most that one device takes.
        copies: How often the group needs every row: once, or once per device.
        air_s: Seconds for which the gradient sum occupies a shared medium.
        ring_port_s: Seconds per micro-batch for which the group's rings occupy its ports.
        ring_air_s: The same of a shared medium.
        sharing: Number of the way to share, in :data:`SHARINGS`.
    """

    span_O: np.ndarray
    group_O: np.ndarray
    slot_OG: np.ndarray
    units_OG: np.ndarray
    forward_s: np.ndarray
    backward_s: np.ndarray
    both_s: np.ndarray
    first_forward_s: np.ndarray
    first_backward_s: np.ndarray
    tail_s: np.ndarray
    busy_j: np.ndarray
    wait_w: np.ndarray
    most_s: np.ndarray
    sent_rows: np.ndarray
    taken_rows: np.ndarray
    copies: np.ndarray
    air_s: np.ndarray
    ring_port_s: np.ndarray
    ring_air_s: np.ndarray
    sharing: np.ndarray

    def __len__(self) -> int:
        return len(self.span_O)

    @property
    def sizes(self) -> np.ndarray:
        """Devices of each option's group."""
        return (self.slot_OG >= 0).sum(axis=1)

    def rows(self, keep: np.ndarray) -> Options:
        """Some of the options."""
        return Options(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})


def joined(found: Sequence[Options], places_n: int) -> Options:
    """All options in one."""
    empty = {"slot_OG": np.zeros((0, places_n), dtype=np.int32), "units_OG": np.zeros((0, places_n), dtype=np.int32)}
    names = Options.__dataclass_fields__
    if not found:
        whole = {"span_O": np.zeros(0, dtype=np.int64), "group_O": np.zeros(0, dtype=np.int64), **empty}
        return Options(**{name: whole.get(name, np.zeros(0)) for name in names})
    return Options(**{name: np.concatenate([getattr(options, name) for options in found]) for name in names})


def undominated(
    options: Options, window: Window, *, by_energy: bool, check_time: Callable[[], None]
) -> Options:  # fmt: skip
    """Options that no other one of the same span, group and sharing beats in every term of a round of the window."""
    compared = ("forward_s", "backward_s", "both_s", "first_forward_s", "first_backward_s", "tail_s", "sent_rows",
                "taken_rows", "copies", "air_s", "ring_port_s", "ring_air_s")  # fmt: skip
    columns: list[np.ndarray] = [getattr(options, name) for name in compared]
    columns.append(-np.minimum(options.most_s, 1e300))
    if by_energy:
        columns += [options.busy_j + options.wait_w * window.low_s, options.busy_j + options.wait_w * window.high_s]
    key_O = options.span_O.astype(np.int64) * (int(options.group_O.max(initial=0)) + 1) + options.group_O
    # What a cut costs depends on the way to share, too.
    key_O = key_O * len(SHARINGS) + options.sharing.astype(np.int64)
    return options.rows(undominated_rows(key_O, np.stack(columns, axis=1), check_time))
