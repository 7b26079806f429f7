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
from split_cases import DEVICES, samples

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
    inputs, targets = samples(SPLITS[case.split][0], case.dtype)
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


# What three steps of about 0.07 each may differ by; thin matrices of rank 1 point only roughly the same way.
TOLERANCE = {"fp16-sum": 1e-4, "powersgd": 0.1, "bf16": 5e-3, "fp16": 1e-3}


@pytest.mark.parametrize("name", CASES)
def test_weights_equal_the_unsplit_models(name: str, folder: Path) -> None:
    case = CASES[name]
    whole = train_whole(case)
    seen: set[str] = set()
    for device in case.plan()[0].devices:
        weights = load_file(folder / f"{name}.{device}.safetensors")
        del weights["sum_bytes"]
        for key, weight in weights.items():
            seen.add(key)
            assert (weight - whole[key]).abs().max() <= TOLERANCE.get(name, 1e-10), (device, key)
    assert seen == set(whole)


@pytest.mark.parametrize("name", ["fp16-sum", "powersgd", "bf16"])
def test_replicas_stay_equal(name: str, folder: Path) -> None:
    for stage in CASES[name].plan()[0].stages:
        first, *others = (load_file(folder / f"{name}.{device}.safetensors") for device in stage.devices)
        for other in others:
            assert all(torch.equal(weight, other[key]) for key, weight in first.items())


@pytest.mark.parametrize("name", ["fp16-sum", "powersgd", "recompute-data"])
def test_bytes_of_the_sum_are_what_was_sent(name: str, folder: Path) -> None:
    case = CASES[name]
    for stage in case.plan()[0].stages:
        per_round = {
            "none": stage.param_bytes,
            "fp16": stage.param_bytes // 4,  # The weights are float64.
            # Three matrices of 8 × 8, one of 3 × 8; vectors travel as they are.
            "powersgd": stage.param_bytes - 8 * (3 * (8 * 8 - (8 + 8)) + 3 * 8 - (3 + 8)),
        }[case.options.compression]
        for device in stage.devices:
            moved = load_file(folder / f"{name}.{device}.safetensors")["sum_bytes"]
            assert moved.tolist() == [ROUNDS_N * per_round]
