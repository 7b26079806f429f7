"""What a run is told beside its plan does to a split model what it does to the whole one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import option_cases
import pytest
import torch
from option_cases import CASES, ROUNDS_N, Case
from safetensors.torch import load_file
from split_cases import CASES as SPLITS
from split_cases import DEVICES, make_plan, samples

from greentrain.workloads.workload import learning_rate_at, run_blocks

# One launch of four processes serves all cases; on a busy machine it takes most of a minute.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four processes train all cases; the weights lie in the folder."""
    where = tmp_path_factory.mktemp("options")
    ranks = [
        subprocess.Popen(
            # A port below the ephemeral range, so that no outgoing connection takes one of the cases' ports.
            [sys.executable, option_cases.__file__, device, "21100", str(where)],
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


def train_whole(case: Case) -> dict[str, torch.Tensor]:
    """The unsplit model after the same rounds; asserts that the rounds differ in what is tested."""
    workload = case.workload()
    blocks = workload.build(0)
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    optimizer = workload.make_optimizer(parameters)
    inputs, targets = samples(SPLITS[case.split][0], torch.float64)
    for step in range(ROUNDS_N):
        optimizer.param_groups[0]["lr"] = learning_rate_at(workload, step, ROUNDS_N)
        optimizer.zero_grad()
        workload.loss(run_blocks(blocks, (inputs,))[0], targets).backward()
        if case.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, case.clip_norm)
            assert (norm > case.clip_norm) == (case.clip_norm < 1)
        optimizer.step()
    return {
        f"{index}.{key}": parameter.detach()
        for index, block in enumerate(blocks)
        for key, parameter in block.named_parameters()
    }


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_the_unsplit_models(name: str, folder: Path) -> None:
    case = CASES[name]
    whole = train_whole(case)
    plan, _ = make_plan(case.split, case.workload())
    seen: set[str] = set()
    for device in plan.devices:
        for key, weight in load_file(folder / f"{name}.{device}.safetensors").items():
            seen.add(key)
            assert (weight - whole[key]).abs().max() <= 1e-10, (device, key)
    assert seen == set(whole)
