"""ResNet with a classification head: images (n, channels, h, w) → class scores (n, classes)."""

from __future__ import annotations

from typing import Any

from torch import nn

from greentrain.workloads.families.shared import named

__all__ = ["blocks"]


def blocks(model: Any) -> list[nn.Module]:
    """Stem, residual layers and head of a model, which they share their weights with."""
    body = model.resnet
    layers = [
        named(layer, f"stage{number}-{index}")
        for number, stage in enumerate(body.encoder.stages)
        for index, layer in enumerate(stage.layers)
    ]
    return [named(body.embedder, "stem"), *layers, named(nn.Sequential(body.pooler, model.classifier), "head")]
