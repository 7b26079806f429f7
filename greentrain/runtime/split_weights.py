"""Which part of which parameter a device of a split layer holds, and the way back to whole parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from greentrain.errors import NotSupportedError
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, Matrix

__all__ = [
    "Holding",
    "Region",
    "attention_regions",
    "feed_forward_regions",
    "gather_named",
    "of_whole",
    "parts_of",
    "take",
    "to_text",
    "whole_region",
]


class Region(NamedTuple):
    """A block's parameter, or a rectangle of it, inside a local one.

    Attributes:
        name: Name of the parameter in the block.
        ranges: Half-open range in each of its dimensions.
        shape: Its whole shape.
        transposed: Whether the local parameter holds it the other way round.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Rows that it takes in the local parameter."""
        first, last = self.ranges[-1 if self.transposed else 0]
        return last - first


# The local parameter is these regions, one below the other.
Holding = tuple[Region, ...]


def take(block: nn.Module, holding: Holding) -> nn.Parameter:
    """A device's own copy of what it holds, from the whole block.

    Raises:
        NotSupportedError: Some of it is frozen and some is not.
    """
    sources = [block.get_parameter(region.name) for region in holding]
    if len({source.requires_grad for source in sources}) > 1:
        names = ", ".join(region.name for region in holding)
        raise NotSupportedError(
            f"{names}: some are frozen and some are not, but a split layer keeps them together.",
            hint="Freeze all of them or none, or schedule without sharing inside a sample.",
        )
    return nn.Parameter(of_whole(holding, [source.detach() for source in sources]), sources[0].requires_grad)


def of_whole(holding: Holding, wholes: Sequence[Tensor]) -> Tensor:
    """What a device holds of whole tensors, one for each region; the inverse of :func:`parts_of`. A copy."""
    return torch.cat([_rectangle(whole, region) for whole, region in zip(wholes, holding, strict=True)]).clone()


def _rectangle(whole: Tensor, region: Region) -> Tensor:
    part = whole[tuple(slice(first, last) for first, last in region.ranges)]
    return part.t() if region.transposed else part


def whole_region(block: nn.Module, name: str) -> Region:
    """A parameter that every device holds whole."""
    shape = tuple(block.get_parameter(name).shape)
    return Region(name, tuple((0, size) for size in shape), shape)


def attention_regions(
    block: nn.Module, parts: AttentionParts, heads: tuple[int, int], *, cross: bool
) -> dict[str, Holding]:
    """What a device holds of an attention.

    Args:
        block: The whole block.
        parts: The attention.
        heads: Its half-open range of heads of keys and values.
        cross: Whether queries are kept apart from keys and values, which come from another sequence.

    Returns:
        Local name to what it is made of; ``into`` makes queries, keys and values (``keys`` the latter two where they
        are apart), ``out`` leads back to the width.
    """
    group_n = parts.heads // parts.key_value_heads
    query_heads = (heads[0] * group_n, heads[1] * group_n)
    query = _rows(block, parts.query, query_heads, parts.heads)
    keys = [_rows(block, matrix, heads, parts.key_value_heads) for matrix in (parts.key, parts.value)]
    found = _together("into", [query]) | _together("keys", keys) if cross else _together("into", [query, *keys])
    found |= _back(block, parts.out, query_heads, parts.heads)
    if parts.bias_table is not None:
        region = whole_region(block, parts.bias_table)
        found["table"] = (region._replace(ranges=(region.ranges[0], query_heads)),)
    return found


def feed_forward_regions(block: nn.Module, parts: FeedForwardParts, columns: tuple[int, int]) -> dict[str, Holding]:
    """What a device holds of a feed-forward network: its columns, those of the gate first."""
    matrices = [parts.widen] if parts.gate is None else [parts.gate, parts.widen]
    into = _together("into", [_rows(block, matrix, columns, parts.columns) for matrix in matrices])
    return into | _back(block, parts.narrow, columns, parts.columns)


def _rows(block: nn.Module, matrix: Matrix, own: tuple[int, int], units_n: int) -> tuple[Region, Region | None]:
    """Own units of a matrix's output, and of its bias."""
    shape = tuple(block.get_parameter(matrix.weight).shape)
    outputs, inputs = (1, 0) if matrix.transposed else (0, 1)
    stop = shape[outputs] if matrix.stop is None else matrix.stop
    width = (stop - matrix.start) // units_n
    rows = (matrix.start + own[0] * width, matrix.start + own[1] * width)
    both = ((0, shape[inputs]), rows) if matrix.transposed else (rows, (0, shape[inputs]))
    weight = Region(matrix.weight, both, shape, matrix.transposed)
    if matrix.bias is None:
        return weight, None
    return weight, Region(matrix.bias, (rows,), tuple(block.get_parameter(matrix.bias).shape))


def _together(name: str, regions: Sequence[tuple[Region, Region | None]]) -> dict[str, Holding]:
    biases = [bias for _, bias in regions if bias is not None]
    if biases and len(biases) < len(regions):
        raise NotSupportedError(
            f"{regions[0][0].name}: some projections of a layer have a bias and some have none.",
            hint="Give all of them one (of zeros), or schedule without sharing inside a sample.",
        )
    found = {f"{name}_weight": tuple(weight for weight, _ in regions)}
    return found | {f"{name}_bias": tuple(biases)} if biases else found


def _back(block: nn.Module, matrix: Matrix, own: tuple[int, int], units_n: int) -> dict[str, Holding]:
    """Own columns of a projection back to the width, and its whole bias."""
    shape = tuple(block.get_parameter(matrix.weight).shape)
    outputs, inputs = (1, 0) if matrix.transposed else (0, 1)
    stop = shape[outputs] if matrix.stop is None else matrix.stop
    width = shape[inputs] // units_n
    columns, rows = (own[0] * width, own[1] * width), (matrix.start, stop)
    both = (columns, rows) if matrix.transposed else (rows, columns)
    found: dict[str, Holding] = {"out_weight": (Region(matrix.weight, both, shape, matrix.transposed),)}
    if matrix.bias is not None:
        length = tuple(block.get_parameter(matrix.bias).shape)
        found["out_bias"] = (Region(matrix.bias, (rows,), length),)
    return found


def to_text(region: Region) -> str:
    """A region as the name of a tensor in a file; :func:`gather_named` reads it."""
    ranges = ",".join(f"{first}:{last}" for first, last in region.ranges)
    return f"{region.name}[{ranges}]/{','.join(str(size) for size in region.shape)}"


def parts_of(holding: Holding, local: Tensor) -> dict[str, Tensor]:
    """A local tensor (a parameter, or what an optimizer keeps for it) as parts of whole ones, by name and region."""
    parts = local.detach().split([region.rows for region in holding])
    return {
        to_text(region): (part.t() if region.transposed else part).contiguous()
        for region, part in zip(holding, parts, strict=True)
    }


def gather_named(shards: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the parts that all devices of a group hold together.

    Args:
        shards: One per device, name and region to tensor; a name without a region is a whole tensor.

    Returns:
        Name to whole tensor.

    Raises:
        ValueError: A part of a tensor is missing.
    """
    whole: dict[str, Tensor] = {}
    filled: dict[str, set[str]] = {}
    elements: dict[str, int] = {}
    for shard in shards:
        for text, part in shard.items():
            name, bracket, rest = text.partition("[")
            if not bracket:
                whole[name] = part
                continue
            ranges, _, shape = rest.partition("]/")
            sizes = [int(size) for size in shape.split(",")]
            if name not in whole:
                whole[name] = part.new_empty(sizes)
                elements[name] = math.prod(sizes)
            if ranges in filled.setdefault(name, set()):
                continue  # Held by several devices.
            filled[name].add(ranges)
            marks = [pair.partition(":") for pair in ranges.split(",")]
            whole[name][tuple(slice(int(first), int(last)) for first, _, last in marks)] = part
            elements[name] -= part.numel()
    missing = sorted(name for name, left in elements.items() if left != 0)
    if missing:
        raise ValueError(f"{', '.join(missing)}: parts are missing or twice there")
    return whole
