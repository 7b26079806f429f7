"""LLaMA and models of its form (SmolLM2): token ids (n, t) → scores of the next token (n, t, tokens known)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from greentrain.workloads.families.shared import named
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Decoder(nn.Module):
    """One layer with rotary places and a gated feed-forward network: (n, t, width) → (n, t, width)."""

    def __init__(self, index: int, layer: Any, rotary: nn.Module) -> None:
        super().__init__()
        self.block_name = f"decoder{index}"
        self.layer = layer
        self.rotary = rotary

    def forward(self, hidden: Tensor) -> Tensor:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        return self.layer(hidden, position_embeddings=self.rotary(hidden, places[None]))

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        layer = self.layer
        config = layer.self_attn.config
        attention, feed_forward = config.attention_bias, config.mlp_bias
        return LayerParts(
            attention=AttentionParts(
                norm="layer.input_layernorm",
                query=_matrix("layer.self_attn.q_proj", bias=attention),
                key=_matrix("layer.self_attn.k_proj", bias=attention),
                value=_matrix("layer.self_attn.v_proj", bias=attention),
                out=_matrix("layer.self_attn.o_proj", bias=attention),
                heads=config.num_attention_heads,
                key_value_heads=config.num_attention_heads // layer.self_attn.num_key_value_groups,
                causal=True,
                scale=layer.self_attn.scaling,
                rotate=self._rotate,
            ),
            feed_forward=FeedForwardParts(
                norm="layer.post_attention_layernorm",
                widen=_matrix("layer.mlp.up_proj", bias=feed_forward),
                gate=_matrix("layer.mlp.gate_proj", bias=feed_forward),
                narrow=_matrix("layer.mlp.down_proj", bias=feed_forward),
                columns=layer.mlp.intermediate_size,
                activation=layer.mlp.act_fn,
            ),
            norm_first=True,
        )

    def _rotate(self, heads: Tensor, places: Tensor) -> Tensor:
        cosine, sine = self.rotary(heads, places[None])
        first, second = heads.chunk(2, dim=-1)
        return heads * cosine[:, None] + torch.cat((-second, first), dim=-1) * sine[:, None]


def _matrix(name: str, *, bias: bool) -> Matrix:
    return Matrix(weight=f"{name}.weight", bias=f"{name}.bias" if bias else None)


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers and head of a model, which they share their weights with."""
    body = model.model
    layers = [Decoder(index, layer, copy.deepcopy(body.rotary_emb)) for index, layer in enumerate(body.layers)]
    embeddings = named(nn.Sequential(body.embed_tokens), "embeddings")
    return [embeddings, *layers, named(nn.Sequential(body.norm, model.lm_head), "head")]
