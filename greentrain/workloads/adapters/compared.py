"""What parallel adapters are compared with: full fine-tuning, a new head alone, and methods of the library peft."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import Tensor, nn

from greentrain.errors import UnavailableError
from greentrain.workloads.adapters.backbone import Backbone, ClassHead
from greentrain.workloads.adapters.pruning import weight_of
from greentrain.workloads.workload import Tensors, build_seeded, run_blocks

__all__ = ["compared_blocks"]

PEFT_HINT = "Run: pip install peft"


class _CarriesMask(nn.Module):
    """A block of the backbone that hands the mask on behind its own tensors, for the head."""

    def __init__(self, block: nn.Module, inputs_n: int | None) -> None:
        super().__init__()
        self.block_name = getattr(block, "block_name", None)
        self.block = block
        self.inputs_n = inputs_n

    def forward(self, *tensors: Tensor) -> Tensors:
        if self.inputs_n is not None:
            return (*run_blocks((self.block,), tensors[: self.inputs_n]), tensors[1])
        return (*run_blocks((self.block,), tensors[:-1]), tensors[-1])


class _Head(nn.Module):
    """The same new head as that of parallel adapters."""

    def __init__(self, head: ClassHead) -> None:
        super().__init__()
        self.block_name = "head"
        self.head = head

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.head(tensors[0], tensors[-1])


def compared_blocks(backbone: Backbone, method: str, *, seed: int, classes_n: int, lora_rank: int) -> list[nn.Module]:
    """The blocks of a method, each with the same new head.

    Args:
        backbone: The Transformer; its blocks are used, not copied.
        method: ``full``, ``head``, ``lora`` or ``ia3``.
        seed: Of the head and of what the method adds.
        classes_n: Classes of the head.
        lora_rank: Rank of LoRA's matrices, which stand beside queries and values.

    Raises:
        UnavailableError: The library peft is not installed.
    """
    index = backbone.roles.index("layer")
    parts = backbone.parts[index]
    assert parts is not None
    width = weight_of(backbone.blocks[index], parts.attention.query).shape[1]
    made: list[nn.Module] = []
    for number, (block, role) in enumerate(zip(backbone.blocks[:-1], backbone.roles, strict=False)):
        block.requires_grad_(method == "full")
        if method in ("lora", "ia3") and role == "layer":
            block = build_seeded([lambda block=block: _with_peft(block, method, lora_rank)], seed * 1000 + number)[0]
        made.append(_CarriesMask(block, backbone.inputs_n if role == "embeddings" else None))
    norm = backbone.final_norm
    head = build_seeded([lambda: ClassHead(norm, backbone.pooling, width, classes_n)], seed)[0]
    assert isinstance(head, ClassHead)
    if head.norm is not None:
        head.norm.requires_grad_(method == "full")
    return [*made, _Head(head)]


def _with_peft(block: nn.Module, method: str, rank: int) -> nn.Module:
    if importlib.util.find_spec("peft") is None:
        raise UnavailableError(
            f"{method} is a method of the Python package 'peft', which is not installed.", hint=PEFT_HINT
        )
    peft: Any = importlib.import_module("peft")
    parts = block.parts()  # pyright: ignore
    attentions = [parts.attention, *([parts.cross] if parts.cross else [])]
    targets = sorted(
        {
            matrix.weight.removesuffix(".weight")
            for attention in attentions
            for matrix in (attention.query, attention.value)
        }
    )
    if method == "lora":
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    else:
        narrow = parts.feed_forward.narrow.weight.removesuffix(".weight")
        keys = [attention.key.weight.removesuffix(".weight") for attention in attentions]
        config = peft.IA3Config(target_modules=sorted({*keys, *targets, narrow}), feedforward_modules=[narrow])
    name = getattr(block, "block_name", None)
    made: nn.Module = peft.inject_adapter_in_model(config, block)
    made.block_name = name  # pyright: ignore
    return made
