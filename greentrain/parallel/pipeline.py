"""Pipeline parallelism: the time of a round of 1F1B, and what crosses a cut.

Built from the last stage: before a suffix of stages, whose first is r, come a head stage h and its transfer c.
M are the micro-batches of a round; a stage holds K = min(2n−1, M) in flight, n the stages from it to the last.
The order of actions is fixed, so a round is a longest path through them. These families of paths are taken:

- every micro-batch through h, and h waiting for the suffix: ``E_h + E_c + A``, the aligned dominant step of
  Asteroid (arXiv 2408.08015);
- one micro-batch down and back (to r, to the last stage but two, or to the last), before it K−1 more forwards
  and after it K−1 more backwards of the stage where it turns, in between M−K times the busiest port: of the
  transfer alone, or of r, whose way in takes activations and gradients, as its way out does;
- the same with the forwards on one stage and the backwards on another;
- h may be only K_h − K_r forwards ahead, so a window of that many micro-batches waits for a full turn;
- the last micro-batch enters the suffix only after h has done one backward per forward since the first came back;
- on a shared medium all transfers and gradient sums follow one another.

A message occupies ports for bytes / bandwidth and arrives one latency later: latency is no load.

Every term only adds seconds, so no slower device or link makes a round shorter: without that no planner
could drop what is worse in every coordinate (:data:`DOMINANCE_FIELDS`). A figure may be a float or a numpy
array of one shape, one entry per candidate; the arithmetic is the same and looks at no value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from greentrain.cluster import Cluster
from greentrain.sharing import Piece, Sharing, common_piece_bytes, pieces

__all__ = [
    "DOMINANCE_FIELDS",
    "Held",
    "Pipe",
    "Step",
    "Transfer",
    "held",
    "largest",
    "last_stage",
    "prepended",
    "round_s",
    "transfer",
]


class Step(NamedTuple):
    """What a stage does with one micro-batch.

    Attributes:
        forward_s: Forward seconds of its slowest device.
        backward_s: Backward seconds of its slowest device.
        both_s: Forward and backward seconds of the device that is slowest in both together.
        first_forward_s: Forward seconds of its fastest device; equal to ``forward_s`` where all end together.
        first_backward_s: Backward seconds of its fastest device.
        sum_s: Gradient sum per round.
        update_s: Optimizer update per round.
        air_s: Seconds for which the gradient sum occupies a shared medium.
        ring_port_s: Seconds for which the group's rings occupy each port, per micro-batch.
        ring_air_s: Seconds for which they occupy a shared medium, per micro-batch.
    """

    forward_s: float
    backward_s: float
    both_s: float
    first_forward_s: float
    first_backward_s: float
    sum_s: float = 0.0
    update_s: float = 0.0
    air_s: float = 0.0
    ring_port_s: float = 0.0
    ring_air_s: float = 0.0


class Transfer(NamedTuple):
    """What one micro-batch costs between two stages: seconds of the busiest ports, and latencies.

    Attributes:
        left_out_s: Activations through the busiest way out of the stage before the cut.
        right_in_s: Activations through the busiest way in of the stage behind it.
        right_out_s: Gradients through the busiest way out of the stage behind the cut.
        left_in_s: Gradients through the busiest way in of the stage before it.
        forward_latency_s: Latency of the activations.
        backward_latency_s: Latency of the gradients.
        down_air_s: Activations through the shared medium; 0 on a switched network.
        up_air_s: Gradients through the shared medium.
    """

    left_out_s: float = 0.0
    right_in_s: float = 0.0
    right_out_s: float = 0.0
    left_in_s: float = 0.0
    forward_latency_s: float = 0.0
    backward_latency_s: float = 0.0
    down_air_s: float = 0.0
    up_air_s: float = 0.0

    @property
    def down_s(self) -> float:
        """Seconds per micro-batch of the busiest port on the way down."""
        return largest(self.left_out_s, self.right_in_s, self.down_air_s)

    @property
    def up_s(self) -> float:
        """Seconds per micro-batch of the busiest port on the way back."""
        return largest(self.right_out_s, self.left_in_s, self.up_air_s)


class Pipe(NamedTuple):
    """The stages from some stage to the last one, timed from the entry of the first micro-batch.

    Attributes:
        stages_n: How many stages.
        aligned_s: Until the last backward of the first of them (A).
        round_s: Until the last update of all of them (T).
        both_s: The first stage's forward and backward.
        middle_s: What one micro-batch adds behind the first stage, down to the last stage but two and back.
        beyond_s: The same down to the last stage.
        filled_s: Entry of the first micro-batch to the first return, with the forwards of those in flight on the
            stage that is slowest in them, from the first one to where the last forward turns.
        drained_s: Entry of that forward to the last return, with the backwards of those in flight on one stage.
        last_s: Entry of the last micro-batch to the last update.
        tail_s: The first stage's gradient sum and update.
        out_s: Activations (and its own rings) through the first stage's way out, per micro-batch.
        in_s: Gradients (and its own rings) through its way in, per micro-batch.
        air_s: All that a micro-batch sends through the shared medium.
        sums_air_s: Gradient sums through the shared medium, over all stages.
    """

    stages_n: int
    aligned_s: float
    round_s: float
    both_s: float
    middle_s: float
    beyond_s: float
    filled_s: float
    drained_s: float
    last_s: float
    tail_s: float
    out_s: float
    in_s: float
    air_s: float
    sums_air_s: float


# With up to five micro-batches all stages in front of the last two hold every one, so that their first backward
# waits for all forwards at the last stage but two.
_INNER_N = 3

# A pipe can be dropped for another of as many stages over the same layers if it is no better in any of these
# (and the shares of its first stage are the same, or need no less of every port in front of it). Without a
# shared medium the last two are 0; both_s, tail_s, out_s and in_s are equal where the first stage is the same.
DOMINANCE_FIELDS = Pipe._fields[1:]


def last_stage(step: Step, micro_batches_n: int) -> Pipe:
    """The pipe that consists of the last stage alone."""
    aligned_s = micro_batches_n * step.both_s
    tail_s = step.sum_s + step.update_s
    none_s = 0.0 * aligned_s
    return Pipe(
        stages_n=1, aligned_s=aligned_s, round_s=aligned_s + tail_s, both_s=step.both_s, middle_s=none_s,
        beyond_s=none_s, filled_s=step.both_s, drained_s=step.both_s, last_s=step.both_s + tail_s, tail_s=tail_s,
        out_s=none_s + step.ring_port_s, in_s=none_s + step.ring_port_s, air_s=none_s + step.ring_air_s,
        sums_air_s=none_s + step.air_s,
    )  # fmt: skip


class _Turn(NamedTuple):
    """One micro-batch from the head to the suffix and back, and the slowest of what passes many of them.

    Attributes:
        entry_s: Until the first of the suffix's devices has its rows.
        down_s: Until all of them have.
        up_s: From the end of their backward to the end of the head's.
        there_s: The transfer down and back.
        turn_s: The same with the head's forward and backward.
        near_s: The same with those of the suffix's first stage, too.
        cycle_s: The same once the devices of a group in front follow one another, so that each waits for its own
            rows only, on the way down or on the way back.
        trip_s: The head's forward, down to the last stage and back, the head's backward.
        behind_s: From the end of the head's forward, down to the last stage and back to its backward.
        fill_s: Forwards in front of the suffix, per micro-batch.
        drain_s: Backwards, per micro-batch.
        steady_s: The busier port of the suffix's first stage, both ways and on both sides, per micro-batch.
    """

    entry_s: float
    down_s: float
    up_s: float
    there_s: float
    turn_s: float
    near_s: float
    cycle_s: float
    trip_s: float
    behind_s: float
    fill_s: float
    drain_s: float
    steady_s: float


def _turn(head: Step, link: Transfer, pipe: Pipe) -> _Turn:
    latency_s = link.forward_latency_s + link.backward_latency_s
    first_s, last_s = largest(link.right_in_s, link.down_air_s), largest(link.right_out_s, link.up_air_s)
    # The busiest port of the suffix begins with the rows of the head's fastest device, whatever the others do.
    entry_s = link.forward_latency_s + largest(head.forward_s, head.first_forward_s + first_s)
    down_s = largest(entry_s, link.forward_latency_s + head.forward_s + link.left_out_s)
    leave_s = link.backward_latency_s + largest(head.backward_s, head.first_backward_s + last_s)
    up_s = largest(leave_s, link.backward_latency_s + link.left_in_s + head.backward_s)
    # Rows that come to a group's devices one after another are handed on while the others still come: the time
    # of its ports adds up, or that of the ports in front of it, but the wait in front and the one behind do not.
    there_s = latency_s + largest(link.down_s + last_s, first_s + link.up_s)
    turn_s = largest(down_s + leave_s, entry_s + up_s)
    own_down_s = link.forward_latency_s + head.forward_s + largest(link.left_out_s, link.down_air_s)
    own_up_s = link.backward_latency_s + head.backward_s + largest(link.left_in_s, link.up_air_s)
    return _Turn(
        entry_s=entry_s,
        down_s=down_s,
        up_s=up_s,
        there_s=there_s,
        turn_s=turn_s,
        near_s=turn_s + pipe.both_s,
        cycle_s=pipe.both_s + largest(down_s + own_up_s, own_down_s + leave_s),
        trip_s=pipe.both_s + largest(turn_s, entry_s + pipe.beyond_s + leave_s),
        behind_s=pipe.both_s + largest(there_s, latency_s + first_s + last_s + pipe.beyond_s),
        fill_s=largest(link.down_s, head.forward_s),
        drain_s=largest(link.up_s, head.backward_s),
        steady_s=largest(link.right_in_s + pipe.in_s, link.right_out_s + pipe.out_s),
    )


def prepended(head: Step, link: Transfer, pipe: Pipe, micro_batches_n: int) -> Pipe:
    """The pipe with one more stage and its transfer in front."""
    turn = _turn(head, link, pipe)
    tail_s = head.sum_s + head.update_s
    aligned_s = _aligned_s(head, link, pipe, turn, micro_batches_n)
    k_r = _in_flight(pipe.stages_n, micro_batches_n)
    return Pipe(
        stages_n=pipe.stages_n + 1,
        aligned_s=aligned_s,
        round_s=largest(aligned_s + tail_s, _suffix_round_s(head, link, pipe, turn, micro_batches_n)),
        both_s=head.both_s,
        middle_s=turn.there_s + pipe.both_s + pipe.middle_s if pipe.stages_n >= _INNER_N else pipe.middle_s,
        beyond_s=turn.behind_s,
        filled_s=_one_sided_s(head, pipe, turn, micro_batches_n, head.forward_s, turn.fill_s, pipe.filled_s),
        drained_s=_one_sided_s(head, pipe, turn, micro_batches_n, head.backward_s, turn.drain_s, pipe.drained_s),
        last_s=largest(turn.near_s + (k_r - 1) * turn.drain_s + tail_s, turn.down_s + pipe.last_s),
        tail_s=tail_s,
        out_s=link.left_out_s + head.ring_port_s,
        in_s=link.left_in_s + head.ring_port_s,
        air_s=link.down_air_s + link.up_air_s + head.ring_air_s + pipe.air_s,
        sums_air_s=head.air_s + pipe.sums_air_s,
    )


def _aligned_s(head: Step, link: Transfer, pipe: Pipe, turn: _Turn, m: int) -> float:
    """Seconds from the head's first forward to its last backward."""
    n = pipe.stages_n
    k_h, k_r, k_i = _in_flight(n + 1, m), _in_flight(n, m), _in_flight(min(n, _INNER_N), m)
    turns_n, rest_n = divmod(m - k_r, k_h - k_r + 1)
    wire_s = largest(link.down_s, link.up_s, link.left_out_s + head.ring_port_s, link.left_in_s + head.ring_port_s)
    in_s, out_s = link.right_in_s + pipe.in_s, link.right_out_s + pipe.out_s
    short_s = turn.entry_s + pipe.both_s + turn.up_s
    phases_s = turn.fill_s + turn.drain_s
    return largest(
        m * head.both_s,
        turn.turn_s + pipe.aligned_s,
        turn.turn_s + pipe.filled_s + (k_i - 1) * head.backward_s,
        turn.turn_s + pipe.drained_s + (k_i - 1) * head.forward_s,
        head.backward_s + _air_s(head, link, pipe, m),
        turn.trip_s + (k_h - 1) * largest(turn.fill_s, turn.drain_s) + (m - k_h) * largest(wire_s, head.both_s),
        turn.trip_s + (k_r - 1) * largest(link.right_in_s, pipe.in_s) + (m - k_r) * in_s,
        turn.trip_s + (k_r - 1) * largest(link.right_out_s, pipe.out_s) + (m - k_r) * out_s,
        short_s + pipe.middle_s + (k_i - 1) * phases_s + (m - k_i) * wire_s,
        short_s + (k_r - 1) * phases_s + largest(
            (k_h - k_r) * largest(head.forward_s, head.backward_s) + (m - k_h) * head.both_s,
            (m - k_r) * wire_s,
            # Gradients of a group come back one device after another: up to a micro-batch more of them overtakes.
            (m - k_r) * turn.steady_s + (_overtaken_s(pipe, m) + _overtaken_s(pipe, m, both=True)) / 2,
            turns_n * turn.cycle_s + rest_n * pipe.both_s,
        ),
    )  # fmt: skip


def _suffix_round_s(head: Step, link: Transfer, pipe: Pipe, turn: _Turn, m: int) -> float:
    """Seconds from the head's first forward to the last update of the stages behind it."""
    k_r = _in_flight(pipe.stages_n, m)
    late_s = _late_s(head, link, pipe, turn, m)
    sums_air_s = head.air_s + pipe.sums_air_s
    # The suffix's first stage sums its gradients once the last of them has left it.
    leaving_s = turn.entry_s + (k_r - 1) * turn.fill_s + link.right_out_s + pipe.tail_s
    return largest(
        turn.down_s + pipe.round_s,
        turn.down_s + late_s + pipe.last_s,
        _last_entry_s(head, turn, pipe, m) + pipe.last_s,
        leaving_s + (m - 1) * link.up_s,
        leaving_s + pipe.both_s + (k_r - 1) * link.right_out_s + (m - k_r) * turn.steady_s + _overtaken_s(pipe, m),
        # On a shared medium all sums, the head's too, follow what was sent before.
        turn.down_s + largest(pipe.aligned_s, late_s + pipe.both_s) + link.up_air_s + sums_air_s + head.update_s,
        _air_s(head, link, pipe, m) + sums_air_s + head.update_s,
    )


def _last_entry_s(head: Step, turn: _Turn, pipe: Pipe, m: int) -> float:
    """Until the last micro-batch enters the suffix, after a trip of the first one and a head that never waits again."""
    k_h = _in_flight(pipe.stages_n + 1, m)
    if m <= k_h:
        return turn.down_s
    return turn.trip_s + (m - k_h - 1) * head.both_s + turn.down_s


def _late_s(head: Step, link: Transfer, pipe: Pipe, turn: _Turn, m: int) -> float:
    """Seconds from the first to the last micro-batch that enters the suffix."""
    k_h, k_r = _in_flight(pipe.stages_n + 1, m), _in_flight(pipe.stages_n, m)
    return largest(
        (m - 1) * head.forward_s + (m - k_h) * head.backward_s,
        (m - 1) * link.down_s,
        (m - 1) * pipe.out_s + (m - k_r) * link.right_out_s,
        (k_r - 1) * turn.fill_s + largest(
            (m - k_r) * turn.steady_s + _overtaken_s(pipe, m),
            (m - k_r) // (k_h - k_r + 1) * turn.near_s,
        ),
    )  # fmt: skip


def _one_sided_s(head: Step, pipe: Pipe, turn: _Turn, m: int, own_s: float, phase_s: float, suffix_s: float) -> float:
    """The pipe's ``filled_s`` or ``drained_s``: the forwards, or the backwards, of those in flight on one stage.

    Args:
        head: The stage in front of the pipe.
        pipe: The suffix.
        turn: One micro-batch between them.
        m: Micro-batches of a round.
        own_s: The head's forward, or backward.
        phase_s: The same where the transfer may be slower.
        suffix_s: The same figure of the suffix.
    """
    n = pipe.stages_n
    here_s = head.both_s + (_in_flight(n + 1, m) - 1) * own_s
    if n < _INNER_N:
        return here_s
    inner_s = pipe.both_s + pipe.middle_s + (_in_flight(_INNER_N, m) - 1) * phase_s
    return largest(here_s, turn.turn_s + largest(suffix_s, inner_s))


def _air_s(head: Step, link: Transfer, pipe: Pipe, m: int) -> float:
    """Until all messages of a round have gone through the shared medium; the head's passes include its rings once."""
    return head.forward_s + m * (link.down_air_s + link.up_air_s + pipe.air_s) + (m - 1) * head.ring_air_s


def _overtaken_s(pipe: Pipe, m: int, *, both: bool = False) -> float:
    """Seconds by which messages of the stages behind hold up those of the head at the suffix's first stage.

    Gradients from behind pass its port before its K-th activations, activations after its K-th last gradients.
    """
    if _in_flight(pipe.stages_n, m) < _in_flight(max(pipe.stages_n - 1, 1), m) + 2:
        return 0.0
    return pipe.in_s + pipe.out_s if both else largest(pipe.in_s, pipe.out_s)


def largest(*values: float) -> float:
    """The largest of some figures, entry by entry where they are arrays."""
    if any(isinstance(value, np.ndarray) for value in values):
        return reduce(np.maximum, values)
    return max(values)


def _in_flight(stages_n: int, micro_batches_n: int) -> int:
    """K of the first of the last ``stages_n`` stages, as in :func:`greentrain.plan.in_flight_limit`."""
    return min(2 * stages_n - 1, micro_batches_n)


def round_s(stages: Sequence[Step], transfers: Sequence[Transfer], micro_batches_n: int) -> float:
    """Seconds of one round, from the first forward to the last update.

    Args:
        stages: In pipeline order.
        transfers: Between neighbours, one fewer.
        micro_batches_n: M.
    """
    pipe = last_stage(stages[-1], micro_batches_n)
    for step, link in zip(reversed(stages[:-1]), reversed(transfers), strict=True):
        pipe = prepended(step, link, pipe, micro_batches_n)
    return pipe.round_s


class Held(NamedTuple):
    """A group at a cut: who hands over what, and who takes what.

    Attributes:
        devices: The group.
        sends: What each hands over.
        takes: What each needs.
    """

    devices: Sequence[str]
    sends: Sequence[Piece]
    takes: Sequence[Piece]


def held(
    devices: Sequence[str], sharing: Sharing, shares: Sequence[int], micro_batch: int, *, whole: bool = False
) -> Held:
    """A group and its pieces of a micro-batch, tokens as finely divided as the shares.

    ``whole`` says that its layer at the cut is computed whole by every device.
    """
    return Held(
        devices,
        pieces(sharing, shares, micro_batch, sends=True, whole=whole),
        pieces(sharing, shares, micro_batch, sends=False, whole=whole),
    )


def transfer(
    cluster: Cluster, before: Held, after: Held, *, activation_bytes: int, gradient_bytes: int, side_bytes: int = 0,
    side_gradient_bytes: int = 0,
) -> Transfer:  # fmt: skip
    """The transfer of one micro-batch between two groups, each pair moving just what both hold.

    A switched network moves the messages of different devices at once, so the busiest way out or in
    decides; on a shared medium all messages follow one another.

    Args:
        cluster: Gives the links.
        before: The group in front of the cut.
        after: The group behind it.
        activation_bytes: Bytes per row that go down, of all tensors.
        gradient_bytes: Bytes per row that come back.
        side_bytes: Those of other tensors than the hidden state going down.
        side_gradient_bytes: Those coming back.
    """
    down, up = (activation_bytes - side_bytes, side_bytes), (gradient_bytes - side_gradient_bytes, side_gradient_bytes)
    left_out_s, right_in_s, down_air_s, forward_latency_s = _loads(cluster, before, after, down)
    right_out_s, left_in_s, up_air_s, backward_latency_s = _loads(cluster, after, before, up)
    return Transfer(
        left_out_s=left_out_s, right_in_s=right_in_s, right_out_s=right_out_s, left_in_s=left_in_s,
        forward_latency_s=forward_latency_s, backward_latency_s=backward_latency_s,
        down_air_s=down_air_s, up_air_s=up_air_s,
    )  # fmt: skip


def _loads(
    cluster: Cluster, senders: Held, receivers: Held, row_bytes: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Seconds of the busiest way out, of the busiest way in and of the medium, and the largest latency."""
    if not any(row_bytes):
        return 0.0, 0.0, 0.0, 0.0  # Without anything trainable before the cut no gradient goes back.
    out_s: defaultdict[str, float] = defaultdict(float)
    in_s: defaultdict[str, float] = defaultdict(float)
    air_s = latency_s = 0.0
    for src, sent in zip(senders.devices, senders.sends, strict=True):
        for dst, taken in zip(receivers.devices, receivers.takes, strict=True):
            size = common_piece_bytes(sent, taken, *row_bytes)
            if size == 0:
                continue
            link = cluster.link(src, dst)
            transfer_s = size / cluster.bandwidth_bytes_per_s(link)
            latency_s = max(latency_s, link.latency_s)
            if link.medium is not None:
                air_s += transfer_s
            else:
                out_s[src] += transfer_s
                in_s[dst] += transfer_s
    return max(out_s.values(), default=0.0), max(in_s.values(), default=0.0), air_s, latency_s
