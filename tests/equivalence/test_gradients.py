"""Gradients of every mix of data and pipeline parallelism equal the unsplit model's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import split_cases
import torch
from safetensors.torch import load_file
from split_cases import CASES, DEVICES, KINDS, make_plan, samples, toy

from greentrain.workloads.workload import run_blocks

# One launch of four processes serves all cases; on a busy machine it takes most of a minute.
pytestmark = pytest.mark.timeout(180)

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
            output, _ = rank.communicate(timeout=150)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return where


def unsplit(name: str, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    workload = toy(dtype)
    blocks = workload.build(0)
    inputs, targets = samples(CASES[name][0], dtype)
    loss = workload.loss(run_blocks(blocks, (inputs,))[0], targets)
    loss.backward()
    gradients = {
        f"{index}.{key}": parameter.grad
        for index, block in enumerate(blocks)
        for key, parameter in block.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_unsplit_model(name: str, kind: str, folder: Path) -> None:
    dtype = getattr(torch, kind)
    whole_loss, whole = unsplit(name, dtype)
    plan, _ = make_plan(name, toy(dtype))
    loss = 0.0
    seen: set[str] = set()
    for device in plan.devices:
        found = load_file(folder / kind / f"{name}.{device}.safetensors")
        loss += float(found.pop("loss")[0])
        for key, gradient in found.items():
            seen.add(key)
            scale = whole[key].abs().max()
            assert (gradient - whole[key]).abs().max() <= TOLERANCE[kind] * scale, (device, key)
    assert seen == set(whole)
    assert loss == pytest.approx(whole_loss, rel=TOLERANCE[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_bytes_sent_equal_the_bytes_of_the_plan(name: str, kind: str, folder: Path) -> None:
    plan, _ = make_plan(name, toy(getattr(torch, kind)))
    sent = sum(int(load_file(folder / kind / f"{name}.{device}.safetensors")["loss"][1]) for device in plan.devices)
    crossing = sum(stage.output_bytes + stage.gradient_bytes for stage in plan.stages)
    assert sent == crossing * plan.batch
