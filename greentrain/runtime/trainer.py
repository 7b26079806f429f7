"""The rounds of one device: train, meter, log, and go on after a loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from greentrain.errors import RunError
from greentrain.ledger import LedgerRow, LedgerWriter
from greentrain.parallel.rows import row_parts
from greentrain.plan import Plan
from greentrain.power import Source
from greentrain.reading import EnergyRecorder
from greentrain.runtime.checkpoints import CheckpointPart, Checkpoints
from greentrain.runtime.executor import TimedAction
from greentrain.runtime.forward import random_seed
from greentrain.runtime.group import PeersLostError
from greentrain.runtime.job import Job
from greentrain.runtime.live import LiveView
from greentrain.runtime.messages import DeviceLive, Digest, Progress, RankResult, rank_ledger_path
from greentrain.runtime.resident import give_back, reset_peak
from greentrain.runtime.reviser import Reviser
from greentrain.runtime.session import Session, stage_of
from greentrain.runtime.states import take
from greentrain.runtime.wire import Form
from greentrain.sharing import slices
from greentrain.summary import Recovery
from greentrain.workloads.workload import Tensors, learning_rate_at

__all__ = ["Trainer"]

# A round that the meter missed a larger part of has no joules: they would be too few.
_GAP_RATIO = 0.05
_MOST_ATTEMPTS = 20


class RoundRows:
    """A device's rows of one round's samples."""

    def __init__(self, job: Job, plan: Plan, order: np.ndarray) -> None:
        stage = stage_of(plan, job.device)
        own = slices(stage.sharing, stage.shares, plan.micro_batch, sends=False)[stage.devices.index(job.device)]
        self._first, self._last = own.first_row, own.last_row
        self._size = plan.micro_batch
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


class _Energy(NamedTuple):
    """What the meter says of an interval."""

    energy_j: float | None
    error_j: float | None
    meter: str
    source: Source


class _Round(NamedTuple):
    """What a round has left."""

    loss: float
    timed: list[TimedAction]
    moved_bytes: int
    copied_s: float


@dataclass
class Trainer:
    """Trains one device's part to the end, whatever happens to the others.

    Attributes:
        job: What to do.
        session: This device's place.
        seat: Its number in the ledger.
        recorder: Its meter; None when it has none.
        report: Called after each round on the first rank of the last stage, and on the leader when somebody was lost.
        say: Told what goes wrong besides.
        rows: The ledger so far.
    """

    job: Job
    session: Session
    seat: int
    recorder: EnergyRecorder | None
    report: Callable[[Progress], None]
    say: Callable[[str], None]
    rows: list[LedgerRow] = field(default_factory=list[LedgerRow])
    _parts: dict[int, float] = field(default_factory=dict[int, float])
    _cpu_s_S: dict[int, float] = field(default_factory=dict[int, float])
    _recovery_j: dict[int, float | None] = field(default_factory=dict[int, float | None])
    _generation: int = 0
    _end_s: float = 0.0
    _cpu_s: float = 0.0
    _ready_s: float = 0.0
    _order: tuple[int, np.ndarray] | None = None
    _live: LiveView = field(init=False)
    _reviser: Reviser | None = field(init=False)
    _writer: LedgerWriter = field(init=False)
    _checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        crew = self.session.crew
        self._generation = crew.generation if crew is not None else 0
        self._writer = LedgerWriter(rank_ledger_path(self.job.run_dir, self.seat, self._generation))
        self._checkpoints = Checkpoints(self.job.run_dir, self.say)
        self._live = LiveView(self.job.plan.batch)
        revise = None if self.job.recovering is None else self.job.recovering.revise
        self._reviser = None if revise is None else Reviser(revise)
        self._end_s = time.monotonic()
        self._cpu_s = time.process_time()

    def begin(self) -> None:
        """All start their clocks together. Call on the members of the first generation."""
        self.session.group.barrier()
        # What the whole model took while it was built is no part of training, and others may need it.
        give_back()
        reset_peak()
        self.session.begin_s = self._end_s = time.monotonic()
        self._cpu_s = time.process_time()

    def run(self) -> float:
        """Train until all rounds are done or all meet; returns seconds since the start of the run."""
        job, session = self.job, self.session
        while session.done < job.rounds_n and not (session.crew is not None and session.crew.paused):
            step = session.done
            start_s = time.monotonic()
            # With a crew a loss must end the round for certain, whatever gloo waits for.
            done = self._round(step) if session.crew is None else session.group.apart(partial(self._round, step))
            copied = None if done.moved_bytes == 0 else (start_s, done.copied_s, done.moved_bytes)
            loss, timed = done.loss, done.timed
            if session.crew is None:
                session.done += 1
                self._check(loss, step)
            self._record(step, time.monotonic(), timed, copied)
            self._report(step, loss)
            self._revise()
            self._checkpoint()
        return self._end_s - session.begin_s

    def _round(self, step: int) -> _Round:
        """One round, with its part of the copies."""
        job, session = self.job, self.session
        # Where this is left behind, the session gets another one.
        executor = session.executor
        start_s = time.monotonic()
        moved_bytes = session.before_round()
        copied_s = time.monotonic() - start_s
        rate = learning_rate_at(job.workload, step, job.rounds_n)
        commit = executor.commit
        if commit is not None:
            executor.commit = self._noting(commit)
        rows = RoundRows(job, session.plan, self._samples(step))
        try:
            loss, timed = executor.run_round(rows, learning_rate=rate, seed=random_seed(job.seed, step))
        finally:
            executor.commit = commit
        return _Round(loss, timed, moved_bytes, copied_s)

    def recover(self) -> bool:
        """Come together with those who are left, and enter the new generation; whether training goes on."""
        session = self.session
        assert session.crew is not None
        since_s: float | None = None
        silent_s: float | None = None
        for _ in range(_MOST_ATTEMPTS):
            found = session.rest()
            if found is None:
                return False
            change = session.crew.change
            since_s = since_s or change.halted_s or time.monotonic()
            silent_s = silent_s or change.silent_s
            reached = session.done + (session.ready and found.reached == session.done + 1)
            try:
                session.enter(found)
            except (RuntimeError, PeersLostError):
                continue  # Another was lost meanwhile.
            self._recovered(found, reached, since_s, silent_s)
            return True
        raise RunError(
            f"{self.job.device}: the devices did not come together again in {_MOST_ATTEMPTS} attempts.",
            hint="Check the network between them; go on from the last checkpoint with --resume.",
        )

    def joined(self, found: Form) -> None:
        """This device has come into a run that goes on, for the first time or again."""
        now_s = time.monotonic()
        if self.rows:
            self._append([self._row("recovery", found.round, self._end_s, now_s - self._end_s,
                                    energy=self._energy(self._end_s, now_s))])  # fmt: skip
        else:
            self.session.begin_s = now_s - found.elapsed_s
        self.session.recoveries = list(found.recoveries)
        self._note(found, None, None)

    def result(self, peak_bytes: int) -> RankResult:
        """What this device hands to the leader."""
        recorder, crew = self.recorder, self.session.crew
        return RankResult(
            device=self.job.device,
            seat=self.seat,
            rows=self.rows,
            loss_S=[self._parts[step] for step in sorted(self._parts)],
            cpu_s_S=self._cpu_s_S,
            peak_bytes=peak_bytes,
            meter=meter_text(recorder),
            source=recorder.source if recorder else "modelled",
            board=self.job.board,
            scope=recorder.scope if recorder else "process",
            recovery_j=self._recovery_j,
            generation=self._generation,
            gone=() if crew is None else tuple(self._gone()),
            recoveries=tuple(self.session.recoveries),
        )

    def close(self) -> None:
        """Close the files."""
        self._checkpoints.close()
        self._writer.close()

    def _noting(self, commit: Callable[[float], None]) -> Callable[[float], None]:
        def noted(loss: float) -> None:
            self._ready_s = time.monotonic()
            commit(loss)

        return noted

    def _samples(self, step: int) -> np.ndarray:
        """The samples of a round: the same on every device, and again after a loss."""
        job = self.job
        epoch, number = divmod(step, job.rounds_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((job.seed, epoch)).permutation(len(job.data.train_targets))
            self._order = epoch, order
        return self._order[1][number * job.plan.batch : (number + 1) * job.plan.batch]

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"{self.job.device}: the loss is {loss} after round {step + 1}, expected a finite number.",
                hint="Training diverged: lower the workload's learning rate, or change --seed or --batch.",
            )
        self._parts[step] = loss

    def _record(
        self, step: int, end_s: float, timed: Sequence[TimedAction], copied: tuple[float, float, int] | None = None
    ) -> None:
        """The round's energy row, then its actions. Rounds join without a gap, so nothing is left out."""
        start_s, self._end_s = self._end_s, end_s
        cpu_before_s, self._cpu_s = self._cpu_s, time.process_time()
        energy = self._energy(start_s, end_s)
        found = [self._row("step", step, start_s, end_s - start_s, energy=energy)]
        stage = stage_of(self.session.plan, self.job.device)
        for entry in timed:
            for part in row_parts(entry.action, len(stage.devices)):
                part_s = entry.duration_s if part.lasts else 0.0
                found.append(self._row(part.action, step, entry.start_s, part_s, size=part.bytes, like=energy))
        if copied is not None:
            found.append(self._row("copy", step, copied[0], copied[1], size=copied[2], like=energy))
        self._append(found)
        self._cpu_s_S[step] = self._cpu_s - cpu_before_s
        self.session.digest = Digest(
            step=step, t_start_s=start_s - self.session.begin_s, duration_s=end_s - start_s, energy_j=energy.energy_j,
            error_j=energy.error_j, cpu_s=self._cpu_s_S[step],
            busy_s=sum(entry.duration_s for entry in timed if entry.action.kind in ("F", "B", "U")),
        )  # fmt: skip

    def _append(self, rows: list[LedgerRow]) -> None:
        self._writer.append(rows)
        self.rows += rows

    def _energy(self, start_s: float, end_s: float) -> _Energy:
        recorder = self.recorder
        group = self.session.group
        if recorder is None or (recorder.scope == "board" and not group.leads_board):
            return _Energy(None, None, "none", "modelled")
        span = recorder.span(start_s, end_s)
        if span.gap_s > _GAP_RATIO * span.duration_s:
            return _Energy(None, None, span.meter, span.source)
        return _Energy(span.energy_j, span.error_j, span.meter, span.source)

    def _row(
        self, action: str, step: int, t_s: float, duration_s: float, *, size: int = 0, energy: _Energy | None = None,
        like: _Energy | None = None,
    ) -> LedgerRow:  # fmt: skip
        """A row with joules, or one without, like another of the same round."""
        given = energy or like
        assert given is not None
        return LedgerRow(
            run=self.job.run, device=self.job.device, rank=self.seat, step=step, action=action,
            t_start_s=t_s - self.session.begin_s, duration_s=duration_s, bytes=size,
            energy_j=energy.energy_j if energy else None, error_j=energy.error_j if energy else None,
            source=given.source, meter=given.meter,
        )  # fmt: skip

    def _recovered(self, found: Form, reached: int, since_s: float, silent_s: float | None) -> None:
        """Log the interrupted round and the repair, and what was undone."""
        crew = self.session.crew
        assert crew is not None
        now_s = time.monotonic()
        last = max((row.step for row in self.rows if row.action == "step"), default=self.job.first_round - 1)
        if reached > last + 1:
            # Its update was made, though something broke right after.
            self._record(reached - 1, min(max(self._ready_s, self._end_s), now_s), [])
        undone = [row for row in self.rows if row.action == "step" and row.step >= found.round]
        self.rows = [
            msgspec.structs.replace(row, action="recovery") if row.action == "step" and row.step >= found.round else row
            for row in self.rows
        ]
        energy = self._energy(self._end_s, now_s)
        row = self._row("recovery", reached, self._end_s, now_s - self._end_s, energy=energy,
                        size=self.session.moved_bytes)  # fmt: skip
        self._end_s = now_s
        self._append([row])
        costs = [row.energy_j for row in (*undone, row)]
        self._recovery_j[found.generation] = None if None in costs else sum(cost for cost in costs if cost is not None)
        self.session.digest = None
        self._note(found, since_s, silent_s)

    def _note(self, found: Form, since_s: float | None, silent_s: float | None) -> None:
        """Remember the change, and tell whoever watches."""
        session = self.session
        self._cpu_s, self._end_s = time.process_time(), time.monotonic()
        # One that joins does not know for how long the others have waited.
        repaired_s = None if since_s is None else self._end_s - since_s
        session.recoveries.append(
            Recovery(
                round=found.reached,
                lost=found.lost,
                joined=found.joined,
                detected_s=silent_s,
                repaired_s=repaired_s,
                redone_rounds=found.reached - found.round,
                moved_bytes=session.moved_bytes,
                generation=found.generation,
            )
        )
        if session.group.rank == 0:
            self._tell(found, repaired_s)

    def _tell(self, found: Form, repaired_s: float | None) -> None:
        parts = [f"{', '.join(names)} {what}" for names, what in ((found.lost, "lost"), (found.joined, "joined"))
                 if names] or ["a new plan"]  # fmt: skip
        redone = found.reached - found.round
        event = (
            f"{' and '.join(parts)}; {', '.join(member.device for member in found.members)} go on with round "
            f"{found.round + 1}{'' if repaired_s is None else f' after {repaired_s:.2f} s'}"
            f"{f', {redone} rounds are done again' if redone else ''}"
        )
        assert self.session.crew is not None
        losses = self.session.crew.losses
        epoch = max(found.round - 1, 0) // self.job.rounds_per_epoch + 1
        self.report(
            Progress(
                step=found.round, steps=self.job.rounds_n, epoch=epoch, loss=losses[-1] if losses else None,
                elapsed_s=time.monotonic() - self.session.begin_s, event=event,
            )
        )  # fmt: skip

    def _report(self, step: int, loss: float) -> None:
        stage = self.session.plan.stages[-1]
        if stage.devices[0] != self.job.device:
            return
        crew = self.session.crew
        # Without a crew its rows are a sample of the round's; the exact loss is added up after the run.
        rows_ratio = stage.shares[0] / self.session.plan.micro_batch if stage.sharing == "samples" else 1.0
        shown = crew.losses[step - self.job.first_round] if crew is not None else loss / rows_ratio
        self.report(
            Progress(
                step=step + 1, steps=self.job.rounds_n, epoch=step // self.job.rounds_per_epoch + 1, loss=shown,
                elapsed_s=self._end_s - self.session.begin_s, devices=self._devices_live(),
            )
        )  # fmt: skip

    def _devices_live(self) -> dict[str, DeviceLive]:
        crew, digest = self.session.crew, self.session.digest
        # Of the others the round before is known; a device that is alone knows its own.
        self._live.take({self.job.device: {} if digest is None else {digest.step: digest}} if crew is None
                        else crew.digests)  # fmt: skip
        return self._live.devices()

    def _revise(self) -> None:
        """Hold the last rounds against the plan, on the leader; a better plan is taken after the next round."""
        session, crew = self.session, self.session.crew
        if self._reviser is None or crew is None or session.group.rank != 0 or crew.paused:
            return
        revision = self._reviser.look(session.plan, session.done, crew.digests)
        if revision is None or revision.text is None:
            return
        if revision.plan is not None and session.done < self.job.rounds_n:
            session.proposal = revision.plan
            crew.ask_pause()
        self.report(
            Progress(
                step=session.done, steps=self.job.rounds_n, epoch=(session.done - 1) // self.job.rounds_per_epoch + 1,
                loss=crew.losses[-1], elapsed_s=self._end_s - session.begin_s, event=revision.text,
            )
        )  # fmt: skip

    def _checkpoint(self) -> None:
        job, session = self.job, self.session
        if job.checkpoint_rounds is None or session.done % job.checkpoint_rounds:
            return
        stage = stage_of(session.plan, job.device)
        place, parts_n = stage.devices.index(job.device), len(stage.devices)
        if stage.sharing == "samples":
            if place > 0:
                return  # The first device writes what all have.
            parts_n = 1
        part = CheckpointPart(
            model=job.plan.model, structure_sha256=job.plan.structure_sha256, round=session.done, batch=job.plan.batch,
            seed=job.seed, start=stage.start, stop=stage.stop, part=place, parts_n=parts_n,
        )  # fmt: skip
        self._checkpoints.write(part, take(session.executor, stage.start))

    def _gone(self) -> list[RankResult]:
        """What is known of devices that were lost, as they would have handed it over."""
        crew = self.session.crew
        assert crew is not None
        found: list[RankResult] = []
        for life in crew.gone:
            member = life.member
            rows = [
                LedgerRow(
                    run=self.job.run, device=member.device, rank=member.seat, step=digest.step, action="step",
                    t_start_s=digest.t_start_s, duration_s=digest.duration_s, energy_j=digest.energy_j,
                    error_j=digest.error_j, bytes=0, source=member.source, meter=member.meter,
                )
                for digest in life.digests.values()
            ]  # fmt: skip
            found.append(
                RankResult(
                    device=member.device, seat=member.seat, rows=rows, loss_S=[], peak_bytes=None, meter=member.meter,
                    cpu_s_S={step: digest.cpu_s for step, digest in life.digests.items()}, source=member.source,
                    board=member.board, scope=member.scope, generation=life.generation, undone_from=life.undone_from,
                )
            )  # fmt: skip
        return found


def meter_text(recorder: EnergyRecorder | None) -> str:
    """Name and note of a meter."""
    if recorder is None:
        return "none"
    return f"{recorder.name}{f': {recorder.note}' if recorder.note else ''}"
