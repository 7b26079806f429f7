"""bert-small: BERT of 4 layers of width 512, fresh, on the sentiment of movie reviews."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from greentrain.workloads._examples import classified_words
from greentrain.workloads.families import from_transformers, transformers
from greentrain.workloads.workload import Workload
from greentrain_datasets.words import VOCABULARY_N, WORDS_N

__all__ = ["WORKLOAD", "build"]


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only.

    Raises:
        UnavailableError: transformers is not installed.
    """
    config = transformers().BertConfig(
        vocab_size=VOCABULARY_N,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=WORDS_N,
        num_labels=2,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="bert-small",
    description="BERT of 4 layers of width 512 with fresh weights on the sentiment of movie reviews, as words.",
    dataset="review-words",
    build=build,
    example=classified_words,
    loss=functional.cross_entropy,
    optimizer="adam",
    learning_rate=2e-4,
    batch=32,
    micro_batches=(2, 4, 8, 16, 32),
    epochs=4,
    target_accuracy=None,
    schedule="cosine",
    warmup_rounds=50,
)
