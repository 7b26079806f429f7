"""llama-small: LLaMA of 6 layers of width 384, fresh, on the next word of movie reviews."""

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
    config = transformers().LlamaConfig(
        vocab_size=VOCABULARY_N,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=1024,
        max_position_embeddings=WORDS_N,
        bos_token_id=2,
        eos_token_id=3,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="llama-small",
    description=(
        "LLaMA of 6 layers of width 384 (6 heads, 2 of keys and values) with fresh weights on the next word "
        "of movie reviews; the output matrix is not tied to the embeddings."
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
