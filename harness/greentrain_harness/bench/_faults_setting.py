"""What the faults' benchmark works on: a lab, the plans by hand, and the losses of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greentrain.errors import RunError
from greentrain.files import read_json, write_json, write_text
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.profile_files import read_model_profile
from greentrain_harness.bench._faults_crew import Crew
from greentrain_harness.bench._faults_plans import PLANS, hand_plan, single_plan
from greentrain_harness.bench._lab_commands import greentrain, lab_down, measure_nodes
from greentrain_harness.lab import Lab, read_lab

__all__ = ["OWN_MODEL", "Setting", "open_setting"]

# Smooth everywhere, and with momentum in place of Adam, whose first steps are as large where a gradient is rounding
# only: other sums of the same rows then stay as near as rounding. At the kinks of digits-cnn (ReLU) they do not.
OWN_MODEL = "faults_net.py:workload"
_OWN_SOURCE = """\
from dataclasses import replace

from greentrain.workloads.digits_vit import WORKLOAD

workload = replace(WORKLOAD, name="digits-vit-momentum", optimizer="momentum", learning_rate=0.005)
"""


@dataclass
class Setting:
    """A lab that stands, with measured nodes and planned runs.

    Attributes:
        folder: The work folder.
        lab: The nodes.
        workload: What they train.
        plans: Plan by name; its file is ``NAME.json``.
        step_s: Predicted seconds of a round of data parallelism.
        losses_per_hour: What the workers are told.
    """

    folder: Path
    lab: Lab
    workload: str
    plans: dict[str, Plan]
    step_s: float
    losses_per_hour: float
    _undisturbed: list[float] = field(default_factory=list[float])
    _runs_n: int = 0

    def crew(self, plan: str, rounds_n: int, *options: str) -> Crew:
        """Workers of a new run of a plan."""
        self._runs_n += 1
        return Crew(
            self.lab, self.folder, f"{plan}.json", self.plans[plan].devices, f"{plan}-{self._runs_n}",
            ["--rounds", str(rounds_n), "--losses-per-hour", f"{self.losses_per_hour:g}", *options],
        )  # fmt: skip

    def undisturbed(self, rounds_n: int) -> Sequence[float]:
        """Losses of so many rounds on one device; the workload's step size must not depend on how many there are.

        Raises:
            RunError: That run failed.
        """
        if len(self._undisturbed) < rounds_n:
            done = subprocess.run(
                [
                    sys.executable, "-m", "greentrain_harness.bench._faults_reference", "single.json", self.workload,
                    str(rounds_n),
                ],
                cwd=self.folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise RunError(f"the undisturbed run failed: {done.stderr.strip()[-200:]}")
            self._undisturbed = [float(line) for line in done.stdout.splitlines()]
        return self._undisturbed[:rounds_n]


@contextlib.contextmanager
def open_setting(
    *, quotas: str, bandwidth: str, model: str, batch: int, losses_per_hour: float
) -> Generator[Setting, None, None]:
    """Set a lab up, measure its nodes, plan, and take it down again.

    Args:
        quotas: Percent of a core by node, comma.
        bandwidth: Each node's link.
        model: A workload.
        batch: Samples per round.
        losses_per_hour: What the workers are told.
    """
    name = f"faults{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="greentrain-bench-") as text:
        folder = Path(text)
        try:
            greentrain(folder, "lab", "up", "--name", name, "--quotas", quotas, "--bandwidth", bandwidth)
            write_text(folder / "faults_net.py", _OWN_SOURCE)
            measure_nodes(folder, name, [model])
            greentrain(folder, "cluster", "init", "--lab", name, "--force")
            greentrain(
                folder, "schedule", "--planner", "data", "--batch", str(batch), "--no-explain", "-o", "base.json"
            )
            base = read_json(folder / "base.json", Plan, schema=PLAN_SCHEMA)
            profile = read_model_profile(folder / "profiles", base.model)
            plans = {plan: hand_plan(plan, base, profile) for plan in PLANS}
            for plan, made in {**plans, "single": single_plan(base, profile)}.items():
                write_json(folder / f"{plan}.json", made, schema=PLAN_SCHEMA)
            assert base.estimate is not None
            yield Setting(folder, read_lab(name), model, plans, base.estimate.step_s, losses_per_hour)
        finally:
            lab_down(folder, name)
