"""BERT with a classification head: token ids (n, t) and mask (n, t) → class scores (n, classes)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix

__all__ = ["blocks"]


class Embeddings(nn.Module):
    """Token ids (n, t) and mask (n, t) → hidden states (n, t, width) and the mask."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.embeddings = embeddings

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.embeddings(ids), mask


class Encoder(nn.Module):
    """One layer, normalised after attention and after feed-forward; the mask passes through."""

    def __init__(self, index: int, layer: Any) -> None:
        super().__init__()
        self.block_name = f"encoder{index}"
        self.layer = layer

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(hidden, mask[:, None, None, :].bool()), mask

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        heads_n = self.layer.attention.self.num_attention_heads
        attention = AttentionParts(
            norm="layer.attention.output.LayerNorm",
            query=_matrix("layer.attention.self.query"),
            key=_matrix("layer.attention.self.key"),
            value=_matrix("layer.attention.self.value"),
            out=_matrix("layer.attention.output.dense"),
            heads=heads_n,
            key_value_heads=heads_n,
        )
        feed_forward = FeedForwardParts(
            norm="layer.output.LayerNorm",
            widen=_matrix("layer.intermediate.dense"),
            narrow=_matrix("layer.output.dense"),
            columns=self.layer.intermediate.dense.out_features,
            activation=self.layer.intermediate.intermediate_act_fn,
        )
        return LayerParts(attention=attention, feed_forward=feed_forward, norm_first=False, mask=1)


class Head(nn.Module):
    """The first token's state through the pooler to class scores: (n, t, width), (n, t) → (n, classes)."""

    def __init__(self, pooler: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.block_name = "head"
        self.pooler = pooler
        self.classifier = classifier

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.classifier(self.pooler(hidden))


def _matrix(name: str) -> Matrix:
    return Matrix(weight=f"{name}.weight", bias=f"{name}.bias")


def blocks(model: Any) -> list[nn.Module]:
    """Embeddings, layers and head of a model, which they share their weights with."""
    bert = model.bert
    layers = [Encoder(index, layer) for index, layer in enumerate(bert.encoder.layer)]
    return [Embeddings(bert.embeddings), *layers, Head(bert.pooler, model.classifier)]
