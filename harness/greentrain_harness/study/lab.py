"""The measured part: the same plans trained for some rounds on emulated nodes (root).

Seconds, bytes and memory are measured; joules are modelled from the processor time that the nodes really used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from greentrain.cluster import Cluster
from greentrain.cluster_file import build_cluster, read_cluster_file
from greentrain.cost import CostTables
from greentrain.errors import RunError
from greentrain.files import read_json, write_json
from greentrain.ledger import ACTION_CAUSES, read_ledger
from greentrain.objective import Objective, Problem
from greentrain.plan import PLAN_SCHEMA, Plan, parallelism_name
from greentrain.profile_files import read_device_profile, read_model_profile
from greentrain.study import StudyCase, StudyRow
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_links, measure_nodes
from greentrain_harness.study.plans import chosen, lacking_bytes, sole_param_bytes, stages_text, why_not

__all__ = ["LabCluster", "why_no_lab"]

# One kind of board for all nodes: what differs is the quota.
_BOARD = "jetson-xavier-nx-8gb"
# Rounds of a run: what fits these seconds, but not fewer or more.
_TRAIN_S, _FEWEST_ROUNDS, _MOST_ROUNDS = 8.0, 3, 12
_MICRO_BATCHES = (1, 2, 4, 8)


def why_no_lab() -> str | None:
    """Why this machine cannot have a lab; None where it can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "The measured part needs root (network namespaces); the study has the simulated part only."
    return None


class LabCluster:
    """An emulated cluster that stands from entering to leaving; what was measured stays in its folder.

    Args:
        folder: Work folder; profiles, plans and runs.
        case: One of the cases of the cluster.
        say: Told what happens.
    """

    def __init__(self, folder: Path, case: StudyCase, say: Callable[[str], None]) -> None:
        assert case.quotas_percent is not None
        self._quotas = case.quotas_percent.split()
        self._folder = folder / "-".join(self._quotas)
        self._model = case.model
        self._bandwidth = f"{case.bandwidth_mbit_per_s:g}Mbit"
        self._name = f"study{os.getpid()}"
        self._say = say

    def __enter__(self) -> LabCluster:
        self._folder.mkdir(parents=True, exist_ok=True)
        what = f"lab of {len(self._quotas)} nodes at {' '.join(self._quotas)} %, {self._bandwidth}/s"
        self._say(f"{what}: setting it up, measuring nodes and links")
        try:
            greentrain(
                self._folder, "lab", "up", "--name", self._name, "--quotas", ",".join(self._quotas),
                "--kinds", ",".join([_BOARD] * len(self._quotas)), "--bandwidth", self._bandwidth,
            )  # fmt: skip
            measure_nodes(self._folder, self._name, [self._model])
            measure_links(self._folder, self._name, self._bandwidth)
            greentrain(self._folder, "cluster", "init", "--lab", self._name, "--force")
        except BaseException:
            lab_down(self._folder, self._name)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        lab_down(self._folder, self._name)

    def row(self, case: StudyCase) -> StudyRow:
        """One case, planned from what was measured here, and trained."""
        problem = self._problem(case)
        reason = why_not(problem.model, case.way, case.devices_n)
        if reason is not None:
            return _row(case, status="impossible", note=reason)
        plan, nearest = chosen(case.way, problem, CostTables(problem))
        if plan is None:
            lacking = None if nearest is None else lacking_bytes(nearest, problem)
            return _row(case, status="out-of-memory", lacking_bytes=lacking, note="no plan of this form fits the nodes")
        run = f"{case.way.replace('+', '-')}-{self._bandwidth}"
        # Left over from a study that was cut short.
        shutil.rmtree(self._folder / "runs" / run, ignore_errors=True)
        write_json(self._folder / "plan.json", plan, schema=PLAN_SCHEMA)
        try:
            # Without recovery: backups for a lost device would be charged to some ways and not to others.
            greentrain(
                self._folder, "train", "plan.json", "--run", run, "--rounds", str(_rounds(plan)), "--no-recovery",
                "--replan", "off", "--checkpoint-every", "never",
            )  # fmt: skip
            return _row(case, status="ok", **self._figures(plan, problem, self._folder / "runs" / run))
        except RunError as error:
            return _row(case, status="failed", note=error.message[:200])

    def _problem(self, case: StudyCase) -> Problem:
        return Problem(
            model=read_model_profile(self._folder / "profiles", case.model), cluster=_cluster(self._folder),
            objective=Objective(minimise="energy"), batch=case.batch, micro_batches=_MICRO_BATCHES,
        )  # fmt: skip

    def _figures(self, plan: Plan, problem: Problem, run: Path) -> dict[str, object]:
        summary = read_json(run / "summary.json", Summary, schema=SUMMARY_SCHEMA)
        if summary.energy_j is None or summary.measured.joules_per_sample is None:
            raise RunError(f"{summary.run}: the run has no joules.")
        rows = read_ledger(run / "ledger.csv")
        busy_s = sum(row.duration_s for row in rows if ACTION_CAUSES.get(row.action) == "compute")
        sent = sum(row.bytes for row in rows if row.action == "send")
        causes = [part for device in summary.measured.energy_j.values() for part in device.items()]
        waited_j = sum(joules for cause, joules in causes if cause == "wait")
        # Inside a ring waiting and computing are one action of the ledger.
        tells = all(stage.sharing == "samples" for stage in plan.stages)
        predicted = plan.estimate
        assert predicted is not None
        return {
            "parallelism": parallelism_name(plan),
            "participants_n": len(plan.devices),
            "micro_batch": plan.micro_batch,
            "stages": stages_text(plan.stages),
            "step_s": summary.duration_s / summary.rounds,
            "samples_per_s": summary.samples / summary.duration_s,
            "energy_j_per_sample": summary.measured.joules_per_sample,
            "error_j_per_sample": summary.measured.error_j_per_sample,
            "mean_power_w": summary.energy_j / summary.duration_s,
            "sent_bytes_per_sample": sent / summary.samples,
            "peak_memory_bytes": max(summary.measured.peak_bytes.values(), default=None),
            "idle_time_ratio": max(1 - busy_s / (len(plan.devices) * summary.duration_s), 0.0) if tells else None,
            "idle_energy_ratio": waited_j / sum(joules for _, joules in causes) if tells else None,
            "sole_param_bytes": sole_param_bytes(plan, problem.model),
            "predicted_step_s": predicted.step_s,
            "predicted_j_per_sample": predicted.energy_j_per_sample,
            "time_source": "measured",
            "energy_source": "modelled",
        }


def _rounds(plan: Plan) -> int:
    assert plan.estimate is not None
    return min(max(round(_TRAIN_S / plan.estimate.step_s), _FEWEST_ROUNDS), _MOST_ROUNDS)


def _row(case: StudyCase, **figures: object) -> StudyRow:
    return msgspec.convert({**msgspec.structs.asdict(case), **figures}, type=StudyRow)


def _cluster(folder: Path) -> Cluster:
    path = folder / "cluster.toml"
    return build_cluster(
        read_cluster_file(path), path=path,
        resolve=lambda entry: read_device_profile(folder / (entry.profile or "")).device,
    )  # fmt: skip
