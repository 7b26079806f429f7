from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, random_parts, random_plan, with_heads

from greentrain.actions import Action, ActionKind, format_actions, lower, parse_actions, validate
from greentrain.errors import UsageError
from greentrain.plan import Plan, Sharing
from greentrain.planners.candidate import Part

PROBLEM = make_problem(5, devices=4, layers=4, batch=24, micro_batches=(3, 4, 6))
TRANSFERS = ("SF", "RF", "SB", "RB")


def _plans(count: int) -> list[Plan]:
    rng = random.Random(7)
    return [random_plan(PROBLEM, rng) for _ in range(count)]


_IDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="@>:[]/,"), min_size=1)


@st.composite
def _actions(draw: st.DrawFn) -> Action:
    kind: ActionKind = draw(st.sampled_from(get_args(ActionKind)))
    first, last = sorted((draw(st.integers(0, 99)), draw(st.integers(0, 99))))
    if last == 0:
        first = 0
    return Action(
        device=draw(_IDS), kind=kind, stage=draw(st.integers(0, 99)), micro_batch=draw(st.integers(0, 999)),
        bytes=draw(st.integers(0, 10**12)), peer=draw(_IDS) if kind in TRANSFERS else None,
        first_row=first, last_row=last,
    )  # fmt: skip


@given(st.lists(_actions(), max_size=5))
def test_text_form_reads_back(actions: list[Action]) -> None:
    assert parse_actions(format_actions(actions)) == actions


def test_text_form_is_what_the_docs_say() -> None:
    text = "2F0@jetson-1[0:3) 0SF2@a>b[0:3):12288 1AR0@b:400 1U0@b"
    computed, sent, summed, update = parse_actions(text)
    assert (computed.stage, computed.kind, computed.device, computed.last_row) == (2, "F", "jetson-1", 3)
    assert (sent.peer, sent.bytes, sent.micro_batch) == ("b", 12288, 2)
    assert (summed.kind, summed.bytes, update.kind) == ("AR", 400, "U")
    assert format_actions([computed, sent, summed, update]) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0F0@a 0G0@a", "word 1 is '0G0@a', expected an action such as"),
        ("F0@a", "word 0 is 'F0@a'"),
        ("0SF0@a", "word 0 is '0SF0@a': exactly the transfers have a peer"),
        ("0F0@a>b", "word 0 is '0F0@a>b': exactly the transfers have a peer"),
        ("0F0@a[3:1)", r"word 0 is '0F0@a\[3:1\)': rows must be a half-open range"),
    ],
)
def test_wrong_words_are_named(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_actions(text)


def test_every_lowered_plan_can_be_executed_and_read_back() -> None:
    for plan in _plans(60):
        lists = lower(plan)
        assert tuple(lists) == plan.devices
        validate(lists)
        for listed in lists.values():
            assert parse_actions(format_actions(listed)) == listed


def test_in_flight_never_exceeds_k_and_each_micro_batch_goes_once_each_way() -> None:
    for plan in _plans(60):
        lists = lower(plan)
        for index, stage in enumerate(plan.stages):
            for position, device in enumerate(stage.devices):
                held = most = 0
                order: dict[str, list[int]] = defaultdict(list)
                for action in lists[device]:
                    assert action.stage == index
                    held += {"F": 1, "B": -1}.get(action.kind, 0)
                    most = max(most, held)
                    if action.kind in ("F", "B"):
                        order[action.kind].append(action.micro_batch)
                        assert action.last_row - action.first_row == stage.shares[position]
                assert most == min(stage.in_flight, plan.micro_batches_n)
                assert order["F"] == order["B"] == list(range(plan.micro_batches_n))
                kinds = Counter(action.kind for action in lists[device])
                assert kinds["U"] == 1
                assert kinds["AR"] == (len(stage.devices) > 1)
                assert lists[device][-1].kind == "U"


@given(rows=st.integers(2, 24), before=st.integers(1, 4), after=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_m_to_n_moves_every_row_exactly_once(rows: int, before: int, after: int, seed: int) -> None:
    rng = random.Random(seed)
    before, after = min(before, rows), min(after, rows)
    problem = make_problem(1, devices=before + after, layers=2, batch=rows, micro_batches=(rows,))
    names = tuple(device.id for device in problem.cluster.devices)
    shares = (random_parts(rows, before, rng), random_parts(rows, after, rng))
    plan = plan_of(
        problem,
        rows,
        [
            Part(0, 1, names[:before], shares[0], ("p0",) * before),
            Part(1, 2, names[before:], shares[1], ("p0",) * after),
        ],
    )
    lists = lower(plan)
    validate(lists)
    owner = {
        device: range(start, stop)
        for stage in plan.stages
        for device, start, stop in zip(
            stage.devices,
            (sum(stage.shares[:index]) for index in range(len(stage.shares))),
            (sum(stage.shares[: index + 1]) for index in range(len(stage.shares))),
            strict=True,
        )
    }
    for kind, per_row in (("SF", plan.stages[0].output_bytes), ("SB", plan.stages[0].gradient_bytes)):
        moved = [action for listed in lists.values() for action in listed if action.kind == kind]
        covered = [row for action in moved for row in range(action.first_row, action.last_row)]
        assert sorted(covered) == list(range(rows))
        for action in moved:
            assert action.peer is not None
            assert action.bytes == (action.last_row - action.first_row) * per_row
            for end in (action.device, action.peer):
                assert action.first_row in owner[end]
                assert action.last_row - 1 in owner[end]


def _pipeline() -> Plan:
    return plan_of(PROBLEM, 6, [Part(0, 2, ("d0",), (6,), ("p0",)), Part(2, 4, ("d1",), (6,), ("p0",))])


def test_nothing_goes_back_where_nothing_is_trained_before_the_cut() -> None:
    plan = _pipeline()
    first = msgspec.structs.replace(plan.stages[0], gradient_bytes=0, param_bytes=0)
    lists = lower(msgspec.structs.replace(plan, stages=(first, plan.stages[1])))
    validate(lists)
    kinds = {action.kind for listed in lists.values() for action in listed}
    assert kinds == {"F", "B", "SF", "RF", "U"}


def test_validate_names_the_stuck_devices() -> None:
    lists = lower(_pipeline())
    lists["d1"].insert(0, lists["d1"].pop(next(i for i, a in enumerate(lists["d1"]) if a.kind == "SB")))
    validate(lists)  # A send that comes too early blocks nobody.
    lists = lower(_pipeline())
    first = lists["d0"]
    first.insert(0, first.pop(next(i for i, action in enumerate(first) if action.kind == "RB")))
    with pytest.raises(UsageError, match="wait for each other for ever") as caught:
        validate(lists)
    assert "d0 waits at --> 0RB0@d0>d1[0:6)" in caught.value.message
    assert "d1 waits at --> 1RF0@d1>d0[0:6)" in caught.value.message


@pytest.mark.parametrize("change", [{"bytes": 1}, {"last_row": 5}, {"micro_batch": 99}])
def test_validate_names_the_missing_half(change: dict[str, int]) -> None:
    lists = lower(_pipeline())
    where = next(i for i, action in enumerate(lists["d0"]) if action.kind == "SF")
    lists["d0"][where] = msgspec.structs.replace(lists["d0"][where], **change)
    with pytest.raises(UsageError, match="has no other half on"):
        validate(lists)


@pytest.mark.parametrize("sharing", ["tensor_sequence", "tensor", "sequence"])
def test_groups_that_share_inside_a_sample(sharing: Sharing) -> None:
    problem = with_heads(make_problem(5, devices=3, layers=2, batch=8, micro_batches=(4,)), heads=4, sequence=4)
    parts = [Part(0, 1, ("d0",), (4,), ("p0",)), Part(1, 2, ("d1", "d2"), (3, 1), ("p0", "p0"), sharing)]
    plan = plan_of(problem, 4, parts)
    lists = lower(plan)
    validate(lists)
    sent = [action.bytes for action in lists["d0"] if action.kind == "SF" and action.micro_batch == 0]
    size = problem.model.layers[0].activation_bytes * 4
    # After Megatron's AllReduce everybody needs everything; tokens are needed where they are worked on.
    assert sent == ([size, size] if sharing == "tensor" else [pytest.approx(0.75 * size, abs=4), size - sent[0]])
    back = [action.bytes for action in lists["d0"] if action.kind == "RB" and action.micro_batch == 0]
    assert sum(back) == size
    # Four tokens of a row's bytes, three and one of them on either device.
    row_bytes = problem.model.layers[1].activation_bytes
    large, small = row_bytes * 3 // 4, row_bytes - row_bytes * 3 // 4
    passes = {action.kind: (action.bytes // 4, action.received_bytes // 4) for action in lists["d1"]
              if action.kind in ("F", "B")}  # fmt: skip
    both = 2 * row_bytes
    expected = {
        # In front of the loss whole tokens are gathered.
        "tensor_sequence": {"F": (both + large, both + small), "B": (both, both)},
        "tensor": {"F": (both, both), "B": (both, both)},
        "sequence": {
            "F": (both * 3 // 4 + large, both - both * 3 // 4 + small),
            "B": (both - both * 3 // 4, both * 3 // 4),
        },
    }
    assert passes == expected[sharing]
    assert any(action.kind == "AR" for action in lists["d1"]) == (sharing == "sequence")
    for listed in lists.values():
        assert parse_actions(format_actions(listed)) == listed


def test_random_ways_to_share_can_be_executed() -> None:
    problem = with_heads(PROBLEM, heads=4, sequence=12, plain_layers=1)
    rng = random.Random(12)
    seen: set[str] = set()
    for _ in range(80):
        plan = random_plan(problem, rng, sharings=get_args(Sharing))
        seen |= {stage.sharing for stage in plan.stages}
        lists = lower(plan)
        validate(lists)
        for first, second in itertools.pairwise(plan.stages):
            arrived = sum(
                a.bytes for name in second.devices for a in lists[name] if a.kind == "RF" and not a.micro_batch
            )
            copies = len(second.devices) if second.sharing == "tensor" else 1
            assert arrived == copies * plan.micro_batch * first.output_bytes
    assert seen == set(get_args(Sharing))


def test_forward_only_leaves_out_gradients_and_updates() -> None:
    for plan in _plans(40):
        trained, answered = lower(plan), lower(plan, forward_only=True)
        validate(answered)
        for device, actions in answered.items():
            kept = [action for action in trained[device] if action.kind in ("F", "SF", "RF")]
            assert sorted(map(str, actions)) == sorted(map(str, kept))
            forwards = [action.micro_batch for action in actions if action.kind == "F"]
            assert forwards == list(range(plan.micro_batches_n))
