"""Losses of an undisturbed run on one device: ``python -m greentrain_harness.bench._faults_reference PLAN
WORKLOAD ROUNDS``.

Prints one loss per line. The device is this machine, without quota: what is compared is the arithmetic.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from greentrain.errors import GreentrainError
from greentrain.files import canonical_sha256, read_json
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.runtime.job import Job
from greentrain.runtime.network import free_port
from greentrain.workloads import load_workload
from greentrain_datasets.loaders import load_dataset

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Train; returns the exit status."""
    from greentrain.runtime.worker import train

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    plan = read_json(Path(argv[0]), Plan, schema=PLAN_SCHEMA)
    workload = load_workload(argv[1])
    with tempfile.TemporaryDirectory(prefix="greentrain-reference-") as folder:
        job = Job(
            run="undisturbed", plan=plan, plan_sha256=canonical_sha256(plan), device=plan.devices[0], board="here",
            workload=workload, data=load_dataset(workload.dataset), epochs=100000, max_rounds=int(argv[2]), seed=0,
            run_dir=Path(folder), host="127.0.0.1", port=free_port(), reach_timeout_s=30.0, join_timeout_s=30.0,
            message_timeout_s=30.0,
        )  # fmt: skip
        try:
            trained = train(job, None, lambda progress: None)
        except GreentrainError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.exit_code
    assert trained is not None
    sys.stdout.writelines(f"{loss!r}\n" for loss in trained.losses)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
