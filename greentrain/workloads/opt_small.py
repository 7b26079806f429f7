"""opt-small: OPT of 6 layers of width 384, fresh, on the next word of movie reviews."""

from __future__ import annotations

from torch import nn

from greentrain.workloads._examples import next_words
from greentrain.workloads.families import from_transformers, transformers
from greentrain.workloads.losses import next_token_loss
from greentrain.workloads.workload import Workload
from greentrain_datasets.words import VOCABULARY_N, WORDS_N

__all__ = ["WORKLOAD", "build"]


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only.

    Raises:
        UnavailableError: transformers is not installed.
    """
    config = transformers().OPTConfig(
        vocab_size=VOCABULARY_N,
        hidden_size=384,
        word_embed_proj_dim=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        ffn_dim=1536,
        max_position_embeddings=WORDS_N,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="opt-small",
    description=(
        "OPT of 6 layers of width 384 with fresh weights on the next word of movie reviews; "
        "the output matrix is not tied to the embeddings."
    ),
    dataset="review-next-words",
    build=build,
    example=next_words,
    loss=next_token_loss,
    optimizer="adam",
    learning_rate=5e-4,
    batch=32,
    micro_batches=(2, 4, 8, 16, 32),
    epochs=2,
    target_accuracy=None,
    schedule="cosine",
    warmup_rounds=20,
)
