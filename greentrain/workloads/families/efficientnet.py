"""EfficientNet with a classification head: images (n, channels, h, w) → class scores (n, classes)."""

from __future__ import annotations

from typing import Any

from torch import nn

from greentrain.workloads.families.shared import named

__all__ = ["blocks"]


def blocks(model: Any) -> list[nn.Module]:
    """Stem, inverted residuals, last convolution and head of a model, which they share their weights with."""
    body = model.efficientnet
    layers = [named(layer, f"inverted{index}") for index, layer in enumerate(body.encoder.blocks)]
    top = nn.Sequential(body.encoder.top_conv, body.encoder.top_bn, body.encoder.top_activation)
    pool = nn.AdaptiveMaxPool2d(1) if model.config.pooling_type == "max" else nn.AdaptiveAvgPool2d(1)
    head = nn.Sequential(pool, nn.Flatten(), model.classifier)
    return [named(body.embeddings, "stem"), *layers, named(top, "top"), named(head, "head")]
