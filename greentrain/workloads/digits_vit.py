"""digits-vit: a small Vision Transformer on handwritten digits (patches of 2x2 pixels, 16 tokens)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.workloads.digits_cnn import digits_loss, example
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix
from greentrain.workloads.workload import Workload, build_seeded

__all__ = ["WORKLOAD", "build", "example"]

WIDTH = 64
HEADS_N = 4
LAYERS_N = 4
PATCH = 2
TOKENS_N = (8 // PATCH) ** 2
CLASSES_N = 10


class PatchEmbedding(nn.Module):
    """Patches as tokens with learnt places: (n, 1, 8, 8) → (n, 16, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.block_name = "embedding"
        self.project = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        # As large as the normalised tokens: smaller ones take the net several epochs to find.
        self.places = nn.Parameter(torch.empty(TOKENS_N, WIDTH).uniform_(-1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2) + self.places


class Encoder(nn.Module):
    """Self-attention and feed-forward, normalised before each: (n, 16, 64) → (n, 16, 64)."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.block_name = f"encoder{index}"
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.projections = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.feed_norm = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        projected = self.projections(self.attention_norm(tokens))
        # (n, t, 3 x heads x width) → three of (n, heads, t, width)
        query, key, value = projected.unflatten(2, (3, HEADS_N, WIDTH // HEADS_N)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attended(mixed.transpose(1, 2).flatten(2))
        return tokens + self.narrow(functional.gelu(self.widen(self.feed_norm(tokens))))

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        query, key, value = (
            Matrix(
                weight="projections.weight",
                bias="projections.bias",
                start=index * WIDTH,
                stop=(index + 1) * WIDTH,
            )
            for index in range(3)
        )
        return LayerParts(
            attention=AttentionParts(
                norm="attention_norm",
                query=query,
                key=key,
                value=value,
                out=Matrix(weight="attended.weight", bias="attended.bias"),
                heads=HEADS_N,
                key_value_heads=HEADS_N,
            ),
            feed_forward=FeedForwardParts(
                norm="feed_norm",
                widen=Matrix(weight="widen.weight", bias="widen.bias"),
                narrow=Matrix(weight="narrow.weight", bias="narrow.bias"),
                columns=4 * WIDTH,
                activation=functional.gelu,
            ),
            norm_first=True,
        )


class Head(nn.Module):
    """Mean over the tokens, then class scores: (n, 16, 64) → (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.block_name = "head"
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, CLASSES_N)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(tokens).mean(1))


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only."""
    encoders = [partial(Encoder, index) for index in range(LAYERS_N)]
    return build_seeded([PatchEmbedding, *encoders, Head], seed)


WORKLOAD = Workload(
    name="digits-vit",
    description=f"Vision Transformer of {LAYERS_N} layers on 8x8 handwritten digits; all weights are trained.",
    dataset="digits",
    build=build,
    example=example,
    loss=digits_loss,
    optimizer="adam",
    learning_rate=1e-3,
    batch=64,
    micro_batches=(4, 8, 16, 32, 64),
    epochs=12,
    target_accuracy=0.95,
)
