"""A tiny Transformer on made-up texts, fine-tuned in both phases by the processes that this file is run as.

Run as a program: ``python finetune_case.py SPECS.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from greentrain.objective import Objective
from greentrain.parallel.adapters import CacheDtype
from greentrain.plan import Plan, Stage, in_flight_limit
from greentrain.runtime.activation_cache import CacheKey
from greentrain.runtime.cache_stores import CacheAsk, Stores, key_of
from greentrain.runtime.finetuning import (
    PhaseJob,
    PhaseReport,
    cached_epoch_order,
    epoch_order,
    run_cached,
    run_with_backbone,
)
from greentrain.workloads.adapters.backbone import backbone_of
from greentrain.workloads.adapters.pairs import cached_entries, pair_blocks, side_blocks
from greentrain.workloads.adapters.settings import SideSettings
from greentrain.workloads.adapters.task import backbone_sha256
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix
from greentrain.workloads.workload import Tensors, Workload, block_outputs, build_seeded, structure_sha256

WIDTH, HEADS, MIDDLE, KNOWN, TOKENS, CLASSES = 16, 4, 24, 50, 9, 2
SAMPLES, BATCH, MICRO, EPOCHS = 26, 8, 4, 3
Groups = list[tuple[int, int, dict[str, int]]]


class Embeddings(nn.Module):
    """Token ids and mask → states and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(KNOWN, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.words(ids), mask


class Layer(nn.Module):
    """A layer as BERT's."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, MIDDLE), nn.Linear(MIDDLE, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        heads = [
            part(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in (self.get_submodule(name) for name in ("query", "key", "value"))
        ]
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :].bool())
        hidden = self.first(hidden + self.get_submodule("out")(mixed.transpose(1, 2).flatten(2)))
        return self.second(hidden + self.narrow(functional.gelu(self.widen(hidden)))), mask

    def parts(self) -> LayerParts:
        """What it is made of."""
        query, key, value, out, widen, narrow = (
            Matrix(weight=f"{name}.weight", bias=f"{name}.bias")
            for name in ("query", "key", "value", "out", "widen", "narrow")
        )
        return LayerParts(
            attention=AttentionParts(
                norm="first", query=query, key=key, value=value, out=out, heads=HEADS, key_value_heads=HEADS
            ),
            feed_forward=FeedForwardParts(
                norm="second", widen=widen, narrow=narrow, columns=MIDDLE, activation=functional.gelu
            ),
            norm_first=False,
            mask=1,
        )


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a process does."""

    device: str
    phase: str
    first: Groups
    cached: dict[str, int]
    host: str
    port: int
    meet_port: int
    run_dir: str
    start_epoch: int
    stop_epoch: int
    dtype: CacheDtype = "float32"
    with_cache: bool = True
    resumed: bool = False


def pairs(seed: int) -> list[nn.Module]:
    """Blocks of epoch 1."""
    blocks = build_seeded([Embeddings, Layer, Layer, Layer, lambda: nn.Linear(WIDTH, CLASSES)], 7)
    return pair_blocks(backbone_of(blocks), SideSettings(reduction=2), seed=seed, classes_n=CLASSES)


def workload(*, cached: bool) -> Workload:
    """Of a phase."""

    def example(n: int) -> tuple[Tensors, Tensor]:
        mask = torch.ones(n, TOKENS, dtype=torch.uint8)
        targets = torch.zeros(n, dtype=torch.int64)
        if cached:
            return (*(torch.zeros(n, TOKENS, WIDTH) for _ in cached_entries(pairs(0))), mask), targets
        return (torch.zeros(n, TOKENS, dtype=torch.int64), mask), targets

    return Workload(
        name="tiny", description="for tests", dataset="none",
        build=lambda seed: side_blocks(pairs(seed)) if cached else pairs(seed), example=example,
        loss=functional.cross_entropy, optimizer="adam", learning_rate=1e-2, schedule="linear", batch=BATCH,
        micro_batches=(MICRO,), epochs=EPOCHS, target_accuracy=0.0,
    )  # fmt: skip


def texts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, masks and classes: whether the first token is of the larger half."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, KNOWN, size=(SAMPLES, TOKENS))
    mask = (np.arange(TOKENS) < rng.integers(1, TOKENS + 1, size=SAMPLES)[:, None]).astype(np.uint8)
    return ids, mask, (ids[:, 0] > KNOWN // 2).astype(np.int64)


def plan_for(groups: Groups, work: Workload) -> Plan:
    """A plan by hand."""
    blocks = work.build(0)
    outputs_L = block_outputs(blocks, work.example(1)[0])
    stages = tuple(
        Stage(
            start=start, stop=stop, devices=tuple(rows), sharing="samples", shares=tuple(rows.values()),
            points=("current",) * len(rows), in_flight=in_flight_limit(len(groups), index, BATCH // MICRO),
            param_bytes=sum(p.nbytes for block in blocks[start:stop] for p in block.parameters() if p.requires_grad),
            output_bytes=sum(spec.row_bytes for spec in outputs_L[stop - 1]) if index + 1 < len(groups) else 0,
            gradient_bytes=sum(spec.row_bytes for spec in outputs_L[stop - 1] if spec.needs_gradient)
            if index + 1 < len(groups) else 0,
        )
        for index, (start, stop, rows) in enumerate(groups)
    )  # fmt: skip
    return Plan(
        model="tiny", structure_sha256=structure_sha256(blocks, outputs_L), cluster="c", planner="hand",
        objective=Objective(), batch=BATCH, micro_batch=MICRO, optimizer="adam", stages=stages,
    )  # fmt: skip


def key() -> CacheKey:
    """Of the tiny model and its texts."""
    ids, mask, _ = texts()
    return key_of(backbone_sha256(pairs(0)), (ids, mask), mask.sum(1).astype(np.int64))


def run(spec: Spec) -> PhaseReport:
    """One device's part of a phase, in this process."""
    first_plan = plan_for(spec.first, workload(cached=False))
    cached_plan = plan_for([(0, 5, spec.cached)], workload(cached=True))
    ids, mask, targets = texts()
    order = cached_epoch_order(3, first_plan, cached_plan, SAMPLES)
    run_dir = Path(spec.run_dir)
    job = PhaseJob(
        run="r", plan=first_plan if spec.phase == "backbone" else cached_plan, device=spec.device, board=spec.device,
        workload=workload(cached=spec.phase == "cached"), inputs=(ids, mask), targets=targets, seed=3,
        start_epoch=spec.start_epoch, stop_epoch=spec.stop_epoch, epochs=EPOCHS, order=order, run_dir=run_dir,
        host=spec.host, port=spec.port, join_timeout_s=40, message_timeout_s=20,
    )  # fmt: skip
    stores = Stores(
        ask=CacheAsk(root=run_dir / "cache", dtype=spec.dtype), key=key(), entries=cached_entries(pairs(0)),
        lengths=mask.sum(1).astype(np.int64), device=spec.device,
    )  # fmt: skip
    if spec.phase == "backbone":

        def opened(_: object) -> Stores | None:
            stores.open_computed(first_plan, epoch_order(3, 0, SAMPLES))
            return stores if spec.with_cache else None

        return run_with_backbone(job, opened, None, lambda progress: None)
    return run_cached(
        job, stores, mask, first_plan, epoch_order(3, 0, SAMPLES), lambda: pairs(3), None, lambda progress: None,
        meet_port=spec.meet_port, resumed=spec.resumed,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Spec])
    print(msgspec.json.encode([run(one) for one in asked]).decode())
