"""Weights and optimizer state of split layers: whole tensors become parts and come back, also through files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from families import tiny
from torch import nn

from greentrain.errors import UsageError
from greentrain.runtime.checkpoints import CheckpointPart, Checkpoints, Resumed, load_layers, open_checkpoint
from greentrain.runtime.executor import Executor
from greentrain.runtime.split_layer import Seat, split_blocks
from greentrain.runtime.split_weights import gather_named
from greentrain.runtime.states import State, clone, put, take
from greentrain.sharing import Sharing
from greentrain.workloads.families import from_transformers
from greentrain.workloads.workload import block_outputs

SHARES = (3, 1)


def _executor(blocks: Sequence[nn.Module]) -> Executor:
    parameters = [parameter for block in blocks for parameter in block.parameters() if parameter.requires_grad]
    return cast("Executor", SimpleNamespace(blocks=blocks, optimizer=torch.optim.AdamW(parameters, lr=0.1)))


def _trained(name: str) -> tuple[list[nn.Module], State]:
    """A model after two updates, and its tensors."""
    torch.manual_seed(1)
    blocks = from_transformers(tiny(name).config, seed=4)
    executor = _executor(blocks)
    for _ in range(2):
        for parameter in executor.optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn_like(parameter)
        executor.optimizer.step()
    return blocks, clone(take(executor, 0))


def _split(name: str, sharing: Sharing, position: int) -> Executor:
    """A device's part of a model with other weights."""
    case = tiny(name)
    blocks = from_transformers(case.config, seed=9)
    outputs_L = block_outputs(blocks, tuple(tensor[:1] for tensor in case.inputs))
    return _executor(split_blocks(copy.deepcopy(blocks), outputs_L, 0, len(blocks), Seat(sharing, SHARES, position)))


def _assert_same(found: State, whole: State) -> None:
    assert set(found) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("sharing", ["tensor_sequence", "tensor", "sequence"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_whole_tensors_become_parts_and_whole_again(name: str, sharing: Sharing) -> None:
    _, whole = _trained(name)
    devices = [_split(name, sharing, position) for position in range(len(SHARES))]
    for device in devices:
        put(device, 0, whole)
    shards = [take(device, 0) for device in devices]
    assert (sharing == "sequence") == all(shard.keys() == shards[0].keys() for shard in shards)
    _assert_same(gather_named(shards), whole)


def _written(folder: Path, round_: int, positions: Sequence[int]) -> State:
    """A checkpoint in parts, of which those devices have written theirs; the whole tensors."""
    blocks, whole = _trained("bert")
    for position in positions:
        device = _split("bert", "tensor_sequence", position)
        put(device, 0, whole)
        part = CheckpointPart(
            model="bert", structure_sha256="0" * 64, round=round_, batch=8, seed=0, start=0, stop=len(blocks),
            part=position, parts_n=len(SHARES),
        )  # fmt: skip
        checkpoints = Checkpoints(folder, pytest.fail)
        checkpoints.write(part, take(device, 0))
        checkpoints.close()
    return whole


def _opened(folder: Path) -> Resumed:
    layers_n = len(from_transformers(tiny("bert").config, seed=4))
    return open_checkpoint(folder, structure_sha256="0" * 64, batch=8, seed=0, layers_n=layers_n)


def test_a_checkpoint_in_parts_holds_whole_tensors(tmp_path: Path) -> None:
    whole = _written(tmp_path, 5, (0, 1))
    resumed = _opened(tmp_path)
    assert resumed.round == 5
    _assert_same(load_layers(resumed, 0, 100), whole)
    some = load_layers(resumed, 1, 2)
    assert some
    assert all(name.startswith("1.") for name in some)


def test_a_checkpoint_that_lacks_a_part_is_none(tmp_path: Path) -> None:
    _written(tmp_path, 5, (0, 1))
    _written(tmp_path, 10, (0,))
    assert _opened(tmp_path).round == 5
    with pytest.raises(UsageError, match="the checkpoint round-10 lacks layers 0, 1"):
        _opened(tmp_path / "checkpoints" / "round-10")
