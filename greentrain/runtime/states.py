"""Weights and optimizer state by layer: taken, put back, and moved between devices as raw bytes.

A device of a split layer takes parts of its tensors, with the region of each in its name; whole ones are put into any
layer, split or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.plan import Plan
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import RunGroup
from greentrain.runtime.split_layer import SplitLayer
from greentrain.runtime.split_weights import Holding, of_whole, parts_of
from greentrain.runtime.wire import Kept

__all__ = [
    "Move",
    "State",
    "clone",
    "decode",
    "encode",
    "layer_of",
    "moves_of",
    "put",
    "take",
    "travel",
]

# Tensor name -> tensor: ``<layer>.<parameter>`` and, for optimizer state, ``<layer>.<parameter>|<key>``; a part of one
# has its region behind, as :func:`greentrain.runtime.split_weights.to_text` writes it.
State = dict[str, Tensor]

_TAG = 1 << 21
_CHUNK_BYTES = 1 << 22


def take(executor: Executor, start: int, layer: int | None = None) -> State:
    """The tensors that a stage trains, those of layers that are whole not copied.

    Args:
        executor: Its executor.
        start: Its first layer.
        layer: Only those of this one.
    """
    found: State = {}
    blocks = executor.blocks if layer is None else executor.blocks[layer - start : layer - start + 1]
    for one in _parameters(blocks, start if layer is None else layer):
        found |= one.named(one.parameter.detach())
        for key, value in executor.optimizer.state.get(one.parameter, {}).items():
            if isinstance(value, Tensor):
                found |= one.named(value, key)
    return found


def put(executor: Executor, start: int, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a stage; its optimizer must be new. A tensor that is the stage's own already stays.

    Raises:
        KeyError: A parameter is missing.
    """
    keys: dict[str, list[str]] = {}
    for text in state:
        name, bar, key = text.partition("|")
        if bar:
            keys.setdefault(name, []).append(key)
    with torch.no_grad():
        for one in _parameters(executor.blocks, start):
            given = one.local(state)
            if given.data_ptr() != one.parameter.data_ptr():
                one.parameter.copy_(given)
            kept = {key: one.local(state, key) for key in keys.get(one.names[0], ())}
            if kept:
                # A count of steps stays where it is.
                kept = {key: value.to(one.parameter.device) if value.dim() else value for key, value in kept.items()}
                executor.optimizer.state[one.parameter] = kept


def clone(state: Mapping[str, Tensor]) -> State:
    """A copy."""
    return {name: tensor.clone() for name, tensor in state.items()}


def encode(state: Mapping[str, Tensor]) -> bytes:
    """The tensors in safetensors form."""
    from safetensors.torch import save

    return save({name: tensor.detach().contiguous() for name, tensor in state.items()})


def decode(data: bytes) -> State:
    """The inverse of :func:`encode`."""
    from safetensors.torch import load

    return load(data)


class _Trained(NamedTuple):
    """A parameter that a stage trains.

    Attributes:
        layer: Its layer.
        parameter: The parameter.
        whole: Its name in the block; None: it is made of parts.
        holding: The parts.
    """

    layer: int
    parameter: nn.Parameter
    whole: str | None
    holding: Holding = ()

    @property
    def names(self) -> list[str]:
        """Names of the whole tensors that it is, or is made of."""
        own = [self.whole] if self.whole is not None else [region.name for region in self.holding]
        return [f"{self.layer}.{name}" for name in own]

    def named(self, tensor: Tensor, key: str = "") -> State:
        """The parameter, or what the optimizer keeps for it, by name."""
        end = f"|{key}" if key else ""
        if self.whole is not None or tensor.dim() == 0:
            return {name + end: tensor for name in self.names}
        found: State = {}
        for text, part in parts_of(self.holding, tensor).items():
            name, bracket, region = text.partition("[")
            found[f"{self.layer}.{name}{end}{bracket}{region}"] = part
        return found

    def local(self, state: Mapping[str, Tensor], key: str = "") -> Tensor:
        """The inverse, from whole tensors."""
        end = f"|{key}" if key else ""
        given = [state[name + end] for name in self.names]
        if self.whole is not None or given[0].dim() == 0:
            return given[0]
        return of_whole(self.holding, given)


def _parameters(blocks: Sequence[nn.Module], start: int) -> Iterator[_Trained]:
    for layer, block in enumerate(blocks, start=start):
        if isinstance(block, SplitLayer):
            found = (_Trained(layer, parameter, None, holding) for parameter, holding in block.holdings())
        else:
            found = (_Trained(layer, parameter, name) for name, parameter in block.named_parameters())
        yield from (one for one in found if one.parameter.requires_grad)


def layer_of(name: str) -> int:
    """The layer of a tensor."""
    return int(name.partition(".")[0])


class Move(NamedTuple):
    """Layers [start, stop) that travel."""

    source: str
    target: str
    start: int
    stop: int


def moves_of(kept: Sequence[Kept], plan: Plan) -> list[Move]:
    """What must travel so that every device has the layers of its stage: only those that it does not have.

    The same on every device. Of several holders the one that already gives the layer before is asked.
    """
    found: list[Move] = []
    for stage in plan.stages:
        for device in stage.devices:
            for layer in range(stage.start, stage.stop):
                holders = [copy.device for copy in kept if copy.start <= layer < copy.stop]
                if device in holders:
                    continue
                last = found[-1] if found else None
                if last is not None and (last.target, last.stop) == (device, layer) and last.source in holders:
                    found[-1] = last._replace(stop=layer + 1)
                else:
                    found.append(Move(holders[0], device, layer, layer + 1))
    return found


def travel(moves: Iterable[Move], group: RunGroup, held: Mapping[tuple[int, int], State]) -> tuple[State, int]:
    """Send and receive. Call on every rank with the same moves.

    Args:
        moves: From :func:`moves_of`.
        group: The new group.
        held: What this device gives, by layers.

    Returns:
        What arrived here, and how many bytes.

    Raises:
        PeersLostError: A peer is gone or silent.
    """
    with group.talking():
        sends: list[tuple[dist.Work | None, Tensor]] = []
        numbered = list(enumerate(moves))
        for number, move in numbered:
            if move.source == group.device:
                data = torch.frombuffer(bytearray(encode(held[move.start, move.stop])), dtype=torch.uint8)
                target = group.ranks[move.target]
                parts = (torch.tensor([len(data)], dtype=torch.int64), *data.split(_CHUNK_BYTES))
                sends += [(dist.isend(part, dst=target, tag=_TAG + number), part) for part in parts]
        arrived: State = {}
        moved_bytes = 0
        for number, move in numbered:
            if move.target == group.device:
                data = _receive(group.ranks[move.source], _TAG + number)
                moved_bytes += len(data)
                arrived.update(decode(data))
        for work, _ in sends:
            assert work is not None
            work.wait()
        return arrived, moved_bytes


def _receive(source: int, tag: int) -> bytes:
    length = torch.tensor([0], dtype=torch.int64)
    dist.recv(length, src=source, tag=tag)
    data = torch.empty(int(length.item()), dtype=torch.uint8)
    for part in data.split(_CHUNK_BYTES):
        dist.recv(part, src=source, tag=tag)
    return data.numpy().tobytes()
