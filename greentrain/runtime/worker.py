"""One device's part of a run: join, train round by round, meter, log, and hand the result to rank 0."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from greentrain.actions import lower
from greentrain.errors import RunError, UsageError
from greentrain.ledger import LedgerRow, LedgerWriter
from greentrain.parallel.rows import row_parts
from greentrain.plan import Plan, row_ranges
from greentrain.power import Source
from greentrain.reading import EnergyRecorder
from greentrain.runtime.course import Course
from greentrain.runtime.executor import Executor, TimedAction
from greentrain.runtime.group import Hello, RunGroup, join, plain
from greentrain.runtime.launch import check_runnable
from greentrain.runtime.messages import Progress, RankResult, rank_ledger_path
from greentrain.training_data import TrainingData
from greentrain.workloads.workload import Tensors, Workload, block_outputs, learning_rate_at, structure_sha256

__all__ = ["Job", "Trained", "TrainedModel", "train"]

# A round that the meter missed a larger part of has no joules: they would be too few.
_GAP_RATIO = 0.05


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
        seed: Weights and order of the samples.
        run_dir: Where this rank's ledger goes.
        host: Address of rank 0.
        port: Port of rank 0's store.
        reach_timeout_s: Longest wait for rank 0 to listen.
        join_timeout_s: Longest wait for all ranks to appear.
        message_timeout_s: Longest wait for a message.
        course: What the run does besides its rounds.
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
    course: Course = field(default_factory=Course)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The whole model, gathered on rank 0: parameter name (``<block>.<name>``) to tensor."""

    parameters: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What rank 0 holds when training has ended.

    Attributes:
        results: One per rank.
        model: The whole trained model.
        duration_s: Seconds from the start barrier to the end of the last round.
        rounds_per_epoch: Rounds of one epoch.
    """

    results: tuple[RankResult, ...]
    model: TrainedModel
    duration_s: float
    rounds_per_epoch: int


def train(
    job: Job,
    recorder: EnergyRecorder | None,
    report: Callable[[Progress], None],
    say: Callable[[str], None] = lambda text: None,
) -> Trained | None:
    """Train this device's part of the plan. Call on every device of the plan.

    Args:
        job: What to do.
        recorder: The opened meter; it never raises. None when this device has none.
        report: Called after each round on the first rank of the last stage.
        say: Told which ranks are missing at the start.

    Returns:
        The results of all ranks on rank 0, None elsewhere.

    Raises:
        UsageError: The ranks disagree on plan, model, data or seed, or the data set is smaller than a batch.
        RunError: A peer is gone or silent, the loss is no number, or the ledger cannot be written.
    """
    check_runnable(job.plan)
    rounds_per_epoch = len(job.data.train_targets) // job.plan.batch
    if rounds_per_epoch == 0:
        raise UsageError(
            f"data set {job.data.name!r} has {len(job.data.train_targets)} training samples, "
            f"fewer than the batch of {job.plan.batch}.",
            hint="Schedule with a smaller --batch.",
        )
    base_bytes = _resident_peak_bytes()
    executor = _make_executor(job)
    group = _join(job, say)
    try:
        executor.group = group
        job.course.begin(executor, group)
        counted = recorder if recorder is None or recorder.scope == "process" or group.leads_board else None
        trainer = _Trainer(job, executor, group, counted, report, rounds_per_epoch)
        duration_s = trainer.run()
        meter = "none" if recorder is None else f"{recorder.name}{f': {recorder.note}' if recorder.note else ''}"
        result = RankResult(
            rows=trainer.rows,
            loss_S=trainer.losses,
            cpu_s_S=trainer.cpu_s,
            peak_bytes=max(_resident_peak_bytes() - base_bytes, 0),
            meter=meter,
            source=recorder.source if recorder else "modelled",
            board=job.board,
            scope=recorder.scope if recorder else "process",
        )
        gathered = group.gather_bytes(msgspec.json.encode(result))
        parameters = _gather_parameters(job.plan, executor, group)
        if group.rank != 0:
            return None
        results = tuple(msgspec.json.decode(data, type=RankResult) for data in gathered)
        return Trained(results=results, model=parameters, duration_s=duration_s, rounds_per_epoch=rounds_per_epoch)
    except RuntimeError as error:
        raise RunError(
            f"{job.device}: the model failed in training ({plain(error)}).",
            hint="If memory ran out, schedule with a smaller --micro-batch or batch.",
        ) from error
    finally:
        group.close()


def _join(job: Job, say: Callable[[str], None]) -> RunGroup:
    targets = job.data.train_targets
    hello = Hello(
        device=job.device,
        plan_sha256=job.plan_sha256,
        structure_sha256=job.plan.structure_sha256,
        data=f"{job.data.name}, {len(targets)} samples, inputs {[list(a.shape[1:]) for a in job.data.train_inputs]}",
        settings=f"seed {job.seed}, {job.epochs} epochs"
        + ("" if job.max_rounds is None else f", at most {job.max_rounds} rounds"),
        torch=str(torch.__version__),
        board=job.board,
    )
    return join(
        job.plan,
        hello,
        host=job.host,
        port=job.port,
        reach_timeout_s=job.reach_timeout_s,
        join_timeout_s=job.join_timeout_s,
        message_timeout_s=job.message_timeout_s,
        say=say,
    )


def _make_executor(job: Job) -> Executor:
    plan = job.plan
    index = next(number for number, stage in enumerate(plan.stages) if job.device in stage.devices)
    stage = plan.stages[index]
    blocks = job.workload.build(job.seed)
    example, _ = job.workload.example(1)
    outputs_L = block_outputs(blocks, example)
    built = structure_sha256(blocks, outputs_L)
    if built != plan.structure_sha256:
        raise UsageError(
            f"plan: made for a model {plan.model!r} with structure {plan.structure_sha256[:12]}, "
            f"this machine builds {built[:12]}.",
            hint="Install the same versions on every device, then measure and schedule again.",
        )
    incoming = outputs_L[stage.start - 1] if index > 0 else ()
    own = blocks[stage.start : stage.stop]
    return Executor(
        plan=plan,
        device=job.device,
        actions=lower(plan)[job.device],
        blocks=own,
        workload=job.workload,
        incoming=incoming,
        outgoing=outputs_L[stage.stop - 1],
        group=None,
    )


class _RoundRows:
    """This device's rows of one round's samples."""

    def __init__(self, job: Job, order: np.ndarray) -> None:
        stage = next(stage for stage in job.plan.stages if job.device in stage.devices)
        self._first, self._last = row_ranges(stage.shares)[stage.devices.index(job.device)]
        self._size = job.plan.micro_batch
        self._data = job.data
        self._order = order

    def chosen(self, micro_batch: int) -> np.ndarray:
        """Indices of the samples of this device's rows."""
        start = micro_batch * self._size
        return self._order[start + self._first : start + self._last]

    def inputs(self, micro_batch: int) -> Tensors:
        chosen = self.chosen(micro_batch)
        return tuple(torch.from_numpy(array[chosen]) for array in self._data.train_inputs)

    def targets(self, micro_batch: int) -> Tensor:
        return torch.from_numpy(self._data.train_targets[self.chosen(micro_batch)])


@dataclass
class _Trainer:
    job: Job
    executor: Executor
    group: RunGroup
    recorder: EnergyRecorder | None
    report: Callable[[Progress], None]
    rounds_per_epoch: int
    rows: list[LedgerRow] = field(default_factory=list[LedgerRow])
    losses: list[float] = field(default_factory=list[float])
    cpu_s: list[float] = field(default_factory=list[float])

    @property
    def rounds_n(self) -> int:
        """Rounds of the whole run."""
        rounds = self.rounds_per_epoch * self.job.epochs
        return rounds if self.job.max_rounds is None else min(rounds, self.job.max_rounds)

    def run(self) -> float:
        """Train all rounds; returns the seconds from the start barrier to the end of the last round."""
        job = self.job
        writer = LedgerWriter(rank_ledger_path(job.run_dir, self.group.rank))
        try:
            self.group.barrier()
            begin_s = end_s = time.monotonic()
            cpu_s = time.process_time()
            order = np.empty(0, dtype=np.int64)
            for step in range(self.rounds_n):
                epoch, number = divmod(step, self.rounds_per_epoch)
                if number == 0:
                    order = job.course.order(job.seed, epoch, len(job.data.train_targets))
                chosen = order[number * job.plan.batch : (number + 1) * job.plan.batch]
                rate = learning_rate_at(job.workload, step, self.rounds_n)
                rows = _RoundRows(job, chosen)
                self.executor.observe = lambda micro, rows=rows: job.course.forwarded(rows.chosen(micro))
                loss, timed = self.executor.run_round(rows, learning_rate=rate)
                if not math.isfinite(loss):
                    raise RunError(
                        f"{job.device}: the loss is {loss} after round {step + 1}, expected a finite number.",
                        hint="Training diverged: lower the workload's learning rate, or change --seed or --batch.",
                    )
                start_s, end_s = end_s, time.monotonic()
                cpu_before_s, cpu_s = cpu_s, time.process_time()
                added = self._rows_of(step, timed, begin_s=begin_s, start_s=start_s, end_s=end_s)
                writer.append(added)
                self.rows += added
                self.losses.append(loss)
                self.cpu_s.append(cpu_s - cpu_before_s)
                self._report(step, epoch, loss, end_s - begin_s)
                if number == self.rounds_per_epoch - 1:
                    job.course.epoch_ended(epoch, self.executor, self.group)
            return end_s - begin_s
        finally:
            writer.close()

    def _rows_of(
        self, step: int, timed: list[TimedAction], *, begin_s: float, start_s: float, end_s: float
    ) -> list[LedgerRow]:
        """The round's energy row, then its actions. Rounds join without a gap, so nothing is left out."""
        energy_j = error_j = None
        meter = "none"
        source: Source = "modelled"
        if self.recorder is not None:
            span = self.recorder.span(start_s, end_s)
            meter, source = span.meter, span.source
            if span.gap_s <= _GAP_RATIO * span.duration_s:
                energy_j, error_j = span.energy_j, span.error_j

        def row(
            action: str, t_s: float, duration_s: float, size: int, joules: float | None, error: float | None
        ) -> LedgerRow:
            return LedgerRow(
                run=self.job.run, device=self.job.device, rank=self.group.rank, step=step, action=action,
                t_start_s=t_s - begin_s, duration_s=duration_s, energy_j=joules, error_j=error, bytes=size,
                source=source, meter=meter,
            )  # fmt: skip

        found = [row("step", start_s, end_s - start_s, 0, energy_j, error_j)]
        stage = next(stage for stage in self.job.plan.stages if self.job.device in stage.devices)
        for entry in timed:
            for part in row_parts(entry.action, len(stage.devices)):
                part_s = entry.duration_s if part.lasts else 0.0
                found.append(row(part.action, entry.start_s, part_s, part.bytes, None, None))
        return found

    def _report(self, step: int, epoch: int, loss: float, elapsed_s: float) -> None:
        stage = self.job.plan.stages[-1]
        if stage.devices[0] != self.job.device:
            return
        # Its rows are a sample of the round's; the exact loss is added up after the run.
        weight = stage.shares[0] / self.job.plan.micro_batch
        self.report(
            Progress(step=step + 1, steps=self.rounds_n, epoch=epoch + 1, loss=loss / weight, elapsed_s=elapsed_s)
        )


def _gather_parameters(plan: Plan, executor: Executor, group: RunGroup) -> TrainedModel:
    """Bring one copy of every stage's parameters to rank 0, as bytes in safetensors form (no pickle)."""
    from safetensors.torch import load, save

    index = next(number for number, stage in enumerate(plan.stages) if executor.device in stage.devices)
    stage = plan.stages[index]
    own = {
        f"{stage.start + number}.{name}": parameter.detach().contiguous()
        for number, block in enumerate(executor.blocks)
        for name, parameter in block.named_parameters()
        if parameter.requires_grad
    }
    first_of_stage = stage.devices[0] == executor.device
    gathered = group.gather_bytes(save(own) if first_of_stage else b"")
    parameters: dict[str, Tensor] = {}
    for data in gathered:
        if data:
            parameters.update(load(data))
    return TrainedModel(parameters=parameters)


def _resident_peak_bytes() -> int:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
