"""What a group's rings and cuts move, against a ring played message by message."""

from __future__ import annotations

import itertools
import random
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, random_plan, with_heads, with_random_network, with_transformer

from greentrain.actions import lower
from greentrain.actions import validate as validate_actions
from greentrain.cost import estimate, stage_traffic
from greentrain.plan import Sharing, cut, validate
from greentrain.planners.candidate import Part
from greentrain.profile import LayerProfile, RingProfile
from greentrain.sharing import (
    Ring,
    group_sum_bytes,
    kept_whole_bytes,
    pieces,
    ring_pass_bytes,
    shares_total,
    stage_rings,
)
from greentrain.simulator import simulate

INSIDE: tuple[Sharing, ...] = ("tensor_sequence", "tensor", "sequence")


def _layer(name: str, **changes: object) -> LayerProfile:
    split = LayerProfile(
        name=name, param_bytes=1000, activation_bytes=480, gradient_bytes=400, stash_bytes=5000, forward_flop=1.0,
        heads=4, sequence=10,
        rings=RingProfile(hidden_bytes=400, key_value_bytes=600, parts_n=2, sum_bytes=50),
    )  # fmt: skip
    return msgspec.structs.replace(split, **changes)  # type: ignore[arg-type]


def _plain(name: str, **changes: object) -> LayerProfile:
    return _layer(name, heads=0, **changes)


def _played(tiles: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Bytes that each device sends and receives in a ring AllGather, then in a ring ReduceScatter."""
    group_n = len(tiles)
    gathers, scatters = ([0] * group_n, [0] * group_n), ([0] * group_n, [0] * group_n)
    for step in range(group_n - 1):
        for device in range(group_n):
            to = (device + 1) % group_n
            # A device passes on what it got last; at the end of a ReduceScatter it has the sum of its own tile.
            for (sent, received), tile in ((gathers, device - step), (scatters, device - 1 - step)):
                sent[device] += tiles[tile % group_n]
                received[to] += tiles[tile % group_n]
    return *gathers, *scatters


@given(
    shares=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    token_bytes=st.integers(1, 50),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 4),
)
def test_the_bytes_of_a_ring_are_those_of_its_messages(
    shares: list[int], token_bytes: int, tokens: int, rows: int
) -> None:
    bounds = [cumulated * tokens // sum(shares) for cumulated in itertools.accumulate(shares, initial=0)]
    tiles = [(last - first) * token_bytes * rows for first, last in itertools.pairwise(bounds)]
    played = _played(tiles)
    whole = tokens * token_bytes
    for number, name in enumerate(("gathers_forward", "scatters_forward")):
        ring = Ring(bytes=whole, tokens=tokens, **{name: 1})
        moved = [ring_pass_bytes((ring,), shares, at, rows, "forward") for at in range(len(shares))]
        assert [sent for sent, _ in moved] == played[2 * number]
        assert [received for _, received in moved] == played[2 * number + 1]
        assert sum(sent for sent, _ in moved) == (len(shares) - 1) * rows * whole
        assert ring_pass_bytes((ring,), shares, 0, rows, "backward") == (0, 0)


MODEL = (
    _plain("embedding"),
    _layer("first"),
    _layer("second"),
    _plain("head", activation_bytes=20, gradient_bytes=20, rings=None, sequence=0),
)


def test_rings_of_a_stage() -> None:
    # Two parts in two layers, and whole tokens in front of the head and on the way back to the embedding.
    assert stage_rings("tensor_sequence", MODEL, 0, 4) == (
        Ring(bytes=400, tokens=10, gathers_forward=5, scatters_forward=4, gathers_backward=5, scatters_backward=4),
    )
    assert stage_rings("tensor", MODEL, 0, 4) == (
        Ring(bytes=400, tokens=10, gathers_forward=4, scatters_forward=4, gathers_backward=4, scatters_backward=4),
    )
    assert set(stage_rings("sequence", MODEL, 0, 4)) == {
        Ring(bytes=600, tokens=10, gathers_forward=2, scatters_backward=2),
        Ring(bytes=400, tokens=10, gathers_forward=1, gathers_backward=1),
    }
    assert stage_rings("samples", MODEL, 0, 4) == ()
    # A cut behind split layers takes token slices; the model's end takes them whole.
    assert stage_rings("tensor_sequence", MODEL, 1, 2)[0].gathers_forward == 2
    assert stage_rings("tensor_sequence", MODEL[:3], 1, 3)[0].gathers_forward == 5


def test_no_gradient_no_rings_backward() -> None:
    frozen = (_plain("embedding", gradient_bytes=0), _layer("first", gradient_bytes=0), *MODEL[2:])
    (ring,) = stage_rings("tensor_sequence", frozen, 0, 4)
    assert (ring.gathers_forward, ring.gathers_backward, ring.scatters_backward) == (5, 2, 2)


def test_gradients_of_other_tensors_are_summed_in_front_of_split_layers() -> None:
    model = (_plain("embedding", gradient_bytes=480), *MODEL[1:])
    side = Ring(bytes=80, gathers_backward=1, scatters_backward=1)
    for sharing in INSIDE:
        assert side in stage_rings(sharing, model, 0, 4)
        assert side in stage_rings(sharing, model, 1, 4)
        assert side not in stage_rings(sharing, model, 2, 4)


def test_what_a_group_sums_and_keeps() -> None:
    assert [group_sum_bytes(sharing, MODEL) for sharing in get_args(Sharing)] == [4000, 100, 0, 2000]
    assert [kept_whole_bytes(sharing, MODEL[1]) for sharing in get_args(Sharing)] == [0, 800, 1600, 600]
    assert kept_whole_bytes("tensor", _layer("little", stash_bytes=9)) == 9
    assert shares_total("tensor", MODEL, 8) == 4
    assert shares_total("sequence", MODEL, 8) == 10
    assert shares_total("tensor", MODEL[:1], 8) == 0
    assert shares_total("tensor", (*MODEL, _layer("other", heads=6)), 8) == 0


def test_pieces_of_a_cut() -> None:
    sent = pieces("tensor_sequence", (3, 1), 8, sends=True, tokens=10)
    assert [piece.hidden for piece in sent] == [(0, 8, 0, 7, 10), (0, 8, 7, 10, 10)]
    assert [piece.side for piece in sent] == [(0, 8, 0, 1, 2), (0, 8, 1, 2, 2)]
    taken = pieces("tensor_sequence", (3, 1), 8, sends=False, whole=True, tokens=10)
    assert {piece.hidden for piece in taken} == {piece.side for piece in taken} == {(0, 8, 0, 1, 1)}
    rows = pieces("samples", (3, 5), 8, sends=False, tokens=10)
    assert [piece.hidden for piece in rows] == [piece.side for piece in rows] == [(0, 3, 0, 1, 1), (3, 8, 0, 1, 1)]


def _plans(count: int):
    rng = random.Random(7)
    for seed in range(count):
        problem = make_problem(seed, devices=4, layers=5, batch=16, micro_batches=(4, 8))
        problem = with_transformer(problem, rng, heads=6, sequence=rng.choice([6, 10, 12]))
        if seed % 3 == 0:
            problem = with_random_network(problem, rng)
        plan = random_plan(problem, rng, sharings=get_args(Sharing))
        if any(stage.sharing != "samples" for stage in plan.stages):
            yield problem, plan


def test_lowered_bytes_are_the_priced_ones_on_every_device() -> None:
    seen: set[str] = set()
    for problem, plan in _plans(150):
        validate(plan, problem)
        lists = lower(plan)
        validate_actions(lists)
        seen |= {stage.sharing for stage in plan.stages}
        for index, stage in enumerate(plan.stages):
            summed = 2 * (len(stage.devices) - 1) / len(stage.devices) * stage.sum_bytes
            for device, traffic in zip(stage.devices, stage_traffic(plan, index, problem.cluster), strict=True):
                own = lists[device]
                sent = sum(action.bytes for action in own if action.kind in ("F", "B", "SF", "SB"))
                received = sum(action.bytes for action in own if action.kind in ("RF", "RB"))
                received += sum(action.received_bytes for action in own)
                assert traffic.sent_bytes == pytest.approx(sent + summed, abs=1e-6)
                assert traffic.received_bytes == pytest.approx(received + summed, abs=1e-6)
    assert seen == set(get_args(Sharing))


def test_every_tensor_of_a_cut_arrives() -> None:
    for _, plan in _plans(80):
        lists = lower(plan)
        for before, after in itertools.pairwise(plan.stages):
            for kind, takers, forward in (("RF", after, True), ("RB", before, False)):
                way = cut(before, after, plan.micro_batch, forward=forward)
                for device, piece in zip(takers.devices, way.taken, strict=True):
                    arrived = sum(a.bytes for a in lists[device] if a.kind == kind and a.micro_batch == 0
                                  and a.peer in (before if forward else after).devices)  # fmt: skip
                    wanted = 0
                    for part, size in ((piece.hidden, way.hidden_bytes), (piece.side, way.side_bytes)):
                        row = part.last_part * size // part.parts_n - part.first_part * size // part.parts_n
                        wanted += (part.last_row - part.first_row) * row
                    assert arrived == wanted


def test_formula_and_simulator_agree_with_replicated_layers() -> None:
    errors: list[float] = []
    for problem, plan in _plans(150):
        price, rows = estimate(plan, problem), simulate(plan, problem)
        end_s = max(row.t_start_s + row.duration_s for row in rows)
        errors.append(abs(price.step_s / end_s - 1))
        if len(plan.stages) == 1:
            assert errors[-1] == pytest.approx(0, abs=1e-9)
    said = f"{len(errors)} plans: mean {sum(errors) / len(errors):.2%}, worst {max(errors):.1%}"
    print(said)
    assert len(errors) > 60
    assert sum(errors) / len(errors) <= 0.03, said


def test_a_replicated_layer_costs_every_device_the_whole_micro_batch() -> None:
    problem = with_heads(make_problem(4, devices=2, layers=2, batch=4, micro_batches=(4,)), plain_layers=1)
    plan = plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"), "tensor_sequence")])
    times = problem.model.times_of("kind1", "p0")
    whole_s = times.forward_s_LB[0][-1] + times.backward_s_LB[0][-1] + times.update_s_L[0]
    quarter_s = times.forward_s_LB[1][0] + times.backward_s_LB[1][0] + 0.25 * times.update_s_L[1]
    assert estimate(plan, problem).busy_s["d1"] == pytest.approx(whole_s + quarter_s)
    # More memory than where both layers are split.
    split = with_heads(problem)
    other = plan_of(split, 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"), "tensor_sequence")])
    assert estimate(plan, problem).peak_bytes["d1"] > estimate(other, split).peak_bytes["d1"]
