"""Which widths, head widths and columns of a backbone matter most, so that side layers start as its best parts.

Structured pruning by size: a unit counts as much as the norms of the rows that make it times the norms of the
columns that read it. The width of the residual stream is chosen once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["attention_units", "bias_of", "column_units", "residual_units", "weight_of"]


def weight_of(block: nn.Module, matrix: Matrix) -> Tensor:
    """Weight (out, in) of a linear map of a block, without gradient."""
    weight = block.get_parameter(matrix.weight).detach()
    return (weight.T if matrix.transposed else weight)[matrix.start : matrix.stop]


def bias_of(block: nn.Module, matrix: Matrix) -> Tensor | None:
    """Bias (out,) of a linear map of a block, without gradient."""
    if matrix.bias is None:
        return None
    return block.get_parameter(matrix.bias).detach()[matrix.start : matrix.stop]


def residual_units(layers: Sequence[tuple[nn.Module, LayerParts]], count: int) -> Tensor:
    """The most important places of the residual stream over all layers, rising (count,)."""
    total: Tensor | None = None
    for block, parts in layers:
        attentions = [parts.attention, *([parts.cross] if parts.cross else [])]
        readers = [matrix for attention in attentions for matrix in (attention.query, attention.key, attention.value)]
        writers = [attention.out for attention in attentions]
        readers += [parts.feed_forward.widen, *([parts.feed_forward.gate] if parts.feed_forward.gate else [])]
        writers.append(parts.feed_forward.narrow)
        read = sum((weight_of(block, matrix).norm(dim=0) for matrix in readers), torch.zeros(()))
        written = sum((weight_of(block, matrix).norm(dim=1) for matrix in writers), torch.zeros(()))
        score = read * written
        score = score / score.sum()
        total = score if total is None else total + score
    assert total is not None
    return _largest(total, count)


def attention_units(block: nn.Module, attention: AttentionParts, width: int) -> tuple[Tensor, Tensor]:
    """Places that are kept inside each head of keys and of values, each (key-value heads, width), rising.

    Queries keep the places of their keys. Rotary heads keep both halves of a pair.
    """
    query, key = (weight_of(block, matrix).norm(dim=1) for matrix in (attention.query, attention.key))
    value, out = weight_of(block, attention.value).norm(dim=1), weight_of(block, attention.out).norm(dim=0)
    groups_n = attention.key_value_heads
    # (heads of keys, queries per head of keys, head width)
    by_query = query.unflatten(0, (groups_n, attention.heads // groups_n, -1)).sum(1)
    by_out = out.unflatten(0, (groups_n, attention.heads // groups_n, -1)).sum(1)
    score_qk = by_query * key.unflatten(0, (groups_n, -1))
    score_v = by_out * value.unflatten(0, (groups_n, -1))
    values = torch.stack([_largest(score, width) for score in score_v])
    if attention.rotate is None:
        return torch.stack([_largest(score, width) for score in score_qk]), values
    half = score_qk.shape[1] // 2
    # One choice for all heads: they turn by the same frequencies.
    pairs = _largest((score_qk[:, :half] + score_qk[:, half:]).sum(0), width // 2)
    return torch.cat([pairs, pairs + half]).expand(groups_n, -1), values


def column_units(block: nn.Module, feed_forward: FeedForwardParts, count: int) -> Tensor:
    """The most important columns of a feed-forward network, rising (count,)."""
    score = weight_of(block, feed_forward.widen).norm(dim=1) * weight_of(block, feed_forward.narrow).norm(dim=0)
    if feed_forward.gate is not None:
        score = score * weight_of(block, feed_forward.gate).norm(dim=1)
    return _largest(score, count)


def _largest(score: Tensor, count: int) -> Tensor:
    return score.topk(count).indices.sort().values
