"""What a worker is asked to do, and what training leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from greentrain.plan import Plan
from greentrain.runtime.checkpoints import Resumed
from greentrain.runtime.control import Address
from greentrain.runtime.live import UsualRound
from greentrain.runtime.messages import RankResult
from greentrain.runtime.options import TrainingOptions
from greentrain.summary import Recovery
from greentrain.training_data import TrainingData
from greentrain.workloads.workload import Workload

__all__ = ["Job", "Recovering", "Revision", "Trained", "TrainedModel"]


class Revision(NamedTuple):
    """What measured rounds say of the plan.

    Attributes:
        text: What disagrees and what would be better, in words; None where nothing does.
        plan: The plan to go on with from the next round; None to stay.
    """

    text: str | None
    plan: Plan | None


@dataclass(frozen=True, kw_only=True)
class Recovering:
    """How training goes on after a loss.

    Attributes:
        repair: The new plan from the present one, the devices lost from it and those who want to join. It may do
            without the latter.
        backup_rounds: Rounds between the copies of stages that one device holds, for a plan.
        seat: This device's number in the ledger: its rank in the plan; others come after.
        addresses: Control planes where a run that goes on may be found.
        revise: Asked on the leader now and then, with the present plan and its usual round; it may take seconds. None:
            the plan stays.
    """

    repair: Callable[[Plan, frozenset[str], frozenset[str]], Plan]
    backup_rounds: Callable[[Plan], int]
    seat: int
    addresses: tuple[Address, ...] = ()
    revise: Callable[[Plan, UsualRound], Revision] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is asked to do.

    Attributes:
        run: Name of the run.
        plan: The plan.
        plan_sha256: Hash of the plan; all ranks must agree.
        device: This device.
        board: Ranks on one board share its meter.
        workload: The model.
        data: The samples.
        epochs: Passes over the training samples.
        max_rounds: Stop after so many rounds; None: after the epochs.
        seed: Weights and order of the samples, and random numbers such as dropout's.
        options: What all ranks are told beside the plan.
        torch_device: Where this one computes (:func:`greentrain.runtime.devices.torch_device`).
        run_dir: Where this rank's ledger goes.
        host: Address of rank 0.
        port: Port of rank 0's store.
        reach_timeout_s: Longest wait for rank 0 to listen.
        join_timeout_s: Longest wait for all ranks to appear.
        message_timeout_s: Longest wait for a message.
        recovering: How training goes on after a loss; None: it ends.
        resumed: The checkpoint to start from; None: from the seed.
        checkpoint_rounds: Rounds between checkpoints; None: never.
        check_fresh: Called before a run that nobody is in yet; raises where an earlier one would be written over.
    """

    run: str
    plan: Plan
    plan_sha256: str
    device: str
    board: str
    workload: Workload
    data: TrainingData
    epochs: int
    max_rounds: int | None
    seed: int
    run_dir: Path
    host: str
    port: int
    reach_timeout_s: float
    join_timeout_s: float
    message_timeout_s: float
    recovering: Recovering | None = None
    resumed: Resumed | None = None
    checkpoint_rounds: int | None = None
    options: TrainingOptions = field(default_factory=TrainingOptions)
    torch_device: str = "cpu"
    check_fresh: Callable[[], None] = lambda: None

    @property
    def rounds_per_epoch(self) -> int:
        """Rounds of one epoch."""
        return len(self.data.train_targets) // self.plan.batch

    @property
    def rounds_n(self) -> int:
        """Rounds of the whole run."""
        rounds = self.rounds_per_epoch * self.epochs
        return rounds if self.max_rounds is None else min(rounds, self.max_rounds)

    @property
    def first_round(self) -> int:
        """The first round of this run; those before were done by the run that it goes on from."""
        return 0 if self.resumed is None else self.resumed.round


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The whole model, gathered on rank 0: parameter name (``<block>.<name>``) to tensor."""

    parameters: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the leader holds when training has ended.

    Attributes:
        results: One per device: the present ranks first, then those that were lost.
        model: The whole trained model.
        duration_s: Seconds from the start barrier to the end of the last round.
        rounds_per_epoch: Rounds of one epoch.
        losses: Exact mean loss of every round.
        recoveries: Devices that were lost or joined.
    """

    results: tuple[RankResult, ...]
    model: TrainedModel
    duration_s: float
    rounds_per_epoch: int
    losses: tuple[float, ...]
    recoveries: tuple[Recovery, ...] = field(default=())
