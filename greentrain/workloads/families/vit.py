"""Vision Transformer with a classification head: images (n, channels, h, w) → class scores (n, classes)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.families.shared import named
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Encoder(nn.Module):
    """One layer, normalised before attention and before feed-forward: (n, t, width) → (n, t, width)."""

    def __init__(self, index: int, layer: Any) -> None:
        super().__init__()
        self.block_name = f"encoder{index}"
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        attention = self.layer.attention
        has_bias = attention.q_proj.bias is not None
        return LayerParts(
            attention=AttentionParts(
                norm="layer.layernorm_before",
                query=_matrix("layer.attention.q_proj", bias=has_bias),
                key=_matrix("layer.attention.k_proj", bias=has_bias),
                value=_matrix("layer.attention.v_proj", bias=has_bias),
                out=_matrix("layer.attention.o_proj"),
                heads=attention.num_attention_heads,
                key_value_heads=attention.num_attention_heads,
            ),
            feed_forward=FeedForwardParts(
                norm="layer.layernorm_after",
                widen=_matrix("layer.mlp.fc1"),
                narrow=_matrix("layer.mlp.fc2"),
                columns=self.layer.mlp.fc1.out_features,
                activation=self.layer.mlp.activation_fn,
            ),
            norm_first=True,
        )


class Head(nn.Module):
    """The class token's state to class scores: (n, t, width) → (n, classes)."""

    def __init__(self, norm: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.block_name = "head"
        self.norm = norm
        self.classifier = classifier

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.norm(tokens[:, 0]))


def _matrix(name: str, *, bias: bool = True) -> Matrix:
    return Matrix(weight=f"{name}.weight", bias=f"{name}.bias" if bias else None)


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers and head of a model, which they share their weights with."""
    layers = [Encoder(index, layer) for index, layer in enumerate(model.vit.layers)]
    return [named(model.vit.embeddings, "embeddings"), *layers, Head(model.vit.layernorm, model.classifier)]
