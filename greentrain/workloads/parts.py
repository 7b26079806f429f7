"""What a Transformer block is made of, so that its heads, columns and tokens can be shared out among devices.

A block with a method ``parts()`` that returns :class:`LayerParts` can be split inside a sample; any other block is
computed whole by every device of such a group. The parts name the block's own parameters: a device takes its rows
or columns of each, and what it has trained goes back to the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from greentrain._checks import require, require_positive

__all__ = ["AttentionParts", "FeedForwardParts", "LayerParts", "Matrix", "Splittable"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A linear map ``y = x Wᵀ + b`` of a block, perhaps one of several fused in one parameter.

    Attributes:
        weight: Name of the weight in the block, of shape (out, in).
        bias: Name of the bias; None without one.
        start: First of its output rows in the parameter.
        stop: One past the last; None: all that follow.
        transposed: Whether the weight is stored as (in, out), as GPT-2's is.
    """

    weight: str
    bias: str | None = None
    start: int = 0
    stop: int | None = None
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """One attention of a block, with the normalisation that belongs to it.

    Attributes:
        norm: Name of the module that normalises (before it, or after the residual sum).
        query: Projection to (heads × head width).
        key: Projection to (key-value heads × head width).
        value: The same.
        out: Projection back to the width.
        heads: Query heads.
        key_value_heads: Heads of keys and values; divides ``heads``.
        causal: Whether a token sees only itself and those before it.
        scale: Factor of the scores; None: one over the root of the head width.
        rotate: Turns (n, heads, tokens, head width) by the tokens' places (tokens,); None without rotary places.
        bias_table: Name of a parameter (buckets, heads) added to the scores; None without one.
        buckets: Relative places (query tokens, key tokens) of that table from both places; None without one.
    """

    norm: str
    query: Matrix
    key: Matrix
    value: Matrix
    out: Matrix
    heads: int
    key_value_heads: int
    causal: bool = False
    scale: float | None = None
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None
    bias_table: str | None = None
    buckets: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require_positive(heads=self.heads, key_value_heads=self.key_value_heads)
        require(
            self.heads % self.key_value_heads == 0,
            f"{self.key_value_heads} key-value heads do not divide {self.heads} heads",
        )
        require((self.bias_table is None) == (self.buckets is None), "bias_table and buckets go together")


@dataclass(frozen=True, kw_only=True)
class FeedForwardParts:
    """The feed-forward network of a block: ``narrow(activation(gate(x)) · widen(x))``, or without the gate.

    Attributes:
        norm: Name of the module that normalises (before it, or after the residual sum).
        widen: Projection to the columns.
        gate: Second projection to the columns, whose activation multiplies; None without one.
        narrow: Projection back to the width.
        columns: Width in the middle.
        activation: Applied to each column; applied to the gate where there is one.
    """

    norm: str
    widen: Matrix
    narrow: Matrix
    columns: int
    activation: Callable[[Tensor], Tensor]
    gate: Matrix | None = None


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """A Transformer block: attention, perhaps attention to another sequence, feed-forward, each around a residual.

    The block's first tensor is the hidden state (n, tokens, width); the others pass through unchanged.

    Attributes:
        attention: Self-attention.
        feed_forward: Feed-forward network.
        norm_first: Whether each part normalises its input (GPT-2, LLaMA, T5, ViT) or its sum (BERT).
        mask: Position among the block's tensors of the mask (n, key tokens) that is 0 where a token is padding; None
            without one.
        cross: Attention to another sequence (T5's decoder), between the two; None without it.
        cross_states: Position among the block's tensors of that sequence (n, tokens, width).
        cross_mask: Position of its mask; None without one.
    """

    attention: AttentionParts
    feed_forward: FeedForwardParts
    norm_first: bool
    mask: int | None = None
    cross: AttentionParts | None = None
    cross_states: int | None = None
    cross_mask: int | None = None

    def __post_init__(self) -> None:
        require((self.cross is None) == (self.cross_states is None), "cross and cross_states go together")


@runtime_checkable
class Splittable(Protocol):
    """A block that can be shared out inside a sample."""

    def parts(self) -> LayerParts:
        """What it is made of."""
        ...
