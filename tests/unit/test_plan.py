from __future__ import annotations

import random

import msgspec
import pytest
from problems import make_problem, plan_of, random_plan

from greentrain.errors import UsageError
from greentrain.plan import Plan, Stage, in_flight_limit, parallelism_name, row_ranges, validate
from greentrain.planners.candidate import Part

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
