"""Single runs of the faults' benchmark: one fault each, or one kill and a restart of everything."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from greentrain.errors import RunError
from greentrain.files import read_json
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain_harness.bench._faults_crew import START_S, Crew, Fault, Seen, told_change
from greentrain_harness.bench._faults_plans import Victim
from greentrain_harness.bench._faults_setting import Setting
from greentrain_harness.bench._faults_table import FaultRow, RestartRow, loss_difference
from greentrain_harness.bench._lab_commands import greentrain

__all__ = ["fault_row", "losses_against", "restart_row", "summary_of"]

# Longest wait for the others to go on; far beyond every bar.
_BACK_S = 90.0
_END_S = 180.0
# The fault comes after one of these rounds, at any moment of the next two seconds.
_FIRST_ROUNDS = range(5, 12)
_MOMENT_S = 2.0
_ROUNDS_N = 30
_CHECKPOINT_ROUNDS = 5
# The planner that a person would take to plan anew.
_REPLANNER = {"data": "data", "pipeline": "pipeline", "hybrid": "asteroid"}


def fault_row(setting: Setting, plan: str, fault: Fault, victim: Victim, trial: int, rng: random.Random) -> FaultRow:
    """One run with one fault, after which the others finish it.

    Raises:
        RunError: The run did not begin.
    """
    with setting.crew(plan, _ROUNDS_N) as crew:
        crew.await_round(rng.choice(_FIRST_ROUNDS))
        time.sleep(rng.uniform(0, _MOMENT_S))
        told_n, reached, start_s = len(crew.seen), crew.reached, time.monotonic()
        crew.harm(fault, victim.device)
        back = _await_new_round(crew, victim.device, told_n)
        survivors = [device for device in crew.devices if device != victim.device]
        status = crew.await_end(survivors, within_s=_END_S if back else 1.0)
        said = crew.last_words()
    summary = summary_of(setting, crew)
    whole = set(status.values()) == {0} and summary is not None and summary.rounds == _ROUNDS_N
    if not whole:
        sys.stderr.write(f"  {status}; {said}\n")
    found = [] if summary is None else [one for one in summary.recoveries if victim.device in one.lost]
    recovery = found[0] if found else None
    return FaultRow(
        plan=plan, fault=fault, role=victim.role, trial=trial, victim=victim.device, grouped=victim.grouped,
        after_round=reached,
        detected_s=recovery and recovery.detected_s,
        repaired_s=recovery and recovery.repaired_s,
        back_s=back and back.t_s - start_s,
        redone_rounds=recovery and recovery.redone_rounds,
        moved_bytes=recovery and recovery.moved_bytes,
        energy_j=recovery and recovery.energy_j,
        loss_difference=None if summary is None else losses_against(setting, crew, summary),
        whole=whole,
    )  # fmt: skip


def restart_row(setting: Setting, plan: str, victim: Victim, trial: int, rng: random.Random) -> RestartRow:
    """One run with one kill, after which everything is stopped, planned anew and started from the last checkpoint.

    That somebody must notice the kill is not counted. The new plan is made on the first device that is left.

    Raises:
        RunError: A part of it failed.
    """
    keeping = ("--no-recovery", "--checkpoint-every", str(_CHECKPOINT_ROUNDS))
    with setting.crew(plan, _ROUNDS_N, *keeping) as crew:
        crew.await_round(rng.choice(_FIRST_ROUNDS))
        time.sleep(rng.uniform(0, _MOMENT_S))
        reached, start_s = crew.reached, time.monotonic()
        crew.harm("kill", victim.device)
        left = [device for device in crew.devices if device != victim.device]
        crew.stop(left)
        stopped_s = time.monotonic() - start_s
    batch = str(setting.plans[plan].batch)
    schedule = [
        sys.executable, "-m", "greentrain.cli", "schedule", "--planner", _REPLANNER[plan], "--batch", batch,
        "--exclude", victim.device, "--no-explain", "-o", f"{crew.run}.json",
    ]  # fmt: skip
    greentrain(setting.folder, "lab", "exec", "--name", setting.lab.name, left[0], "--", *schedule)
    planned_s = time.monotonic() - start_s
    setting.plans[crew.run] = read_json(setting.folder / f"{crew.run}.json", Plan, schema=PLAN_SCHEMA)
    with setting.crew(crew.run, _ROUNDS_N, *keeping, "--resume", f"runs/{crew.run}") as again:
        first = again.await_round(1).progress.step
        back = again.await_seen(lambda seen: seen.progress.step > reached, within_s=START_S)
        if back is None:
            raise RunError(f"{again.run}: round {reached + 1} was not reached: {again.last_words()}")
    return RestartRow(
        plan=plan, role=victim.role, trial=trial, victim=victim.device, lost_rounds=reached + 1 - first,
        stopped_s=stopped_s, planned_s=planned_s, back_s=back.t_s - start_s,
    )  # fmt: skip


def summary_of(setting: Setting, crew: Crew) -> Summary | None:
    """The summary of a run; None where it has none."""
    path: Path = setting.folder / "runs" / crew.run / "summary.json"
    return read_json(path, Summary, schema=SUMMARY_SCHEMA) if path.exists() else None


def losses_against(setting: Setting, crew: Crew, summary: Summary) -> float | None:
    """How far a run's losses are from those of the undisturbed one."""
    if summary.rounds == 0 or summary.epochs == 0:
        return None
    epoch_rounds_n = round(summary.rounds / summary.epochs)
    return loss_difference(
        crew.losses(), summary.loss_by_epoch, setting.undisturbed(summary.rounds), epoch_rounds_n
    )  # fmt: skip


def _await_new_round(crew: Crew, victim: str, told_n: int) -> Seen | None:
    """The first round that nobody had done when training went on; None where it does not go on."""
    lost = crew.await_seen(lambda seen: told_change(seen, victim, "lost"), since=told_n, within_s=_BACK_S)
    if lost is None:
        return None
    # What was on its way at the time of the fault may still have come to an end.
    reached = max((seen.progress.step for seen in crew.seen if seen.t_s < lost.t_s), default=0)
    return crew.await_seen(
        lambda seen: seen.progress.event is None and seen.progress.step > reached, since=told_n, within_s=_BACK_S
    )
