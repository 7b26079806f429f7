"""The layer profiler: what it counts, and how it turns clocks into times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from greentrain.errors import UsageError
from greentrain.profile import RingProfile
from greentrain.workloads import load_workload
from greentrain.workloads.parts import AttentionParts, FeedForwardParts, LayerParts, Matrix
from greentrain.workloads.workload import Tensors, TensorSpec, Workload, build_seeded, run_blocks
from greentrain_harness.profilers.layers import profile_model, time_layers
from greentrain_harness.profilers.parts import shareable


class Masked(nn.Module):
    """Passes a mask through, as text models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(hidden), mask


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.linear(hidden * mask)


def example(n: int) -> tuple[Tensors, Tensor]:
    return (torch.ones(n, 6), torch.ones(n, 1, dtype=torch.uint8)), torch.zeros(n, dtype=torch.int64)


def frozen_masked() -> nn.Module:
    return Masked().requires_grad_(False)


def tiny(*makers: Callable[[], nn.Module]) -> Workload:
    return Workload(
        name="tiny", description="", dataset="digits", build=lambda seed: build_seeded(makers, seed),
        example=example, loss=nn.functional.cross_entropy, optimizer="adam", learning_rate=1e-3,
        batch=8, micro_batches=(4, 8), epochs=1, target_accuracy=0.5,
    )  # fmt: skip


class Ticks:
    """A clock that advances by one second per look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


class Slow(Ticks):
    """Each look takes some seconds more."""

    def __init__(self, more_s: float) -> None:
        super().__init__()
        self._more_s = more_s

    def __call__(self) -> float:
        self.now_s += self._more_s
        return super().__call__()


@pytest.mark.parametrize("name", ["digits-cnn", "digits-vit"])
def test_bytes_equal_what_the_tensors_hold(name: str) -> None:
    workload = load_workload(name)
    profile = profile_model(workload)
    blocks = workload.build(5)
    tensors = workload.example(7)[0]
    assert profile.input_bytes == sum(tensor.nbytes for tensor in tensors) / 7
    for block, layer in zip(blocks, profile.layers, strict=True):
        tensors = run_blocks((block,), tensors)
        assert layer.activation_bytes == layer.gradient_bytes == sum(tensor.nbytes for tensor in tensors) / 7
        assert layer.param_bytes == sum(parameter.nbytes for parameter in block.parameters())
        assert layer.stash_bytes > 0
        assert layer.forward_flop > 0


def test_counts_of_linear_blocks_by_hand() -> None:
    first, second, head = profile_model(tiny(Masked, Masked, Head)).layers
    assert first.param_bytes == (6 * 6 + 6) * 4
    assert (first.activation_bytes, first.gradient_bytes) == (6 * 4 + 1, 6 * 4)
    # A linear layer keeps its input and nothing else; its weights are not part of the stash.
    assert first.stash_bytes == second.stash_bytes == 6 * 4
    assert first.forward_flop == 2 * 6 * 6
    assert head.forward_flop == 2 * 6 * 3
    assert head.activation_bytes == 3 * 4


def test_fused_attention_is_counted() -> None:
    _, encoder, *_ = profile_model(load_workload("digits-vit")).layers
    linear, attention = 2 * 16 * 64 * 64 * 12, 2 * 2 * 16 * 16 * 64
    assert encoder.forward_flop == linear + attention


def test_nothing_crosses_backwards_behind_frozen_blocks() -> None:
    first, second, third, _ = profile_model(tiny(frozen_masked, frozen_masked, Masked, Head)).layers
    for frozen in (first, second):
        assert (frozen.param_bytes, frozen.gradient_bytes, frozen.stash_bytes) == (0, 0, 0)
        assert frozen.activation_bytes == 25
    assert third.gradient_bytes == 24
    # A frozen block behind a trainable one still passes gradients on.
    assert profile_model(tiny(Masked, frozen_masked, Head)).layers[1].gradient_bytes == 24


def test_structure_hash_follows_the_structure_only() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10))

    def narrow() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 11), nn.Linear(11, 10))

    def of(maker: Callable[[], nn.Module]) -> str:
        cnn = load_workload("digits-cnn")

        def build(seed: int) -> list[nn.Module]:
            return build_seeded([maker], seed)

        return profile_model(dataclasses.replace(cnn, build=build)).structure_sha256

    assert of(wide) == of(wide) != of(narrow)
    frozen = tiny(frozen_masked, Head)
    assert profile_model(frozen).structure_sha256 != profile_model(tiny(Masked, Head)).structure_sha256


def test_times_of_a_pass_add_up_to_its_mean_by_the_wall_clock() -> None:
    times = time_layers(
        tiny(Masked, Masked, Head), kind="board", point="current", provenance_command="test",
        seconds_budget=200.0, wall=Ticks(), cpu=Ticks(),
    )  # fmt: skip
    assert times.batch_B == (1, 2, 4, 8)
    assert (times.model, times.kind, times.point) == ("tiny", "board", "current")
    for column in range(4):
        parts = [row[column] for row in (*times.forward_s_LB, *times.backward_s_LB)]
        # Every pass takes one tick of the wall, every block one tick of the processor.
        assert parts == pytest.approx([1 / 6] * 6)
    assert times.update_s_L == pytest.approx((42 / 105, 42 / 105, 21 / 105))
    assert times.provenance.trials_n == 5
    assert times.provenance.spread_ratio == 0
    assert "left out" not in times.provenance.note


def test_sizes_in_the_middle_are_left_out_first_and_named() -> None:
    times = time_layers(
        tiny(Masked, Head), kind="board", point="current", provenance_command="test", seconds_budget=12.0,
        wall=Slow(1.0), cpu=Ticks(),
    )  # fmt: skip
    # A pass is three looks of two seconds: two of them fit each of five trials of a minute.
    assert times.batch_B == (1, 8)
    assert "batch sizes 2, 4 left out, they do not fit 60 s" in times.provenance.note


def test_a_budget_that_is_too_short_for_a_few_passes_is_gone_beyond() -> None:
    times = time_layers(
        tiny(Masked, Head), kind="board", point="current", provenance_command="test", seconds_budget=1.0,
        wall=Ticks(), cpu=Ticks(),
    )  # fmt: skip
    assert times.batch_B == (1, 2, 4, 8)
    assert "left out" not in times.provenance.note


def test_sizes_of_which_no_few_passes_fit_are_not_tried() -> None:
    times = time_layers(
        tiny(Masked, Head), kind="board", point="current", provenance_command="test", seconds_budget=12.0,
        wall=Slow(8.0), cpu=Ticks(),
    )  # fmt: skip
    assert times.batch_B == (1,)
    assert "batch sizes 2, 4, 8 left out" in times.provenance.note


def test_a_stopped_process_counts_in_the_mean_but_not_in_the_shares() -> None:
    class Throttled(Ticks):
        """Each eighth look takes ten seconds more."""

        looks = 0

        def __call__(self) -> float:
            self.looks += 1
            self.now_s += 10.0 if self.looks % 8 == 0 else 0.0
            return super().__call__()

    times = time_layers(
        tiny(Masked, Head), kind="board", point="current", batches=(4,), provenance_command="test",
        seconds_budget=2000.0, wall=Throttled(), cpu=Ticks(),
    )  # fmt: skip
    parts = [row[0] for row in (*times.forward_s_LB, *times.backward_s_LB)]
    assert sum(parts) > 1.5
    assert parts == pytest.approx([sum(parts) / 4] * 4)


def test_frozen_blocks_have_no_backward_time() -> None:
    times = time_layers(
        tiny(frozen_masked, Masked, Head), kind="board", point="current", batches=(2, 8), provenance_command="test",
        seconds_budget=0.2,
    )  # fmt: skip
    # On a bad day the larger batch does not fit the budget and is left out.
    assert times.backward_s_LB[0] == (0.0,) * len(times.batch_B)
    assert min(*times.backward_s_LB[1], *times.forward_s_LB[0]) > 0
    assert times.update_s_L[0] == 0


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="no trainable parameters"):
        time_layers(tiny(frozen_masked), kind="board", point="current", provenance_command="test")


def test_blocks_that_name_their_parts_can_be_shared_inside_a_sample() -> None:
    embedding, *encoders, head = profile_model(load_workload("digits-vit")).layers
    # 16 tokens of 64 floats; four heads, each with keys and values; two norms and two biases that all devices hold.
    assert (embedding.heads, embedding.sequence, embedding.hidden_bytes) == (0, 16, 16 * 64 * 4)
    assert (head.heads, head.sequence, head.rings) == (0, 0, None)
    norms_and_biases = 2 * (64 + 64) + 2 * 64
    for layer in encoders:
        assert (layer.heads, layer.sequence) == (4, 16)
        assert layer.rings == RingProfile(
            hidden_bytes=16 * 64 * 4, key_value_bytes=2 * 16 * 64 * 4, parts_n=2, sum_bytes=norms_and_biases * 4
        )


class CrossAttending(nn.Module):
    """As T5's decoder: keys and values of fewer heads in one transposed weight, no biases, a third part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, bias=False)
        self.fused = nn.Parameter(torch.zeros(8, 8 + 4 + 4))
        self.out = nn.Linear(8, 8, bias=False)
        self.narrow = nn.Linear(32, 8)

    def parts(self) -> LayerParts:
        attention = AttentionParts(
            norm="norm", query=Matrix(weight="fused", stop=8, transposed=True),
            key=Matrix(weight="fused", start=8, stop=12, transposed=True),
            value=Matrix(weight="fused", start=12, transposed=True), out=Matrix(weight="out.weight"),
            heads=4, key_value_heads=2,
        )  # fmt: skip
        feed_forward = FeedForwardParts(
            norm="norm", widen=Matrix(weight="out.weight"), columns=32, activation=nn.functional.relu,
            narrow=Matrix(weight="narrow.weight", bias="narrow.bias"),
        )  # fmt: skip
        return LayerParts(
            attention=attention, feed_forward=feed_forward, norm_first=True, cross=attention, cross_states=1
        )


def test_parts_of_a_decoder() -> None:
    hidden = TensorSpec(shape=(5, 8), dtype=torch.float64, needs_gradient=True)
    found = shareable(CrossAttending(), (hidden, hidden))
    assert (found.heads, found.sequence) == (2, 5)
    # A norm of 8 weights in each of three parts and one bias of 8, all float32.
    assert found.rings == RingProfile(
        hidden_bytes=5 * 8 * 8, key_value_bytes=5 * (4 + 4) * 8, parts_n=3, sum_bytes=(3 * 8 + 8) * 4
    )
    frozen = shareable(CrossAttending().requires_grad_(False), (hidden, hidden))
    assert frozen.rings is not None
    assert frozen.rings.sum_bytes == 0


def test_other_tensors_are_no_hidden_state() -> None:
    first, second = profile_model(tiny(Masked, Head)).layers
    assert (first.activation_bytes, first.hidden_bytes, first.side_gradient_bytes) == (25, 24, 0)
    assert second.rings is None
