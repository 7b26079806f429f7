"""t5-small: T5 of 6 + 6 layers of width 512, fresh, on the second half of movie reviews."""

from __future__ import annotations

from torch import nn

from greentrain.workloads._examples import halves
from greentrain.workloads.families import from_transformers, transformers
from greentrain.workloads.losses import next_token_loss
from greentrain.workloads.workload import Workload
from greentrain_datasets.words import VOCABULARY_N

__all__ = ["WORKLOAD", "build"]


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only.

    Raises:
        UnavailableError: transformers is not installed.
    """
    config = transformers().T5Config(
        vocab_size=VOCABULARY_N,
        d_model=512,
        d_kv=64,
        num_heads=8,
        d_ff=2048,
        num_layers=6,
        num_decoder_layers=6,
        pad_token_id=0,
        eos_token_id=3,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="t5-small",
    description=(
        "T5 of 6 + 6 layers of width 512 with fresh weights on the second half of a movie review, given the "
        "first; every layer has a table of relative places of its own, embeddings and output are not tied."
    ),
    dataset="review-halves",
    build=build,
    example=halves,
    loss=next_token_loss,
    optimizer="adam",
    learning_rate=5e-4,
    batch=16,
    micro_batches=(1, 2, 4, 8, 16),
    epochs=2,
    target_accuracy=None,
    schedule="cosine",
    warmup_rounds=20,
)
