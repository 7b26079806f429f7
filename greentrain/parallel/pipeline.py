"""Pipeline parallelism: the time of a round of 1F1B, and what crosses a cut.

Steps alternate: execution of stage 0, transfer, execution of stage 1, …. With ``E = E_f + E_b`` of
each step, ``D`` the seconds that a step needs per further micro-batch, M micro-batches and ``T_a`` the
tail (gradient sum and update) of each stage, the round of Asteroid (arXiv 2408.08015), with the aligned
dominant step, takes ``A* + R*``:

    A* = max_c [E_c + (M−1)·D_c + Σ_{i<c} E_i]        R* = max_s [T_a^s − Σ_{i<s} E_b^i]

D is E for execution and for a shared medium; on a switched network activations and gradients move in
opposite directions at once, so there D is the larger of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from greentrain.cluster import Cluster

__all__ = ["Step", "boundary_s", "round_s"]


class Step(NamedTuple):
    """One step of the pipeline.

    Attributes:
        forward_s: Forward seconds per micro-batch.
        backward_s: Backward seconds per micro-batch.
        further_s: Seconds that every further micro-batch adds when this step is the slowest (D).
        tail_s: Gradient sum and update per round; 0 for a transfer.
    """

    forward_s: float
    backward_s: float
    further_s: float
    tail_s: float


def round_s(steps: Sequence[Step], micro_batches_n: int) -> float:
    """Seconds of one round, from the first forward to the last update.

    Args:
        steps: Execution and transfer steps in pipeline order, execution first and last.
        micro_batches_n: M.
    """
    before_s = 0.0
    before_backward_s = 0.0
    aligned_s = 0.0
    tail_s = 0.0
    for index, step in enumerate(steps):
        total_s = step.forward_s + step.backward_s
        aligned_s = max(aligned_s, total_s + (micro_batches_n - 1) * step.further_s + before_s)
        if index % 2 == 0:  # Transfers have no tail.
            tail_s = max(tail_s, step.tail_s - before_backward_s)
        before_s += total_s
        before_backward_s += step.backward_s
    return aligned_s + tail_s


def boundary_s(
    cluster: Cluster,
    senders: Sequence[str],
    receivers: Sequence[str],
    *,
    sent_rows: Sequence[int],
    received_rows: Sequence[int],
    bytes_per_row: int,
) -> float:
    """Seconds to hand one micro-batch from group to group, each pair moving just the rows both hold.

    A switched network moves the messages of different devices at once, so the busiest device decides;
    on a shared medium all rows follow one another.
    """
    if bytes_per_row == 0:
        return 0.0
    links = [cluster.link(src, dst) for src in senders for dst in receivers]
    bandwidth = min(link.bandwidth_bytes_per_s for link in links)
    latency_s = max(link.latency_s for link in links)
    shared = any(link.medium is not None for link in links)
    rows = sum(sent_rows) if shared else max(*sent_rows, *received_rows)
    return latency_s + rows * bytes_per_row / bandwidth
