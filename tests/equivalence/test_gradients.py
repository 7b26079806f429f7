"""Gradients of every mix of ways to share work equal the unsplit model's, and every byte is as listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import split_cases
import torch
from safetensors.torch import load_file
from split_cases import CASES, CURVE_ROUNDS_N, CURVES, DEVICES, KINDS, RING_CASES, make_plan, samples, workload_of

from greentrain.runtime.split_weights import gather_named
from greentrain.workloads.workload import run_blocks

# One launch of four processes serves all cases; on a busy machine it takes most of a minute.
pytestmark = pytest.mark.timeout(300)

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four processes go through all cases in both types; the gradients lie in the folder."""
    where = tmp_path_factory.mktemp("gradients")
    for kind in KINDS:
        (where / kind).mkdir()
    ranks = [
        subprocess.Popen(
            # A port below the ephemeral range, so that no outgoing connection takes one of the cases' ports.
            [sys.executable, split_cases.__file__, device, "127.0.0.1", "21000", str(where)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for device in DEVICES
    ]  # fmt: skip
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=270)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return where


ALL = [(name, kind) for kind in KINDS for name in CASES] + [(name, "float64") for name in RING_CASES]


def unsplit(name: str, batch: int, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    workload = workload_of(name, dtype)
    blocks = workload.build(0)
    inputs, targets = samples(batch, dtype)
    loss = workload.loss(run_blocks(blocks, (inputs,))[0], targets)
    loss.backward()
    gradients = {
        f"{index}.{key}": parameter.grad
        for index, block in enumerate(blocks)
        for key, parameter in block.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_gradients_equal_the_unsplit_model(name: str, kind: str, folder: Path) -> None:
    dtype = getattr(torch, kind)
    plan, _ = make_plan(name, workload_of(name, dtype))
    whole_loss, whole = unsplit(name, plan.batch, dtype)
    loss = 0.0
    seen: set[str] = set()
    for stage in plan.stages:
        shards = [load_file(folder / kind / f"{name}.{device}.safetensors") for device in stage.devices]
        loss += sum(float(shard.pop("loss")) for shard in shards)
        for shard in shards:
            for other in ("counted_bytes", "listed_bytes", "losses"):
                shard.pop(other, None)
        # What all devices of the group hold whole must agree, too.
        for one in shards:
            for key, gradient in gather_named([*shards, one]).items():
                seen.add(key)
                scale = whole[key].abs().max()
                assert (gradient - whole[key]).abs().max() <= TOLERANCE[kind] * scale, (stage.devices, key)
    assert seen == set(whole)
    assert loss == pytest.approx(whole_loss, rel=TOLERANCE[kind])


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_bytes_that_leave_equal_those_of_the_action_list(name: str, kind: str, folder: Path) -> None:
    plan, _ = make_plan(name, workload_of(name, getattr(torch, kind)))
    sent = 0
    for device in plan.devices:
        found = load_file(folder / kind / f"{name}.{device}.safetensors")
        assert found["counted_bytes"].tolist() == found["listed_bytes"].tolist(), device
        sent += int(found["counted_bytes"][0])
    if name in CASES:
        crossing = sum(stage.output_bytes + stage.gradient_bytes for stage in plan.stages)
        assert sent == crossing * plan.batch


@pytest.mark.parametrize("name", CURVES)
def test_fifty_rounds_have_the_losses_of_one_device(name: str, folder: Path) -> None:
    workload = workload_of(name, torch.float64)
    plan, _ = make_plan(name, workload)
    found = sum(load_file(folder / "float64" / f"{name}.{device}.safetensors")["losses"] for device in plan.devices)
    blocks = workload.build(0)
    optimizer = workload.make_optimizer(parameter for block in blocks for parameter in block.parameters())
    inputs, targets = samples(plan.batch, torch.float64)
    expected: list[float] = []
    for _ in range(CURVE_ROUNDS_N):
        loss = workload.loss(run_blocks(blocks, (inputs,))[0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    assert isinstance(found, torch.Tensor)
    assert expected[-1] < 0.5 * expected[0]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
