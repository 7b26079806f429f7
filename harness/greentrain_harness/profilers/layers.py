"""Profiles of a model's blocks: what they hold and move (any machine), and how long they take (this one)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from greentrain._checks import require, require_positive
from greentrain.device import Provenance
from greentrain.errors import UsageError
from greentrain.profile import LayerProfile, LayerTimes, ModelProfile
from greentrain.reading import Clock
from greentrain.workloads.workload import (
    Tensors,
    Workload,
    block_names,
    block_outputs,
    run_blocks,
    structure_sha256,
)
from greentrain_harness.environment import host_description, package_versions
from greentrain_harness.profilers.parts import shareable

__all__ = ["DEFAULT_BATCHES", "profile_model", "time_layers"]

DEFAULT_BATCHES = (1, 2, 4, 8, 16, 32, 64)

_SEED = 0
_PROFILE_ROWS = 4
_TRIALS_N = 5
# What a slow device may spend beyond its budget: times of a batch size do not follow from those of others, small
# ones of convolutions take up to twice what lies between their neighbours.
_MOST_SECONDS = 60.0


def profile_model(workload: Workload) -> ModelProfile:
    """What each block holds, moves and computes per sample, without times; the same on every machine.

    The last block's figures include the loss. ``stash_bytes`` counts every storage that a block saves
    for its backward pass once, its input included, and no parameters or buffers; a tensor that two
    neighbouring blocks both save counts in both, since a cut between them makes it two copies.
    """
    blocks = workload.build(_SEED)
    inputs, targets = workload.example(_PROFILE_ROWS)
    names = block_names(blocks)
    outputs_L = block_outputs(blocks, inputs)
    tensors = inputs
    layers: list[LayerProfile] = []
    for index, (block, outputs) in enumerate(zip(blocks, outputs_L, strict=True)):
        last = index + 1 == len(blocks)
        stash = _Stash(block)
        with saved_tensors_hooks(stash.pack, _unpack):
            results = run_blocks((block,), tensors)
            if last:
                workload.loss(results[0], targets)
        layers.append(
            LayerProfile(
                name=names[index],
                param_bytes=sum(parameter.nbytes for parameter in block.parameters() if parameter.requires_grad),
                activation_bytes=sum(spec.row_bytes for spec in outputs),
                gradient_bytes=sum(spec.row_bytes for spec in outputs if spec.needs_gradient),
                stash_bytes=-(-stash.size_bytes // _PROFILE_ROWS),
                forward_flop=_forward_flop(block, tensors) / _PROFILE_ROWS,
                frozen_bytes=sum(parameter.nbytes for parameter in block.parameters() if not parameter.requires_grad),
                **shareable(block, outputs)._asdict(),
            )
        )
        tensors = _detached(results)
    return ModelProfile(
        model=workload.name,
        structure_sha256=structure_sha256(blocks, outputs_L),
        layers=tuple(layers),
        input_bytes=sum(tensor.nbytes for tensor in inputs) // _PROFILE_ROWS,
    )


@dataclass
class _Stash:
    """Bytes of the storages that a block saves, each counted once."""

    block: nn.Module
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    kept: list[Tensor] = field(default_factory=list[Tensor])

    def __post_init__(self) -> None:
        own = (*self.block.parameters(), *self.block.buffers())
        self.own = {tensor.untyped_storage().data_ptr() for tensor in own}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            # Held so that no later tensor gets the address of a freed one.
            self.kept.append(tensor.detach())
        return tensor

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def _cpu_attention_flop(
    query: torch.Size, key: torch.Size, value: torch.Size, *_args: object, **_kwargs: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _forward_flop(block: nn.Module, tensors: Tensors) -> int:
    # The counter knows the fused attention of GPUs only.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flop}
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    # Not under no_grad: the counter's module tracker fails on views that are made there.
    with counter:
        run_blocks((block,), tuple(tensor.detach() for tensor in tensors))
    return counter.get_total_flops()


def _detached(outputs: Tensors) -> Tensors:
    """The same values as leaves, as the next stage of a pipeline receives them."""
    return tuple(output.detach().requires_grad_(output.requires_grad) for output in outputs)


def time_layers(
    workload: Workload,
    *,
    kind: str,
    point: str,
    batches: Sequence[int] | None = None,
    provenance_command: str,
    seconds_budget: float = 20.0,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.thread_time,
) -> LayerTimes:
    """Measure forward, backward and update time of every block on this machine as it is now.

    The whole model runs block by block, detached in between as in a pipeline, again and again; of the
    batch sizes and the optimizer step, the one that has had the least time so far goes next. Under a CPU
    quota the scheduler stops a process for tens of milliseconds at a time, so a single short block sees
    either no stop or a far too long one. Therefore the time of a whole pass is its *mean* over all
    passes, by the wall clock, and blocks share it by the CPU time of the calling thread, which stops
    when the process is stopped.

    Args:
        workload: The model, with example batches.
        kind: Device kind under which the times are filed.
        point: Operating point that is set at present.
        batches: Batch sizes; None for 1, 2, 4, … 64 up to the workload's batch.
        provenance_command: The command that a reader can repeat.
        seconds_budget: Time to spend, seconds; up to a minute where a few passes of each batch size need it. Sizes
            are left out (and the note says so) when they would not fit then, those in the middle first.
        wall: Clock of elapsed seconds; replaced in tests.
        cpu: Clock of the calling thread's CPU seconds; replaced in tests.
    """
    require_positive(seconds_budget=seconds_budget)
    wished = tuple(sorted(set(batches or (size for size in DEFAULT_BATCHES if size <= workload.batch))))
    require(all(size >= 1 for size in wished), f"batch sizes {wished} must be at least 1")
    bench = _Bench(workload, wall, cpu)
    most_s = max(seconds_budget, _MOST_SECONDS)
    kept = bench.warm_up(wished, most_s)
    bench.spend(seconds_budget)
    left_out = [size for size in wished if size not in kept]
    note = f"times by monotonic clock; {torch.get_num_threads()} threads"
    if left_out:
        sizes = ", ".join(str(size) for size in left_out)
        note += f"; batch sizes {sizes} left out, they do not fit {most_s:g} s"
    forward_BL = [bench.passes[size].forward_s_L() for size in kept]
    backward_BL = [bench.passes[size].backward_s_L() for size in kept]
    return LayerTimes(
        model=workload.name,
        kind=kind,
        point=point,
        batch_B=kept,
        forward_s_LB=tuple(zip(*forward_BL, strict=True)),
        backward_s_LB=tuple(zip(*backward_BL, strict=True)),
        update_s_L=bench.update_s_L(),
        provenance=Provenance(
            meter="none",
            source="measured",
            command=provenance_command,
            host=host_description(),
            versions=package_versions(),
            trials_n=_TRIALS_N,
            spread_ratio=max(bench.passes[size].spread_ratio() for size in kept),
            note=note,
        ),
    )


@dataclass
class _Passes:
    """Sums over the passes of one batch size (or of the optimizer step)."""

    layers_n: int
    forward_cpu_s_L: list[float] = field(init=False)
    backward_cpu_s_L: list[float] = field(init=False)
    # Elapsed seconds and number of passes per trial.
    wall_s_T: list[float] = field(default_factory=lambda: [0.0] * _TRIALS_N)
    passes_T: list[int] = field(default_factory=lambda: [0] * _TRIALS_N)

    def __post_init__(self) -> None:
        self.forward_cpu_s_L = [0.0] * self.layers_n
        self.backward_cpu_s_L = [0.0] * self.layers_n

    @property
    def mean_s(self) -> float:
        """Mean elapsed seconds of a pass."""
        return sum(self.wall_s_T) / sum(self.passes_T)

    def forward_s_L(self) -> tuple[float, ...]:
        """Each block's part of the mean pass, seconds."""
        return tuple(value * self._scale() for value in self.forward_cpu_s_L)

    def backward_s_L(self) -> tuple[float, ...]:
        """Each block's part of the mean pass, seconds."""
        return tuple(value * self._scale() for value in self.backward_cpu_s_L)

    def _scale(self) -> float:
        return self.mean_s / (sum(self.forward_cpu_s_L) + sum(self.backward_cpu_s_L))

    def spread_ratio(self) -> float:
        """Standard deviation of the trials' means over their mean."""
        means = [wall_s / passes for wall_s, passes in zip(self.wall_s_T, self.passes_T, strict=True) if passes]
        return statistics.stdev(means) / statistics.fmean(means) if len(means) > 1 else 0.0


def _thinned(pass_s: Mapping[int, float], trial_s: float) -> tuple[int, ...]:
    """The batch sizes of which a pass of each fits a trial together.

    The largest comes first, then the smallest, then from large to small: between two sizes times are told well, beyond
    the largest not, as many layers take less time per row the more rows they see.
    """
    smallest, *others = sorted(pass_s)
    kept: list[int] = []
    spent_s = 0.0
    for size in (*others[-1:], smallest, *reversed(others[:-1])):
        if not kept or spent_s + pass_s[size] <= trial_s:
            kept.append(size)
            spent_s += pass_s[size]
    return tuple(sorted(kept))


class _Bench:
    """The model under the clock."""

    def __init__(self, workload: Workload, wall: Clock, cpu: Clock) -> None:
        self._workload = workload
        self._wall = wall
        self._cpu = cpu
        self._blocks = workload.build(_SEED)
        for block in self._blocks:
            block.train()
        parameters = [parameter for block in self._blocks for parameter in block.parameters()]
        if not any(parameter.requires_grad for parameter in parameters):
            raise UsageError(
                f"workload {workload.name!r} has no trainable parameters, expected at least one.",
                hint="Leave requires_grad on for the blocks that are to learn.",
            )
        self._optimizer = workload.make_optimizer(parameters)
        # The step costs the same at a rate of 0, and thousands of steps leave the weights finite.
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._examples: dict[int, tuple[Tensors, Tensor]] = {}
        self.passes: dict[int, _Passes] = {}
        self._updates = _Passes(len(self._blocks))

    def warm_up(self, sizes: Sequence[int], most_s: float) -> tuple[int, ...]:
        """Run the sizes from small to large while a pass of the next fits each trial; keep those that fit together."""
        pass_s: dict[int, float] = {}
        before = 0
        for size in sizes:
            if pass_s and pass_s[before] * size / before * _TRIALS_N > most_s:
                break
            self._examples[size] = self._workload.example(size)
            for _ in range(2):
                start_s = self._wall()
                self._pass(size, _Passes(len(self._blocks)), 0)
                pass_s[size] = self._wall() - start_s
            before = size
        self._optimizer.step()
        kept = _thinned(pass_s, most_s / _TRIALS_N)
        self.passes = {size: _Passes(len(self._blocks)) for size in kept}
        return kept

    def spend(self, seconds_budget: float) -> None:
        """Run passes for the budget, in trials that each contain every size and the optimizer step."""
        for trial in range(_TRIALS_N):
            stop_s = self._wall() + seconds_budget / _TRIALS_N
            todo = {**self.passes, 0: self._updates}
            while todo or self._wall() < stop_s:
                candidates = todo or {**self.passes, 0: self._updates}
                size = min(candidates, key=lambda key: sum(candidates[key].wall_s_T))
                if size == 0:
                    self._update(trial)
                else:
                    self._pass(size, self.passes[size], trial)
                todo.pop(size, None)

    def update_s_L(self) -> tuple[float, ...]:
        """Seconds of the optimizer step, shared out by the number of trainable parameters."""
        counts = [
            sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)
            for block in self._blocks
        ]
        return tuple(self._updates.mean_s * count / sum(counts) for count in counts)

    def _update(self, trial: int) -> None:
        start_s = self._wall()
        self._optimizer.step()
        self._updates.wall_s_T[trial] += self._wall() - start_s
        self._updates.passes_T[trial] += 1

    def _pass(self, size: int, sums: _Passes, trial: int) -> None:
        inputs, targets = self._examples[size]
        start_s = self._wall()
        entries: list[Tensors] = []
        exits: list[Tensors] = []
        tensors = inputs
        last = len(self._blocks) - 1
        for index, block in enumerate(self._blocks):
            cpu_s = self._cpu()
            entries.append(tensors)
            outputs = run_blocks((block,), tensors)
            if index == last:
                outputs = (self._workload.loss(outputs[0], targets),)
            exits.append(outputs)
            tensors = _detached(outputs)
            sums.forward_cpu_s_L[index] += self._cpu() - cpu_s
        gradients: list[Tensor | None] = [torch.ones_like(exits[last][0])]
        for index in range(last, -1, -1):
            cpu_s = self._cpu()
            pairs = [
                (output, gradient)
                for output, gradient in zip(exits[index], gradients, strict=True)
                if output.requires_grad and gradient is not None
            ]
            if not pairs:
                break
            torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
            gradients = [tensor.grad for tensor in entries[index]]
            sums.backward_cpu_s_L[index] += self._cpu() - cpu_s
        sums.wall_s_T[trial] += self._wall() - start_s
        sums.passes_T[trial] += 1
