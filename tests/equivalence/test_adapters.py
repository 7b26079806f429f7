"""Side networks: a whole-width side layer is the backbone's layer; cached and uncached training are the same."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from torch import Tensor, nn
from torch.nn import functional

from greentrain.workloads.adapters.backbone import Backbone, backbone_of
from greentrain.workloads.adapters.pairs import PairBlock, StartsDecoder, cached_entries, pair_blocks, side_blocks
from greentrain.workloads.adapters.settings import SideSettings
from greentrain.workloads.adapters.side_layer import SideLayer
from greentrain.workloads.families import from_transformers
from greentrain.workloads.parts import Splittable
from greentrain.workloads.workload import Tensors, block_outputs, run_blocks

FAMILIES = ("bert", "gpt2", "opt", "opt-350m", "llama", "t5", "t5-gated", "bart")
CLASSES_N = 3


def backbone_for(name: str) -> tuple[Backbone, Tensors]:
    """A tiny backbone with lively weights that classifies, and inputs of unequal length."""
    case = tiny(name)
    blocks = from_transformers(case.config)
    torch.manual_seed(0)
    for block in blocks:
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
    ids = case.inputs[0]
    mask = torch.ones(ids.shape, dtype=torch.uint8)
    mask[1, 4:] = 0
    mask[3, 1:] = 0
    if name.startswith(("t5", "bart")):
        blocks[0] = StartsDecoder(blocks[0], 0)
    return backbone_of(blocks), (ids, mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_side_layer_of_whole_width_is_the_backbones_layer(name: str) -> None:
    """Heads, rotary places, relative places, masks, gates of feed-forward networks: all as in the original."""
    backbone, inputs = backbone_for(name)
    whole = SideSettings(reduction=1)
    tensors = inputs[: backbone.inputs_n]
    for block in backbone.blocks[:-1]:
        entering, tensors = tensors, run_blocks((block,), tensors)
        if not isinstance(block, Splittable):
            continue
        parts = block.parts()
        side = SideLayer(block, parts, torch.arange(entering[0].shape[2]), whole)
        nn.init.constant_(side.alpha, -100.0)  # The gate takes only what comes from the backbone.
        states = None if parts.cross is None else entering[1]
        found = side(torch.zeros_like(entering[0]), entering[0], inputs[1], states)
        seen = inputs[1].bool() if parts.cross is None else torch.ones(found.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(found[seen], tensors[0][seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("settings", [SideSettings(reduction=2), SideSettings(reduction=4, dropped_ratio=0.5)])
def test_cached_training_equals_uncached_training(name: str, settings: SideSettings) -> None:
    backbone, inputs = backbone_for(name)
    pairs = pair_blocks(backbone, settings, seed=1, classes_n=CLASSES_N)
    _lively_side(pairs)
    entries = cached_entries(pairs)
    kept: dict[int, Tensor] = {}
    for pair in pairs[:-1]:
        assert isinstance(pair, PairBlock)
        pair.sink = kept.__setitem__
    targets = torch.arange(len(inputs[0])) % CLASSES_N
    uncached = functional.cross_entropy(run_blocks(pairs, inputs)[0], targets)
    uncached.backward()
    expected = _gradients(pairs)
    assert expected
    for pair in pairs:
        pair.zero_grad(set_to_none=True)
    # What is padding is not cached.
    mask = inputs[1].unsqueeze(2)
    cached = tuple(kept[entry.block] * (1 if entry.decoder else mask) for entry in entries)
    loss = functional.cross_entropy(run_blocks(side_blocks(pairs), (*cached, inputs[1]))[0], targets)
    loss.backward()
    found = _gradients(side_blocks(pairs))
    assert abs(loss.item() - uncached.item()) <= 1e-5
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_has_no_node_of_the_backbone(name: str) -> None:
    backbone, inputs = backbone_for(name)
    pairs = pair_blocks(backbone, SideSettings(reduction=2), seed=1, classes_n=CLASSES_N)
    frozen = {id(parameter) for pair in pairs for parameter in pair.parameters() if not parameter.requires_grad}
    assert len(frozen) > 10
    kept: dict[int, Tensor] = {}
    for pair in pairs[:-1]:
        assert isinstance(pair, PairBlock)
        pair.sink = kept.__setitem__
    nodes, leaves = _graph(run_blocks(pairs, inputs)[0].sum())
    assert not any(output.requires_grad or output.grad_fn for output in kept.values())
    trainable = {id(parameter) for pair in pairs for parameter in pair.parameters() if parameter.requires_grad}
    assert leaves <= trainable
    assert not leaves & frozen
    # As many as of the side network without any backbone.
    cached = (kept[entry.block] for entry in cached_entries(pairs))
    assert nodes == _graph(run_blocks(side_blocks(pairs), (*cached, inputs[1]))[0].sum())[0]


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_messages_are_two_tensors_forward_and_the_side_state_backward(name: str) -> None:
    backbone, inputs = backbone_for(name)
    pairs = pair_blocks(backbone, SideSettings(reduction=2), seed=1, classes_n=CLASSES_N)
    for pair, outputs in zip(pairs[:-1], block_outputs(pairs, inputs), strict=False):
        assert isinstance(pair, PairBlock)
        wanted = [spec for spec in outputs if spec.needs_gradient]
        assert not outputs[0].needs_gradient
        side_n = 2 if backbone.has_decoder and pair.index >= backbone.roles.index("bridge") else 1
        assert len(wanted) == side_n
        assert all(spec.shape[-1] == outputs[0].shape[-1] // 2 for spec in wanted)


def _graph(score: Tensor) -> tuple[int, set[int]]:
    """Nodes of the autograd graph, and the parameters at its leaves."""
    assert score.grad_fn is not None
    seen: set[object] = set()
    leaves: set[int] = set()
    todo: list[object] = [score.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))  # pyright: ignore[reportAttributeAccessIssue]
        todo += [following for following, _ in node.next_functions]  # pyright: ignore[reportAttributeAccessIssue]
    return len(seen), leaves


def _lively_side(pairs: list[nn.Module]) -> None:
    torch.manual_seed(2)
    for pair in pairs:
        for parameter in pair.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)


def _gradients(blocks: list[nn.Module]) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": parameter.grad.clone()
        for index, block in enumerate(blocks)
        for name, parameter in block.named_parameters()
        if parameter.grad is not None
    }
