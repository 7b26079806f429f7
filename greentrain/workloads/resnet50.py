"""resnet50: ResNet-50, fresh, on digits of 32x32, with group in place of batch normalisation."""

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
    config = transformers().ResNetConfig(
        num_labels=10,
    )
    return from_transformers(config, seed)


WORKLOAD = Workload(
    name="resnet50",
    description=(
        "ResNet-50 with fresh weights on digits of 32x32; group normalisation takes the place of batch "
        "normalisation, which would tie rows together."
    ),
    dataset="digits-32",
    build=build,
    example=images,
    loss=functional.cross_entropy,
    optimizer="adam",
    learning_rate=5e-4,
    batch=32,
    micro_batches=(2, 4, 8, 16, 32),
    epochs=3,
    target_accuracy=0.9,
    schedule="cosine",
    warmup_rounds=20,
)
