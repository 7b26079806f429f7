"""Mixes of data and pipeline parallelism, and a process that computes one device's gradients of each.

Run as a program: ``python split_cases.py DEVICE HOST PORT FOLDER``; gradients go to FOLDER/<dtype>.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from greentrain.actions import lower
from greentrain.objective import Objective
from greentrain.plan import Plan, Stage, in_flight_limit, row_ranges
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Hello, join
from greentrain.workloads.workload import Tensors, TensorSpec, Workload, block_outputs, build_seeded, structure_sha256

Group = tuple[int, int, dict[str, int]]

# Name -> (batch, micro-batch, stages as (first layer, one past the last, rows by device)).
CASES: dict[str, tuple[int, int, list[Group]]] = {
    "single": (12, 4, [(0, 5, {"d0": 4})]),
    "data-uneven": (12, 12, [(0, 5, {"d0": 7, "d1": 3, "d2": 2})]),
    "data-accumulated": (12, 3, [(0, 5, {"d0": 2, "d1": 1})]),
    "pipeline-2": (12, 3, [(0, 2, {"d0": 3}), (2, 5, {"d1": 3})]),
    "pipeline-4": (12, 2, [(0, 1, {"d0": 2}), (1, 2, {"d1": 2}), (2, 4, {"d2": 2}), (4, 5, {"d3": 2})]),
    "group-then-one": (15, 5, [(0, 3, {"d0": 2, "d1": 3}), (3, 5, {"d2": 5})]),
    "one-then-group": (15, 5, [(0, 1, {"d0": 5}), (1, 5, {"d1": 1, "d2": 4})]),
    "group-to-group": (14, 7, [(0, 2, {"d0": 5, "d1": 2}), (2, 5, {"d2": 3, "d3": 4})]),
    "group-middle": (20, 5, [(0, 1, {"d3": 5}), (1, 3, {"d0": 1, "d1": 4}), (3, 5, {"d2": 5})]),
}

DEVICES = ("d0", "d1", "d2", "d3")
KINDS = ("float32", "float64")


class Embed(nn.Module):
    """Frozen first block; passes a mask along that needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.linear(x)), (x[:, 0] > 0).to(torch.uint8)


class Masked(nn.Module):
    """Uses the mask and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(hidden + torch.tanh(self.linear(hidden)) * mask.to(hidden.dtype)[:, None]), mask


class Head(nn.Module):
    """Classes from the hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.linear(hidden)


def toy(dtype: torch.dtype) -> Workload:
    """Five blocks with two tensors on every cut, the first block frozen."""

    def build(seed: int) -> list[nn.Module]:
        return [block.to(dtype) for block in build_seeded([Embed, Masked, Masked, Masked, Head], seed)]

    def example(rows: int) -> tuple[Tensors, Tensor]:
        return (torch.zeros(rows, 6, dtype=dtype),), torch.zeros(rows, dtype=torch.int64)

    return Workload(
        name="toy", description="toy", dataset="none", build=build, example=example,
        loss=nn.functional.cross_entropy, optimizer="sgd", learning_rate=0.1, batch=12, micro_batches=(4,), epochs=1,
        target_accuracy=0.0,
    )  # fmt: skip


def samples(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and targets, the same in every process."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def make_plan(name: str, workload: Workload) -> tuple[Plan, list[tuple[TensorSpec, ...]]]:
    """The plan of a case and what leaves each block."""
    batch, micro_batch, groups = CASES[name]
    blocks = workload.build(0)
    outputs_L = block_outputs(blocks, workload.example(1)[0])
    stages: list[Stage] = []
    for index, (start, stop, rows) in enumerate(groups):
        leaving = outputs_L[stop - 1] if index + 1 < len(groups) else ()
        stages.append(
            Stage(
                start=start, stop=stop, devices=tuple(rows), sharing="samples", shares=tuple(rows.values()),
                points=("current",) * len(rows), in_flight=in_flight_limit(len(groups), index, batch // micro_batch),
                param_bytes=sum(
                    p.nbytes for block in blocks[start:stop] for p in block.parameters() if p.requires_grad
                ),
                output_bytes=sum(spec.row_bytes for spec in leaving),
                gradient_bytes=sum(spec.row_bytes for spec in leaving if spec.needs_gradient),
            )
        )  # fmt: skip
    plan = Plan(
        model="toy", structure_sha256=structure_sha256(blocks, outputs_L), cluster="toy", planner="hand",
        objective=Objective(), batch=batch, micro_batch=micro_batch, optimizer="sgd", stages=tuple(stages),
    )  # fmt: skip
    return plan, outputs_L


class SliceRows:
    """This device's rows of the case's samples."""

    def __init__(self, plan: Plan, device: str, dtype: torch.dtype) -> None:
        stage = next(stage for stage in plan.stages if device in stage.devices)
        self._rows = row_ranges(stage.shares)[stage.devices.index(device)]
        self._size = plan.micro_batch
        self._inputs, self._targets = samples(plan.batch, dtype)

    def _slice(self, micro_batch: int) -> slice:
        start = micro_batch * self._size
        return slice(start + self._rows[0], start + self._rows[1])

    def inputs(self, micro_batch: int) -> Tensors:
        return (self._inputs[self._slice(micro_batch)],)

    def targets(self, micro_batch: int) -> Tensor:
        return self._targets[self._slice(micro_batch)]


def run_case(name: str, device: str, host: str, port: int, folder: Path, dtype: torch.dtype) -> None:
    """Compute this device's gradients of one case and save them by block and parameter."""
    from safetensors.torch import save_file

    workload = toy(dtype)
    plan, outputs_L = make_plan(name, workload)
    if device not in plan.devices:
        return
    index = next(number for number, stage in enumerate(plan.stages) if device in stage.devices)
    stage = plan.stages[index]
    hello = Hello(
        device=device, plan_sha256="x", structure_sha256=plan.structure_sha256, data="toy", torch="", board=device
    )
    group = join(plan, hello, host=host, port=port, join_timeout_s=30, message_timeout_s=20)
    try:
        executor = Executor(
            plan=plan, device=device, actions=lower(plan)[device],
            blocks=workload.build(0)[stage.start : stage.stop], workload=workload,
            incoming=outputs_L[stage.start - 1] if index else (), outgoing=outputs_L[stage.stop - 1], group=group,
        )  # fmt: skip
        loss, timed = executor.run_round(SliceRows(plan, device, dtype), update=False)
        found = {
            f"{stage.start + number}.{key}": parameter.grad
            for number, block in enumerate(executor.blocks)
            for key, parameter in block.named_parameters()
            if parameter.grad is not None
        }
        moved = sum(entry.action.bytes for entry in timed if entry.action.kind in ("SF", "SB"))
        found["loss"] = torch.tensor([loss, float(moved)], dtype=torch.float64)
        save_file(found, folder / f"{name}.{device}.safetensors")
    finally:
        group.close()


if __name__ == "__main__":
    own, address, first_port, where = sys.argv[1:]
    torch.set_num_threads(1)
    runs = [(kind, case) for kind in KINDS for case in CASES]
    for number, (kind, case) in enumerate(runs):
        run_case(case, own, address, int(first_port) + number, Path(where) / kind, getattr(torch, kind))
