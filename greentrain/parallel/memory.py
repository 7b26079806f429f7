"""Peak training memory of a device, and what fits it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from greentrain.device import Device
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.plan import Stage
from greentrain.profile import LayerProfile
from greentrain.sharing import is_split, kept_whole_bytes

__all__ = ["PASS_STASH", "memory_bytes", "most_rows", "part_bytes", "row_bytes", "weight_part"]

# What a pass takes beyond the stash, in stashes of a micro-batch: measured over 12 families of workloads as the peak
# of the process (glibc's allocator) less weights, gradients, optimizer state and stash.
PASS_STASH = 0.7


def weight_part(stage: Stage, position: int) -> float:
    """The part of the weights of a stage's split layers that a device holds: its heads and columns, or all."""
    split = stage.sharing in ("tensor_sequence", "tensor")
    return stage.shares[position] / sum(stage.shares) if split else 1.0


def memory_bytes(stage: Stage, position: int, problem: Problem, micro_batch: int) -> int:
    """Peak training memory of one device of a stage: ``MOD + OPT + K·ACT``, what a pass needs, and message buffers.

    MOD is weights and accumulated gradients, OPT the optimizer's state (Asteroid, arXiv 2408.08015). Gradients are
    summed where they lie. Beyond the stash of the K micro-batches in flight a pass needs gradients of activations,
    and the allocator keeps part of what was freed: together a part of one micro-batch's stash, as measured. Where
    work is shared inside a sample, heads and columns split the weights and the stash of split layers, tokens the
    stash, but for what is gathered for the backward pass; replicated layers are whole on each device. A ring needs
    two whole tensors. Where layers are computed again (Chen et al., arXiv 1604.06174), ACT is their inputs, and once
    the most that a layer keeps.
    """
    rows = stage.work_rows(position, micro_batch)
    entering = problem.model.layers[stage.start - 1] if stage.start > 0 else None
    entering_bytes = entering.activation_bytes if entering else problem.model.input_bytes
    layers = problem.model.layers[stage.start : stage.stop]
    if stage.sharing == "samples":
        fixed, per_row = _memory_terms(layers, stage.in_flight, problem, entering_bytes)
        return ceil(fixed + per_row * rows + 2 * (entering_bytes + stage.output_bytes) * rows)
    return ceil(part_bytes(stage, rows, weight_part(stage, position), problem, micro_batch))


def part_bytes(stage: Stage, rows: float, part: float, problem: Problem, micro_batch: int) -> float:
    """Peak training memory for a part of a stage whose group shares work inside a sample; not in whole bytes.

    Rows and weights may be arrays of one shape, one entry per candidate.

    Args:
        stage: The stage; its shares are not looked at.
        rows: Work of the part in split layers, as rows of a micro-batch.
        part: Part of the weights of split layers.
        problem: Gives the layers.
        micro_batch: Rows of a micro-batch.
    """
    entering = problem.model.layers[stage.start - 1] if stage.start > 0 else None
    entering_bytes = entering.activation_bytes if entering else problem.model.input_bytes
    layers = problem.model.layers[stage.start : stage.stop]
    split = [layer for layer in layers if is_split(stage.sharing, layer)]
    split_fixed, split_row = _memory_terms(split, stage.in_flight, problem, entering_bytes)
    whole_fixed, whole_row = _memory_terms(
        [layer for layer in layers if not is_split(stage.sharing, layer)], stage.in_flight, problem, entering_bytes
    )
    kept = stage.in_flight * sum(kept_whole_bytes(stage.sharing, layer) for layer in split)
    side_bytes = entering_bytes - entering.hidden_bytes if entering else 0
    takes_whole = stage.whole_start or stage.sharing == "tensor"
    moving = split_row * rows + kept * (micro_batch - rows) + whole_row * micro_batch
    moving += 2 * (entering_bytes - side_bytes) * (micro_batch if takes_whole else rows)
    moving += 2 * (stage.output_bytes - stage.side_bytes) * rows + 2 * (side_bytes + stage.side_bytes) * micro_batch
    moving += 2 * micro_batch * max((ring.bytes for ring in stage.rings), default=0)
    return split_fixed * part + whole_fixed + moving


def most_rows(device: Device, start: int, stop: int, in_flight: int, problem: Problem) -> int:
    """Most rows of a micro-batch that fit a device's memory; 0 when not even the weights do.

    Args:
        device: Gives the memory.
        start: First layer.
        stop: One past the last layer.
        in_flight: Micro-batches that the stage holds.
        problem: Gives the layers.
    """
    fixed, per_row = row_bytes(start, stop, in_flight, problem)
    return max((device.memory_bytes - fixed) // per_row, 0)


def row_bytes(start: int, stop: int, in_flight: int, problem: Problem) -> tuple[int, int]:
    """What a stage that shares samples needs: bytes whatever the rows, and bytes per row.

    Arguments as in :func:`most_rows`.
    """
    model = problem.model
    entering = model.layers[start - 1].activation_bytes if start > 0 else model.input_bytes
    fixed, per_row = _memory_terms(model.layers[start:stop], in_flight, problem, entering)
    leaving = model.layers[stop - 1].activation_bytes if stop < len(model.layers) else 0
    # A byte at least, for layers that neither keep nor hand on anything.
    return fixed, max(per_row + 2 * (entering + leaving), 1)


def _memory_terms(
    layers: Sequence[LayerProfile], in_flight: int, problem: Problem, entering_bytes: int
) -> tuple[int, int]:
    """Bytes of weights, gradients and optimizer state; bytes per row of what is kept for the backward pass."""
    trainable = sum(layer.param_bytes for layer in layers)
    frozen = sum(layer.frozen_bytes for layer in layers)
    fixed = trainable * (2 + OPTIMIZER_STATES[problem.optimizer]) + frozen
    if not problem.recompute:
        stash = sum(layer.stash_bytes for layer in layers)
        return fixed, in_flight * stash + ceil(PASS_STASH * stash)
    # Each layer that has a backward pass keeps its input; one at a time is computed again.
    inputs = (entering_bytes, *(layer.activation_bytes for layer in layers[:-1]))
    kept = sum(size for size, layer in zip(inputs, layers, strict=True) if layer.stash_bytes > 0)
    again = max((layer.stash_bytes for layer in layers), default=0)
    return fixed, in_flight * kept + again + ceil(PASS_STASH * again)
