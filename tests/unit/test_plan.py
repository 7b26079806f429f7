from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, random_plan, with_heads

from greentrain.errors import UsageError
from greentrain.objective import Parallelism
from greentrain.plan import (
    Plan,
    Sharing,
    Stage,
    allowed,
    in_flight_limit,
    parallelism_name,
    row_ranges,
    validate,
)
from greentrain.planners.candidate import Part
from greentrain.sharing import common_bytes, slices

PROBLEM = make_problem(3, devices=3, layers=4, batch=8, micro_batches=(4,))
HYBRID = plan_of(PROBLEM, 4, [Part(0, 2, ("d1", "d0"), (3, 1), ("p0", "p0")), Part(2, 4, ("d2",), (4,), ("p0",))])


def test_properties() -> None:
    assert HYBRID.micro_batches_n == 2
    assert HYBRID.devices == ("d1", "d0", "d2")
    assert row_ranges((3, 1, 2)) == ((0, 3), (3, 4), (4, 6))
    assert [in_flight_limit(3, stage, 100) for stage in range(3)] == [5, 3, 1]
    assert [in_flight_limit(3, stage, 2) for stage in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([Part(0, 4, ("d0",), (4,), ("p0",))], "single"),
        ([Part(0, 4, ("d0", "d1"), (2, 2), ("p0", "p0"))], "data"),
        ([Part(0, 1, ("d0",), (4,), ("p0",)), Part(1, 4, ("d1",), (4,), ("p0",))], "pipeline"),
        ([Part(0, 1, ("d0", "d2"), (3, 1), ("p0", "p0")), Part(1, 4, ("d1",), (4,), ("p0",))], "hybrid"),
    ],
)
def test_parallelism_names(parts: list[Part], name: str) -> None:
    assert parallelism_name(plan_of(PROBLEM, 4, parts)) == name


@pytest.mark.parametrize(
    ("sharing", "name"),
    [("tensor_sequence", "tensor+sequence"), ("tensor", "tensor"), ("sequence", "sequence"), ("samples", "data")],
)
def test_one_group_is_named_by_how_it_shares(sharing: Sharing, name: Parallelism) -> None:
    problem = with_heads(PROBLEM, heads=4, sequence=4)
    plan = plan_of(problem, 4, [Part(0, 4, ("d0", "d1"), (3, 1), ("p0", "p0"), sharing)])
    validate(plan, problem)
    assert parallelism_name(plan) == name
    assert allowed(plan, problem)
    assert allowed(plan, msgspec.structs.replace(problem, parallelism=name))
    assert not allowed(plan, msgspec.structs.replace(problem, parallelism="pipeline"))
    # A hybrid that shares inside a stage is still a hybrid.
    parts = [Part(0, 1, ("d2",), (4,), ("p0",)), Part(1, 4, ("d0", "d1"), (3, 1), ("p0", "p0"), sharing)]
    assert parallelism_name(plan_of(problem, 4, parts)) == "hybrid"


def test_heads_must_be_those_of_the_layers() -> None:
    problem = with_heads(PROBLEM, heads=4, sequence=6)
    plan = plan_of(problem, 4, [Part(0, 4, ("d0", "d1"), (3, 2), ("p0", "p0"), "tensor_sequence")])
    with pytest.raises(UsageError, match="stage 0 shares out 5 heads, the model has 4 in layers"):
        validate(plan, problem)
    plan = plan_of(problem, 4, [Part(0, 4, ("d0", "d1"), (3, 2), ("p0", "p0"), "sequence")])
    with pytest.raises(UsageError, match="stage 0 shares out 5 tokens, the model has 6 in layers"):
        validate(plan, problem)
    plan = plan_of(PROBLEM, 4, [Part(0, 4, ("d0", "d1"), (3, 1), ("p0", "p0"), "tensor")])
    with pytest.raises(UsageError, match="stage 0 shares out 4 heads, the model has none in common in layers"):
        validate(plan, PROBLEM)
    whole = plan_of(problem, 4, [Part(0, 4, ("d0", "d1"), (3, 1), ("p0", "p0"), "tensor")])
    wrong = msgspec.structs.replace(whole.stages[0], ring_forward_bytes=1)
    with pytest.raises(UsageError, match="stage 0 states"):
        validate(msgspec.structs.replace(whole, stages=(wrong,)), problem)


@given(
    sent=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    taken=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ways=st.tuples(st.sampled_from(get_args(Sharing)), st.sampled_from(get_args(Sharing))),
    row_bytes=st.integers(1, 5000),
)
def test_every_byte_of_a_cut_crosses_once(
    sent: list[int], taken: list[int], ways: tuple[Sharing, Sharing], row_bytes: int
) -> None:
    rows = sum(sent)
    if ways[1] == "samples":
        taken = [1] * min(len(taken), rows - 1) + [rows - min(len(taken), rows - 1)]
    senders = slices(ways[0], sent, rows, sends=True)
    takers = slices(ways[1], taken, rows, sends=False)
    for taker in takers:
        whole = (taker.last_row - taker.first_row) * (
            taker.last_part * row_bytes // taker.parts_n - taker.first_part * row_bytes // taker.parts_n
        )
        assert sum(common_bytes(sender, taker, row_bytes) for sender in senders) == whole
    crossing = sum(common_bytes(sender, taker, row_bytes) for sender in senders for taker in takers)
    assert crossing == rows * row_bytes * (len(takers) if ways[1] == "tensor" else 1)


def test_random_plans_are_valid() -> None:
    rng = random.Random(1)
    for _ in range(50):
        validate(random_plan(PROBLEM, rng), PROBLEM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "other"}, r"made for model 'other' \(000000000000\), got 'toy' \(000000000000\)"),
        ({"structure_sha256": "1" * 64}, r"made for model 'toy' \(111111111111\)"),
        ({"stages": HYBRID.stages[:1]}, "stages end at layer 2, model 'toy' has 4 layers"),
        ({"batch": 16}, "batch is 16, the problem has 8"),
    ],
)
def test_validate_names_what_does_not_belong(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        validate(msgspec.structs.replace(HYBRID, **changes), PROBLEM)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"devices": ("d9",)}, "plan: stage 1: unknown device 'd9'"),
        ({"points": ("p7",)}, "plan: stage 1: device 'd2' has no operating point 'p7'"),
        ({"param_bytes": 1}, "plan: stage 1 states"),
        ({"output_bytes": 7}, "plan: stage 1 states"),
    ],
)
def test_validate_names_the_stage(changes: dict[str, object], sentence: str) -> None:
    stages = (HYBRID.stages[0], msgspec.structs.replace(HYBRID.stages[1], **changes))
    with pytest.raises(UsageError, match=sentence):
        validate(msgspec.structs.replace(HYBRID, stages=stages), PROBLEM)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stop": 0}, r"layers \[0, 0\) are empty"),
        ({"devices": ()}, "at least one device"),
        ({"shares": (4,)}, "2 devices, 1 shares and 2 points must be as many"),
        ({"shares": (4, 0)}, r"shares \(4, 0\) must be at least 1 each"),
        ({"in_flight": 0}, "in_flight must be at least 1"),
        ({"devices": ("d1",), "shares": (4,), "points": ("p0",), "sharing": "tensor"}, "one device cannot share"),
        ({"ring_forward_bytes": -1}, "ring_forward_bytes is -1"),
        ({"devices": ("a b", "c")}, "device id is 'a b'"),
        ({"output_bytes": -1}, "output_bytes is -1"),
    ],
)
def test_stages_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        msgspec.structs.replace(HYBRID.stages[0], **changes)


def _with_second(**changes: object) -> tuple[Stage, ...]:
    return (HYBRID.stages[0], msgspec.structs.replace(HYBRID.stages[1], **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"micro_batch": 3}, "micro-batch 3 does not divide 8"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"batch": -8}, "batch is -8"),
        ({"stages": ()}, "at least one stage"),
        ({"stages": _with_second(start=3)}, "stage 1 starts at layer 3, expected 2"),
        ({"stages": _with_second(shares=(3,))}, r"stage 1: shares \(3,\) do not add up to the micro-batch 4"),
        ({"stages": _with_second(devices=("d0",))}, "device used twice in stage 1"),
    ],
)
def test_plans_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        msgspec.structs.replace(HYBRID, **changes)


def test_plans_read_back() -> None:
    assert msgspec.json.decode(msgspec.json.encode(HYBRID), type=Plan) == HYBRID
