"""vit-small: Vision Transformer of 12 layers of width 384, fresh, on digits of 32x32."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from greentrain.workloads._examples import images
from greentrain.workloads.families import from_transformers, transformers
from greentrain.workloads.workload import Workload

__all__ = ["WORKLOAD", "build"]


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only.

    Raises:
        UnavailableError: transformers is not installed.
    """
    config = transformers().ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="vit-small",
    description=(
        "Vision Transformer of 12 layers of width 384 (ViT-S, patches of 8x8) with fresh weights on digits of 32x32."
    ),
    dataset="digits-32",
    build=build,
    example=images,
    loss=functional.cross_entropy,
    optimizer="adam",
    learning_rate=3e-4,
    batch=32,
    micro_batches=(2, 4, 8, 16, 32),
    epochs=3,
    target_accuracy=None,
    schedule="cosine",
    warmup_rounds=20,
)
