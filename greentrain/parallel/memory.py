"""Peak training memory of a device, and what fits it."""

from __future__ import annotations

from math import ceil

from greentrain.device import Device
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.plan import Stage

__all__ = ["memory_bytes", "most_rows", "weight_part"]


def weight_part(stage: Stage, position: int) -> float:
    """The part of a stage's weights that a device holds: its heads and columns, or all of them."""
    split = stage.sharing in ("tensor_sequence", "tensor")
    return stage.shares[position] / sum(stage.shares) if split else 1.0


def memory_bytes(stage: Stage, position: int, problem: Problem, micro_batch: int) -> int:
    """Peak training memory of one device of a stage: ``MOD + OPT + K·ACT`` and its message buffers.

    MOD is weights and accumulated gradients, OPT the optimizer's state (Asteroid, arXiv 2408.08015). Once nothing
    is in flight any more, the gradient sum needs a flat copy of the gradients. Heads and columns split the
    weights, tokens the stash; Megatron's ``tensor`` keeps every layer's input whole on each device. A ring needs two
    whole activations.
    """
    layers = problem.model.layers[stage.start : stage.stop]
    rows = stage.work_rows(position, micro_batch)
    fixed, per_row = _memory_terms(stage.start, stage.stop, stage.in_flight, problem)
    entering = problem.model.layers[stage.start - 1].activation_bytes if stage.start > 0 else problem.model.input_bytes
    moving = per_row * rows + 2 * (entering + stage.output_bytes) * rows
    if stage.sharing == "tensor":
        whole = sum(min(layer.activation_bytes, layer.stash_bytes) for layer in layers)
        moving += (stage.in_flight * whole + 2 * entering) * (micro_batch - rows)
    if stage.sharing != "samples":
        moving += 2 * micro_batch * max(layer.activation_bytes for layer in layers)
    return ceil(fixed * weight_part(stage, position) + max(moving, stage.sum_bytes))


def most_rows(device: Device, start: int, stop: int, in_flight: int, problem: Problem, *, group_n: int = 1) -> int:
    """Most rows of a micro-batch that fit a device's memory; 0 when not even the weights do.

    Args:
        device: Gives the memory.
        start: First layer.
        stop: One past the last layer.
        in_flight: Micro-batches that the stage holds.
        problem: Gives the layers.
        group_n: Devices that share the rows; two or more need room for a gradient sum.
    """
    model = problem.model
    fixed, per_row = _memory_terms(start, stop, in_flight, problem)
    entering = model.layers[start - 1].activation_bytes if start > 0 else model.input_bytes
    leaving = model.layers[stop - 1].activation_bytes if stop < len(model.layers) else 0
    free = device.memory_bytes - fixed
    if group_n > 1 and free < sum(layer.param_bytes for layer in model.layers[start:stop]):
        return 0
    # A byte at least, for layers that neither keep nor hand on anything.
    return max(free // max(per_row + 2 * (entering + leaving), 1), 0)


def _memory_terms(start: int, stop: int, in_flight: int, problem: Problem) -> tuple[int, int]:
    layers = problem.model.layers[start:stop]
    trainable = sum(layer.param_bytes for layer in layers)
    frozen = sum(layer.frozen_bytes for layer in layers)
    stash = sum(layer.stash_bytes for layer in layers)
    return trainable * (2 + OPTIMIZER_STATES[problem.optimizer]) + frozen, in_flight * stash
