from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import make_problem, plan_of, with_heads

from greentrain.cluster import Cluster, Link, Medium
from greentrain.cost import estimate
from greentrain.objective import Problem
from greentrain.parallel.memory import PROCESS_BYTES
from greentrain.parallel.tensor_sequence import layer_pass_s, ring_loads_s
from greentrain.plan import Sharing, Stage
from greentrain.planners.candidate import Part
from greentrain.profile import interpolate_batch_s

GROUP = ("d0", "d1", "d2")


def _cluster(*, latency_s: float = 0.0, medium: str | None = None) -> Cluster:
    link = Link(src="*", dst="*", bandwidth_bytes_per_s=1e6, latency_s=latency_s, medium=medium)
    media = (Medium(name="air", bandwidth_bytes_per_s=1e6),) if medium else ()
    cluster = make_problem(1, devices=3).cluster
    return msgspec.structs.replace(cluster, default_link=link, links=(), media=media)


def _pass_s(
    sharing: Sharing, cluster: Cluster, *, compute_s: float = 1.2, size: int = 250_000, overlap: bool = True,
    rings_n: int = 4,
) -> float:  # fmt: skip
    """One layer of 1 MB per micro-batch of 4 rows on three devices, the largest part one half."""
    return layer_pass_s(
        sharing, cluster, GROUP, compute_s=compute_s, ring_bytes=size, rings_n=rings_n, rows=4, largest_part=0.5,
        overlap=overlap,
    )  # fmt: skip


def test_rings_by_hand() -> None:
    wire = _cluster(latency_s=0.05)
    # A tile computes 1.2/4/3 = 0.1 s and travels 0.05 + 0.5 s.
    assert _pass_s("tensor_sequence", wire) == pytest.approx(4 * (0.1 + 2 * 0.55))
    assert _pass_s("tensor_sequence", wire, overlap=False) == pytest.approx(4 * (3 * 0.1 + 2 * 0.55))
    # Hidden behind computing.
    assert _pass_s("tensor_sequence", wire, compute_s=12.0) == pytest.approx(12.0)
    # Two AllReduces of 1 MB in four steps each.
    assert _pass_s("tensor", wire) == pytest.approx(1.2 + 2 * 4 * (0.05 + 0.5))
    # Keys and values of half the tokens, twice.
    assert _pass_s("sequence", wire, rings_n=1) == pytest.approx(1.2 + 2 * (0.05 + 0.5))
    # In one medium the three tiles of a step follow one another.
    assert _pass_s("tensor_sequence", _cluster(medium="air")) == pytest.approx(4 * (0.1 + 2 * 1.5))
    # A layer that every device computes whole.
    assert _pass_s("tensor_sequence", wire, rings_n=0) == 1.2


def test_a_long_latency_ruins_rings() -> None:
    near, far = (_pass_s("tensor_sequence", _cluster(latency_s=seconds), size=1000) for seconds in (1e-4, 1.0))
    assert near == pytest.approx(1.2, rel=0.02)
    assert far > 7 * near


def test_ring_loads() -> None:
    assert ring_loads_s(_cluster(), GROUP, 2e6) == (2.0, 0.0)
    assert ring_loads_s(_cluster(medium="air"), GROUP, 2e6) == (0.0, 6.0)
    assert ring_loads_s(_cluster(), ("d0",), 2e6) == (0.0, 0.0)


_WAYS: tuple[Sharing, ...] = ("tensor_sequence", "tensor", "sequence")


@given(
    sharing=st.sampled_from(_WAYS),
    compute_s=st.floats(0, 5),
    more_s=st.floats(0, 5),
    size=st.integers(0, 10**6),
    more=st.integers(0, 10**6),
)
def test_nothing_slower_makes_a_pass_shorter(
    sharing: Sharing, compute_s: float, more_s: float, size: int, more: int
) -> None:
    wire = _cluster(latency_s=0.01)
    before_s = _pass_s(sharing, wire, compute_s=compute_s, size=size)
    assert _pass_s(sharing, wire, compute_s=compute_s + more_s, size=size) >= before_s
    assert _pass_s(sharing, wire, compute_s=compute_s, size=size + more) >= before_s
    assert before_s <= _pass_s(sharing, wire, compute_s=compute_s, size=size, overlap=False) * (1 + 1e-12)


def _problem() -> Problem:
    problem = with_heads(make_problem(4, devices=2, layers=2, batch=8, micro_batches=(4,)), heads=4, sequence=4)
    return msgspec.structs.replace(problem, cluster=msgspec.structs.replace(problem.cluster, links=()))


def _stage(sharing: Sharing) -> Stage:
    return plan_of(_problem(), 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"), sharing)]).stages[0]


def test_memory_is_split_as_the_work_is() -> None:
    problem = _problem()
    layers = problem.model.layers
    weights = sum(layer.param_bytes for layer in layers)
    stash, most = sum(layer.stash_bytes for layer in layers), max(layer.stash_bytes for layer in layers)
    largest = max(layer.param_bytes for layer in layers)
    widest = 2 * 4 * max(layer.activation_bytes for layer in layers)
    entering = 2 * problem.model.input_bytes
    # Two parts gather their inputs for the backward pass; without sequence sharing what is in front of them, too.
    gathered = sum(min(2 * layer.activation_bytes, layer.stash_bytes) for layer in layers)
    inputs = sum(min(4 * layer.activation_bytes, layer.stash_bytes) for layer in layers)
    rows = 1.25 * stash + 0.7 * most
    expected: dict[Sharing, float] = {
        # Adam: weights, gradients, two moments. Three quarters of the heads, columns and tokens.
        "tensor_sequence": (4 * weights + 1.2 * largest) * 0.75 + 3 * (rows + entering) + 1 * gathered + widest,
        "tensor": (4 * weights + 1.2 * largest) * 0.75 + 3 * (rows + entering) + 1 * (inputs + entering) + widest,
        # Keys and values are as large as two inputs.
        "sequence": 4 * weights + 1.2 * largest + 3 * (rows + entering) + 1 * gathered + 2 * widest,
    }
    for sharing, needed in expected.items():
        plan = plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"), sharing)])
        assert estimate(plan, problem).peak_bytes["d0"] == pytest.approx(PROCESS_BYTES + needed, abs=8), sharing


def test_work_is_that_of_as_many_rows() -> None:
    problem = _problem()
    times = problem.model.times_of("kind0", "p0")
    seconds = sum(interpolate_batch_s(times.batch_B, row, 3.0) for row in (*times.forward_s_LB, *times.backward_s_LB))
    update_s = sum(times.update_s_L)
    updated_parts: dict[Sharing, float] = {"tensor_sequence": 0.75, "tensor": 0.75, "sequence": 1.0}
    for sharing, updated in updated_parts.items():
        plan = plan_of(problem, 4, [Part(0, 2, ("d0", "d1"), (3, 1), ("p0", "p0"), sharing)])
        assert estimate(plan, problem).busy_s["d0"] == pytest.approx(2 * seconds + updated * update_s)
    assert _stage("tensor").sum_bytes == _stage("tensor_sequence").sum_bytes == 0
    assert _stage("sequence").sum_bytes == sum(layer.param_bytes for layer in problem.model.layers)
    assert _stage("tensor_sequence").work_rows(0, 6) == 4.5
