"""How a group shares a stage: who holds what of a micro-batch, and what the group's rings carry.

``samples`` shares the rows of a micro-batch. The other three share every sample, in parts that are as long as the
shares say. A layer is then *split* if it has heads (for ``sequence``: tokens, too); any other layer of the stage is
*replicated*: every device computes it whole, on all rows and tokens, with all of its weights, and finds the same
gradients. Conventions, with g devices and shares that add up to ``total``:

- Bounds: of n heads, columns or tokens device i has ``[n·c_i // total, n·c_(i+1) // total)``, c the cumulated
  shares. A unit of sharing is a key-value head with its query heads (a token for ``sequence``).
- ``tensor_sequence``: around every part of a split layer (attention, perhaps cross attention, feed-forward) an
  AllGather in front and a ReduceScatter behind of the hidden state, forward as well as backward.
- ``tensor``: one AllReduce per part and pass, a ReduceScatter and an AllGather of the same tiles.
- ``sequence``: keys and values of a split layer's self-attention are gathered once, forward; their gradients are
  reduce-scattered once, backward.
- Where tokens are split (``tensor_sequence``, ``sequence``): a split layer in front of a replicated one, and one
  that ends the model, gathers the hidden state behind it, forward; a replicated layer in front of a split one, with
  a gradient through that joint, gathers the gradient of the hidden state, backward.
- Other tensors than the hidden state (masks, encoder states) are held whole by every device. Their gradients are
  partial sums in split layers: in front of a run of split layers (at the cut into the stage, or behind a replicated
  layer) they are summed by one AllReduce, backward, tiles in proportion to the shares, in multiples of 8 bytes.
- A split layer without a gradient behind it does nothing backward, and has no rings there.
- Gradients of weights that are summed over the group once a round: all of them for ``samples``; those of split
  layers for ``sequence``; for ``tensor_sequence`` only :attr:`RingProfile.sum_bytes` of split layers, which every
  device holds whole but sees on its own tokens only; none for ``tensor``.
- A ring of tiles b_0 … b_(g−1): as AllGather device i sends all but b_(i+1) and receives all but b_i; as
  ReduceScatter it sends all but b_i and receives all but b_(i−1).
- At a cut the hidden state is held in token slices on the side of a split layer. On the side of a replicated layer,
  of ``tensor``, and for all other tensors everywhere, the devices of a group hold it whole: each *sends* the i-th of
  g equal byte parts of every row, and each *takes* all. Sample sharing means rows, of all tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from greentrain._checks import require_non_negative
from greentrain.profile import LayerProfile

__all__ = [
    "Direction",
    "Piece",
    "Ring",
    "Sharing",
    "Slice",
    "common_bytes",
    "common_piece_bytes",
    "cut_side_bytes",
    "end_ring",
    "entry_ring",
    "group_sum_bytes",
    "is_split",
    "joint_ring",
    "kept_whole_bytes",
    "layer_ring",
    "pieces",
    "ring_bytes",
    "ring_pass_bytes",
    "row_ranges",
    "shares_total",
    "slices",
    "stage_rings",
    "tile_bounds",
]

# A tile that is summed must not end inside a number; the largest have so many bytes.
_NUMBER_BYTES = 8

Sharing = Literal["samples", "tensor_sequence", "tensor", "sequence"]
Direction = Literal["forward", "backward"]


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rings that a group runs over tensors of one size, per micro-batch.

    Attributes:
        bytes: Bytes per sample of the whole tensor.
        tokens: Tokens of a sample, over which it is cut into tiles; 0: tiles in proportion to the shares.
        gathers_forward: AllGathers in the forward pass.
        scatters_forward: ReduceScatters in the forward pass.
        gathers_backward: AllGathers in the backward pass.
        scatters_backward: ReduceScatters in the backward pass.
    """

    bytes: int
    tokens: int = 0
    gathers_forward: int = 0
    scatters_forward: int = 0
    gathers_backward: int = 0
    scatters_backward: int = 0

    def __post_init__(self) -> None:
        require_non_negative(
            bytes=self.bytes, tokens=self.tokens,
            gathers_forward=self.gathers_forward, scatters_forward=self.scatters_forward,
            gathers_backward=self.gathers_backward, scatters_backward=self.scatters_backward,
        )  # fmt: skip

    def counts(self, direction: Direction) -> tuple[int, int]:
        """AllGathers and ReduceScatters of a pass."""
        if direction == "forward":
            return self.gathers_forward, self.scatters_forward
        return self.gathers_backward, self.scatters_backward

    def rings_n(self, direction: Direction) -> int:
        """Rings of a pass."""
        return sum(self.counts(direction))


def is_split(sharing: Sharing, layer: LayerProfile) -> bool:
    """Whether a group that shares so splits a layer inside the sample; else every device computes it whole."""
    return sharing != "samples" and layer.heads > 0 and (sharing != "sequence" or layer.sequence > 0)


def shares_total(sharing: Sharing, layers: Sequence[LayerProfile], micro_batch: int) -> int:
    """What the shares of a stage over these layers add up to; 0 where they cannot be shared so."""
    if sharing == "samples":
        return micro_batch
    wholes = {layer.sequence if sharing == "sequence" else layer.heads for layer in layers if is_split(sharing, layer)}
    return wholes.pop() if len(wholes) == 1 else 0


def layer_ring(sharing: Sharing, layer: LayerProfile, *, ends_model: bool) -> Ring | None:
    """The rings of a layer by itself; None where it is not split."""
    if not is_split(sharing, layer):
        return None
    back = layer.gradient_bytes > 0 or ends_model
    if sharing == "sequence":
        return Ring(bytes=layer.key_value_bytes, tokens=layer.sequence, gathers_forward=1, scatters_backward=int(back))
    parts_n = layer.parts_n
    return Ring(
        bytes=layer.hidden_bytes, tokens=layer.sequence, gathers_forward=parts_n, scatters_forward=parts_n,
        gathers_backward=parts_n * back, scatters_backward=parts_n * back,
    )  # fmt: skip


def joint_ring(sharing: Sharing, before: LayerProfile, after: LayerProfile) -> tuple[Ring, ...]:
    """The rings between two layers of a stage."""
    split_before, split_after = is_split(sharing, before), is_split(sharing, after)
    if split_before == split_after:
        return ()
    whole = () if sharing == "tensor" else (_hidden_gather(before, backward=split_after),)
    return (*whole, *entry_ring(sharing, before, after)) if split_after else whole


def _hidden_gather(layer: LayerProfile, *, backward: bool) -> Ring:
    if backward:
        return Ring(bytes=layer.hidden_bytes, tokens=layer.sequence, gathers_backward=int(layer.gradient_bytes > 0))
    return Ring(bytes=layer.hidden_bytes, tokens=layer.sequence, gathers_forward=1)


def entry_ring(sharing: Sharing, before: LayerProfile, first: LayerProfile) -> tuple[Ring, ...]:
    """The sum of the other tensors' gradients in front of a run of split layers."""
    if not is_split(sharing, first) or before.side_gradient_bytes == 0:
        return ()
    return (Ring(bytes=before.side_gradient_bytes, gathers_backward=1, scatters_backward=1),)


def end_ring(sharing: Sharing, last: LayerProfile) -> tuple[Ring, ...]:
    """The gathering of whole tokens in front of the loss, behind the model's last layer."""
    if not is_split(sharing, last) or sharing == "tensor":
        return ()
    return (_hidden_gather(last, backward=False),)


def stage_rings(sharing: Sharing, layers: Sequence[LayerProfile], start: int, stop: int) -> tuple[Ring, ...]:
    """All rings of a stage, those over tensors of one size as one entry.

    Args:
        sharing: How its group shares it.
        layers: The whole model.
        start: First layer of the stage.
        stop: One past the last.
    """
    counts: dict[tuple[int, int], list[int]] = {}
    for ring in _each_ring(sharing, layers, start, stop):
        own = (ring.gathers_forward, ring.scatters_forward, ring.gathers_backward, ring.scatters_backward)
        if ring.bytes > 0 and any(own):
            found = counts.setdefault((ring.bytes, ring.tokens), [0, 0, 0, 0])
            found[:] = [one + other for one, other in zip(found, own, strict=True)]
    return tuple(
        Ring(
            bytes=size, tokens=tokens, gathers_forward=own[0], scatters_forward=own[1],
            gathers_backward=own[2], scatters_backward=own[3],
        )
        for (size, tokens), own in counts.items()
    )  # fmt: skip


def _each_ring(sharing: Sharing, layers: Sequence[LayerProfile], start: int, stop: int) -> Iterator[Ring]:
    if sharing == "samples":
        return
    if start > 0:
        yield from entry_ring(sharing, layers[start - 1], layers[start])
    for index in range(start, stop):
        ring = layer_ring(sharing, layers[index], ends_model=index + 1 == len(layers))
        if ring is not None:
            yield ring
        if index + 1 < stop:
            yield from joint_ring(sharing, layers[index], layers[index + 1])
    if stop == len(layers):
        yield from end_ring(sharing, layers[stop - 1])


def ring_bytes(rings: Sequence[Ring], direction: Direction) -> int:
    """Bytes per sample that all rings of a pass carry; the g devices send (g−1) times as much together."""
    return sum(ring.bytes * ring.rings_n(direction) for ring in rings)


def ring_pass_bytes(
    rings: Sequence[Ring], shares: Sequence[int], position: int, micro_batch: int, direction: Direction
) -> tuple[int, int]:
    """Bytes that a device sends and receives in the rings of one pass of a micro-batch, exactly.

    Args:
        rings: The stage's rings.
        shares: Shares of the group.
        position: The device's place in it.
        micro_batch: Rows.
        direction: Which pass.
    """
    group_n = len(shares)
    sent = received = 0
    for ring in rings:
        gathers_n, scatters_n = ring.counts(direction)
        if gathers_n + scatters_n == 0:
            continue
        tiles = tuple(last - first for first, last in tile_bounds(shares, ring.bytes, ring.tokens))
        whole = sum(tiles)
        own, next_one, one_before = tiles[position], tiles[(position + 1) % group_n], tiles[position - 1]
        sent += gathers_n * (whole - next_one) + scatters_n * (whole - own)
        received += gathers_n * (whole - own) + scatters_n * (whole - one_before)
    return sent * micro_batch, received * micro_batch


def tile_bounds(shares: Sequence[int], row_bytes: int, tokens: int = 0) -> tuple[tuple[int, int], ...]:
    """Half-open range of bytes of a row that each device's tile in a ring has.

    Args:
        shares: Shares of the group.
        row_bytes: Bytes per sample of the whole tensor.
        tokens: Its tokens; 0: tiles of whole numbers of any type, in proportion to the shares.
    """
    total = sum(shares)
    marks = [mark * (tokens or row_bytes) // total for mark in itertools.accumulate(shares, initial=0)]
    if tokens:
        marks = [mark * row_bytes // tokens for mark in marks]
    else:
        marks = [*(mark // _NUMBER_BYTES * _NUMBER_BYTES for mark in marks[:-1]), row_bytes]
    return tuple(itertools.pairwise(marks))


def group_sum_bytes(sharing: Sharing, layers: Sequence[LayerProfile]) -> int:
    """Gradient bytes of these layers that a group sums once a round, two devices or more."""
    if sharing == "samples":
        return sum(layer.param_bytes for layer in layers)
    split = [layer for layer in layers if is_split(sharing, layer)]
    if sharing == "sequence":
        return sum(layer.param_bytes for layer in split)
    if sharing == "tensor_sequence":
        return sum(layer.rings.sum_bytes for layer in split if layer.rings is not None)
    return 0


def kept_whole_bytes(sharing: Sharing, layer: LayerProfile) -> int:
    """Bytes per sample that a split layer keeps whole on every device from forward to backward.

    Gathered inputs of its parts, without sequence sharing their inputs before normalisation too; or the gathered keys
    and values. Never more than the layer keeps unsplit.
    """
    if sharing == "sequence":
        return min(layer.key_value_bytes, layer.stash_bytes)
    copies = {"tensor_sequence": 1, "tensor": 2}.get(sharing, 0)
    return min(copies * layer.parts_n * layer.hidden_bytes, layer.stash_bytes)


def row_ranges(shares: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Half-open row range of each device inside a micro-batch."""
    return tuple(itertools.pairwise(itertools.accumulate(shares, initial=0)))


class Slice(NamedTuple):
    """What a device holds of a micro-batch's tensor: rows, and of every row a part.

    Attributes:
        first_row: First row.
        last_row: One past the last row.
        first_part: First of ``parts_n`` equal parts of a row.
        last_part: One past the last part.
        parts_n: Parts of a row.
    """

    first_row: int
    last_row: int
    first_part: int
    last_part: int
    parts_n: int


class Piece(NamedTuple):
    """What a device hands over or takes at a cut: of the hidden state, and of the other tensors."""

    hidden: Slice
    side: Slice


def slices(
    sharing: Sharing, shares: Sequence[int], micro_batch: int, *, sends: bool, whole: bool = False, tokens: int = 0
) -> tuple[Slice, ...]:
    """What each device of a group hands over of the hidden state at a cut, or takes.

    Args:
        sharing: How the group shares.
        shares: Its shares.
        micro_batch: Rows.
        sends: Whether it hands over; else it takes.
        whole: Whether its layer at the cut is replicated.
        tokens: Tokens of the hidden state; 0: parts of a row in proportion to the shares.
    """
    if sharing == "samples":
        return tuple(Slice(first, last, 0, 1, 1) for first, last in row_ranges(shares))
    if whole or sharing == "tensor":
        return _whole_slices(len(shares), micro_batch, sends=sends)
    return _token_slices(shares, micro_batch, tokens)


def _whole_slices(group_n: int, micro_batch: int, *, sends: bool) -> tuple[Slice, ...]:
    """Every device has everything: each sends an equal part, and each needs all."""
    if not sends:
        return (Slice(0, micro_batch, 0, 1, 1),) * group_n
    return tuple(Slice(0, micro_batch, at, at + 1, group_n) for at in range(group_n))


def _token_slices(shares: Sequence[int], micro_batch: int, tokens: int) -> tuple[Slice, ...]:
    total = sum(shares)
    parts_n = tokens or total
    return tuple(
        Slice(0, micro_batch, first * parts_n // total, last * parts_n // total, parts_n)
        for first, last in row_ranges(shares)
    )


def pieces(
    sharing: Sharing, shares: Sequence[int], micro_batch: int, *, sends: bool, whole: bool = False, tokens: int = 0
) -> tuple[Piece, ...]:
    """What each device of a group hands over at a cut, or takes, of all tensors; arguments as in :func:`slices`."""
    hidden = slices(sharing, shares, micro_batch, sends=sends, whole=whole, tokens=tokens)
    side = hidden if sharing == "samples" else _whole_slices(len(shares), micro_batch, sends=sends)
    return tuple(itertools.starmap(Piece, zip(hidden, side, strict=True)))


def common_bytes(sent: Slice, taken: Slice, bytes_per_row: int) -> int:
    """Bytes that two slices have in common; the parts of a row add up to it exactly."""
    rows = min(sent.last_row, taken.last_row) - max(sent.first_row, taken.first_row)
    first = max(piece.first_part * bytes_per_row // piece.parts_n for piece in (sent, taken))
    last = min(piece.last_part * bytes_per_row // piece.parts_n for piece in (sent, taken))
    return max(rows, 0) * max(last - first, 0)


def common_piece_bytes(sent: Piece, taken: Piece, hidden_bytes: int, side_bytes: int) -> int:
    """Bytes of one message across a cut, from the bytes per row of the hidden state and of the other tensors."""
    return common_bytes(sent.hidden, taken.hidden, hidden_bytes) + common_bytes(sent.side, taken.side, side_bytes)


def cut_side_bytes(layer: LayerProfile, before: Sharing, after: Sharing) -> tuple[int, int]:
    """Bytes per sample of other tensors than the hidden state in a cut, and of their gradients.

    0 where both groups share samples: then all tensors are cut alike.
    """
    if before == after == "samples":
        return 0, 0
    return layer.activation_bytes - layer.hidden_bytes, layer.side_gradient_bytes
