"""Blocks of both phases: pairs of a frozen backbone block and its side block, and the side blocks alone.

Tensors between pairs are (what the backbone hands on…, mask, side state, perhaps the side encoder's states); only
the side tensors need a gradient. Between side blocks alone they are (side state, perhaps the side encoder's states,
cached outputs of the backbone not yet used…, mask). The k-th block of both lists has the same trainable parameters,
by name, so that what one phase has trained the other takes up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from greentrain.workloads.adapters.backbone import Backbone, ClassHead, Role
from greentrain.workloads.adapters.pruning import residual_units, weight_of
from greentrain.workloads.adapters.settings import SideSettings
from greentrain.workloads.adapters.side_layer import SideLayer, down_projection, narrow_norm
from greentrain.workloads.workload import Tensors, build_seeded, run_blocks

__all__ = ["CachedEntry", "PairBlock", "SideBlock", "cached_entries", "pair_blocks", "side_blocks"]

Sink = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class CachedEntry:
    """An output of the backbone that the side network reads.

    Attributes:
        block: Index of the block whose first output it is.
        width: Last dimension.
        decoder: Whether its tokens are the decoder's.
    """

    block: int
    width: int
    decoder: bool


class _Bridge(nn.Module):
    """End of the side encoder and begin of the side decoder."""

    def __init__(self, norm: nn.Module | None, units: Tensor, width: int, settings: SideSettings) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else narrow_norm(norm, units)
        self.down = down_projection(width, units, settings)


class _End(nn.Module):
    """Normalisation and up-projection of the side state, merged with the backbone's output by a sum.

    The up-projection starts at 0: the network starts as the backbone.
    """

    def __init__(self, units_n: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(units_n)
        self.up = nn.Linear(units_n, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor, backbone: Tensor) -> Tensor:
        return backbone + self.up(self.norm(hidden))


def _next_side(role: Role, side: nn.Module | None, state: Tensors, backbone: Tensor, mask: Tensor) -> Tensors:
    """Side tensors behind a block, from those before it and the backbone's output."""
    if role == "embeddings":
        assert side is not None
        return (side(backbone),)
    if role == "bridge":
        assert isinstance(side, _Bridge)
        return side.down(backbone), side.norm(state[0])
    if side is None:
        return state
    assert isinstance(side, SideLayer)
    return (side(state[0], backbone, mask, *state[1:]), *state[1:])


class PairBlock(nn.Module):
    """A frozen block of the backbone and its side block.

    Attributes:
        sink: Called with the block's index and the backbone's output in every forward pass; None: nobody caches.
    """

    def __init__(
        self, index: int, role: Role, backbone: nn.Module, side: nn.Module | None, entering_n: int, inputs_n: int
    ) -> None:
        super().__init__()
        self.block_name = f"pair-{getattr(backbone, 'block_name', role)}"
        self.index, self.entering_n, self.inputs_n = index, entering_n, inputs_n
        self.role: Role = role
        self.backbone = backbone.requires_grad_(False)
        self.side = side
        self.sink: Sink | None = None

    def forward(self, *tensors: Tensor) -> Tensors:
        before = tensors[: len(tensors) - 1 - self.entering_n]
        mask, state = tensors[len(before)], tensors[len(before) + 1 :]
        if self.role == "embeddings":
            # The inputs are token ids, mask and what else the embeddings take.
            before, mask, state = tensors[: self.inputs_n], tensors[1], ()
        with torch.no_grad():
            after = run_blocks((self.backbone,), before)
        if self.sink is not None:
            self.sink(self.index, after[0])
        return (*after, mask, *_next_side(self.role, self.side, state, after[0], mask))


class StartsDecoder(nn.Module):
    """Embeddings of an encoder and decoder that classify: the decoder begins with one token for every sample."""

    def __init__(self, embeddings: nn.Module, start_id: int) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.embeddings = embeddings
        self.start_id = start_id

    def forward(self, ids: Tensor, mask: Tensor) -> Tensors:
        return self.embeddings(ids, mask, ids.new_full((len(ids), 1), self.start_id))


class PairHead(nn.Module):
    """End of both: merged states to scores, by a new head or the backbone's own."""

    def __init__(self, end: _End, head: nn.Module, entering_n: int, *, new: bool) -> None:
        super().__init__()
        self.block_name = "pair-head"
        self.side = end
        self.head = head
        self.entering_n, self.new = entering_n, new

    def forward(self, *tensors: Tensor) -> Tensor:
        backbone = tensors[: len(tensors) - 1 - self.entering_n]
        mask, state = tensors[len(backbone)], tensors[len(backbone) + 1 :]
        merged = self.side(state[0], backbone[0])
        return self.head(merged, mask) if self.new else self.head(merged, *backbone[1:])


class SideBlock(nn.Module):
    """A side block alone: (side tensors…, cached outputs…, mask) → the same, without the output that it has used."""

    def __init__(self, pair: PairBlock, *, consumes: bool) -> None:
        super().__init__()
        self.block_name = pair.block_name.replace("pair-", "side-", 1)
        self.role: Role = pair.role
        self.entering_n, self.consumes = pair.entering_n, consumes
        self.side = pair.side

    def forward(self, *tensors: Tensor) -> Tensors:
        state, cached, mask = tensors[: self.entering_n], tensors[self.entering_n : -1], tensors[-1]
        if self.side is None:
            return tensors
        after = _next_side(self.role, self.side, state, cached[0], mask)
        return (*after, *(cached[1:] if self.consumes else cached), mask)


class SideHead(nn.Module):
    """End of the side network: (side tensors…, the backbone's last output, mask) → scores."""

    def __init__(self, pair: PairHead) -> None:
        super().__init__()
        self.block_name = "side-head"
        self.side, self.head = pair.side, pair.head
        self.entering_n, self.new = pair.entering_n, pair.new

    def forward(self, *tensors: Tensor) -> Tensor:
        merged = self.side(tensors[0], tensors[self.entering_n])
        # A head of the backbone itself reads nothing but its first tensor.
        return self.head(merged, tensors[-1]) if self.new else self.head(merged, *tensors[1 : self.entering_n + 1])


def pair_blocks(
    backbone: Backbone, settings: SideSettings, *, seed: int, classes_n: int | None, head: Literal["new", "own"] = "new"
) -> list[nn.Module]:
    """The blocks of phase 1; the backbone's own blocks go into them and are frozen.

    Args:
        backbone: The Transformer.
        settings: Shape of the side network.
        seed: Of a new head and of what does not start from the backbone.
        classes_n: Classes of a new head.
        head: A new one for classes, trained from scratch, or the backbone's own, frozen.
    """
    layers = [(block, parts) for block, parts in zip(backbone.blocks, backbone.parts, strict=True) if parts is not None]
    whole = weight_of(layers[0][0], layers[0][1].attention.query).shape[1]
    units = residual_units(layers, settings.width(whole))
    kept = iter(settings.kept(len(layers)))
    makers: list[Callable[[], nn.Module]] = []
    entering_n: int = 0
    for index, (block, role, parts) in enumerate(zip(backbone.blocks, backbone.roles, backbone.parts, strict=True)):
        if role == "head":
            norm = copy.deepcopy(backbone.final_norm)
            makers.append(partial(_head, backbone, norm, len(units), whole, classes_n, entering_n, new=head == "new"))
            continue
        side: Callable[[], nn.Module | None]
        if role == "embeddings":
            side = partial(down_projection, whole, units, settings)
        elif role == "bridge":
            side = partial(_bridge, block, units, whole, settings)
        else:
            assert parts is not None
            side = partial(SideLayer, block, parts, units, settings) if next(kept) else _nothing
        makers.append(partial(_pair, index, role, block, side, entering_n, backbone.inputs_n))
        entering_n = 2 if role == "bridge" else max(entering_n, 1)
    return build_seeded(makers, seed)


def _nothing() -> None:
    return None


def _bridge(block: nn.Module, units: Tensor, width: int, settings: SideSettings) -> nn.Module:
    # BART's last encoder layer ends with its normalisation.
    norm = getattr(block, "norm", None)
    return _Bridge(norm if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) else None, units, width, settings)


def _head(
    backbone: Backbone, norm: nn.Module | None, units_n: int, width: int, classes_n: int | None, entering_n: int, *,
    new: bool,
) -> nn.Module:  # fmt: skip
    if new:
        assert classes_n is not None
        made: nn.Module = ClassHead(norm, backbone.pooling, width, classes_n)
    else:
        made = backbone.blocks[-1].requires_grad_(False)
    return PairHead(_End(units_n, width), made, entering_n, new=new)


def _pair(
    index: int, role: Role, block: nn.Module, side: Callable[[], nn.Module | None], entering_n: int, inputs_n: int
) -> nn.Module:
    return PairBlock(index, role, block, side(), entering_n, inputs_n)


def cached_entries(pairs: Sequence[nn.Module]) -> tuple[CachedEntry, ...]:
    """The outputs that the side network reads, in the order of the blocks: the last layer's always."""
    found: list[CachedEntry] = []
    decoder = False
    for pair in pairs:
        if not isinstance(pair, PairBlock):
            continue
        decoder = decoder or pair.role == "bridge"
        if isinstance(pair.side, nn.Linear):
            found.append(CachedEntry(pair.index, pair.side.in_features, decoder))
        elif isinstance(pair.side, (SideLayer, _Bridge)):
            found.append(CachedEntry(pair.index, pair.side.down.in_features, decoder))
    return tuple(found)


def side_blocks(pairs: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks of phase 2, which share their parameters with those of phase 1 and need no backbone."""
    last = max(entry.block for entry in cached_entries(pairs))
    made: list[nn.Module] = []
    for pair in pairs:
        if isinstance(pair, PairBlock):
            made.append(SideBlock(pair, consumes=pair.index != last))
        else:
            assert isinstance(pair, PairHead)
            made.append(SideHead(pair))
    return made
