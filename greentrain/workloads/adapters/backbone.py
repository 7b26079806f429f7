"""Backbone: a model's blocks seen as embeddings, layers, perhaps a bridge from encoder to decoder, and a head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from greentrain.errors import NotSupportedError
from greentrain.workloads.parts import LayerParts, Splittable

__all__ = ["Backbone", "ClassHead", "Role", "backbone_of"]

Role = Literal["embeddings", "layer", "bridge", "head"]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen Transformer.

    Attributes:
        blocks: Embeddings, layers, head; of an encoder and decoder the bridge in between.
        roles: What each block is.
        inputs_n: Tensors that the embeddings take: token ids, perhaps the mask, perhaps the decoder's ids.
    """

    blocks: Sequence[nn.Module]
    roles: tuple[Role, ...]
    inputs_n: int

    @property
    def parts(self) -> tuple[LayerParts | None, ...]:
        """What each layer is made of; None for other blocks."""
        return tuple(block.parts() if isinstance(block, Splittable) else None for block in self.blocks)

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder follows an encoder."""
        return "bridge" in self.roles

    @property
    def pooling(self) -> Literal["mean", "last", "first"]:
        """Which states say the class: all of an encoder, the last of a decoder, the first of one behind an encoder."""
        if self.has_decoder:
            return "first"
        causal = any(parts.attention.causal for parts in self.parts if parts is not None)
        return "last" if causal else "mean"

    @property
    def final_norm(self) -> nn.Module | None:
        """The normalisation that the head begins with, where the last layer does not end with one."""
        norms = (nn.LayerNorm, nn.RMSNorm)
        return next((child for child in self.blocks[-1].modules() if isinstance(child, norms)), None)


def backbone_of(blocks: Sequence[nn.Module]) -> Backbone:
    """See a model's blocks as a backbone.

    Raises:
        NotSupportedError: The model is no Transformer whose layers say what they are made of.
    """
    layers = [index for index, block in enumerate(blocks) if isinstance(block, Splittable)]
    if not layers or layers[0] == 0 or layers[-1] == len(blocks) - 1:
        raise NotSupportedError(
            "parallel adapters need a Transformer: embeddings, layers that say their parts(), a head.",
            hint="Take a model of greentrain.workloads.families, or give your layers a method parts().",
        )
    roles: list[Role] = ["bridge"] * len(blocks)
    for index in layers:
        roles[index] = "layer"
    roles[0], roles[-1] = "embeddings", "head"
    between = [index for index, role in enumerate(roles) if role == "bridge"]
    decodes = any(blocks[index].parts().cross is not None for index in layers)  # pyright: ignore
    if len(between) != (1 if decodes else 0):
        raise NotSupportedError(
            f"blocks {between} lie between the layers, parallel adapters know one bridge from encoder to decoder only."
        )
    takes = inspect.signature(blocks[0].forward).parameters.values()
    inputs_n = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in takes)
    return Backbone(blocks=blocks, roles=tuple(roles), inputs_n=inputs_n)


class ClassHead(nn.Module):
    """A new head: states (n, t, d) and mask (n, t) → class scores (n, classes).

    Only the linear map is trained; a final normalisation of the backbone stays as it is.
    """

    def __init__(self, norm: nn.Module | None, pooling: str, width: int, classes_n: int) -> None:
        super().__init__()
        self.norm = None if norm is None else norm.requires_grad_(False)
        self.pooling = pooling
        self.linear = nn.Linear(width, classes_n)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.norm is not None:
            hidden = self.norm(hidden)
        weights = mask.to(hidden.dtype)
        if self.pooling == "first":
            return self.linear(hidden[:, 0])
        if self.pooling == "last":
            # Texts are padded behind their end.
            last = weights.sum(1).long() - 1
            return self.linear(hidden[last.new_tensor(range(len(hidden))), last])
        return self.linear((hidden * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True))
