"""What a run may be told beside its plan, on small splits, and a process that trains one device's part of each.

Run as a program: ``python option_cases.py DEVICE PORT FOLDER``; each case's weights go to FOLDER.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from split_cases import SliceRows, make_plan, toy

from greentrain.actions import lower
from greentrain.plan import Plan
from greentrain.runtime import gradient_sum
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Hello, join
from greentrain.runtime.options import TrainingOptions
from greentrain.workloads.workload import TensorSpec, Workload, learning_rate_at

ROUNDS_N = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A split of ``split_cases`` and how it is trained.

    Attributes:
        split: Name of the split.
        clip_norm: As in a workload.
        optimizer: As in a workload.
        recompute: As in a plan.
        options: Of the run.
        kind: Type of the weights.
    """

    split: str
    clip_norm: float | None = None
    optimizer: str = "adam"
    recompute: bool = False
    options: TrainingOptions = field(default_factory=TrainingOptions)
    kind: str = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return getattr(torch, self.kind)

    def plan(self) -> tuple[Plan, list[tuple[TensorSpec, ...]]]:
        """The plan and what leaves each block."""
        plan, outputs_L = make_plan(self.split, self.workload())
        return msgspec.structs.replace(plan, recompute=self.recompute), outputs_L

    def workload(self) -> Workload:
        """The toy, told so; its step size falls along a line."""
        return dataclasses.replace(
            toy(self.dtype), clip_norm=self.clip_norm, optimizer=self.optimizer, schedule="linear"
        )


CASES = {
    "clip-single": Case(split="single", clip_norm=0.1),
    "clip-data": Case(split="data-uneven", clip_norm=0.1, optimizer="momentum"),
    "clip-pipeline": Case(split="pipeline-4", clip_norm=0.1),
    "clip-hybrid": Case(split="group-to-group", clip_norm=0.1, optimizer="sgd"),
    "long-clip": Case(split="group-middle", clip_norm=1e3),
    "recompute-data": Case(split="data-accumulated", recompute=True),
    "recompute-hybrid": Case(split="group-then-one", recompute=True),
    "fp16-sum": Case(split="group-to-group", options=TrainingOptions(compression="fp16"), optimizer="sgd"),
    "powersgd": Case(
        split="data-uneven", optimizer="sgd", options=TrainingOptions(compression="powersgd", compression_rank=1)
    ),
    "bf16": Case(split="group-to-group", options=TrainingOptions(precision="bf16"), kind="float32", optimizer="sgd"),
    "fp16": Case(split="pipeline-4", options=TrainingOptions(precision="fp16"), kind="float32", optimizer="sgd"),
}


def train_case(case: Case, device: str, port: int, where: Path) -> None:
    """Train this device's part of a case and save its weights by block and parameter."""
    from safetensors.torch import save_file

    workload = case.workload()
    plan, outputs_L = case.plan()
    if device not in plan.devices:
        return
    index = next(number for number, stage in enumerate(plan.stages) if device in stage.devices)
    stage = plan.stages[index]
    hello = Hello(
        device=device, plan_sha256="x", structure_sha256=plan.structure_sha256, data="toy", torch="", board=device
    )
    group = join(plan, hello, host="127.0.0.1", port=port, join_timeout_s=30, message_timeout_s=20)
    try:
        executor = Executor(
            plan=plan, device=device, actions=lower(plan)[device],
            blocks=workload.build(0)[stage.start : stage.stop], workload=workload,
            incoming=outputs_L[stage.start - 1] if index else (), outgoing=outputs_L[stage.stop - 1], group=group,
            options=case.options,
        )  # fmt: skip
        rows = SliceRows(plan, device, case.dtype)
        moved_n = 0
        for step in range(ROUNDS_N):
            _, timed = executor.run_round(rows, learning_rate=learning_rate_at(workload, step, ROUNDS_N), seed=step)
            moved_n += sum(entry.action.bytes for entry in timed if entry.action.kind == "AR")
        found = {
            f"{stage.start + number}.{key}": parameter.detach()
            for number, block in enumerate(executor.blocks)
            for key, parameter in block.named_parameters()
        }
        save_file({**found, "sum_bytes": torch.tensor([moved_n])}, where)
    finally:
        group.close()


if __name__ == "__main__":
    own, first_port, folder = sys.argv[1:]
    torch.set_num_threads(1)
    gradient_sum.BUCKET_BYTES = 256  # So that even the toy has several buckets.
    for number, (name, chosen) in enumerate(CASES.items()):
        train_case(chosen, own, int(first_port) + number, Path(folder) / f"{name}.{own}.safetensors")
