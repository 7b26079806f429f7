"""OPT: token ids (n, t) → scores of the next token (n, t, tokens known)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.families.shared import named
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Embeddings(nn.Module):
    """Token ids (n, t) → tokens with learnt places (n, t, width)."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.tokens = decoder.embed_tokens
        self.project = decoder.project_in
        self.places = decoder.embed_positions

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.tokens(ids)
        if self.project is not None:
            tokens = self.project(tokens)
        first = self.places.offset
        return tokens + self.places.weight[first : first + ids.shape[1]]


class Decoder(nn.Module):
    """One layer, normalised before its parts (OPT-350M: after): (n, t, width) → (n, t, width)."""

    def __init__(self, index: int, layer: Any) -> None:
        super().__init__()
        self.block_name = f"decoder{index}"
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        layer = self.layer
        return LayerParts(
            attention=AttentionParts(
                norm="layer.self_attn_layer_norm",
                query=self._matrix("layer.self_attn.q_proj"),
                key=self._matrix("layer.self_attn.k_proj"),
                value=self._matrix("layer.self_attn.v_proj"),
                out=self._matrix("layer.self_attn.out_proj"),
                heads=layer.self_attn.num_heads,
                key_value_heads=layer.self_attn.num_heads,
                causal=True,
            ),
            feed_forward=FeedForwardParts(
                norm="layer.final_layer_norm",
                widen=self._matrix("layer.fc1"),
                narrow=self._matrix("layer.fc2"),
                columns=layer.fc1.out_features,
                activation=layer.activation_fn,
            ),
            norm_first=layer.do_layer_norm_before,
        )

    def _matrix(self, name: str) -> Matrix:
        return Matrix(weight=f"{name}.weight", bias=f"{name}.bias" if self.layer.self_attn.enable_bias else None)


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers and head of a model, which they share their weights with."""
    decoder = model.model.decoder
    layers = [Decoder(index, layer) for index, layer in enumerate(decoder.layers)]
    last = (decoder.final_layer_norm, decoder.project_out, model.lm_head)
    head = nn.Sequential(*(module for module in last if module is not None))
    return [Embeddings(decoder), *layers, named(head, "head")]
