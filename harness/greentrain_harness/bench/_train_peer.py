"""One rank of a plan trained by torch itself: DistributedDataParallel, with its hooks, or 1F1B of its pipelining.

Run as a program on every device of the plan: ``python -m greentrain_harness.bench._train_peer METHOD PLAN DEVICE
HOST:PORT ROUNDS``. It takes the same rows in the same order as greentrain does; rank 0 prints the seconds of every
round as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.files import read_json
from greentrain.plan import PLAN_SCHEMA, Plan, row_ranges
from greentrain.training_data import TrainingData
from greentrain.workloads import load_workload
from greentrain.workloads.workload import Tensors, Workload, run_blocks
from greentrain_datasets.loaders import load_dataset

__all__ = ["POWERSGD_RANK", "main"]

# Columns of the thin matrices; greentrain takes as many.
POWERSGD_RANK = 4

Round = Callable[[np.ndarray], None]


def main(argv: list[str]) -> int:
    """Train the rounds; returns the exit status."""
    method, plan_path, device, coordinator, rounds = argv
    plan = read_json(Path(plan_path), Plan, schema=PLAN_SCHEMA)
    rank = plan.devices.index(device)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"tcp://{coordinator}", rank=rank, world_size=len(plan.devices)
    )  # fmt: skip
    workload = load_workload(plan.model)
    data = load_dataset(workload.dataset)
    one_round = _pipeline(plan, workload, data, rank) if method == "1f1b" else _ddp(method, plan, workload, data, rank)
    seconds: list[float] = []
    dist.barrier()
    order = np.random.default_rng((0, 0)).permutation(len(data.train_targets))
    for number in range(int(rounds)):
        start_s = time.monotonic()
        one_round(np.take(order, range(number * plan.batch, (number + 1) * plan.batch), mode="wrap"))
        seconds.append(time.monotonic() - start_s)
    if rank == 0:
        sys.stdout.write(json.dumps(seconds) + "\n")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _chosen(data: TrainingData, rows: np.ndarray) -> tuple[Tensors, Tensor]:
    return tuple(torch.from_numpy(array[rows]) for array in data.train_inputs), torch.from_numpy(
        data.train_targets[rows]
    )


class _Chain(nn.Module):
    """Blocks one after the other, as one module."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *tensors: Tensor) -> Tensor | Tensors:
        # torch's pipelining sends only what is contiguous.
        outputs = tuple(tensor.contiguous() for tensor in run_blocks(tuple(self.blocks), tensors))
        return outputs[0] if len(outputs) == 1 else outputs


def _ddp(method: str, plan: Plan, workload: Workload, data: TrainingData, rank: int) -> Round:
    """Equal shares: the mean over the ranks is the mean over the batch."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    model = _Chain(workload.build(0))
    parallel = nn.parallel.DistributedDataParallel(model)
    if method == "ddp-fp16":
        parallel.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method == "ddp-powersgd":
        state = powerSGD_hook.PowerSGDState(
            None,
            matrix_approximation_rank=POWERSGD_RANK,
            start_powerSGD_iter=2,
            orthogonalization_epsilon=1e-8,  # pyright: ignore[reportArgumentType] (its type is that of the default)
        )
        parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    optimizer = workload.make_optimizer(model.parameters())
    first, last = row_ranges(plan.stages[0].shares)[rank]

    def one_round(rows: np.ndarray) -> None:
        optimizer.zero_grad(set_to_none=True)
        for micro in range(plan.micro_batches_n):
            start = micro * plan.micro_batch
            inputs, targets = _chosen(data, rows[start + first : start + last])
            is_last = micro == plan.micro_batches_n - 1
            with contextlib.nullcontext() if is_last else parallel.no_sync():
                loss = workload.loss(parallel(*inputs), targets) / plan.micro_batches_n
                loss.backward()
        optimizer.step()

    return one_round


def _pipeline(plan: Plan, workload: Workload, data: TrainingData, rank: int) -> Round:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    stage = plan.stages[rank]
    model = _Chain(workload.build(0)[stage.start : stage.stop])
    placed = PipelineStage(model, rank, len(plan.stages), torch.device("cpu"))
    schedule = Schedule1F1B(placed, n_microbatches=plan.micro_batches_n, loss_fn=workload.loss)
    optimizer = workload.make_optimizer(model.parameters())

    def one_round(rows: np.ndarray) -> None:
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = _chosen(data, rows)
        first = inputs if rank == 0 else ()
        schedule.step(*first, target=targets if rank == len(plan.stages) - 1 else None)
        optimizer.step()

    return one_round


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
