"""Verifies that every way to share work gives the gradients of the unsplit model.

Real processes on this machine compute one round of the study's workloads under each plan over gloo, with fresh weights;
all their gradients are put together and compared with those of one process. Run as a program it is one of them:
``python -m greentrain_harness.study.gradients DEVICE FOLDER``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from greentrain.actions import lower
from greentrain.cost import CostTables
from greentrain.errors import RunError
from greentrain.files import read_json, write_json
from greentrain.objective import Parallelism, Problem
from greentrain.parallel.data import equal_shares
from greentrain.plan import Plan
from greentrain.planners.candidate import Part, assemble
from greentrain.profile import ModelProfile
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Hello, join
from greentrain.runtime.network import free_port
from greentrain.runtime.split_layer import named_parts, stage_blocks
from greentrain.runtime.split_weights import gather_named
from greentrain.sharing import slices
from greentrain.study import WAYS, GradientRow, StudyCase
from greentrain.workloads import load_workload
from greentrain.workloads.workload import Tensors, block_outputs, run_blocks
from greentrain_harness.study.boards import problem_of
from greentrain_harness.study.plans import chosen, stages_text, why_not

__all__ = ["main", "verified"]

_DEVICES_N = 3
_BATCH, _MICRO_BATCH = 8, 4
_BOARDS, _BANDWIDTH_MBIT_PER_S = "mixed", 1000.0
_SEED = 0
_SCHEMA = "greentrain.study-gradients/1"
_PATIENCE_S = 240.0
# Some gradients are 0 but for rounding, such as those of the biases of keys: below this part of the model's largest
# element a tensor's own size is no measure.
_FLOOR = 1e-3


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    """One plan to verify, and where its processes meet."""

    way: Parallelism
    plan: Plan
    port: int


class _Tasks(msgspec.Struct, frozen=True, kw_only=True):
    tasks: tuple[_Task, ...]


def verified(models: Sequence[ModelProfile]) -> list[GradientRow]:
    """Verify every way that a model allows, on three processes.

    Raises:
        RunError: A process failed.
    """
    tasks = _Tasks(tasks=tuple(task for model in models for task in _tasks(model)))
    names = list(dict.fromkeys(device for task in tasks.tasks for device in task.plan.devices))
    with tempfile.TemporaryDirectory(prefix="greentrain-study-") as text:
        folder = Path(text)
        write_json(folder / "tasks.json", tasks, schema=_SCHEMA)
        _run_processes(names, folder)
        return [_compared(task, folder, number) for number, task in enumerate(tasks.tasks)]


def _tasks(model: ModelProfile) -> Iterator[_Task]:
    case = StudyCase(
        part="simulated", model=model.model, boards=_BOARDS, mode="default", network="switch", devices_n=_DEVICES_N,
        bandwidth_mbit_per_s=_BANDWIDTH_MBIT_PER_S, batch=_BATCH, way="data",
    )  # fmt: skip
    problem = msgspec.structs.replace(problem_of(case, model), micro_batches=(_MICRO_BATCH,))
    for way in WAYS:
        if way != "single" and why_not(model, way, _DEVICES_N) is None:
            plan = _hybrid(problem) if way == "hybrid" else chosen(way, problem, CostTables(problem)).plan
            if plan is not None:
                yield _Task(way=way, plan=plan, port=free_port())


def _hybrid(problem: Problem) -> Plan:
    """Two devices share the first half of the layers, the third has the rest: whatever would be fastest."""
    layers_n = len(problem.model.layers)
    first, second, third = problem.cluster.devices
    point = {device.id: device.points[0].name for device in problem.cluster.devices}
    parts = [
        Part(
            0, layers_n // 2, (first.id, second.id), equal_shares(_MICRO_BATCH, 2), (point[first.id], point[second.id])
        ),
        Part(layers_n // 2, layers_n, (third.id,), (_MICRO_BATCH,), (point[third.id],)),
    ]
    return assemble(problem, "study", _MICRO_BATCH, parts, CostTables(problem))


def _run_processes(devices: Sequence[str], folder: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "greentrain_harness.study.gradients", device, str(folder)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for device in devices
    ]  # fmt: skip
    try:
        for process in running:
            _, errors = process.communicate(timeout=_PATIENCE_S)
            if process.returncode != 0:
                raise RunError(f"the check of the gradients failed: {errors.strip().splitlines()[-1][:200]}")
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the check of the gradients took longer than {_PATIENCE_S:g} s.") from error
    finally:
        for process in running:
            process.kill()
            process.wait()


def _compared(task: _Task, folder: Path, number: int) -> GradientRow:
    plan = task.plan
    workload = load_workload(plan.model)
    blocks = workload.build(_SEED)
    inputs, targets = workload.example(plan.batch)
    whole_loss = workload.loss(run_blocks(blocks, inputs)[0], targets)
    torch.autograd.backward([whole_loss])
    whole = {
        f"{index}.{name}": parameter.grad
        for index, block in enumerate(blocks)
        for name, parameter in block.named_parameters()
        if parameter.grad is not None
    }
    floor = _FLOOR * max(float(gradient.abs().max()) for gradient in whole.values())
    loss, worst, seen = 0.0, 0.0, set[str]()
    for stage in plan.stages:
        shards = [load_file(folder / f"{number}.{device}.safetensors") for device in stage.devices]
        loss += sum(float(shard.pop("loss")) for shard in shards)
        # What all devices of a group hold whole is taken from each of them in turn: it must agree, too.
        for one in shards:
            for key, gradient in gather_named([*shards, one]).items():
                seen.add(key)
                scale = max(float(whole[key].abs().max()), floor)
                worst = max(worst, float((gradient - whole[key]).abs().max()) / scale)
    if seen != set(whole):
        raise RunError(f"{plan.model}, {task.way}: gradients of {len(set(whole) - seen)} tensors are missing.")
    return GradientRow(
        model=plan.model, way=task.way, devices_n=len(plan.devices), batch=plan.batch, micro_batch=plan.micro_batch,
        stages=stages_text(plan.stages), tensors_n=len(whole), largest_difference_ratio=worst,
        loss_difference_ratio=loss / float(whole_loss.detach()) - 1,
    )  # fmt: skip


class _OwnRows:
    """A device's rows of the workload's example batch."""

    def __init__(self, plan: Plan, device: str, inputs: Tensors, targets: Tensor) -> None:
        stage = next(stage for stage in plan.stages if device in stage.devices)
        piece = slices(stage.sharing, stage.shares, plan.micro_batch, sends=False)[stage.devices.index(device)]
        self._first, self._last, self._size = piece.first_row, piece.last_row, plan.micro_batch
        self._inputs, self._targets = inputs, targets

    def _slice(self, micro_batch: int) -> slice:
        start = micro_batch * self._size
        return slice(start + self._first, start + self._last)

    def inputs(self, micro_batch: int) -> Tensors:
        """Inputs of a micro-batch."""
        return tuple(tensor[self._slice(micro_batch)] for tensor in self._inputs)

    def targets(self, micro_batch: int) -> Tensor:
        """Targets of a micro-batch."""
        return self._targets[self._slice(micro_batch)]


def _run_task(number: int, task: _Task, device: str, folder: Path) -> None:
    """This device's gradients of one plan, by block and parameter."""
    plan = task.plan
    workload = load_workload(plan.model)
    whole = workload.build(_SEED)
    inputs, targets = workload.example(plan.batch)
    outputs_L = block_outputs(whole, workload.example(1)[0])
    index = next(index for index, stage in enumerate(plan.stages) if device in stage.devices)
    stage = plan.stages[index]
    hello = Hello(
        device=device, plan_sha256="study", structure_sha256=plan.structure_sha256, data="example", torch="",
        board=device,
    )  # fmt: skip
    group = join(
        plan, hello, host="127.0.0.1", port=task.port, join_timeout_s=_PATIENCE_S / 2,
        message_timeout_s=_PATIENCE_S / 2,
    )  # fmt: skip
    try:
        blocks = stage_blocks(plan, device, whole, outputs_L)
        executor = Executor(
            plan=plan, device=device, actions=lower(plan)[device], blocks=blocks, workload=workload,
            incoming=outputs_L[stage.start - 1] if index else (), outgoing=outputs_L[stage.stop - 1], group=group,
        )  # fmt: skip
        loss, _ = executor.run_round(_OwnRows(plan, device, inputs, targets), update=False)
        gradients = {p: p.grad for block in blocks for p in block.parameters() if p.grad is not None}
        found = {
            f"{stage.start + place}.{name}": part.clone()
            for place, block in enumerate(blocks)
            for name, part in named_parts(block, gradients).items()
        }
        found["loss"] = torch.tensor([loss], dtype=torch.float64)
        save_file(found, folder / f"{number}.{device}.safetensors")
    finally:
        group.close()


def main(device: str, folder: Path) -> None:
    """Be one of the processes: all plans in which the device takes part, one after another."""
    torch.set_num_threads(1)
    tasks = read_json(folder / "tasks.json", _Tasks, schema=_SCHEMA).tasks
    for number, task in enumerate(tasks):
        if device in task.plan.devices:
            _run_task(number, task, device, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
