"""What is trained and its optimizer's state by name, gathered on one rank, spread to all, in one file per epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from greentrain.errors import UsageError
from greentrain.files import write_bytes
from greentrain.plan import Plan
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import RunGroup

__all__ = [
    "epoch_file",
    "epochs_done",
    "gather_state",
    "load_state",
    "read_state",
    "spread_bytes",
    "state_of",
    "write_state",
]

_CHUNK_BYTES = 1 << 18


def epoch_file(run_dir: Path, epochs: int) -> Path:
    """Where the state after so many epochs lies."""
    return run_dir / f"epoch-{epochs}.safetensors"


def epochs_done(run_dir: Path) -> int:
    """Epochs whose state is there and whole; each file is written at once, so that what is there is whole."""
    found = [re.fullmatch(r"epoch-(\d+)\.safetensors", file.name) for file in run_dir.glob("epoch-*.safetensors")]
    return max((int(match[1]) for match in found if match), default=0)


def state_of(executor: Executor, start: int) -> dict[str, Tensor]:
    """Parameters that are trained, buffers, and ``<parameter>#<what the optimizer keeps of it>``.

    Args:
        executor: Of this device's stage.
        start: The stage's first block; names begin with the block's number.
    """
    found: dict[str, Tensor] = {}
    for index, block in enumerate(executor.blocks, start=start):
        for name, parameter in block.named_parameters():
            if not parameter.requires_grad:
                continue
            key = f"{index}.{name}"
            found[key] = parameter.detach().contiguous()
            for what, value in executor.optimizer.state.get(parameter, {}).items():
                found[f"{key}#{what}"] = torch.as_tensor(value).detach().contiguous()
        for name, buffer in block.named_buffers():
            # Those of the backbone come with it.
            if name.startswith("side."):
                found[f"{index}.{name}"] = buffer.detach().contiguous()
    return found


def load_state(executor: Executor, start: int, state: Mapping[str, Tensor]) -> None:
    """Put a state into a stage: everything that is trained in it must be there.

    Raises:
        UsageError: The state is of another model.
    """
    for index, block in enumerate(executor.blocks, start=start):
        tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        for name, tensor in tensors.items():
            key = f"{index}.{name}"
            if key not in state:
                if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                    raise UsageError(f"the saved state has no {key}.", hint="It is of another model: start a new run.")
                continue
            with torch.no_grad():
                tensor.copy_(state[key])
            kept = _kept(state, key)
            if kept:
                executor.optimizer.state[tensor] = kept


def _kept(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    prefix = f"{key}#"
    return {name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix)}


def gather_state(plan: Plan, executor: Executor, group: RunGroup) -> dict[str, Tensor]:
    """Bring one copy of every stage's state to rank 0; call on all ranks, the others get nothing."""
    from safetensors.torch import load, save

    stage = next(stage for stage in plan.stages if executor.device in stage.devices)
    own = state_of(executor, stage.start) if stage.devices[0] == executor.device else {}
    found: dict[str, Tensor] = {}
    for data in group.gather_bytes(save(own) if own else b""):
        if data:
            found.update(load(data))
    return found


def write_state(path: Path, state: dict[str, Tensor]) -> None:
    """Write a state so that it is there whole or not at all."""
    from safetensors.torch import save

    write_bytes(path, save(state))


def read_state(path: Path) -> bytes:
    """Bytes of a state.

    Raises:
        UsageError: It is not there.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.", hint="Start the run anew under another --run NAME.")
    return path.read_bytes()


def spread_bytes(group: RunGroup, data: bytes) -> bytes:
    """Send bytes from rank 0 to all. Call on all ranks; what others than rank 0 give is not looked at."""
    with group.talking():
        length = torch.tensor([len(data)], dtype=torch.int64)
        dist.broadcast(length, src=0)
        buffer = torch.empty(int(length.item()), dtype=torch.uint8)
        if group.rank == 0 and data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        for start in range(0, len(buffer), _CHUNK_BYTES):
            dist.broadcast(buffer[start : start + _CHUNK_BYTES], src=0)
    return buffer.numpy().tobytes()
