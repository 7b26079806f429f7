"""What the network costs a device's processor: seconds in which it handles messages instead of computing.

The joules of these seconds are in the links' joules per byte; here is only the time. A device handles what it takes
and what it hands over, its part of every message once, and its rings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from greentrain.device import Device
from greentrain.profile import LayerProfile
from greentrain.sharing import Direction, Sharing, is_split, ring_bytes, stage_rings

__all__ = ["Handled", "handled_bytes", "handling_s"]


class Handled(NamedTuple):
    """Bytes that a device of a stage sends and receives in one pass, linear in its part of the work.

    Attributes:
        own: Per row of the device's own part.
        all: Per row of the whole micro-batch.
        rings: Per row of the other devices' parts: in rings a device sends and receives all but its own.
    """

    own: int
    all: int
    rings: int = 0


def handled_bytes(
    layers: Sequence[LayerProfile], start: int, stop: int, sharing: Sharing, direction: Direction
) -> Handled:
    """What a device of a stage handles in a pass.

    Args:
        layers: The whole model.
        start: First layer of the stage.
        stop: One past the last.
        sharing: How its group shares it.
        direction: Which pass: activations come from the left and leave to the right, gradients the other way.
    """
    left = _cut(layers, start, direction)
    right = _cut(layers, stop, direction)
    taken, left_over = (left, right) if direction == "forward" else (right, left)
    beside = layers[start] if direction == "forward" else layers[stop - 1]
    if sharing == "samples":
        return Handled(sum(taken) + sum(left_over), 0)
    hidden, side = taken
    whole = sharing == "tensor" or not is_split(sharing, beside)
    rings = 2 * ring_bytes(stage_rings(sharing, layers, start, stop), direction)
    return Handled(sum(left_over) + (0 if whole else hidden), side + (hidden if whole else 0), rings)


def _cut(layers: Sequence[LayerProfile], boundary: int, direction: Direction) -> tuple[int, int]:
    """Bytes per row of the hidden state and of the other tensors that cross a boundary."""
    if boundary in (0, len(layers)):
        return 0, 0
    layer = layers[boundary - 1]
    if direction == "forward":
        return layer.hidden_bytes, layer.activation_bytes - layer.hidden_bytes
    return layer.gradient_bytes - layer.side_gradient_bytes, layer.side_gradient_bytes


def handling_s(device: Device, handled: Handled, rows: float, micro_batch: float) -> float:
    """Seconds of one pass in which a device's processor is busy with the network; 0 where nobody measured it.

    Args:
        device: Gives the seconds per byte.
        handled: What it handles.
        rows: Its own part of the micro-batch.
        micro_batch: Rows of the micro-batch.
    """
    one_way = handled.own * rows + handled.all * micro_batch
    return (device.network_s_per_byte or 0.0) * one_way + device.group_s_per_byte * handled.rings * (micro_batch - rows)
