"""Transformer blocks of which each device of a group holds a part: heads, columns and tokens as the plan says.

A :class:`SplitLayer` takes the place of a block that names its parts (:mod:`greentrain.workloads.parts`). It has only
this device's weights, and its hidden state is this device's tokens (all tokens for ``tensor``). What happens where
split layers meet whole blocks is done by the layer next to the joint; the rules are those of
:mod:`greentrain.sharing`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.errors import NotSupportedError
from greentrain.plan import Plan
from greentrain.runtime.collectives import Ring
from greentrain.runtime.group import RunGroup
from greentrain.runtime.split_functions import (
    Seat,
    count_once,
    gather_matmul,
    matmul_reduce,
    matmul_scatter,
    project_and_gather,
    reduce_matmul,
    slice_to_whole,
    sum_gradients,
    whole_to_slice,
)
from greentrain.runtime.split_weights import (
    Holding,
    attention_regions,
    feed_forward_regions,
    parts_of,
    take,
    whole_region,
)
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Splittable
from greentrain.workloads.workload import Tensors, TensorSpec

__all__ = [
    "Joints",
    "Seat",
    "SplitLayer",
    "close_rings",
    "finish_rings",
    "join_rings",
    "named_parts",
    "shard",
    "split_blocks",
    "split_parameters",
    "stage_blocks",
    "summed_parameters",
]


@dataclass(frozen=True, kw_only=True)
class Joints:
    """What a split layer does at its ends, where it stands next to a whole block or a cut.

    Attributes:
        slices_entry: All tokens come in, own ones go on.
        sums_entry: Gradients of other tensors than the hidden state are summed over the group.
        gathers_exit: Own tokens come, all go out.
        counts_exit: Gradients of the other tensors are whole behind it: one device counts them.
    """

    slices_entry: bool = False
    sums_entry: bool = False
    gathers_exit: bool = False
    counts_exit: bool = False


class SplitLayer(nn.Module):
    """A device's part of a Transformer block; takes and gives what the block does, but for the tokens."""

    def __init__(self, block: nn.Module, parts: LayerParts, seat: Seat, tokens: int, joints: Joints) -> None:
        super().__init__()
        self.seat = seat
        self.joints = joints
        self._parts = parts
        self._tokens = tokens
        norm_first = parts.norm_first
        self.attention = _Attention(block, parts.attention, seat, norm_first=norm_first, cross=False)
        self.cross = None
        if parts.cross is not None:
            self.cross = _Attention(block, parts.cross, seat, norm_first=norm_first, cross=True)
        self.feed_forward = _FeedForward(block, parts.feed_forward, seat, norm_first=norm_first)
        own = [self.attention, *([self.cross] if self.cross is not None else []), self.feed_forward]
        left = {name for name, _ in block.named_parameters()} - {name for part in own for name in part.taken}
        if left:
            raise NotSupportedError(
                f"{getattr(block, 'block_name', type(block).__name__)}: {', '.join(sorted(left))} belong to none of "
                "the parts that the block names.",
                hint="Schedule without sharing inside a sample, or name them in its parts().",
            )
        self.block_name = getattr(block, "block_name", None)

    def forward(self, *tensors: Tensor) -> Tensor | Tensors:
        """Own tokens (n, own tokens, width) and the other tensors, through all parts."""
        hidden, *sides = tensors
        parts, joints, seat = self._parts, self.joints, self.seat
        if joints.sums_entry:
            sides = _with_gradient(sides, sum_gradients, seat)
        hidden = hidden.transpose(0, 1)
        if joints.slices_entry:
            hidden = whole_to_slice(hidden, seat)
        whole = (hidden, *sides)
        mask = None if parts.mask is None else whole[parts.mask]
        hidden = self.attention(hidden, self._tokens, mask)
        if self.cross is not None:
            assert parts.cross_states is not None
            cross_mask = None if parts.cross_mask is None else whole[parts.cross_mask]
            hidden = self.cross(hidden, self._tokens, cross_mask, whole[parts.cross_states].transpose(0, 1))
        hidden = self.feed_forward(hidden, self._tokens)
        if joints.gathers_exit:
            hidden = slice_to_whole(hidden, seat, self._tokens)
        if joints.counts_exit:
            sides = _with_gradient(sides, count_once, seat)
        hidden = hidden.transpose(0, 1)
        return (hidden, *sides) if sides else hidden

    def holdings(self) -> Iterator[tuple[nn.Parameter, Holding]]:
        """Each parameter and what it is of the block."""
        for part in (self.attention, self.cross, self.feed_forward):
            if part is not None:
                yield from part.holdings()

    def replicated(self) -> Iterator[nn.Parameter]:
        """Parameters that every device of the group holds whole."""
        for part in (self.attention, self.cross, self.feed_forward):
            if part is not None:
                yield from part.parameters() if self.seat.sharing == "sequence" else part.replicated()


class _Change(Protocol):
    def __call__(self, tensors: Sequence[Tensor], seat: Seat) -> tuple[Tensor, ...]: ...


def _with_gradient(tensors: Sequence[Tensor], change: _Change, seat: Seat) -> list[Tensor]:
    """Change only those tensors through which a gradient goes."""
    chosen = [index for index, tensor in enumerate(tensors) if tensor.requires_grad]
    changed = dict(zip(chosen, change([tensors[index] for index in chosen], seat), strict=True))
    return [changed.get(index, tensor) for index, tensor in enumerate(tensors)]


class _Part(nn.Module):
    """A part around a residual: normalisation, a projection in, something per head or column, a projection back."""

    def __init__(self, block: nn.Module, norm: str, regions: dict[str, Holding], seat: Seat, *, first: bool) -> None:
        super().__init__()
        self.norm = copy.deepcopy(block.get_submodule(norm))
        self.weights = nn.ParameterDict({name: take(block, holding) for name, holding in regions.items()})
        self._regions = regions
        self._norms = {name: whole_region(block, f"{norm}.{name}") for name, _ in self.norm.named_parameters()}
        self._seat = seat
        self._first = first

    @property
    def taken(self) -> set[str]:
        """Names of the block's parameters in it."""
        regions = (region for holding in self._regions.values() for region in holding)
        return {region.name for region in (*regions, *self._norms.values())}

    def holdings(self) -> Iterator[tuple[nn.Parameter, Holding]]:
        for name, holding in self._regions.items():
            yield self.weights[name], holding
        for name, region in self._norms.items():
            yield self.norm.get_parameter(name), (region,)

    def replicated(self) -> Iterator[nn.Parameter]:
        yield from self.norm.parameters()
        if "out_bias" in self.weights:
            yield self.weights["out_bias"]

    def _weight(self, name: str) -> tuple[Tensor, Tensor | None]:
        bias = f"{name}_bias"
        return self.weights[f"{name}_weight"], self.weights.get(bias, None)

    def _into(self, hidden: Tensor, tokens: int) -> Tensor:
        """Normalised tokens times own rows of the projection in: (tokens, n, own width)."""
        normal = self.norm(hidden) if self._first else hidden
        weight, bias = self._weight("into")
        if self._seat.sharing == "tensor_sequence":
            return gather_matmul(normal, weight, bias, self._seat, tokens)
        if self._seat.sharing == "tensor":
            return reduce_matmul(normal, weight, bias, self._seat)
        return functional.linear(normal, weight, bias)

    def _back(self, hidden: Tensor, middle: Tensor) -> Tensor:
        """Own columns of the projection back, summed and added to the hidden state."""
        weight, bias = self._weight("out")
        if self._seat.sharing == "tensor_sequence":
            change = matmul_scatter(middle, weight, self._seat)
        elif self._seat.sharing == "tensor":
            change = matmul_reduce(middle, weight, self._seat)
        else:
            change = functional.linear(middle, weight)
        if bias is not None:
            change = change + bias
        return hidden + change if self._first else self.norm(hidden + change)


class _Attention(_Part):
    def __init__(self, block: nn.Module, parts: AttentionParts, seat: Seat, *, norm_first: bool, cross: bool) -> None:
        whole = seat.sharing == "sequence"
        heads = (0, parts.key_value_heads) if whole else seat.own(parts.key_value_heads)
        regions = attention_regions(block, parts, heads, cross=cross)
        super().__init__(block, parts.norm, regions, seat, first=norm_first)
        group_n = parts.heads // parts.key_value_heads
        self._parts = parts
        self._query_heads = (heads[1] - heads[0]) * group_n
        self._key_heads = heads[1] - heads[0]

    def forward(self, hidden: Tensor, tokens: int, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
        query, key, value = self._projected(hidden, tokens, states)
        first, last = self._seat.own(tokens) if self._seat.sharing == "sequence" else (0, tokens)
        query_places = torch.arange(first, last, device=hidden.device)
        key_places = torch.arange(key.shape[2], device=hidden.device)
        if self._parts.rotate is not None:
            query, key = self._parts.rotate(query, query_places), self._parts.rotate(key, key_places)
        if self._key_heads != self._query_heads:
            group_n = self._query_heads // self._key_heads
            key, value = key.repeat_interleave(group_n, dim=1), value.repeat_interleave(group_n, dim=1)
        seen, plainly_causal = self._seen(mask, query_places, key_places)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=plainly_causal, scale=self._parts.scale
        )
        return self._back(hidden, mixed.permute(2, 0, 1, 3).flatten(2))

    def _projected(self, hidden: Tensor, tokens: int, states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (n, heads, tokens, head width)."""
        query_heads, key_heads = self._query_heads, self._key_heads
        if states is not None:
            query = self._into(hidden, tokens)
            pair = functional.linear(states, *self._weight("keys")).chunk(2, dim=2)
        elif self._seat.sharing == "sequence":
            normal = self.norm(hidden) if self._first else hidden
            weight, bias = self._weight("into")
            width = weight.shape[0] // (query_heads + 2 * key_heads) * query_heads
            query, keys = project_and_gather(normal, weight, bias, self._seat, tokens, width)
            pair = keys.chunk(2, dim=2)
        else:
            into = self._into(hidden, tokens)
            width = into.shape[2] // max(query_heads + 2 * key_heads, 1)
            query, *pair = into.split([query_heads * width, key_heads * width, key_heads * width], dim=2)
        return _by_head(query, query_heads), _by_head(pair[0], key_heads), _by_head(pair[1], key_heads)

    def _seen(self, mask: Tensor | None, query_places: Tensor, key_places: Tensor) -> tuple[Tensor | None, bool]:
        """The mask or bias of the scores, and whether they are plainly causal without one."""
        parts = self._parts
        seen = None if mask is None else mask[:, None, None, :].bool()
        if parts.causal:
            if seen is None and parts.bias_table is None and len(query_places) == len(key_places):
                return None, True
            before = key_places[None, :] <= query_places[:, None]
            seen = before if seen is None else seen & before
        if parts.buckets is None:
            return seen, False
        bias = self.weights["table"][parts.buckets(query_places, key_places)].permute(2, 0, 1)[None]
        return bias if seen is None else bias.masked_fill(~seen, float("-inf")), False


def _by_head(projected: Tensor, heads_n: int) -> Tensor:
    """(tokens, n, heads x width) to (n, heads, tokens, width)."""
    if heads_n == 0:
        tokens, n, _ = projected.shape
        return projected.view(tokens, n, 0, 1).permute(1, 2, 0, 3)
    return projected.unflatten(2, (heads_n, -1)).permute(1, 2, 0, 3)


class _FeedForward(_Part):
    def __init__(self, block: nn.Module, parts: FeedForwardParts, seat: Seat, *, norm_first: bool) -> None:
        columns = (0, parts.columns) if seat.sharing == "sequence" else seat.own(parts.columns)
        super().__init__(block, parts.norm, feed_forward_regions(block, parts, columns), seat, first=norm_first)
        self._parts = parts

    def forward(self, hidden: Tensor, tokens: int) -> Tensor:
        into = self._into(hidden, tokens)
        if self._parts.gate is None:
            return self._back(hidden, self._parts.activation(into))
        gate, wide = into.chunk(2, dim=2)
        return self._back(hidden, self._parts.activation(gate) * wide)


def shard(block: nn.Module, seat: Seat, tokens: int, joints: Joints | None = None) -> SplitLayer:
    """A device's part of a block, with copies of its weights.

    Args:
        block: A block that names its parts.
        seat: The device's place in its group.
        tokens: Tokens of a sample in the hidden state.
        joints: What it does at its ends; None: it stands among other split layers.

    Raises:
        NotSupportedError: It has parameters that its parts do not name, or freezes a part of what is kept together.
    """
    assert isinstance(block, Splittable)
    return SplitLayer(block, block.parts(), seat, tokens, joints or Joints())


def split_blocks(
    blocks: Sequence[nn.Module], outputs_L: Sequence[tuple[TensorSpec, ...]], start: int, stop: int, seat: Seat
) -> list[nn.Module]:
    """A device's blocks of a stage that shares its work inside a sample, as many as the stage has.

    The blocks that are split lose their weights, so that no device holds them whole for longer than needed.

    Args:
        blocks: The whole model's.
        outputs_L: What leaves each of them.
        start: First block of the stage.
        stop: One past the last.
        seat: The device's place in the stage's group.
    """
    split = [isinstance(block, Splittable) for block in blocks]
    found = list(blocks[start:stop])
    for index in range(start, stop):
        if not split[index]:
            continue
        begins, ends = index == start, index + 1 == stop
        after_whole = index > 0 and (begins or not split[index - 1])
        joints = Joints(
            slices_entry=seat.slices_tokens and (index == 0 if begins else not split[index - 1]),
            sums_entry=after_whole,
            gathers_exit=seat.slices_tokens and (index + 1 == len(blocks) if ends else not split[index + 1]),
            counts_exit=ends or not split[index + 1],
        )
        found[index - start] = shard(blocks[index], seat, outputs_L[index][0].shape[0], joints)
        for parameter in blocks[index].parameters():
            parameter.data = parameter.data.new_empty(0)
    return found


def stage_blocks(
    plan: Plan, device: str, blocks: Sequence[nn.Module], outputs_L: Sequence[tuple[TensorSpec, ...]]
) -> list[nn.Module]:
    """A device's blocks of its stage: the model's own, or split ones where its group shares work inside a sample.

    Args:
        plan: The plan.
        device: The device.
        blocks: The whole model's; those that are split lose their weights.
        outputs_L: What leaves each of them.
    """
    stage = next(stage for stage in plan.stages if device in stage.devices)
    if stage.sharing == "samples":
        return list(blocks[stage.start : stage.stop])
    seat = Seat(stage.sharing, stage.shares, stage.devices.index(device))
    return split_blocks(blocks, outputs_L, stage.start, stage.stop, seat)


def join_rings(blocks: Sequence[nn.Module], group: RunGroup) -> None:
    """Give the split layers of a stage the group's ring; a group that was formed anew gets a new one."""
    for block in blocks:
        if isinstance(block, SplitLayer):
            seat, joined = block.seat, group.stage_group
            assert joined is not None
            if seat.ring is None or seat.ring.group is not joined:
                if seat.ring is not None:
                    seat.ring.close()
                seat.ring = Ring(joined, guard=group.talking)


def finish_rings(blocks: Sequence[nn.Module]) -> None:
    """Wait until everything that the split layers of a stage have sent has left."""
    for ring in {id(block.seat.ring): block.seat.ring for block in blocks if isinstance(block, SplitLayer)}.values():
        if ring is not None:
            ring.finish()


def close_rings(blocks: Sequence[nn.Module]) -> None:
    """End the rings of split layers: others take their place."""
    for block in blocks:
        if isinstance(block, SplitLayer) and block.seat.ring is not None:
            block.seat.ring.close()


def split_parameters(blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Trainable parameters of a stage of which this device has a part that no other has."""
    found: list[nn.Parameter] = []
    for block in blocks:
        if isinstance(block, SplitLayer):
            whole = {id(parameter) for parameter in block.replicated()}
            found += [p for p in block.parameters() if p.requires_grad and id(p) not in whole]
    return found


def summed_parameters(blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Parameters of a split stage whose gradients its devices hold in parts: they are summed once a round."""
    return [
        parameter
        for block in blocks
        if isinstance(block, SplitLayer) and block.seat.sharing != "tensor"
        for parameter in block.replicated()
        if parameter.requires_grad
    ]


def named_parts(
    block: nn.Module, tensors: Mapping[nn.Parameter, Tensor] | None = None, *, replicated: bool = True
) -> dict[str, Tensor]:
    """A device's trainable parameters of a block by name, or tensors of the same shapes that belong to them.

    Those of a split layer are parts, with the region in the name; :func:`gather_named
    <greentrain.runtime.split_weights.gather_named>` puts the parts of all devices together.

    Args:
        block: A block as :func:`split_blocks` gives it, or any other.
        tensors: What an optimizer keeps for each parameter; None: the parameters themselves.
        replicated: Whether those are among them that every device of the group holds whole.
    """
    if not isinstance(block, SplitLayer):
        return {
            name: (parameter if tensors is None else tensors[parameter]).detach().contiguous()
            for name, parameter in block.named_parameters()
            if parameter.requires_grad and replicated
        }
    found: dict[str, Tensor] = {}
    own = {id(parameter) for parameter in split_parameters([block])}
    for parameter, holding in block.holdings():
        if parameter.requires_grad and (replicated or id(parameter) in own):
            found |= parts_of(holding, parameter if tensors is None else tensors[parameter])
    return found
