"""Both phases of parallel adapters: cached epochs are the uncached ones, on one device and on several, also resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import finetune_case as case
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from greentrain.errors import RunError
from greentrain.runtime.adapter_state import epochs_done
from greentrain.runtime.finetuning import PhaseReport
from greentrain.runtime.network import free_port

ALONE: case.Groups = [(0, 5, {"a": 4})]
EPOCHS = case.EPOCHS


def spec(folder: Path, phase: str, start: int, stop: int, **changes: object) -> case.Spec:
    made = case.Spec(
        device="a", phase=phase, first=ALONE, cached={"a": 4}, host="127.0.0.1", port=free_port(),
        meet_port=free_port(), run_dir=str(folder), start_epoch=start, stop_epoch=stop,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def losses(folder: Path) -> list[float]:
    """Mean loss of every epoch."""
    files = sorted(folder.glob("epoch-*.json"))
    return [sum(part["loss"] for part in json.loads(file.read_text())) for file in files]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / f"epoch-{EPOCHS}.safetensors")


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All epochs through the backbone, in the order in which one device takes its cached samples."""
    folder = tmp_path_factory.mktemp("uncached")
    torch.set_num_threads(1)
    case.run(spec(folder, "backbone", 0, EPOCHS, with_cache=False))
    return folder


def assert_same(found: Path, expected: Path, bound: float) -> None:
    assert epochs_done(found) == EPOCHS
    for mine, theirs in zip(losses(found), losses(expected), strict=True):
        assert abs(mine - theirs) <= bound
    first, second = state(found), state(expected)
    assert first.keys() == second.keys()
    # Adam turns the rounding of a gradient that is 0 into whole steps: the losses are what must be equal.
    weights = [name for name in first if name.endswith(".weight") and "norm" not in name]
    assert len(weights) > 10
    for name in weights:
        far = (first[name] - second[name]).norm() / second[name].norm()
        assert float(far) <= 100 * bound, name


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 3e-2)])
def test_cached_epochs_are_the_uncached_ones(tmp_path: Path, uncached: Path, dtype: str, bound: float) -> None:
    filled = case.run(spec(tmp_path, "backbone", 0, 1, dtype=dtype))
    cached = case.run(spec(tmp_path, "cached", 1, EPOCHS, dtype=dtype))
    assert_same(tmp_path, uncached, bound)
    assert filled.epochs[0].written_bytes > 0
    assert cached.epochs[0].read_bytes == filled.epochs[0].written_bytes
    assert cached.refilled == 0
    assert cached.moved == (0, 0)


def test_restart_in_any_epoch_ends_in_the_same_bits(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        case.run(spec(folder, "backbone", 0, 1))
    case.run(spec(straight, "cached", 1, EPOCHS))
    for epoch in range(1, EPOCHS):
        case.run(spec(broken, "cached", epoch, epoch + 1, resumed=True))
    assert losses(broken) == losses(straight)
    for name, tensor in state(broken).items():
        assert torch.equal(tensor, state(straight)[name]), name


def test_a_damaged_cache_is_said_and_mended(tmp_path: Path, uncached: Path) -> None:
    case.run(spec(tmp_path, "backbone", 0, 1))
    damaged = next((tmp_path / "cache").glob("*/layer-2.bin"))
    with damaged.open("r+b") as stream:
        stream.seek(5)
        stream.write(b"\xff\xff\xff")
    with pytest.raises(RunError, match="the cache lost block 2 of sample") as caught:
        case.run(spec(tmp_path, "cached", 1, EPOCHS))
    assert "Run the same command again" in str(caught.value)
    report = case.run(spec(tmp_path, "cached", 1, EPOCHS, resumed=True))
    assert report.refilled == 1
    assert_same(tmp_path, uncached, 1e-5)


def test_a_cache_that_is_gone_is_computed_again(tmp_path: Path, uncached: Path) -> None:
    case.run(spec(tmp_path, "backbone", 0, 1))
    for file in (tmp_path / "cache").glob("*/layer-*.bin"):
        file.unlink()
    report = case.run(spec(tmp_path, "cached", 1, EPOCHS))
    assert report.refilled == case.SAMPLES // case.BATCH * case.BATCH
    assert len(report.remarks) == 1
    assert_same(tmp_path, uncached, 1e-5)


def _always(orders: Callable[[int], np.ndarray]) -> Callable[..., Callable[[int], np.ndarray]]:
    return lambda *_args, **_named: orders


CLUSTERS: dict[str, tuple[case.Groups, dict[str, int]]] = {
    "pipeline, then uneven shares": ([(0, 2, {"a": 4}), (2, 5, {"b": 4})], {"a": 1, "b": 3}),
    "group and one, then others": ([(0, 3, {"a": 1, "b": 3}), (3, 5, {"c": 4})], {"c": 2, "a": 2}),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_on_several_devices(tmp_path: Path, name: str) -> None:
    first, cached = CLUSTERS[name]
    reports = run_all(tmp_path, first, cached)
    # The same orders on one device, all through the backbone.
    alone = tmp_path / "alone"
    orders = case.cached_epoch_order(
        3, case.plan_for(first, case.workload(cached=False)),
        case.plan_for([(0, 5, cached)], case.workload(cached=True)), case.SAMPLES,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case, "cached_epoch_order", _always(orders))
        case.run(spec(alone, "backbone", 0, EPOCHS, with_cache=False))
    assert_same(tmp_path, alone, 1e-5)
    sent = sum(report.moved.sent_bytes for report in reports)
    assert sent == sum(report.moved.received_bytes for report in reports) > 0
    assert all(report.refilled == 0 for report in reports)


def run_all(folder: Path, first: case.Groups, cached: dict[str, int]) -> list[PhaseReport]:
    """Both phases, one process per device; what each did in the second."""
    filling = [device for _, _, rows in first for device in rows]
    phases = (spec(folder, "backbone", 0, 1), spec(folder, "cached", 1, EPOCHS))
    processes: list[subprocess.Popen[str]] = []
    try:
        for device in dict.fromkeys([*cached, *filling]):
            own = [
                msgspec.structs.replace(phase, device=device, first=first, cached=cached)
                for phase in phases
                if phase.phase == "cached" or device in filling
            ]
            file = folder / f"{device}.specs.json"
            file.write_bytes(msgspec.json.encode(own))
            processes.append(
                subprocess.Popen(
                    [sys.executable, case.__file__, str(file)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        outputs = [process.communicate(timeout=55) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, said) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, said[-2000:]
    return [msgspec.json.decode(out, type=list[PhaseReport])[-1] for out, _ in outputs]
