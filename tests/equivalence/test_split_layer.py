"""A model whose layers are shared out inside the sample has the loss, gradients and bytes of the unsplit one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from families import tiny
from rings import on_ring
from torch import Tensor, nn

from greentrain.profile import LayerProfile
from greentrain.runtime.collectives import Ring
from greentrain.runtime.split_layer import Seat, named_parts, split_blocks, summed_parameters
from greentrain.runtime.split_weights import gather_named
from greentrain.sharing import Sharing, group_sum_bytes, is_split, ring_pass_bytes, shares_total, stage_rings
from greentrain.workloads import load_workload
from greentrain.workloads.families import from_transformers
from greentrain.workloads.workload import Tensors, TensorSpec, block_outputs, run_blocks
from greentrain_harness.profilers.parts import shareable

ROWS_N = 5
LIMIT = 1e-10
TRANSFORMERS = ["bert", "gpt2", "opt", "opt-350m", "llama", "t5", "t5-gated", "bart", "vit"]
SHARINGS: list[Sharing] = ["tensor_sequence", "tensor", "sequence"]


def model(name: str) -> tuple[list[nn.Module], Tensors]:
    """Blocks in float64 and inputs."""
    if name == "digits-vit":
        workload = load_workload(name)
        blocks, inputs = workload.build(3), workload.example(ROWS_N)[0]
    else:
        case = tiny(name)
        blocks, inputs = from_transformers(case.config, seed=4), case.inputs
    doubled = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    return [block.double() for block in blocks], doubled


def profiles(blocks: Sequence[nn.Module], outputs_L: Sequence[tuple[TensorSpec, ...]]) -> tuple[LayerProfile, ...]:
    """What the planner would know of the blocks' bytes."""
    return tuple(
        LayerProfile(
            name=str(index), stash_bytes=0, forward_flop=0.0,
            param_bytes=sum(weight.nbytes for weight in block.parameters() if weight.requires_grad),
            activation_bytes=sum(spec.row_bytes for spec in outputs),
            gradient_bytes=sum(spec.row_bytes for spec in outputs if spec.needs_gradient),
            **shareable(block, outputs)._asdict(),
        )
        for index, (block, outputs) in enumerate(zip(blocks, outputs_L, strict=True))
    )  # fmt: skip


def loss_of(output: Tensor) -> Tensor:
    """Any number that depends on all elements differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return (output.tanh() * weights).sum()


def unsplit(blocks: list[nn.Module], inputs: Tensors) -> tuple[float, dict[str, Tensor]]:
    loss = loss_of(run_blocks(blocks, inputs)[0])
    loss.backward()
    return float(loss.detach()), {
        f"{index}.{name}": parameter.grad
        for index, block in enumerate(blocks)
        for name, parameter in block.named_parameters()
        if parameter.grad is not None
    }


def split_run(
    blocks: list[nn.Module], inputs: Tensors, sharing: Sharing, shares: tuple[int, ...], micro_batches: int = 1
) -> list[tuple[float, dict[str, Tensor], tuple[int, int], tuple[int, int], int]]:
    """Per device: loss, gradients by block, name and region, bytes sent forward and backward, bytes summed."""
    outputs_L = block_outputs(blocks, tuple(tensor[:1] for tensor in inputs))

    def work(ring: Ring) -> tuple[float, dict[str, Tensor], tuple[int, int], tuple[int, int], int]:
        seat = Seat(sharing, shares, ring.position, ring)
        own = split_blocks(copy.deepcopy(blocks), outputs_L, 0, len(blocks), seat)
        losses = [loss_of(run_blocks(own, inputs)[0]) for _ in range(micro_batches)]
        ring.finish()
        forward = ring.sent_bytes, ring.received_bytes
        for loss in losses:
            (loss / micro_batches).backward()
        ring.finish()
        backward = ring.sent_bytes - forward[0], ring.received_bytes - forward[1]
        summed = summed_parameters(own)
        for parameter in summed:
            assert parameter.grad is not None
            rows = parameter.grad.view(-1, 1)
            bounds = [(0, len(rows)), *[(len(rows), len(rows))] * (ring.size - 1)]
            total = ring.all_reduce(lambda first, last, rows=rows: rows[first:last], bounds, like=rows)
            parameter.grad = total.view_as(parameter.grad)
        gradients = {p: p.grad for block in own for p in block.parameters() if p.grad is not None}
        named = {
            f"{index}.{name}": part
            for index, block in enumerate(own)
            for name, part in named_parts(block, gradients).items()
        }
        return float(losses[0].detach()), named, forward, backward, sum(p.nbytes for p in summed)

    return on_ring(len(shares), work)


def assert_same(found: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    """Relative to each gradient; one that is zero but for rounding, to the largest."""
    assert set(found) == set(whole)
    floor = 1e-3 * max(float(gradient.norm()) for gradient in whole.values())
    for name, gradient in whole.items():
        assert found[name].shape == gradient.shape, name
        difference = float((found[name] - gradient).norm())
        assert difference <= LIMIT * max(float(gradient.norm()), floor), (name, difference)


def shares_for(total: int) -> list[tuple[int, ...]]:
    """Two uneven ways to share out units: among two devices and among as many as three."""
    return [(1, total - 1)] + ([(total - 2, 1, 1)] if total > 3 else [(1, 1, 1)] if total == 3 else [])


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["digits-vit", *TRANSFORMERS])
def test_split_equals_unsplit(name: str, sharing: Sharing) -> None:
    blocks, inputs = model(name)
    outputs_L = block_outputs(blocks, tuple(tensor[:1] for tensor in inputs))
    layers = profiles(blocks, outputs_L)
    total = shares_total(sharing, layers, ROWS_N)
    if total == 0:
        pytest.skip(f"{name} has no tokens in common to share out: encoder and decoder have different numbers")
    loss, whole = unsplit(copy.deepcopy(blocks), inputs)
    for shares in shares_for(total):
        found = split_run(blocks, inputs, sharing, shares)
        assert [other[0] for other in found] == pytest.approx([loss] * len(shares), rel=LIMIT)
        for _, named, _, _, _ in found:
            replicated = [str(index) for index, layer in enumerate(layers) if not is_split(sharing, layer)]
            for index in replicated:
                own = {key: part for key, part in named.items() if key.split(".")[0] == index}
                assert_same(own, {key: part for key, part in whole.items() if key.split(".")[0] == index})
        assert_same(gather_named(named for _, named, _, _, _ in found), whole)
        rings = stage_rings(sharing, layers, 0, len(layers))
        for position, (_, _, forward, backward, summed_bytes) in enumerate(found):
            assert forward == ring_pass_bytes(rings, shares, position, ROWS_N, "forward")
            assert backward == ring_pass_bytes(rings, shares, position, ROWS_N, "backward")
            assert summed_bytes == group_sum_bytes(sharing, layers)
