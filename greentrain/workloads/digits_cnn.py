"""digits-cnn: a small convolutional net on handwritten digits.

Early blocks have large activations and few weights, late ones the reverse, so that where the
pipeline is cut, and which part is replicated, matters.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.workloads.workload import Tensors, Workload, build_seeded

__all__ = ["WORKLOAD", "build", "digits_loss", "example"]

CLASSES_N = 10


class Conv(nn.Module):
    """3x3 convolution, group normalisation (rows stay independent) and ReLU: (n, c, h, w) → (n, c', h/s, w/s)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.block_name = f"conv{channels_out}" + ("-half" if stride == 2 else "")
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, channels_out)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(images)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a wide middle around a shortcut: (n, c, h, w) → (n, c, h, w).

    Much work between narrow ends: the tensors that cross a cut stay small.
    """

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.block_name = f"residual{channels}x{middle}"
        self.widen = nn.Conv2d(channels, middle, 3, padding=1, bias=False)
        self.widen_norm = nn.GroupNorm(8, middle)
        self.narrow = nn.Conv2d(middle, channels, 3, padding=1, bias=False)
        self.narrow_norm = nn.GroupNorm(8, channels)

    def forward(self, images: Tensor) -> Tensor:
        wide = torch.relu(self.widen_norm(self.widen(images)))
        return torch.relu(images + self.narrow_norm(self.narrow(wide)))


class Dense(nn.Module):
    """Linear layer on the flattened rows, with ReLU unless it is the head: (n, ...) → (n, features)."""

    def __init__(self, features_in: int, features_out: int, *, head: bool = False) -> None:
        super().__init__()
        self.block_name = "head" if head else f"dense{features_out}"
        self.linear = nn.Linear(features_in, features_out)
        self.head = head

    def forward(self, rows: Tensor) -> Tensor:
        values = self.linear(rows.flatten(1))
        return values if self.head else torch.relu(values)


def build(seed: int) -> list[nn.Module]:
    """The blocks, with weights that depend on the seed only."""
    return build_seeded(
        [
            partial(Conv, 1, 32),
            partial(Conv, 32, 64),
            partial(Conv, 64, 32, 2),
            partial(Residual, 32, 192),
            partial(Residual, 32, 192),
            partial(Conv, 32, 128, 2),
            partial(Residual, 128, 256),
            partial(Dense, 128 * 2 * 2, 512),
            partial(Dense, 512, CLASSES_N, head=True),
        ],
        seed,
    )


def example(n: int) -> tuple[Tensors, Tensor]:
    """Random images (n, 1, 8, 8) in [0, 1] and classes (n,)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 1, 8, 8, generator=generator)
    return (images,), torch.randint(CLASSES_N, (n,), generator=generator)


def digits_loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy with smoothed classes, which keeps the last epochs steady on so few images."""
    return functional.cross_entropy(scores, classes, label_smoothing=0.1)


WORKLOAD = Workload(
    name="digits-cnn",
    description="Convolutional net of 9 blocks on 8x8 handwritten digits; all weights are trained.",
    dataset="digits",
    build=build,
    example=example,
    loss=digits_loss,
    optimizer="adam",
    learning_rate=2e-4,
    batch=64,
    micro_batches=(4, 8, 16, 32, 64),
    epochs=6,
    target_accuracy=0.97,
)
