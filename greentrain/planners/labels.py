"""Labels: pipelines built from the last stage, many at a time, each with everything that can still matter.

Axis legend: N labels, O options, U count vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from greentrain.parallel.pipeline import Pipe, Step, Transfer, last_stage, prepended
from greentrain.planners.device_runs import taken
from greentrain.planners.options import SHARINGS, Options, Window
from greentrain.planners.pareto import undominated_rows

__all__ = ["Labels", "TransferOf", "first_labels", "longer_labels", "undominated_labels"]

# The transfer between options (before the cut) and the labels behind it, and its joules per round:
# called with the option rows and the label rows.
TransferOf = Callable[[np.ndarray, np.ndarray], tuple[Transfer, np.ndarray]]

_PIPE_FIELDS = Pipe._fields[1:]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Suffixes of pipelines with the same number of stages, one per row.

    Attributes:
        pipe: Seconds; every field but ``stages_n`` is an array.
        start: First layer that is covered.
        used: Count vector of the devices in use.
        busy_j: Joules above waiting per round.
        wait_w: Waiting watts, above those that count anyway.
        most_s: Longest round that the devices' own energy budgets allow.
        option: Option of the first stage.
        parent: Row of the label behind the first stage, −1 for a last stage.
    """

    pipe: Pipe
    start: np.ndarray
    used: np.ndarray
    busy_j: np.ndarray
    wait_w: np.ndarray
    most_s: np.ndarray
    option: np.ndarray
    parent: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def round_s(self) -> np.ndarray:
        """Seconds of the round, the stages so far alone."""
        return np.asarray(self.pipe.round_s)

    def rows(self, keep: np.ndarray) -> Labels:
        """Some of the labels."""
        fields = {name: getattr(self, name)[keep] for name in self.__dataclass_fields__ if name != "pipe"}
        return Labels(pipe=taken(self.pipe, keep), **fields)

    def round_j(self, round_s: np.ndarray | float) -> np.ndarray:
        """Joules of a round of some length."""
        return self.busy_j + self.wait_w * round_s


def first_labels(options: Options, rows: np.ndarray, start_S: np.ndarray, micro_batches_n: int) -> Labels:
    """Labels of one stage: the last one of a pipeline."""
    own = options.rows(rows)
    return Labels(
        pipe=last_stage(_step(own), micro_batches_n),
        start=start_S[own.span_O],
        used=own.group_O,
        busy_j=own.busy_j,
        wait_w=own.wait_w,
        most_s=own.most_s,
        option=rows,
        parent=np.full(len(rows), -1),
    )


def longer_labels(
    options: Options, option_N: np.ndarray, labels: Labels, label_N: np.ndarray, used_N: np.ndarray,
    start_S: np.ndarray, micro_batches_n: int, transfer_of: TransferOf,
) -> Labels:  # fmt: skip
    """One more stage in front of each of some labels.

    Args:
        options: All options.
        option_N: The option that is prepended.
        labels: All labels of one stage fewer.
        label_N: The label behind it.
        used_N: Count vector of the devices of both.
        start_S: First layer of every span.
        micro_batches_n: M.
        transfer_of: Prices the cut between them.
    """
    own, behind = options.rows(option_N), labels.rows(label_N)
    link, link_j = transfer_of(option_N, label_N)
    return Labels(
        pipe=prepended(_step(own), link, behind.pipe, micro_batches_n),
        start=start_S[own.span_O],
        used=used_N,
        busy_j=behind.busy_j + own.busy_j + link_j,
        wait_w=behind.wait_w + own.wait_w,
        most_s=np.minimum(behind.most_s, own.most_s),
        option=option_N,
        parent=label_N,
    )


def undominated_labels(
    labels: Labels,
    window: Window,
    head: Options,
    head_N: np.ndarray,
    *,
    by_energy: bool,
    check_time: Callable[[], None],
) -> np.ndarray:
    """Rows of labels that no other label of the same layers and devices beats in everything that can matter.

    Args:
        labels: Labels of one number of stages.
        window: Rounds that are looked at; joules are linear in the round, so its two ends decide.
        head: The option of each label's first stage.
        head_N: Labels with different numbers here are not compared.
        by_energy: Whether joules matter.
        check_time: Called now and then; may raise to end the search.
    """
    columns = [*(getattr(labels.pipe, name) for name in _PIPE_FIELDS)]
    columns += [head.sent_rows, head.taken_rows, head.copies, -np.minimum(labels.most_s, 1e300)]
    if by_energy:
        columns += [labels.round_j(window.low_s), labels.round_j(window.high_s)]
    differing = [column for column in columns if len(column) and (column != column[0]).any()]
    if not differing:
        differing = columns[:1]
    # What the cut in front of a group costs depends on its size, too, where it shares work inside a sample.
    inside_N = np.where(head.sharing > 0, head.sizes * len(SHARINGS) + head.sharing, 0)
    state_N = np.stack([labels.start, labels.used, head_N, inside_N.astype(np.int64)], axis=1)
    key_N = np.unique(state_N, axis=0, return_inverse=True)[1].reshape(-1)
    return undominated_rows(key_N, np.stack(differing, axis=1), check_time)


def _step(options: Options) -> Step:
    seconds = (
        options.forward_s, options.backward_s, options.both_s, options.first_forward_s, options.first_backward_s,
        options.tail_s, np.zeros(len(options)), options.air_s, options.ring_port_s, options.ring_air_s,
    )  # fmt: skip
    return Step(*cast("tuple[float, ...]", seconds))
