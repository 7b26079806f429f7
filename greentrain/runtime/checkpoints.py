"""Checkpoints: each stage's first device writes the tensors of its layers; any plan of the same model reads them.

``checkpoints/round-N/layers-A-B.safetensors`` holds weights and optimizer state by layer, ``layers-A-B.json``
beside it what they belong to. Where a group shares work inside a sample each of its G devices writes its parts of the
tensors, ``layers-A-B-part-P-of-G``. The last two rounds are kept.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from greentrain.errors import GreentrainError, UsageError
from greentrain.files import read_json, write_bytes, write_json
from greentrain.runtime.split_weights import gather_named
from greentrain.runtime.states import State, clone, encode, layer_of

__all__ = ["CHECKPOINT_SCHEMA", "CheckpointPart", "Checkpoints", "Resumed", "load_layers", "open_checkpoint"]

CHECKPOINT_SCHEMA = "greentrain.checkpoint/1"
_KEPT_N = 2
_ROUND = re.compile(r"round-(\d+)")


class CheckpointPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file of tensors belongs to.

    Attributes:
        model: Name of the workload.
        structure_sha256: Hash of its blocks.
        round: Rounds done.
        batch: Samples per round.
        seed: Weights and order of the samples.
        start: First layer.
        stop: One past the last.
        part: Which part of the tensors, from 0.
        parts_n: How many parts there are.
    """

    model: str
    structure_sha256: str
    round: int
    batch: int
    seed: int
    start: int
    stop: int
    part: int = 0
    parts_n: int = 1

    @property
    def name(self) -> str:
        """Name of its files, without their ending."""
        part = f"-part-{self.part}-of-{self.parts_n}" if self.parts_n > 1 else ""
        return f"layers-{self.start}-{self.stop}{part}"


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to go on from.

    Attributes:
        folder: Its folder.
        round: Rounds done.
        parts: What its files hold.
    """

    folder: Path
    round: int
    parts: tuple[CheckpointPart, ...]


class Checkpoints:
    """Writes checkpoints while training goes on.

    Args:
        folder: The run's folder.
        say: Told when one cannot be written; training goes on.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder / "checkpoints"
        self._say = say
        self._thread: threading.Thread | None = None

    def write(self, part: CheckpointPart, state: State) -> None:
        """Write a part; the tensors are copied first, the disk is not waited for."""
        self.close()
        self._thread = threading.Thread(target=self._write, args=(part, clone(state)), name="checkpoint")
        self._thread.start()

    def close(self) -> None:
        """Wait for the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, part: CheckpointPart, state: Mapping[str, Tensor]) -> None:
        place = self._folder / f"round-{part.round}" / part.name
        try:
            write_bytes(place.with_suffix(".safetensors"), encode(state))
            write_json(place.with_suffix(".json"), part, schema=CHECKPOINT_SCHEMA)
        except GreentrainError as error:
            self._say(f"No checkpoint of round {part.round}: {error.message}")
            return
        for old in sorted(_rounds(self._folder))[:-_KEPT_N]:
            self._remove(self._folder / f"round-{old}", place.name)

    def _remove(self, folder: Path, name: str) -> None:
        """Remove this device's part of an old one, and the folder after the last part."""
        with contextlib.suppress(OSError):
            for path in (folder / f"{name}.json", folder / f"{name}.safetensors"):
                path.unlink(missing_ok=True)
            folder.rmdir()


def _rounds(folder: Path) -> list[int]:
    names = (_ROUND.fullmatch(path.name) for path in folder.glob("round-*"))
    return [int(match[1]) for match in names if match]


def open_checkpoint(path: Path, *, structure_sha256: str, batch: int, seed: int, layers_n: int) -> Resumed:
    """The last whole checkpoint of a run, or the one of a folder.

    Args:
        path: ``runs/NAME``, or one of the folders in its ``checkpoints``.
        structure_sha256: Of the model that is to go on.
        batch: Its samples per round.
        seed: Its seed.
        layers_n: Its layers.

    Raises:
        UsageError: There is none, it is of another model, or layers are missing.
    """
    if _ROUND.fullmatch(path.name):
        folders = [path]
    else:
        base = path / "checkpoints"
        folders = [base / f"round-{number}" for number in sorted(_rounds(base), reverse=True)]
    missing: dict[str, list[int]] = {}
    for folder in folders:
        found = [read_json(file, CheckpointPart, schema=CHECKPOINT_SCHEMA) for file in sorted(folder.glob("*.json"))]
        held = _held(found)
        if found and held >= set(range(layers_n)):
            for part in found:
                _check(folder, part, structure_sha256, batch, seed)
            return Resumed(folder=folder, round=found[0].round, parts=tuple(found))
        missing[folder.name] = sorted(set(range(layers_n)) - held)
    if not missing:
        raise UsageError(f"{path}: holds no checkpoint.", hint="Give the folder of a run, such as runs/NAME.")
    name, layers = next(iter(missing.items()))
    raise UsageError(
        f"{path}: the checkpoint {name} lacks layers {', '.join(map(str, layers))}.",
        hint="Copy the checkpoints of all devices of that run into one folder, on every device.",
    )


def _held(parts: Sequence[CheckpointPart]) -> set[int]:
    """Layers of which all parts are there."""
    places: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
    for part in parts:
        places[part.start, part.stop, part.parts_n].add(part.part)
    whole = [(start, stop) for (start, stop, parts_n), there in places.items() if len(there) == parts_n]
    return {layer for start, stop in whole for layer in range(start, stop)}


def _check(folder: Path, part: CheckpointPart, structure_sha256: str, batch: int, seed: int) -> None:
    for what, seen, wanted in (
        ("a model with structure", part.structure_sha256[:12], structure_sha256[:12]),
        ("a batch of", part.batch, batch),
        ("seed", part.seed, seed),
    ):
        if seen != wanted:
            raise UsageError(
                f"{folder}: is of {what} {seen}, this run has {wanted}.",
                hint="Go on with a plan for the same model and batch, and with the same --seed.",
            )


def load_layers(resumed: Resumed, start: int, stop: int) -> State:
    """The whole tensors of layers [start, stop)."""
    from safetensors import safe_open

    shards: list[State] = []
    for part in resumed.parts:
        if part.stop <= start or part.start >= stop:
            continue
        with safe_open(resumed.folder / f"{part.name}.safetensors", framework="pt") as file:
            names = [name for name in file.keys() if start <= layer_of(name) < stop]  # noqa: SIM118 - not a mapping.
            shards.append({name: file.get_tensor(name) for name in names})
    return gather_named(shards)
