"""Pipeline parallelism: the time of a round of 1F1B, and what crosses a cut.

Steps alternate: execution of a stage, transfer, execution of the next stage, …. ``E = E_f + E_b`` are a
step's seconds per micro-batch, M the micro-batches of a round, K those that a stage holds in flight, and
``T_a`` a stage's tail (gradient sum and update). Built from the last stage: before a suffix of stages come
a head stage h and its link c, and

    A ← max(M·E_h, E_h + K·E_c + (M−K)·D_c, E_h + E_c + A, …)    first forward to last backward of h
    T ← max(A + T_a^h, E_f^h + E_f^c + T, …)                      first forward to the last update

This is the aligned dominant step of Asteroid (arXiv 2408.08015), where every stage ends as soon as the
slowest step at or behind it has passed. Every term only adds seconds, so no slower device or link makes a
round shorter: without that no planner could drop what is worse in every coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from greentrain.cluster import Cluster

__all__ = ["Pipe", "Step", "boundary_s", "last_stage", "prepended", "round_s"]


class Step(NamedTuple):
    """One step of the pipeline.

    Attributes:
        forward_s: Forward seconds per micro-batch.
        backward_s: Backward seconds per micro-batch.
        tail_s: Gradient sum and update per round; 0 for a transfer.
        duplex: Whether forward and backward go on at once: a transfer on a switched network.
    """

    forward_s: float
    backward_s: float
    tail_s: float = 0.0
    duplex: bool = False

    @property
    def total_s(self) -> float:
        """Seconds of one micro-batch forward and backward (E)."""
        return self.forward_s + self.backward_s

    @property
    def further_s(self) -> float:
        """Seconds that every further micro-batch adds when this step is the slowest (D)."""
        return max(self.forward_s, self.backward_s) if self.duplex else self.total_s


class Pipe(NamedTuple):
    """The stages from some stage to the last one, timed from the entry of a micro-batch.

    Attributes:
        stages_n: How many stages.
        aligned_s: First forward to last backward of the first of them, the whole round (A).
        round_s: First forward to the last update of all of them, the whole round (T).
        last_s: Entry of the last micro-batch to the last update.
        head: The first of the stages.
        link: The transfer behind it; None when it is the last stage.
    """

    stages_n: int
    aligned_s: float
    round_s: float
    last_s: float
    head: Step
    link: Step | None


def last_stage(step: Step, micro_batches_n: int) -> Pipe:
    """The pipe that consists of the last stage alone."""
    aligned_s = micro_batches_n * step.total_s
    return Pipe(1, aligned_s, aligned_s + step.tail_s, step.total_s + step.tail_s, step, None)


def prepended(head: Step, link: Step, pipe: Pipe, micro_batches_n: int) -> Pipe:
    """The pipe with one more stage and its transfer in front."""
    behind_n = _in_flight(pipe.stages_n, micro_batches_n)
    own_n = _in_flight(pipe.stages_n + 1, micro_batches_n)
    aligned_s = max(
        micro_batches_n * head.total_s,
        # Gradients come back once the stage behind holds K micro-batches; only the others overlap.
        head.total_s + behind_n * link.total_s + (micro_batches_n - behind_n) * link.further_s,
        head.total_s + link.total_s + pipe.aligned_s,
    )
    if pipe.link is not None:
        through_s = head.total_s + link.total_s + pipe.head.total_s + pipe.link.total_s
        aligned_s = max(aligned_s, through_s + (micro_batches_n - 1) * _port_s(link, pipe.link))
    return Pipe(
        stages_n=pipe.stages_n + 1,
        aligned_s=aligned_s,
        round_s=max(
            aligned_s + head.tail_s,
            head.forward_s + link.forward_s + pipe.round_s,
            # The last micro-batch leaves the head, or its link, after all others.
            micro_batches_n * head.forward_s
            + (micro_batches_n - own_n) * head.backward_s
            + link.forward_s
            + pipe.last_s,
            head.forward_s + micro_batches_n * link.forward_s + pipe.last_s,
        ),
        last_s=max(head.total_s + head.tail_s, head.forward_s + link.forward_s + pipe.last_s),
        head=head,
        link=link,
    )


def _in_flight(stages_n: int, micro_batches_n: int) -> int:
    """K of the first of the last ``stages_n`` stages, as in :func:`greentrain.plan.in_flight_limit`."""
    return min(2 * stages_n - 1, micro_batches_n)


def _port_s(before: Step, after: Step) -> float:
    """Seconds per micro-batch of a middle stage's network port: both its transfers go through it."""
    if before.duplex and after.duplex:
        return max(before.forward_s + after.backward_s, before.backward_s + after.forward_s)
    if not before.duplex and not after.duplex:
        return before.total_s + after.total_s  # One shared medium carries everything.
    return 0.0


def round_s(steps: Sequence[Step], micro_batches_n: int) -> float:
    """Seconds of one round, from the first forward to the last update.

    Args:
        steps: Execution and transfer steps in pipeline order, execution first and last.
        micro_batches_n: M.
    """
    pipe = last_stage(steps[-1], micro_batches_n)
    for index in range(len(steps) - 3, -1, -2):
        pipe = prepended(steps[index], steps[index + 1], pipe, micro_batches_n)
    return pipe.round_s


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
    bandwidth = min(cluster.bandwidth_bytes_per_s(link) for link in links)
    latency_s = max(link.latency_s for link in links)
    shared = any(link.medium is not None for link in links)
    rows = sum(sent_rows) if shared else max(*sent_rows, *received_rows)
    return latency_s + rows * bytes_per_row / bandwidth
