"""MobileNetV2 with a classification head: images (n, channels, h, w) → class scores (n, classes)."""

from __future__ import annotations

from typing import Any

from torch import nn

from greentrain.workloads.families.shared import named

__all__ = ["blocks"]


def blocks(model: Any) -> list[nn.Module]:
    """Stem, inverted residuals, last convolution and head of a model, which they share their weights with."""
    body = model.mobilenet_v2
    layers = [named(layer, f"inverted{index}") for index, layer in enumerate(body.layer)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier)
    return [named(body.conv_stem, "stem"), *layers, named(body.conv_1x1, "top"), named(head, "head")]
