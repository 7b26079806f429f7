"""Peak training memory of a device, and what fits it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from greentrain.device import Device
from greentrain.objective import OPTIMIZER_STATES, Problem
from greentrain.plan import Stage
from greentrain.profile import LayerProfile
from greentrain.sharing import is_split, kept_whole_bytes

__all__ = ["PROCESS_BYTES", "memory_bytes", "most_bytes", "most_rows", "part_bytes", "row_bytes", "weight_part"]

# What training takes beyond weights, gradients, optimizer state and stash, with glibc's allocator: code, threads and
# buffers of a worker whatever the stage; what the allocator keeps, in stashes of a micro-batch; gradients of
# activations, in stashes of the layer that keeps most; a gradient before it is added and weights in the order of a
# kernel, in weights of the largest layer. The first is rounded from workers of small models, the others are fitted to
# peaks of processes that ran stages of ten workloads, from single layers to whole models.
PROCESS_BYTES = 10_000_000
_KEPT_STASH = 0.25
_LAYER_STASH = 0.7
_LAYER_WEIGHTS = 1.2


def weight_part(stage: Stage, position: int) -> float:
    """The part of the weights of a stage's split layers that a device holds: its heads and columns, or all."""
    split = stage.sharing in ("tensor_sequence", "tensor")
    return stage.shares[position] / sum(stage.shares) if split else 1.0


def memory_bytes(stage: Stage, position: int, problem: Problem, micro_batch: int) -> int:
    """Peak training memory of one device of a stage: ``MOD + OPT + K·ACT``, what a pass needs, and message buffers.

    MOD is weights and accumulated gradients, OPT the optimizer's state (Asteroid, arXiv 2408.08015). Gradients are
    summed where they lie. Beyond the stash of the K micro-batches in flight a pass needs gradients of activations and
    of weights, layer by layer, and the allocator keeps part of what was freed, as measured. Where work is shared
    inside a sample, heads and columns split the weights and the stash of split layers, tokens the stash, but for what
    is gathered for the backward pass; replicated layers are whole on each device. A ring needs two whole tensors.
    Where layers are computed again (Chen et al., arXiv 1604.06174), ACT is their inputs, and once the most that a
    layer keeps.
    """
    rows = stage.work_rows(position, micro_batch)
    entering = problem.model.layers[stage.start - 1] if stage.start > 0 else None
    entering_bytes = entering.activation_bytes if entering else problem.model.input_bytes
    layers = problem.model.layers[stage.start : stage.stop]
    if stage.sharing == "samples":
        needed = _needs(layers, stage.in_flight, problem, entering_bytes)
        messages = 2 * (entering_bytes + stage.output_bytes)
        return ceil(needed.whole_fixed_bytes + (needed.whole_row_bytes + messages) * rows)
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
    other = [layer for layer in layers if not is_split(stage.sharing, layer)]
    own, whole = (_needs(some, stage.in_flight, problem, entering_bytes) for some in (split, other))
    kept = stage.in_flight * sum(kept_whole_bytes(stage.sharing, layer) for layer in split)
    side_bytes = entering_bytes - entering.hidden_bytes if entering else 0
    takes_whole = stage.whole_start or stage.sharing == "tensor"
    moving = own.row_bytes * rows + kept * (micro_batch - rows) + whole.row_bytes * micro_batch
    moving += np.maximum(own.pass_row_bytes * rows, whole.pass_row_bytes * micro_batch)
    moving += 2 * (entering_bytes - side_bytes) * (micro_batch if takes_whole else rows)
    moving += 2 * (stage.output_bytes - stage.side_bytes) * rows + 2 * (side_bytes + stage.side_bytes) * micro_batch
    moving += 2 * micro_batch * max((ring.bytes for ring in stage.rings), default=0)
    weights = own.fixed_bytes * part + whole.fixed_bytes + np.maximum(own.pass_bytes * part, whole.pass_bytes)
    return PROCESS_BYTES + weights + moving


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
    needed = _needs(model.layers[start:stop], in_flight, problem, entering)
    leaving = model.layers[stop - 1].activation_bytes if stop < len(model.layers) else 0
    # A byte at least, for layers that neither keep nor hand on anything.
    return needed.whole_fixed_bytes, max(needed.whole_row_bytes + 2 * (entering + leaving), 1)


def most_bytes(layer: LayerProfile, entering_bytes: int, in_flight: int, problem: Problem, micro_batch: int) -> float:
    """What a layer adds at most to what a stage needs, but for messages and the process: whole, as if in all passes."""
    weights = layer.param_bytes * (2 + OPTIMIZER_STATES[problem.optimizer] + _LAYER_WEIGHTS) + layer.frozen_bytes
    rows = (in_flight + 1 + _KEPT_STASH + _LAYER_STASH) * layer.stash_bytes + in_flight * entering_bytes
    return weights + rows * micro_batch + 2 * (micro_batch + 1)


class _Needs(NamedTuple):
    """What some layers need together.

    Attributes:
        fixed_bytes: Weights, gradients and optimizer state.
        row_bytes: Kept for the backward pass, and by the allocator, per row.
        pass_bytes: For the gradient of the largest layer's weights.
        pass_row_bytes: For gradients of activations in the layer that keeps most, per row.
    """

    fixed_bytes: int
    row_bytes: int
    pass_bytes: int
    pass_row_bytes: int

    @property
    def whole_fixed_bytes(self) -> int:
        """Of a process that has these layers alone, whatever the rows."""
        return PROCESS_BYTES + self.fixed_bytes + self.pass_bytes

    @property
    def whole_row_bytes(self) -> int:
        """The same per row."""
        return self.row_bytes + self.pass_row_bytes


def _needs(layers: Sequence[LayerProfile], in_flight: int, problem: Problem, entering_bytes: int) -> _Needs:
    trainable = sum(layer.param_bytes for layer in layers)
    frozen = sum(layer.frozen_bytes for layer in layers)
    fixed = trainable * (2 + OPTIMIZER_STATES[problem.optimizer]) + frozen
    passes = ceil(_LAYER_WEIGHTS * max((layer.param_bytes for layer in layers), default=0))
    most = max((layer.stash_bytes for layer in layers), default=0)
    if not problem.recompute:
        stash = sum(layer.stash_bytes for layer in layers)
        return _Needs(fixed, in_flight * stash + ceil(_KEPT_STASH * stash), passes, ceil(_LAYER_STASH * most))
    # Each layer that has a backward pass keeps its input; one at a time is computed again.
    inputs = (entering_bytes, *(layer.activation_bytes for layer in layers[:-1]))
    kept = sum(size for size, layer in zip(inputs, layers, strict=True) if layer.stash_bytes > 0)
    again = most + ceil(_KEPT_STASH * most)
    return _Needs(fixed, in_flight * kept + again, passes, ceil(_LAYER_STASH * most))
