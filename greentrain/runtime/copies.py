"""What a device keeps besides what it trains: tensors of earlier rounds, its own and those that others gave it.

They lie on its disk, where they take none of the memory that a plan counts on. A file of copies has no name: nothing of
it outlives the process, however that ends. It holds tensor after tensor, each as eight bytes of length and the tensor
with its name in safetensors form, so that writing and reading take the memory of one tensor.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from greentrain.files import writing
from greentrain.runtime.states import State, decode, encode, layer_of
from greentrain.runtime.wire import Holding

__all__ = ["Copies", "Copy", "Shelf"]

_LENGTH_BYTES = 8


@dataclass
class Shelf:
    """A file of bytes without a name; ``close()`` gives the disk back.

    Raises:
        UnavailableError: The folder cannot be written to.
        RunError: The disk is full.
    """

    folder: Path
    size: int = 0
    _descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor, name = tempfile.mkstemp(dir=self.folder)
            Path(name).unlink()
        # Also where a part that was on its way is given up with its group.
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def append(self, data: bytes | memoryview) -> None:
        """Write behind what is there."""
        left = memoryview(data)
        with writing(self.folder):
            while left:
                done = os.pwrite(self._descriptor, left, self.size)
                self.size += done
                left = left[done:]

    def read(self, start: int, stop: int) -> Tensor:
        """Bytes [start, stop), shape (stop - start,)."""
        found = torch.empty(stop - start, dtype=torch.uint8)
        view = found.numpy().data
        while view:
            done = os.preadv(self._descriptor, [view], stop - len(view))
            if done == 0:
                raise OSError(f"{self.folder}: a copy of layers ends after {self.size} bytes")
            view = view[done:]
        return found


@dataclass
class Copy:
    """Tensors of the layers [start, stop) after ``round`` rounds."""

    start: int
    stop: int
    round: int
    shelf: Shelf

    def write(self, state: State) -> None:
        """Put tensors on the shelf."""
        for name, tensor in state.items():
            data = encode({name: tensor})
            self.shelf.append(len(data).to_bytes(_LENGTH_BYTES, "little"))
            self.shelf.append(data)

    def part(self, start: int, stop: int) -> State:
        """The tensors of some layers, as nobody else holds them."""
        found: State = {}
        place = 0
        while place < self.shelf.size:
            first = place + _LENGTH_BYTES
            place = first + int.from_bytes(self.shelf.read(place, first).numpy().tobytes(), "little")
            one = decode(self.shelf.read(first, place).numpy().tobytes())
            found.update({name: tensor for name, tensor in one.items() if start <= layer_of(name) < stop})
        return found


@dataclass
class Copies:
    """All that is kept."""

    kept: list[Copy] = field(default_factory=list[Copy])

    def holdings(self) -> tuple[Holding, ...]:
        """What is kept, in words."""
        return tuple(Holding(start=copy.start, stop=copy.stop, round=copy.round) for copy in self.kept)

    def drop(self, *, before: int = 0, after: int | None = None) -> None:
        """Drop the copies of rounds before one, and of those after another."""
        kept: list[Copy] = []
        for copy in self.kept:
            if copy.round >= before and (after is None or copy.round <= after):
                kept.append(copy)
            else:
                copy.shelf.close()
        self.kept = kept

    def clear(self) -> None:
        """Drop all."""
        self.drop(after=-1)

    def part(self, round_: int, start: int, stop: int) -> State:
        """The tensors of layers after a round, from all copies together."""
        found: State = {}
        for copy in self.kept:
            if copy.round == round_:
                found.update(copy.part(start, stop))
        return found
