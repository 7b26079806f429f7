"""RunFolder: what a run left behind. Every piece is optional; what is missing stays a gap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from greentrain.cluster import Cluster
from greentrain.errors import UsageError
from greentrain.files import file_sha256, read_csv, read_json
from greentrain.ledger import LedgerRow, read_ledger
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.summary import SUMMARY_SCHEMA, Summary

__all__ = ["CLUSTER_SCHEMA", "RunFolder", "load_run"]

CLUSTER_SCHEMA = "greentrain.cluster/1"

_PLAN, _SUMMARY, _LEDGER = "plan.json", "summary.json", "ledger.csv"
_PREDICTED, _TIME_OPTIMAL, _CLUSTER = "predicted.csv", "time_optimal.plan.json", "cluster.json"

T = TypeVar("T", bound=msgspec.Struct)


class RunFolder(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one run; ``None`` where the run did not record them.

    Attributes:
        path: The folder.
        name: Name of the run.
        plan: What ran.
        summary: What it reached; None for a run that did not end.
        rows: The ledger.
        predicted_rows: The simulator's ledger of the same plan.
        time_optimal: The fastest plan that the planner knew.
        cluster: The devices that might have taken part.
        sha256: Hash of every file that was read, by name.
        remarks: What a reader must know about the state of the files.
    """

    path: Path
    name: str
    plan: Plan | None
    summary: Summary | None
    rows: tuple[LedgerRow, ...] | None
    predicted_rows: tuple[LedgerRow, ...] | None
    time_optimal: Plan | None
    cluster: Cluster | None
    sha256: dict[str, str]
    remarks: tuple[str, ...]


def load_run(path: Path) -> RunFolder:
    """Read a run folder, tolerating what a stopped run lacks.

    Raises:
        UsageError: The folder is missing or holds neither ledger nor summary, or a file that is there
            is damaged (file, line and field are named). Only a last ledger line cut short is forgiven.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such run folder.", hint="Give a folder that greentrain train made, as runs/NAME.")
    names = (_PLAN, _SUMMARY, _LEDGER, _PREDICTED, _TIME_OPTIMAL, _CLUSTER)
    present = {name: path / name for name in names if (path / name).exists()}
    if _LEDGER not in present and _SUMMARY not in present:
        raise UsageError(
            f"{path}: holds neither {_LEDGER} nor {_SUMMARY}, expected a folder that greentrain train made.",
            hint="Run greentrain train first, or give another folder.",
        )
    remarks: list[str] = []
    summary = _optional_json(present, _SUMMARY, Summary, SUMMARY_SCHEMA)
    if summary is None:
        remarks.append(f"No {_SUMMARY}: the run did not end, or its summary was removed. Totals come from the ledger.")
    elif summary.status != "finished":
        remarks.append(f"The run is marked {summary.status!r}; figures cover what it did until then.")
    rows = _ledger(present, _LEDGER, remarks)
    if rows is None:
        remarks.append(f"No {_LEDGER}: single rounds are not recorded. Totals come from the summary.")
    plan = _optional_json(present, _PLAN, Plan, PLAN_SCHEMA)
    if plan is None:
        remarks.append(f"No {_PLAN}: the plan, its price and its reasons are not recorded.")
    return RunFolder(
        path=path,
        name=_name(path, summary, rows),
        plan=plan,
        summary=summary,
        rows=rows,
        predicted_rows=_ledger(present, _PREDICTED, remarks),
        time_optimal=_optional_json(present, _TIME_OPTIMAL, Plan, PLAN_SCHEMA),
        cluster=_optional_json(present, _CLUSTER, Cluster, CLUSTER_SCHEMA),
        sha256={name: file_sha256(found) for name, found in present.items()},
        remarks=tuple(remarks),
    )


def _name(path: Path, summary: Summary | None, rows: Sequence[LedgerRow] | None) -> str:
    if summary is not None:
        return summary.run
    return rows[0].run if rows else path.resolve().name


def _optional_json(present: dict[str, Path], name: str, kind: type[T], schema: str) -> T | None:
    return read_json(present[name], kind, schema=schema) if name in present else None


def _ledger(present: dict[str, Path], name: str, remarks: list[str]) -> tuple[LedgerRow, ...] | None:
    if name not in present:
        return None
    path = present[name]
    rows = read_ledger(path, allow_cut=True)
    lines_n = sum(1 for line in read_csv(path)[1] if line)
    if lines_n > len(rows):
        remarks.append(f"{name} is cut short in its last line, which was left out.")
    return tuple(rows)
