"""Mixes of all ways to share work, and a process that computes one device's gradients of each.

Run as a program: ``python split_cases.py DEVICE HOST PORT FOLDER``; gradients go to FOLDER/<dtype>.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from greentrain.actions import lower
from greentrain.objective import Objective
from greentrain.plan import Plan, Stage, in_flight_limit, stage_bytes
from greentrain.profile import LayerProfile
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Hello, join
from greentrain.runtime.split_layer import SplitLayer, named_parts, stage_blocks
from greentrain.sharing import Sharing, slices
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix
from greentrain.workloads.workload import Tensors, TensorSpec, Workload, block_outputs, build_seeded, structure_sha256
from greentrain_harness.profilers.parts import shareable

Group = tuple[int, int, dict[str, int]]
RingGroup = tuple[int, int, Sharing, dict[str, int]]

# Name -> (batch, micro-batch, stages as (first layer, one past the last, rows by device)).
CASES: dict[str, tuple[int, int, list[Group]]] = {
    "single": (12, 4, [(0, 5, {"d0": 4})]),
    "data-uneven": (12, 12, [(0, 5, {"d0": 7, "d1": 3, "d2": 2})]),
    "data-accumulated": (12, 3, [(0, 5, {"d0": 2, "d1": 1})]),
    "pipeline-2": (12, 3, [(0, 2, {"d0": 3}), (2, 5, {"d1": 3})]),
    "pipeline-4": (12, 2, [(0, 1, {"d0": 2}), (1, 2, {"d1": 2}), (2, 4, {"d2": 2}), (4, 5, {"d3": 2})]),
    "group-then-one": (15, 5, [(0, 3, {"d0": 2, "d1": 3}), (3, 5, {"d2": 5})]),
    "one-then-group": (15, 5, [(0, 1, {"d0": 5}), (1, 5, {"d1": 1, "d2": 4})]),
    "group-to-group": (14, 7, [(0, 2, {"d0": 5, "d1": 2}), (2, 5, {"d2": 3, "d3": 4})]),
    "group-middle": (20, 5, [(0, 1, {"d3": 5}), (1, 3, {"d0": 1, "d1": 4}), (3, 5, {"d2": 5})]),
}

# The same with how each stage shares. Blocks: embedding, two layers, one that is computed whole, two layers, head;
# three heads of keys and values, seven tokens.
RING_CASES: dict[str, tuple[int, int, list[RingGroup]]] = {
    "tensor-sequence": (6, 2, [(0, 7, "tensor_sequence", {"d0": 1, "d1": 2})]),
    "tensor": (6, 3, [(0, 7, "tensor", {"d0": 2, "d1": 1})]),
    "sequence": (4, 2, [(0, 7, "sequence", {"d0": 2, "d1": 4, "d2": 1})]),
    "samples-then-ring": (
        15, 5, [(0, 2, "samples", {"d0": 2, "d1": 3}), (2, 7, "tensor_sequence", {"d2": 2, "d3": 1})]
    ),
    "ring-then-samples": (
        6, 3, [(0, 5, "tensor_sequence", {"d0": 1, "d1": 2}), (5, 7, "samples", {"d2": 1, "d3": 2})]
    ),
    "ring-to-ring": (
        8, 2, [(0, 2, "tensor_sequence", {"d0": 1, "d1": 2}), (2, 7, "tensor_sequence", {"d2": 2, "d3": 1})]
    ),
    "ring-to-other-ring": (
        4, 2, [(0, 3, "tensor_sequence", {"d0": 1, "d1": 2}), (3, 7, "sequence", {"d2": 5, "d3": 2})]
    ),
    "one-ring-one": (
        10, 2,
        [(0, 1, "samples", {"d0": 2}), (1, 4, "tensor", {"d1": 1, "d2": 2}), (4, 7, "samples", {"d3": 2})],
    ),
    "sequence-in-the-middle": (
        6, 2, [(0, 1, "samples", {"d0": 2}), (1, 3, "sequence", {"d1": 4, "d2": 3}), (3, 7, "samples", {"d3": 2})]
    ),
}  # fmt: skip

# Cases that are trained on for so many rounds.
CURVES = ("ring-to-other-ring", "ring-then-samples")
CURVE_ROUNDS_N = 50

DEVICES = ("d0", "d1", "d2", "d3")
KINDS = ("float32", "float64")


class Embed(nn.Module):
    """Frozen first block; passes a mask along that needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.linear(x)), (x[:, 0] > 0).to(torch.uint8)


class Masked(nn.Module):
    """Uses the mask and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(hidden + torch.tanh(self.linear(hidden)) * mask.to(hidden.dtype)[:, None]), mask


class Head(nn.Module):
    """Classes from the hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.linear(hidden)


def toy(dtype: torch.dtype) -> Workload:
    """Five blocks with two tensors on every cut, the first block frozen."""

    def build(seed: int) -> list[nn.Module]:
        return [block.to(dtype) for block in build_seeded([Embed, Masked, Masked, Masked, Head], seed)]

    def example(rows: int) -> tuple[Tensors, Tensor]:
        return (torch.zeros(rows, 6, dtype=dtype),), torch.zeros(rows, dtype=torch.int64)

    return Workload(
        name="toy", description="toy", dataset="none", build=build, example=example,
        loss=nn.functional.cross_entropy, optimizer="sgd", learning_rate=0.1, batch=12, micro_batches=(4,), epochs=1,
        target_accuracy=0.0,
    )  # fmt: skip


class RingEmbed(nn.Module):
    """Numbers (n, 6) → hidden (n, 7, 12), states (n, 5, 12) with a gradient, and their mask (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 7 * 12)
        self.states = nn.Linear(6, 5 * 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = torch.ones(len(x), 5, dtype=torch.uint8)
        seen[:, 3:] = (x[:, :2] > 0).to(torch.uint8)
        return self.hidden(x).unflatten(1, (7, 12)), self.states(x).unflatten(1, (5, 12)), seen


class RingLayer(nn.Module):
    """Six query heads on three heads of keys and values, attention to the states, a gated network of odd width."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(3))
        self.into = nn.Linear(12, 12 + 2 * 6)
        self.out = nn.Linear(12, 12)
        self.ask = nn.Linear(12, 9, bias=False)
        self.tell = nn.Linear(12, 18, bias=False)
        self.told = nn.Linear(9, 12)
        self.gate_and_wide = nn.Linear(12, 2 * 11)
        self.narrow = nn.Linear(11, 12)

    def forward(self, hidden: Tensor, states: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.into(self.norms[0](hidden)).split([12, 6, 6], dim=2)
        hidden = hidden + self.out(attention(query, key, value, 2, causal=True))
        key, value = self.tell(states).chunk(2, dim=2)
        query = self.ask(self.norms[1](hidden))
        hidden = hidden + self.told(attention(query, key, value, 3, seen=seen))
        gate, wide = self.gate_and_wide(self.norms[2](hidden)).chunk(2, dim=2)
        return hidden + self.narrow(torch.tanh(gate) * wide), states, seen

    def parts(self) -> LayerParts:
        """What is what above."""

        def rows(name: str, start: int, stop: int, *, bias: bool = True) -> Matrix:
            return Matrix(weight=f"{name}.weight", bias=f"{name}.bias" if bias else None, start=start, stop=stop)

        return LayerParts(
            attention=AttentionParts(
                norm="norms.0", query=rows("into", 0, 12), key=rows("into", 12, 18), value=rows("into", 18, 24),
                out=rows("out", 0, 12), heads=6, key_value_heads=3, causal=True,
            ),
            cross=AttentionParts(
                norm="norms.1", query=rows("ask", 0, 9, bias=False), key=rows("tell", 0, 9, bias=False),
                value=rows("tell", 9, 18, bias=False), out=rows("told", 0, 12), heads=3, key_value_heads=3,
            ),
            feed_forward=FeedForwardParts(
                norm="norms.2", gate=rows("gate_and_wide", 0, 11), widen=rows("gate_and_wide", 11, 22),
                narrow=rows("narrow", 0, 12), columns=11, activation=torch.tanh,
            ),
            norm_first=True, cross_states=1, cross_mask=2,
        )  # fmt: skip


def attention(
    query: Tensor, key: Tensor, value: Tensor, head: int, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """Attention of heads of a width, with fewer heads of keys and values than of queries."""
    by_head = [tensor.unflatten(2, (-1, head)).transpose(1, 2) for tensor in (query, key, value)]
    group_n = by_head[0].shape[1] // by_head[1].shape[1]
    keys, values = (tensor.repeat_interleave(group_n, dim=1) for tensor in by_head[1:])
    scores = by_head[0] @ keys.transpose(2, 3) / head**0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[2:], dtype=torch.bool).tril(), float("-inf"))
    if seen is not None:
        scores = scores.masked_fill(seen[:, None, None, :] == 0, float("-inf"))
    return (scores.softmax(3) @ values).transpose(1, 2).flatten(2)


class RingTurn(nn.Module):
    """A block without heads between the layers; it uses the states too, so that their gradient has two sources."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, hidden: Tensor, states: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hidden + torch.tanh(self.linear(hidden)) * states.mean(1, keepdim=True), states, seen


class RingHead(nn.Module):
    """Classes from the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, hidden: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        return self.linear(hidden.mean(1) + states.mean(1))


def ring_toy(dtype: torch.dtype) -> Workload:
    """Seven blocks; states with a gradient and a mask pass every cut."""

    def build(seed: int) -> list[nn.Module]:
        makers = [RingEmbed, RingLayer, RingLayer, RingTurn, RingLayer, RingLayer, RingHead]
        return [block.to(dtype) for block in build_seeded(makers, seed)]

    def example(rows: int) -> tuple[Tensors, Tensor]:
        return (torch.zeros(rows, 6, dtype=dtype),), torch.zeros(rows, dtype=torch.int64)

    return Workload(
        name="ring-toy", description="toy", dataset="none", build=build, example=example,
        loss=nn.functional.cross_entropy, optimizer="sgd", learning_rate=0.1, batch=12, micro_batches=(4,), epochs=1,
        target_accuracy=0.0,
    )  # fmt: skip


def layer_profiles(
    blocks: Sequence[nn.Module], outputs_L: Sequence[tuple[TensorSpec, ...]]
) -> tuple[LayerProfile, ...]:
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


def samples(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and targets, the same in every process."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def workload_of(name: str, dtype: torch.dtype) -> Workload:
    """The model of a case."""
    return ring_toy(dtype) if name in RING_CASES else toy(dtype)


def make_plan(name: str, workload: Workload) -> tuple[Plan, list[tuple[TensorSpec, ...]]]:
    """The plan of a case and what leaves each block."""
    groups: list[RingGroup]
    if name in RING_CASES:
        batch, micro_batch, groups = RING_CASES[name]
    else:
        batch, micro_batch, plain = CASES[name]
        groups = [(start, stop, "samples", rows) for start, stop, rows in plain]
    blocks = workload.build(0)
    outputs_L = block_outputs(blocks, workload.example(1)[0])
    layers = layer_profiles(blocks, outputs_L)
    following: list[Sharing | None] = [*(sharing for _, _, sharing, _ in groups[1:]), None]
    stages = [
        Stage(
            start=start, stop=stop, devices=tuple(shares), sharing=sharing, shares=tuple(shares.values()),
            points=("current",) * len(shares), in_flight=in_flight_limit(len(groups), index, batch // micro_batch),
            **stage_bytes(layers, start, stop, sharing, after)._asdict(),
        )
        for index, ((start, stop, sharing, shares), after) in enumerate(
            zip(groups, following, strict=True)
        )
    ]  # fmt: skip
    plan = Plan(
        model=workload.name, structure_sha256=structure_sha256(blocks, outputs_L), cluster="toy", planner="hand",
        objective=Objective(), batch=batch, micro_batch=micro_batch, optimizer="sgd", stages=tuple(stages),
    )  # fmt: skip
    return plan, outputs_L


class SliceRows:
    """This device's rows of the case's samples."""

    def __init__(self, plan: Plan, device: str, dtype: torch.dtype) -> None:
        stage = next(stage for stage in plan.stages if device in stage.devices)
        own = slices(stage.sharing, stage.shares, plan.micro_batch, sends=False)[stage.devices.index(device)]
        self._rows = (own.first_row, own.last_row)
        self._size = plan.micro_batch
        self._inputs, self._targets = samples(plan.batch, dtype)

    def _slice(self, micro_batch: int) -> slice:
        start = micro_batch * self._size
        return slice(start + self._rows[0], start + self._rows[1])

    def inputs(self, micro_batch: int) -> Tensors:
        return (self._inputs[self._slice(micro_batch)],)

    def targets(self, micro_batch: int) -> Tensor:
        return self._targets[self._slice(micro_batch)]


def run_case(name: str, device: str, host: str, port: int, folder: Path, dtype: torch.dtype) -> None:
    """Compute this device's gradients of one case and save them by block and parameter."""
    from safetensors.torch import save_file

    workload = workload_of(name, dtype)
    plan, outputs_L = make_plan(name, workload)
    if device not in plan.devices:
        return
    index = next(number for number, stage in enumerate(plan.stages) if device in stage.devices)
    stage = plan.stages[index]
    hello = Hello(
        device=device, plan_sha256="x", structure_sha256=plan.structure_sha256, data="toy", torch="", board=device
    )
    group = join(plan, hello, host=host, port=port, join_timeout_s=30, message_timeout_s=20)
    try:
        blocks = stage_blocks(plan, device, workload.build(0), outputs_L)
        executor = Executor(
            plan=plan, device=device, actions=lower(plan)[device], blocks=blocks, workload=workload,
            incoming=outputs_L[stage.start - 1] if index else (), outgoing=outputs_L[stage.stop - 1], group=group,
        )  # fmt: skip
        with counted_sends() as sent:
            loss, timed = executor.run_round(SliceRows(plan, device, dtype), update=False)
        gradients = {p: p.grad for block in blocks for p in block.parameters() if p.grad is not None}
        found = {
            f"{stage.start + number}.{key}": part.clone()
            for number, block in enumerate(blocks)
            for key, part in named_parts(block, gradients).items()
        }
        rings = {id(block.seat.ring): block.seat.ring for block in blocks if isinstance(block, SplitLayer)}.values()
        in_rings = [sum(getattr(ring, f"{way}_bytes") for ring in rings) for way in ("sent", "received")]
        kinds = {
            kind: sum(e.action.bytes for e in timed if e.action.kind in kind) for kind in (("F", "B"), ("SF", "SB"))
        }
        received = sum(entry.action.received_bytes for entry in timed)
        if name in CURVES:
            rounds = [executor.run_round(SliceRows(plan, device, dtype))[0] for _ in range(CURVE_ROUNDS_N)]
            found["losses"] = torch.tensor(rounds, dtype=torch.float64)
        found["loss"] = torch.tensor([loss], dtype=torch.float64)
        found["counted_bytes"] = torch.tensor([sum(sent), *in_rings])
        found["listed_bytes"] = torch.tensor([kinds["SF", "SB"], kinds["F", "B"], received])
        save_file(found, folder / f"{name}.{device}.safetensors")
    finally:
        group.close()


@contextlib.contextmanager
def counted_sends() -> Generator[list[int], None, None]:
    """Bytes of every message across a cut that really leaves."""
    sent: list[int] = []
    isend = dist.isend

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sent.append(tensor.nbytes)
        return isend(tensor, *arguments, **options)

    dist.isend = counted
    try:
        yield sent
    finally:
        dist.isend = isend


if __name__ == "__main__":
    own, address, first_port, where = sys.argv[1:]
    torch.set_num_threads(1)
    runs = [(kind, case) for kind in KINDS for case in CASES] + [("float64", case) for case in RING_CASES]
    for number, (kind, case) in enumerate(runs):
        run_case(case, own, address, int(first_port) + number, Path(where) / kind, getattr(torch, kind))
