"""SideLayer: a narrow Transformer layer of the same kind as a layer of the backbone, made from its parts.

It holds all that it needs, so that it runs without the backbone.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.workloads.adapters.pruning import attention_units, bias_of, column_units, weight_of
from greentrain.workloads.adapters.settings import SideSettings
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["SideLayer", "down_projection", "narrow_norm"]

# Relative places are looked up in a table of this many tokens to either side.
_FAR = 1024


def narrow_norm(norm: nn.Module, units: Tensor) -> nn.Module:
    """A normalisation of the same kind over some of the places."""
    eps = getattr(norm, "eps", None)
    eps = 1e-5 if eps is None else float(eps)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    made = nn.LayerNorm(len(units), eps=eps) if isinstance(norm, nn.LayerNorm) else nn.RMSNorm(len(units), eps=eps)
    with torch.no_grad():
        if isinstance(weight, Tensor):
            made.weight.copy_(weight.detach()[units])
        if isinstance(made, nn.LayerNorm) and isinstance(bias, Tensor):
            made.bias.copy_(bias.detach()[units])
    return made


def _narrow(block: nn.Module, matrix: Matrix, rows: Tensor, columns: Tensor, *, pruned: bool) -> nn.Linear:
    """A linear map from some places to some places."""
    bias = bias_of(block, matrix)
    made = nn.Linear(len(columns), len(rows), bias=bias is not None)
    if pruned:
        with torch.no_grad():
            made.weight.copy_(weight_of(block, matrix)[rows][:, columns])
            if bias is not None:
                made.bias.copy_(bias[rows])
    return made


class _Attention(nn.Module):
    """Attention with narrow heads: (n, t, width), keys' source (n, s, width) and mask (n, s) → (n, t, width)."""

    frequencies: Tensor | None
    relative: Tensor | None

    def __init__(self, block: nn.Module, parts: AttentionParts, units: Tensor, settings: SideSettings) -> None:
        super().__init__()
        self.heads, self.groups, self.causal = parts.heads, parts.key_value_heads, parts.causal
        whole = weight_of(block, parts.query).shape[0] // parts.heads
        width = settings.width(whole)
        if parts.rotate is not None:
            width = max(width - width % 2, 2)
        kept_qk, kept_v = attention_units(block, parts, width)
        key_rows, value_rows = (_rows(kept, whole, 1) for kept in (kept_qk, kept_v))
        query_rows, out_columns = (_rows(kept, whole, self.heads // self.groups) for kept in (kept_qk, kept_v))
        pruned = settings.start == "pruned"
        self.norm = narrow_norm(block.get_submodule(parts.norm), units)
        self.query = _narrow(block, parts.query, query_rows, units, pruned=pruned)
        self.key = _narrow(block, parts.key, key_rows, units, pruned=pruned)
        self.value = _narrow(block, parts.value, value_rows, units, pruned=pruned)
        self.out = _narrow(block, parts.out, units, out_columns, pruned=pruned)
        # A model that scales by the root of its head width does so with the narrow one.
        usual = parts.scale is None or math.isclose(parts.scale, whole**-0.5)
        self.scale = width**-0.5 if usual else parts.scale
        frequencies = None if parts.rotate is None else _frequencies(parts, whole)[kept_qk[0, : width // 2]]
        self.register_buffer("frequencies", frequencies)
        self.bias_table: nn.Parameter | None = None
        relative: Tensor | None = None
        if parts.bias_table is not None and parts.buckets is not None:
            self.bias_table = nn.Parameter(block.get_parameter(parts.bias_table).detach().clone())
            places = torch.arange(-_FAR, _FAR + 1)
            relative = parts.buckets(torch.zeros(1, dtype=torch.int64), places)[0]
        self.register_buffer("relative", relative)

    def forward(self, hidden: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        query = self._split(self.query(hidden), self.heads)
        key, value = self._split(self.key(source), self.groups), self._split(self.value(source), self.groups)
        if self.frequencies is not None:
            query, key = _turned(query, self.frequencies), _turned(key, self.frequencies)
        if self.groups != self.heads:
            key, value = (heads.repeat_interleave(self.heads // self.groups, dim=1) for heads in (key, value))
        seen = self._seen(query.shape[2], key.shape[2], mask)
        plain_causal = self.causal and seen is None
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=plain_causal, scale=self.scale
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    @staticmethod
    def _split(projected: Tensor, heads: int) -> Tensor:
        """(n, t, heads x width) → (n, heads, t, width)."""
        return projected.unflatten(2, (heads, -1)).transpose(1, 2)

    def _seen(self, queries_n: int, keys_n: int, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, or which keys are seen; None: all, or those before where it is causal."""
        seen = None if mask is None else mask[:, None, None, :].bool()
        if self.bias_table is None and seen is None:
            return None
        device = self.query.weight.device
        if self.causal:
            before = torch.ones(queries_n, keys_n, dtype=torch.bool, device=device).tril()
            seen = before if seen is None else seen & before
        if self.bias_table is None:
            return seen
        places = torch.arange(keys_n, device=device)[None, :] - torch.arange(queries_n, device=device)[:, None]
        assert self.relative is not None
        added = self.bias_table[self.relative[places.clamp(-_FAR, _FAR) + _FAR]].permute(2, 0, 1)[None]
        return added if seen is None else added.masked_fill(~seen, -math.inf)


def _turned(heads: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary places: heads (n, heads, t, width), angle per token of each pair (width / 2,)."""
    places = torch.arange(heads.shape[2], device=heads.device, dtype=heads.dtype)
    angles = (places[:, None] * frequencies).repeat(1, 2)
    first, second = heads.chunk(2, dim=-1)
    return heads * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


def _rows(kept: Tensor, whole: int, repeats: int) -> Tensor:
    """Rows in the fused projection of the places kept in each head; each head of keys serves several of queries."""
    places = kept.repeat_interleave(repeats, dim=0)
    return (places + torch.arange(len(places))[:, None] * whole).flatten()


def _frequencies(parts: AttentionParts, whole: int) -> Tensor:
    """Angle per token of each pair of a head, from the backbone's own turning of a unit vector."""
    assert parts.rotate is not None
    unit = torch.cat([torch.ones(whole // 2), torch.zeros(whole // 2)])
    # The second of two places: what tells them apart is the angle of one step.
    turned = parts.rotate(unit.expand(1, 1, 2, whole), torch.arange(2))[0, 0, 1]
    return torch.atan2(turned[whole // 2 :], turned[: whole // 2])


class _FeedForward(nn.Module):
    """The feed-forward network with fewer columns: (n, t, width) → (n, t, width)."""

    def __init__(self, block: nn.Module, parts: FeedForwardParts, units: Tensor, settings: SideSettings) -> None:
        super().__init__()
        columns = column_units(block, parts, settings.width(parts.columns))
        pruned = settings.start == "pruned"
        self.norm = narrow_norm(block.get_submodule(parts.norm), units)
        self.widen = _narrow(block, parts.widen, columns, units, pruned=pruned)
        self.gate = None if parts.gate is None else _narrow(block, parts.gate, columns, units, pruned=pruned)
        self.narrow = _narrow(block, parts.narrow, units, columns, pruned=pruned)
        self.activation = copy.deepcopy(parts.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate is None:
            return self.narrow(self.activation(self.widen(hidden)))
        return self.narrow(self.activation(self.gate(hidden)) * self.widen(hidden))


class SideLayer(nn.Module):
    """Gate and narrow layer: side state (n, t, d/r) and the backbone's output b (n, t, d) → side state (n, t, d/r).

    ``h ← layer(g·h + (1−g)·(W b + c))`` with ``g = sigmoid(alpha / temperature)`` (arXiv 2408.10746).
    """

    def __init__(self, block: nn.Module, parts: LayerParts, units: Tensor, settings: SideSettings) -> None:
        super().__init__()
        self.temperature, self.norm_first = settings.temperature, parts.norm_first
        width = weight_of(block, parts.attention.query).shape[1]
        self.alpha = nn.Parameter(torch.zeros(()))
        self.down = down_projection(width, units, settings)
        self.attention = _Attention(block, parts.attention, units, settings)
        self.cross = None if parts.cross is None else _Attention(block, parts.cross, units, settings)
        self.feed_forward = _FeedForward(block, parts.feed_forward, units, settings)

    def forward(self, hidden: Tensor, backbone: Tensor, mask: Tensor | None, states: Tensor | None = None) -> Tensor:
        gate = torch.sigmoid(self.alpha / self.temperature)
        hidden = gate * hidden + (1 - gate) * self.down(backbone)
        # Behind an encoder the mask is that of the encoder's tokens.
        own_mask = mask if self.cross is None and not self.attention.causal else None
        hidden = self._around(hidden, self.attention, own_mask, None)
        if self.cross is not None:
            hidden = self._around(hidden, self.cross, mask, states)
        if self.norm_first:
            return hidden + self.feed_forward(self.feed_forward.norm(hidden))
        return self.feed_forward.norm(hidden + self.feed_forward(hidden))

    def _around(self, hidden: Tensor, part: _Attention, mask: Tensor | None, states: Tensor | None) -> Tensor:
        """A part with its normalisation and the residual around it."""
        entering = part.norm(hidden) if self.norm_first else hidden
        mixed = hidden + part(entering, entering if states is None else states, mask)
        return mixed if self.norm_first else part.norm(mixed)


def down_projection(width: int, units: Tensor, settings: SideSettings) -> nn.Linear:
    """Biased projection of the backbone's output to the side network; pruned, it starts by picking the places."""
    made = nn.Linear(width, len(units))
    with torch.no_grad():
        made.bias.zero_()
        if settings.start == "pruned":
            made.weight.zero_()
            made.weight[torch.arange(len(units)), units] = 1.0
    return made
