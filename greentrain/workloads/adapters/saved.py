"""A trained adapter as a folder: ``adapter.safetensors`` and ``config.json``; and using it on texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from greentrain._checks import require
from greentrain.errors import UsageError
from greentrain.files import read_json, write_bytes, write_json
from greentrain.workloads.adapters.task import AdapterTask, task_blocks
from greentrain.workloads.workload import run_blocks

__all__ = ["AdapterConfig", "TextClassifier", "load_adapter", "save_adapter"]

ADAPTER_SCHEMA = "greentrain.adapter/1"
_ROWS = 32


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is needed beside the weights.

    Attributes:
        task: Backbone, method and shape.
        labels: Name of each class.
        seed: Of what is neither pretrained nor trained.
        weights_sha256: Hash of ``adapter.safetensors``.
    """

    task: AdapterTask
    labels: tuple[str, ...]
    seed: int
    weights_sha256: str

    def __post_init__(self) -> None:
        require(len(self.labels) == self.task.classes_n, "one label per class is needed")


class TextClassifier:
    """A backbone with its trained adapter."""

    def __init__(self, config: AdapterConfig, blocks: Sequence[nn.Module]) -> None:
        self.config = config
        self._blocks = [block.eval() for block in blocks]

    def scores(self, texts: Sequence[str]) -> Tensor:
        """Scores of all classes, (texts, classes)."""
        ids, mask = self.config.task.source.encode(texts, self.config.task.tokens_n)
        found: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(texts), _ROWS):
                rows = slice(start, start + _ROWS)
                longest = int(mask[rows].sum(1).max())
                inputs = (torch.from_numpy(ids[rows, :longest]), torch.from_numpy(mask[rows, :longest]))
                found.append(run_blocks(self._blocks, inputs)[0])
        return torch.cat(found) if found else torch.empty(0, self.config.task.classes_n)

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The most likely label of each text."""
        return [self.config.labels[index] for index in self.scores(texts).argmax(1).tolist()]


def save_adapter(
    folder: Path, task: AdapterTask, labels: Sequence[str], seed: int, state: Mapping[str, Tensor]
) -> None:
    """Write what was trained: the side network (or what another method trains) and the head, not the backbone.

    Args:
        folder: Made when missing.
        task: What was trained.
        labels: Name of each class.
        seed: Of the run.
        state: Trained tensors; those of the optimizer are left out.
    """
    from safetensors.torch import save

    data = save({name: tensor for name, tensor in state.items() if "#" not in name})
    write_bytes(folder / "adapter.safetensors", data)
    digest = hashlib.sha256(data).hexdigest()
    config = AdapterConfig(task=task, labels=tuple(labels), seed=seed, weights_sha256=digest)
    write_json(folder / "config.json", config, schema=ADAPTER_SCHEMA)


def load_adapter(folder: Path | str) -> TextClassifier:
    """Load a folder of :func:`save_adapter`.

    Raises:
        UsageError: A file is missing or damaged, or does not fit the backbone.
        UnavailableError: The backbone is not on this machine.
    """
    from safetensors.torch import load

    folder = Path(folder)
    config = read_json(folder / "config.json", AdapterConfig, schema=ADAPTER_SCHEMA)
    path = folder / "adapter.safetensors"
    if not path.is_file():
        raise UsageError(f"{path}: no such file, expected the weights of the adapter.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.weights_sha256:
        raise UsageError(f"{path}: is not what config.json says.", hint="Copy the whole folder again.")
    blocks = task_blocks(config.task, config.seed)
    state = load(data)
    with torch.no_grad():
        for index, block in enumerate(blocks):
            for name, tensor in (*block.named_parameters(), *block.named_buffers()):
                trained = state.pop(f"{index}.{name}", None)
                if trained is not None:
                    tensor.copy_(trained)
    if state:
        raise UsageError(f"{path}: has {next(iter(state))}, which this backbone does not have.")
    return TextClassifier(config, blocks)
