"""One device's part of a run: meet the others, train, go on after losses, and hand the result to the leader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec
import torch

from greentrain.errors import RunError, UsageError
from greentrain.reading import EnergyRecorder
from greentrain.runtime.control import Address
from greentrain.runtime.crew import Crew, ExcludedError
from greentrain.runtime.finish import round_losses
from greentrain.runtime.group import Hello, PeersLostError, RunGroup, join, plain
from greentrain.runtime.job import Job, Recovering, Trained, TrainedModel
from greentrain.runtime.membership import NoMajorityError
from greentrain.runtime.messages import Progress, RankResult
from greentrain.runtime.network import address_towards
from greentrain.runtime.resident import peak_bytes, resident_bytes
from greentrain.runtime.session import Session, StageMaker, stage_of
from greentrain.runtime.split_layer import named_parts
from greentrain.runtime.split_weights import gather_named
from greentrain.runtime.trainer import Trainer, meter_text
from greentrain.runtime.wire import Form
from greentrain.summary import Recovery

__all__ = ["Job", "Recovering", "Trained", "TrainedModel", "train"]

# A member that lives but does not come to rest for so long is given up.
_PATIENCE_S = 30.0


def train(
    job: Job,
    recorder: EnergyRecorder | None,
    report: Callable[[Progress], None],
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[Trained], None] = lambda trained: None,
) -> Trained | None:
    """Train this device's part of the plan. Call on every device of the plan.

    Args:
        job: What to do.
        recorder: The opened meter; it never raises. None when this device has none.
        report: Called after each round on the first rank of the last stage.
        say: Told which ranks are missing at the start.
        keep: Called on the leader with what training has left, while the others still wait: should the leader be lost
            before it returns, the next one calls it.

    Returns:
        The results of all ranks on the leader (rank 0, or who took its place), None elsewhere.

    Raises:
        UsageError: The ranks disagree on plan, model, data or seed, or the data set is smaller than a batch.
        RunError: Peers are gone or silent and training cannot go on without them, the loss is no number, or the ledger
            cannot be written.
    """
    if job.rounds_per_epoch == 0:
        raise UsageError(
            f"data set {job.data.name!r} has {len(job.data.train_targets)} training samples, "
            f"fewer than the batch of {job.plan.batch}.",
            hint="Schedule with a smaller --batch.",
        )
    maker = StageMaker(job)
    hello = _hello(job, recorder)
    maker.warm_up()
    # The libraries are loaded by now; the model counts from its first byte.
    base_bytes = resident_bytes() - maker.built_bytes
    crew = _crew(job, hello, maker, say)
    session = Session(job=job, maker=maker, crew=crew, plan=job.plan, done=job.first_round)
    try:
        joined = _meet(session, hello if crew is None else crew.hello, say)
        seat = job.plan.devices.index(job.device) if job.recovering is None else job.recovering.seat
        trainer = Trainer(job=job, session=session, seat=seat, recorder=recorder, report=report, say=say)
        try:
            return _rounds(trainer, joined, base_bytes, keep)
        finally:
            trainer.close()
    except RuntimeError as error:
        raise RunError(
            f"{job.device}: the model failed in training ({plain(error)}).",
            hint="If memory ran out, schedule with a smaller --micro-batch or batch.",
        ) from error
    finally:
        session.close()


def _rounds(
    trainer: Trainer, joined: Form | None, base_bytes: int, keep: Callable[[Trained], None]
) -> Trained | None:  # fmt: skip
    """Train and finish, as often as it takes."""
    session = trainer.session
    fresh = joined is None
    while True:
        try:
            if fresh:
                trainer.begin()
                fresh = False
            if joined is not None:
                trainer.joined(joined)
                joined = None
            duration_s = trainer.run()
            if session.done >= trainer.job.rounds_n:
                return _finish(trainer, duration_s, base_bytes, keep)
        except PeersLostError:
            if session.crew is None:
                raise
            fresh = False
        except ExcludedError:
            joined = _return(session)
            continue
        try:
            if not trainer.recover():
                return None
        except NoMajorityError as error:
            trainer.say(f"{error.message} It waits for them …")
            joined = _return(session)
        except ExcludedError:
            joined = _return(session)


def _return(session: Session) -> Form:
    """Join the others again, who went on because this process stood still, or its link was down, for too long.

    Raises:
        ExcludedError: They are not to be found any more.
        PeersLostError: They are out of reach for too long.
    """
    crew, recovering = session.crew, session.job.recovering
    assert crew is not None
    addresses = [(member.host, member.port) for member in crew.members if member.device != crew.device]
    session.forget()
    crew.start_over()
    found = _join_running(session, [*addresses, *(recovering.addresses if recovering else ())], insist=True)
    assert found is not None
    return found


def _join_running(session: Session, addresses: Sequence[Address], *, insist: bool = False) -> Form | None:
    """Come into a run that goes on; None where there is none, unless it was there before (``insist``).

    Raises:
        ExcludedError: It went on, and has ended meanwhile.
        PeersLostError: This device was not taken in time.
    """
    crew = session.crew
    assert crew is not None
    while True:
        found = crew.wish(tuple(dict.fromkeys(addresses)), timeout_s=session.job.join_timeout_s, insist=insist)
        if found is None:
            return None
        with contextlib.suppress(ExcludedError, NoMajorityError):
            return _entered(session, found)
        # Others were lost just then, or took this one for lost.
        session.forget()
        crew.start_over()
        insist = True


def _entered(session: Session, found: Form) -> Form:
    """Enter a generation, or the one that comes after it where somebody was lost meanwhile."""
    while True:
        try:
            session.enter(found)
        except (RuntimeError, PeersLostError):
            later = session.rest()
            if later is None:
                raise ExcludedError(
                    f"{session.job.device}: the run has finished without this device.",
                    hint="Its files are with the others.",
                ) from None
            found = later
            continue
        return found


def _finish(
    trainer: Trainer, duration_s: float, base_bytes: int, keep: Callable[[Trained], None]
) -> Trained | None:  # fmt: skip
    """Hand everything to the leader, and stay until it has been kept."""
    session, crew = trainer.session, trainer.session.crew
    group = session.group
    own = trainer.result(max(peak_bytes() - base_bytes, 0))
    gathered, model = group.apart(
        lambda: (group.gather_bytes(msgspec.json.encode(own)), _gather_parameters(session, group))
    )
    if group.rank != 0:
        if crew is not None:
            crew.await_finish()
        return None
    ranks = tuple(msgspec.json.decode(data, type=RankResult) for data in gathered)
    gone = max((result.gone for result in ranks), key=len)
    # One that was only taken for lost has its rows itself.
    own_lives = {result.device: result.generation for result in ranks}
    gone = tuple(life for life in gone if life.generation < own_lives.get(life.device, life.generation + 1))
    results = (*(msgspec.structs.replace(result, gone=()) for result in ranks), *gone)
    recoveries = tuple(_seen(recovery, ranks) for recovery in session.recoveries)
    trained = Trained(
        results=results,
        model=model,
        duration_s=duration_s,
        rounds_per_epoch=trainer.job.rounds_per_epoch,
        losses=tuple(round_losses(ranks) if crew is None else crew.losses),
        recoveries=recoveries,
    )
    keep(trained)
    if crew is not None:
        crew.finish()
    return trained


def _seen(recovery: Recovery, results: Sequence[RankResult]) -> Recovery:
    """A change of the devices as those saw it who were there, with the joules that it cost them."""
    number = recovery.generation
    there = [result for result in results if number in result.recovery_j or result.device in recovery.joined]
    seen = [one for result in there for one in result.recoveries if one.generation == number]
    joules = [result.recovery_j[number] for result in results if number in result.recovery_j]
    # Of a board's ranks only the first measures.
    known = [part for part in joules if part is not None]
    return msgspec.structs.replace(
        recovery,
        detected_s=next((one.detected_s for one in seen if one.detected_s is not None), None),
        repaired_s=max((one.repaired_s for one in seen if one.repaired_s is not None), default=None),
        moved_bytes=sum(one.moved_bytes for one in seen),
        energy_j=sum(known) if known else None,
    )


def _hello(job: Job, recorder: EnergyRecorder | None) -> Hello:
    targets = job.data.train_targets
    start = "" if job.resumed is None else f", from round {job.first_round}"
    return Hello(
        device=job.device,
        plan_sha256=job.plan_sha256,
        structure_sha256=job.plan.structure_sha256,
        data=f"{job.data.name}, {len(targets)} samples, inputs {[list(a.shape[1:]) for a in job.data.train_inputs]}",
        settings=f"seed {job.seed}, {job.epochs} epochs"
        + ("" if job.max_rounds is None else f", at most {job.max_rounds} rounds")
        + start
        + job.options.agreed
        + ("" if job.recovering is not None else ", no recovery"),
        torch=str(torch.__version__),
        board=job.board,
        meter=meter_text(recorder),
        source=recorder.source if recorder else "modelled",
        scope=recorder.scope if recorder else "process",
    )


def _crew(job: Job, hello: Hello, maker: StageMaker, say: Callable[[str], None]) -> Crew | None:
    """The control plane; none where a loss ends the run anyway."""
    if job.recovering is None:
        return None
    return Crew(
        hello,
        job.recovering.seat,
        host=address_towards(job.host),
        port=job.port + 1 + job.recovering.seat,
        layers_n=maker.layers_n,
        first_round=job.first_round,
        patience_s=max(_PATIENCE_S, job.message_timeout_s),
        say=say,
    )


def _meet(session: Session, hello: Hello, say: Callable[[str], None]) -> Form | None:
    """Come into a run that goes on, or meet the others at its start; the generation that was entered."""
    job, crew = session.job, session.crew
    if crew is not None and job.recovering is not None:
        found = _join_running(session, job.recovering.addresses)
        if found is not None:
            return found
    if job.device not in job.plan.devices:
        raise UsageError(
            f"device {job.device!r} is not in the plan, and no run goes on that it could join.",
            hint=f"The plan has: {', '.join(job.plan.devices)}.",
        )
    job.check_fresh()
    group = join(
        job.plan,
        hello,
        host=job.host,
        port=job.port,
        reach_timeout_s=job.reach_timeout_s,
        join_timeout_s=job.join_timeout_s,
        message_timeout_s=job.message_timeout_s,
        say=say,
    )
    if crew is not None:
        crew.begin(group.hellos)
    session.start(group)
    return None


def _gather_parameters(session: Session, group: RunGroup) -> TrainedModel:
    """Bring one copy of every stage's parameters to rank 0, as bytes in safetensors form (no pickle)."""
    from safetensors.torch import load, save

    executor = session.executor
    stage = stage_of(session.plan, executor.device)
    # The others hold the same; where work is shared inside a sample, each besides has parts of its own.
    first_of_stage = stage.devices[0] == executor.device
    own = {
        f"{stage.start + number}.{name}": part
        for number, block in enumerate(executor.blocks)
        for name, part in named_parts(block, replicated=first_of_stage).items()
    }
    gathered = group.gather_bytes(save(own) if own else b"")
    return TrainedModel(parameters=gather_named(load(data) for data in gathered if data))
