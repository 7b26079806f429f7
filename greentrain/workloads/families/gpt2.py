"""GPT-2: token ids (n, t) → scores of the next token (n, t, tokens known)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.families.shared import named
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Embeddings(nn.Module):
    """Token ids (n, t) → tokens with learnt places (n, t, width)."""

    def __init__(self, tokens: nn.Embedding, places: nn.Embedding) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.tokens = tokens
        self.places = places

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.places.weight[: ids.shape[1]]


class Decoder(nn.Module):
    """One layer, normalised before attention and before feed-forward: (n, t, width) → (n, t, width)."""

    def __init__(self, index: int, layer: Any) -> None:
        super().__init__()
        self.block_name = f"decoder{index}"
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        attention = self.layer.attn
        width = attention.embed_dim
        query, key, value = (
            Matrix(
                weight="layer.attn.c_attn.weight",
                bias="layer.attn.c_attn.bias",
                start=index * width,
                stop=(index + 1) * width,
                transposed=True,
            )
            for index in range(3)
        )
        return LayerParts(
            attention=AttentionParts(
                norm="layer.ln_1",
                query=query,
                key=key,
                value=value,
                out=_matrix("layer.attn.c_proj"),
                heads=attention.num_heads,
                key_value_heads=attention.num_heads,
                causal=True,
                scale=attention.scaling,
            ),
            feed_forward=FeedForwardParts(
                norm="layer.ln_2",
                widen=_matrix("layer.mlp.c_fc"),
                narrow=_matrix("layer.mlp.c_proj"),
                columns=self.layer.mlp.c_fc.nf,
                activation=self.layer.mlp.act,
            ),
            norm_first=True,
        )


def _matrix(name: str) -> Matrix:
    return Matrix(weight=f"{name}.weight", bias=f"{name}.bias", transposed=True)


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers and head of a model, which they share their weights with."""
    body = model.transformer
    layers = [Decoder(index, layer) for index, layer in enumerate(body.h)]
    return [Embeddings(body.wte, body.wpe), *layers, named(nn.Sequential(body.ln_f, model.lm_head), "head")]
