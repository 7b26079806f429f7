"""AdapterTask: what is fine-tuned on which texts, and its workloads: with the backbone, and from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain._checks import require
from greentrain.workloads.adapters.backbone import backbone_of
from greentrain.workloads.adapters.models import Source, load_source
from greentrain.workloads.adapters.pairs import PairBlock, cached_entries, pair_blocks, side_blocks
from greentrain.workloads.adapters.settings import SideSettings
from greentrain.workloads.workload import Tensors, Workload, build_seeded

__all__ = [
    "METHODS",
    "AdapterTask",
    "Method",
    "backbone_sha256",
    "cached_workload",
    "task_blocks",
    "task_workload",
    "weights_sha256",
]

Method = Literal["parallel-adapters", "full", "lora", "ia3", "head"]
METHODS: tuple[Method, ...] = get_args(Method)

# Step sizes of the published settings (arXiv 2408.10746): 3e-3 for the side network, 3e-4 for the others.
_RATES: dict[Method, float] = {"parallel-adapters": 3e-3, "full": 3e-4, "lora": 3e-4, "ia3": 3e-3, "head": 3e-3}
LORA_RANK = 32


class AdapterTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fine-tuning task: sorting texts into classes.

    Attributes:
        model: Name of the backbone, or its folder.
        classes_n: Classes.
        tokens_n: Tokens per text; shorter ones are padded, longer ones cut.
        method: How it is trained.
        settings: Shape of the side network.
        batch: Texts per optimizer step.
        micro_batches: Candidate micro-batch sizes.
        learning_rate: Step size; None: the method's usual one.
    """

    model: str
    classes_n: int
    tokens_n: int
    method: Method = "parallel-adapters"
    settings: SideSettings = SideSettings()
    batch: int = 32
    micro_batches: tuple[int, ...] = (4, 8, 16, 32)
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        require(self.classes_n >= 2, f"there are {self.classes_n} classes, expected at least 2")
        require(self.tokens_n >= 1, f"tokens_n is {self.tokens_n}, expected at least 1")

    @property
    def rate(self) -> float:
        """Step size."""
        return self.learning_rate or _RATES[self.method]

    @property
    def source(self) -> Source:
        """Where the backbone comes from."""
        return load_source(self.model)


def task_blocks(task: AdapterTask, seed: int, *, skeleton: bool = False) -> list[nn.Module]:
    """The blocks with the backbone, as the task's method trains them.

    Args:
        task: The task.
        seed: Of a new head, and of what a method adds.
        skeleton: Without memory, for the shapes.
    """
    blocks = task.source.skeleton() if skeleton else task.source.blocks()
    backbone = backbone_of(blocks)
    if task.method == "parallel-adapters":
        return pair_blocks(backbone, task.settings, seed=seed, classes_n=task.classes_n)
    from greentrain.workloads.adapters.compared import compared_blocks

    return compared_blocks(backbone, task.method, seed=seed, classes_n=task.classes_n, lora_rank=LORA_RANK)


def _example(task: AdapterTask) -> Callable[[int], tuple[Tensors, Tensor]]:
    def example(n: int) -> tuple[Tensors, Tensor]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, 1000, (n, task.tokens_n), generator=generator)
        mask = torch.ones(n, task.tokens_n, dtype=torch.uint8)
        return (ids, mask), torch.randint(task.classes_n, (n,), generator=generator)

    return example


def task_workload(task: AdapterTask, name: str) -> Workload:
    """The task with its backbone: epoch 1 of parallel adapters, every epoch of the other methods."""
    return Workload(
        name=name,
        description=f"{task.model} sorts texts into {task.classes_n} classes; trained: {task.method}.",
        dataset="own",
        build=lambda seed: task_blocks(task, seed),
        example=_example(task),
        loss=functional.cross_entropy,
        optimizer="adam",
        learning_rate=task.rate,
        schedule="linear",
        batch=task.batch,
        micro_batches=task.micro_batches,
        epochs=3,
        target_accuracy=0.0,
    )


def cached_workload(task: AdapterTask, name: str) -> Workload:
    """The side network alone on cached outputs: the later epochs of parallel adapters.

    Its blocks are built without the backbone's weights, so they are random until the trained ones are put in.
    """
    first = task_workload(task, name)

    def build(seed: int) -> list[nn.Module]:
        with torch.device("meta"):
            pairs = task_blocks(task, seed, skeleton=True)
        return build_seeded([lambda block=block: _drawn(block) for block in side_blocks(pairs)], seed)

    def example(n: int) -> tuple[Tensors, Tensor]:
        (_, mask), targets = first.example(n)
        generator = torch.Generator().manual_seed(0)
        with torch.device("meta"):
            entries = cached_entries(task_blocks(task, 0, skeleton=True))
        cached = (
            torch.randn(n, 1 if entry.decoder else task.tokens_n, entry.width, generator=generator) for entry in entries
        )
        return (*cached, mask), targets

    return Workload(
        name=name,
        description=f"{first.description} From the cache.",
        dataset="own",
        build=build,
        example=example,
        loss=first.loss,
        optimizer=first.optimizer,
        learning_rate=first.learning_rate,
        schedule=first.schedule,
        batch=first.batch,
        micro_batches=first.micro_batches,
        epochs=first.epochs,
        target_accuracy=0.0,
    )


def _drawn(block: nn.Module) -> nn.Module:
    """A block of a skeleton with memory; the numbers in it only have to be finite."""
    block = block.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(-0.02, 0.02)
            else:
                tensor.zero_()
    return block


def backbone_sha256(pairs: Sequence[nn.Module]) -> str:
    """Hash of the frozen blocks, names, shapes and weights: what cached outputs depend on."""
    return weights_sha256(
        (f"{pair.index}.{name}", parameter)
        for pair in pairs
        if isinstance(pair, PairBlock)
        for name, parameter in pair.backbone.named_parameters()
    )


def weights_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named tensors: names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
