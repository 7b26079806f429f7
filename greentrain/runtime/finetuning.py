"""One device's part of fine-tuning: epochs with the backbone, which may fill the cache, then epochs from the cache.

Each phase is a run of its own with a plan of its own. After every epoch rank 0 writes what is trained and the
optimizer's state, so that a run that was cut short goes on from its last whole epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from greentrain.actions import lower
from greentrain.errors import RunError, UsageError
from greentrain.files import canonical_sha256, write_bytes
from greentrain.objective import Objective
from greentrain.parallel.adapters import cached_order, owner_samples
from greentrain.plan import Plan, Stage, row_ranges
from greentrain.power import Source
from greentrain.reading import EnergyRecorder
from greentrain.runtime.adapter_state import (
    epoch_file,
    gather_state,
    load_state,
    read_state,
    spread_bytes,
    write_state,
)
from greentrain.runtime.cache_stores import CachedColumn, CachedMask, Stores, refill
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Hello, RunGroup, join, plain
from greentrain.runtime.messages import Progress
from greentrain.runtime.redistribution import Traffic, redistribute
from greentrain.runtime.resident import peak_bytes
from greentrain.workloads.adapters.pairs import PairBlock
from greentrain.workloads.adapters.task import weights_sha256
from greentrain.workloads.workload import Tensors, Workload, block_outputs, learning_rate_at, structure_sha256

__all__ = [
    "EpochFigures",
    "PhaseJob",
    "PhaseReport",
    "cached_epoch_order",
    "epoch_order",
    "run_cached",
    "run_with_backbone",
]


class Rows(Protocol):
    """An array of samples, or what reads like one."""

    def __getitem__(self, samples: np.ndarray, /) -> np.ndarray: ...


class EpochFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one device spent on an epoch.

    Attributes:
        device: Device id.
        epoch: Counted from 1.
        rounds: Optimizer steps.
        samples: Samples of all devices.
        loss: This device's part of the epoch's mean loss; the parts of all add up.
        duration_s: Seconds.
        energy_j: Joules of the device; None where its meter saw nothing, or another rank's meter sees it.
        error_j: ± joules.
        io_s: Seconds of it that the cache took.
        written_bytes: Of the cache.
        read_bytes: Of the cache.
        sent_bytes: Payload sent to other devices.
    """

    device: str
    epoch: int
    rounds: int
    samples: int
    loss: float
    duration_s: float
    energy_j: float | None
    error_j: float | None
    io_s: float
    written_bytes: int
    read_bytes: int
    sent_bytes: int

    @property
    def io_j(self) -> float | None:
        """Joules of the cache's reading and writing: its part of the time."""
        if self.energy_j is None or self.duration_s <= 0:
            return None
        return self.energy_j * self.io_s / self.duration_s


class PhaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one device did in a phase.

    Attributes:
        device: Device id.
        phase: ``backbone`` or ``cached``.
        epochs: Its epochs.
        moved: Payload of the redistribution.
        moved_s: Seconds of it, with what had to be computed again.
        moved_j: Joules of it.
        refilled: Samples that were computed again.
        process_j: Joules from the opening of the meter to the end of the phase, with loading and meeting.
        process_s: Seconds of it.
        peak_bytes: Growth of the resident memory since before the model was built.
        cache_bytes: Bytes of this device's caches.
        rms_error_ratio: Error of what was written to the cache; None where nothing was.
        source: Of the joules.
        meter: Of the joules.
        remarks: What was wrong with a cache, one sentence each.
    """

    device: str
    phase: Literal["backbone", "cached"]
    epochs: tuple[EpochFigures, ...]
    moved: Traffic
    moved_s: float
    moved_j: float | None
    refilled: int
    process_j: float | None
    process_s: float
    peak_bytes: int
    cache_bytes: int
    rms_error_ratio: float | None
    source: Source
    meter: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PhaseJob:
    """What a worker is asked to do in a phase.

    Attributes:
        run: Name of the run.
        plan: Plan of the phase.
        device: This device.
        board: Ranks on one board share its meter.
        workload: Of the phase.
        inputs: Of the backbone, all samples.
        targets: Class of every sample.
        seed: Of weights and orders.
        start_epoch: Epochs that are done already.
        stop_epoch: Epochs that are done afterwards.
        epochs: Epochs of the run, over which the step size falls.
        order: Samples in the order of an epoch, counted from 0, the same on every rank.
        run_dir: Where the states of epochs go.
        host: Address of rank 0.
        port: Port of rank 0.
        join_timeout_s: Longest wait for all ranks.
        message_timeout_s: Longest wait for a message.
    """

    run: str
    plan: Plan
    device: str
    board: str
    workload: Workload
    inputs: Sequence[np.ndarray]
    targets: np.ndarray
    seed: int
    start_epoch: int
    stop_epoch: int
    epochs: int
    order: Callable[[int], np.ndarray]
    run_dir: Path
    host: str
    port: int
    join_timeout_s: float = 600.0
    message_timeout_s: float = 60.0


def epoch_order(seed: int, epoch: int, samples_n: int) -> np.ndarray:
    """Samples in the order of an epoch with the backbone, counted from 0."""
    return np.random.default_rng((seed, epoch)).permutation(samples_n)


Report = Callable[[Progress], None]


def run_with_backbone(
    job: PhaseJob, stores: Callable[[Sequence[nn.Module]], Stores | None], recorder: EnergyRecorder | None,
    report: Report,
) -> PhaseReport:  # fmt: skip
    """Epochs through the whole model; the first one may fill the cache. Call on every device of the plan.

    Args:
        job: What to do.
        stores: Opens this device's cache, given all blocks; None where nothing is cached.
        recorder: The opened meter; None: this device has none.
        report: Called after every round on the first rank of the last stage.

    Raises:
        RunError: A peer is gone, the loss is no number, or the disk is full.
    """
    phase = _Phase(job, recorder, report, "backbone")
    blocks = job.workload.build(job.seed)
    if len(job.plan.devices) > 1:
        # A model folder may hold another checkpoint on another host.
        phase.weights = weights_sha256(
            (f"{index}.{name}", parameter)
            for index, block in enumerate(blocks)
            for name, parameter in block.named_parameters()
        )
    kept = stores(blocks)
    executor = phase.executor(blocks)
    pending: dict[int, Tensor] = {}
    if kept is not None:
        for block in executor.blocks:
            if isinstance(block, PairBlock) and block.index in kept.layers:
                block.sink = pending.__setitem__

    def keep(samples: np.ndarray) -> None:
        if kept is not None:
            for layer, output in pending.items():
                kept.put(layer, samples, output.detach().numpy())
            pending.clear()

    return phase.run(executor, job.inputs, kept, keep)


def run_cached(
    job: PhaseJob, stores: Stores, mask: np.ndarray, first: Plan, first_order: np.ndarray,
    pairs: Callable[[], Sequence[nn.Module]], recorder: EnergyRecorder | None, report: Report, *, meet_port: int,
    resumed: bool,
) -> PhaseReport:  # fmt: skip
    """Redistribution, then epochs from the cache. Call on every device of both plans.

    Args:
        job: What to do; its plan shares samples in one stage.
        stores: This device's caches, not opened yet.
        mask: Which tokens of every sample are no padding.
        first: Plan of epoch 1.
        first_order: Samples in the order of epoch 1.
        pairs: Makes the blocks of epoch 1, where something is missing.
        recorder: The opened meter.
        report: Called after every round.
        meet_port: Port at which all devices of both plans meet before.
        resumed: Whether the caches lay there before: then every record is looked at.

    Raises:
        RunError: A peer is gone, a record is damaged, or the disk is full.
    """
    phase = _Phase(job, recorder, report, "cached")
    begun_s = time.monotonic()
    stores.open_computed(first, first_order)
    owned = stores.open_received(first, job.plan, first_order)
    if resumed:
        # Damaged records are missing from now on.
        stores.missing(owned, look=True)
    devices = tuple(dict.fromkeys((*job.plan.devices, *first.devices)))
    if len(devices) > 1:
        group = _meet(job, devices, meet_port)
        try:
            phase.moved = redistribute(group, devices, stores, first, first_order, owned)
        finally:
            group.close()
    phase.refilled = refill(stores, stores.missing(owned, look=False), pairs, job.inputs, first.micro_batch)
    phase.moved_span = (begun_s, time.monotonic())
    if job.device not in job.plan.devices:
        return phase.done(stores, [])
    executor = phase.executor(job.workload.build(job.seed))
    columns = tuple(CachedColumn(stores, entry) for entry in stores.entries)
    return phase.run(executor, (*columns, CachedMask(mask, stores.lengths)), stores, lambda samples: None)


@dataclass
class _Phase:
    """The loop over epochs and rounds, and what it cost."""

    job: PhaseJob
    recorder: EnergyRecorder | None
    report: Report
    name: Literal["backbone", "cached"]
    moved: Traffic = field(default_factory=lambda: Traffic(0, 0))
    moved_span: tuple[float, float] | None = None
    refilled: int = 0
    weights: str = ""
    _begun_s: float = field(default_factory=time.monotonic)
    _base_bytes: int = field(default_factory=peak_bytes)

    def executor(self, blocks: Sequence[nn.Module]) -> Executor:
        """The executor of this device's stage."""
        plan = self.job.plan
        example, _ = self.job.workload.example(1)
        outputs_L = block_outputs(blocks, example)
        built = structure_sha256(blocks, outputs_L)
        if built != plan.structure_sha256:
            raise UsageError(
                f"plan: made for a model with structure {plan.structure_sha256[:12]}, "
                f"this machine builds {built[:12]}.",
                hint="Install the same versions on every device, then measure and plan again.",
            )
        index = next(number for number, stage in enumerate(plan.stages) if self.job.device in stage.devices)
        stage = plan.stages[index]
        return Executor(
            plan=plan, device=self.job.device, actions=lower(plan)[self.job.device],
            blocks=blocks[stage.start : stage.stop], workload=self.job.workload,
            incoming=outputs_L[stage.start - 1] if index else (), outgoing=outputs_L[stage.stop - 1], group=None,
        )  # fmt: skip

    def run(
        self, executor: Executor, arrays: Sequence[Rows], stores: Stores | None, keep: Callable[[np.ndarray], None]
    ) -> PhaseReport:
        """All epochs of the phase."""
        job = self.job
        group = _joined(job, job.plan, job.port, weights=self.weights)
        epochs: list[EpochFigures] = []
        try:
            executor.group = group
            self._begin(executor, group)
            for epoch in range(job.start_epoch, job.stop_epoch):
                figures = self._epoch(epoch, executor, group, arrays, stores, keep)
                epochs.append(figures)
                self._end(epoch, figures, executor, group, stores)
        except RuntimeError as error:
            raise RunError(
                f"{job.device}: the model failed in training ({plain(error)}).",
                hint="If memory ran out, take a smaller --micro-batch or --batch.",
            ) from error
        finally:
            group.close()
        return self.done(stores, epochs)

    def _begin(self, executor: Executor, group: RunGroup) -> None:
        """Go on from what earlier epochs have trained."""
        job = self.job
        if job.start_epoch == 0:
            return
        from safetensors.torch import load

        own = read_state(epoch_file(job.run_dir, job.start_epoch)) if group.rank == 0 else b""
        stage = next(stage for stage in job.plan.stages if job.device in stage.devices)
        load_state(executor, stage.start, load(spread_bytes(group, own)))

    def _epoch(
        self, epoch: int, executor: Executor, group: RunGroup, arrays: Sequence[Rows], stores: Stores | None,
        keep: Callable[[np.ndarray], None],
    ) -> EpochFigures:  # fmt: skip
        job, plan = self.job, self.job.plan
        order = job.order(epoch)
        rounds = len(order) // plan.batch
        before = _Counters.of(stores)
        group.barrier()
        start_s = time.monotonic()
        loss, sent = 0.0, 0
        for number in range(rounds):
            rows = _RoundRows(job, arrays, order[number * plan.batch : (number + 1) * plan.batch])
            executor.observe = lambda micro, rows=rows: keep(rows.chosen(micro))
            rate = learning_rate_at(job.workload, epoch * rounds + number, job.epochs * rounds)
            part, timed = executor.run_round(rows, learning_rate=rate)
            if not math.isfinite(part):
                raise RunError(
                    f"{job.device}: the loss is {part} in round {number + 1} of epoch {epoch + 1}.",
                    hint="Training diverged: lower --learning-rate.",
                )
            loss += part / rounds
            sent += sum(entry.action.bytes for entry in timed if entry.action.kind in ("SF", "SB"))
            self._tell(epoch, rounds, number, part, time.monotonic() - self._begun_s)
        if stores is not None:
            stores.flush()
        end_s = time.monotonic()
        energy_j, error_j = self._joules(start_s, end_s, group)
        after = _Counters.of(stores)
        return EpochFigures(
            device=job.device, epoch=epoch + 1, rounds=rounds, samples=rounds * plan.batch, loss=loss,
            duration_s=end_s - start_s, energy_j=energy_j, error_j=error_j, io_s=after.io_s - before.io_s,
            written_bytes=after.written_bytes - before.written_bytes,
            read_bytes=after.read_bytes - before.read_bytes, sent_bytes=sent,
        )  # fmt: skip

    def _end(
        self, epoch: int, figures: EpochFigures, executor: Executor, group: RunGroup, stores: Stores | None
    ) -> None:
        """Rank 0 writes the figures of all and then the state, which says that the epoch is done."""
        gathered = group.gather_bytes(msgspec.json.encode(figures))
        state = gather_state(self.job.plan, executor, group)
        if group.rank == 0:
            write_bytes(self.job.run_dir / f"epoch-{epoch + 1}.json", b"[" + b",".join(gathered) + b"]\n")
            write_state(epoch_file(self.job.run_dir, epoch + 1), state)
        # Nobody goes on before it is written.
        group.barrier()

    def _joules(self, start_s: float, stop_s: float, group: RunGroup | None) -> tuple[float | None, float | None]:
        recorder = self.recorder
        if recorder is None or (group is not None and recorder.scope == "board" and not group.leads_board):
            return None, None
        span = recorder.span(start_s, stop_s)
        return span.energy_j, span.error_j

    def _tell(self, epoch: int, rounds: int, number: int, part: float, elapsed_s: float) -> None:
        plan, job = self.job.plan, self.job
        stage = plan.stages[-1]
        if stage.devices[0] != job.device:
            return
        weight = stage.shares[0] / plan.micro_batch
        steps = (job.stop_epoch - job.start_epoch) * rounds
        step = (epoch - job.start_epoch) * rounds + number + 1
        self.report(Progress(step=step, steps=steps, epoch=epoch + 1, loss=part / weight, elapsed_s=elapsed_s))

    def done(self, stores: Stores | None, epochs: Sequence[EpochFigures]) -> PhaseReport:
        """What it cost."""
        end_s = time.monotonic()
        recorder = self.recorder
        moved_s = self.moved_span[1] - self.moved_span[0] if self.moved_span else 0.0
        moved_j = self._joules(*self.moved_span, None)[0] if self.moved_span else None
        return PhaseReport(
            device=self.job.device, phase=self.name, epochs=tuple(epochs), moved=self.moved, moved_s=moved_s,
            moved_j=moved_j, refilled=self.refilled, process_j=self._joules(self._begun_s, end_s, None)[0],
            process_s=end_s - self._begun_s, peak_bytes=max(peak_bytes() - self._base_bytes, 0),
            cache_bytes=stores.size_bytes if stores is not None else 0,
            rms_error_ratio=stores.rms_error_ratio if stores is not None else None,
            source=recorder.source if recorder else "modelled", meter=recorder.name if recorder else "none",
            remarks=tuple(stores.remarks) if stores is not None else (),
        )  # fmt: skip


@dataclass(frozen=True)
class _Counters:
    io_s: float
    written_bytes: int
    read_bytes: int

    @classmethod
    def of(cls, stores: Stores | None) -> _Counters:
        return cls(0.0, 0, 0) if stores is None else cls(stores.io_s, stores.written_bytes, stores.read_bytes)


class _RoundRows:
    """This device's rows of one round's samples."""

    def __init__(self, job: PhaseJob, arrays: Sequence[Rows], samples: np.ndarray) -> None:
        stage = next(stage for stage in job.plan.stages if job.device in stage.devices)
        self._first, self._last = row_ranges(stage.shares)[stage.devices.index(job.device)]
        self._size, self._arrays, self._samples = job.plan.micro_batch, arrays, samples
        self._targets = job.targets

    def chosen(self, micro_batch: int) -> np.ndarray:
        """Indices of the samples of this device's rows."""
        start = micro_batch * self._size
        return self._samples[start + self._first : start + self._last]

    def inputs(self, micro_batch: int) -> Tensors:
        chosen = self.chosen(micro_batch)
        return tuple(torch.from_numpy(np.ascontiguousarray(array[chosen])) for array in self._arrays)

    def targets(self, micro_batch: int) -> Tensor:
        return torch.from_numpy(self._targets[self.chosen(micro_batch)])


def _meet(job: PhaseJob, devices: tuple[str, ...], port: int) -> RunGroup:
    """All devices of both phases, as if they shared one stage."""
    stage = Stage(
        start=0, stop=1, devices=devices, sharing="samples", shares=(1,) * len(devices),
        points=("current",) * len(devices), in_flight=1, param_bytes=0, output_bytes=0, gradient_bytes=0,
    )  # fmt: skip
    everybody = Plan(
        model=job.plan.model, structure_sha256=job.plan.structure_sha256, cluster=job.plan.cluster, planner="none",
        objective=Objective(), batch=len(devices), micro_batch=len(devices), optimizer=job.plan.optimizer,
        stages=(stage,),
    )  # fmt: skip
    return _joined(job, everybody, port)


def _joined(job: PhaseJob, plan: Plan, port: int, *, weights: str = "") -> RunGroup:
    hello = Hello(
        device=job.device,
        plan_sha256=canonical_sha256(plan),
        structure_sha256=plan.structure_sha256,
        data=f"{len(job.targets)} samples, inputs {[list(array.shape[1:]) for array in job.inputs]}",
        settings=f"seed {job.seed}, epochs {job.start_epoch} to {job.stop_epoch}"
        + (f", weights {weights[:12]}" if weights else ""),
        torch=str(torch.__version__),
        board=job.board,
    )
    return join(
        plan, hello, host=job.host, port=port, join_timeout_s=job.join_timeout_s,
        message_timeout_s=job.message_timeout_s,
    )  # fmt: skip


def cached_epoch_order(job_seed: int, first: Plan, cached: Plan, samples_n: int) -> Callable[[int], np.ndarray]:
    """Orders of all epochs of a run with a cache: epoch 0 as with the backbone, the later ones by owners."""
    first_order = epoch_order(job_seed, 0, samples_n)
    owners = owner_samples(first, cached, first_order)

    def order(epoch: int) -> np.ndarray:
        return first_order if epoch == 0 else cached_order(cached, owners, seed=job_seed, epoch=epoch)

    return order
