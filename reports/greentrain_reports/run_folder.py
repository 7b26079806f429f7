"""RunFolder: what a run left behind. Every piece is optional; what is missing stays a gap."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from greentrain.cluster import Cluster
from greentrain.errors import UsageError
from greentrain.files import file_sha256, read_json
from greentrain.plan import PLAN_SCHEMA, Plan
from greentrain.summary import SUMMARY_SCHEMA, Summary
from greentrain_reports.ledger_table import LedgerTable, ends_in_a_cut_line, joined, read_table

__all__ = ["CLUSTER_SCHEMA", "FrontierPoint", "RunFolder", "load_run"]

CLUSTER_SCHEMA = "greentrain.cluster/1"
_FRONTIER_SCHEMA = "greentrain.frontier/1"

_PLAN, _SUMMARY, _LEDGER = "plan.json", "summary.json", "ledger.csv"
_PREDICTED, _CLUSTER, _FRONTIER = "predicted.csv", "cluster.json", "frontier.json"
_TIME_OPTIMAL, _SINGLE = "time_optimal.plan.json", "single.plan.json"

T = TypeVar("T", bound=msgspec.Struct)


class FrontierPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of the time-energy frontier; other fields of the file are not needed here.

    Attributes:
        number: From 1, fastest first.
        samples_per_s: Throughput.
        energy_j_per_sample: Joules per sample.
        parallelism: The field's word for the plan.
        devices: Participants.
        points: Their operating points.
    """

    number: int
    samples_per_s: float
    energy_j_per_sample: float
    parallelism: str
    devices: tuple[str, ...]
    points: tuple[str, ...]


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """Every plan that no other beats in both time and energy.

    Attributes:
        exact: Whether these are all of them.
        method: How they were found.
        rows: Fastest first.
    """

    exact: bool
    method: str
    rows: tuple[FrontierPoint, ...]


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
        single: The best plan on one device.
        frontier: Every plan that no other beats in both time and energy.
        cluster: The devices that might have taken part.
        sha256: Hash of every file that was read, by name.
        remarks: What a reader must know about the state of the files.
    """

    path: Path
    name: str
    plan: Plan | None
    summary: Summary | None
    rows: LedgerTable | None
    predicted_rows: LedgerTable | None
    time_optimal: Plan | None
    single: Plan | None
    frontier: Frontier | None
    cluster: Cluster | None
    sha256: dict[str, str]
    remarks: tuple[str, ...]


def load_run(path: Path) -> RunFolder:
    """Read a run folder, tolerating what a stopped run lacks and what another version wrote.

    Raises:
        UsageError: The folder is missing or holds neither ledger nor summary, or a file that is there
            is damaged (file, line and field are named). Only a last ledger line cut short is forgiven.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: no such run folder.", hint="Give a folder that greentrain train made, as runs/NAME.")
    files = _Files(path)
    summary = files.json(_SUMMARY, Summary, SUMMARY_SCHEMA)
    rows = files.ledger(_LEDGER) if _LEDGER in files.present else files.rank_ledgers()
    if rows is None and _SUMMARY not in files.present:
        raise UsageError(
            f"{path}: holds neither {_LEDGER} nor {_SUMMARY}, expected a folder that greentrain train made.",
            hint="Run greentrain train first, or give another folder.",
        )
    plan = files.json(_PLAN, Plan, PLAN_SCHEMA)
    files.remark_on(summary, rows, plan)
    return RunFolder(
        path=path,
        name=_name(path, summary, rows),
        plan=plan,
        summary=summary,
        rows=rows,
        predicted_rows=files.ledger(_PREDICTED),
        time_optimal=files.json(_TIME_OPTIMAL, Plan, PLAN_SCHEMA),
        single=files.json(_SINGLE, Plan, PLAN_SCHEMA),
        frontier=files.json(_FRONTIER, Frontier, _FRONTIER_SCHEMA),
        cluster=files.json(_CLUSTER, Cluster, CLUSTER_SCHEMA),
        sha256={name: file_sha256(found) for name, found in sorted(files.present.items())},
        remarks=tuple(files.remarks),
    )


class _Files:
    """Reads the files of a folder and collects what must be said about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = (_PLAN, _SUMMARY, _LEDGER, _PREDICTED, _TIME_OPTIMAL, _SINGLE, _FRONTIER, _CLUSTER)
        self.present = {name: folder / name for name in names if (folder / name).exists()}
        self.remarks: list[str] = []

    def json(self, name: str, kind: type[T], schema: str) -> T | None:
        """A struct; None where the file is missing or of another version than this one reads."""
        if name not in self.present:
            return None
        found = _schema_of(self.present[name])
        if found is not None and found != schema and found.partition("/")[0] == schema.partition("/")[0]:
            self.remarks.append(
                f"{name} has the schema {found}, this version reads {schema}: what it says is not in this report."
            )
            return None
        return read_json(self.present[name], kind, schema=schema)

    def ledger(self, name: str) -> LedgerTable | None:
        """A ledger; None where it is missing."""
        if name not in self.present:
            return None
        table = read_table(self.present[name])
        if ends_in_a_cut_line(self.present[name]):
            self.remarks.append(f"{name} is cut short in its last line, which was left out.")
        if table.lacking:
            self.remarks.append(
                f"{name} was written by an older version, without {', '.join(table.lacking)}; these are not recorded."
            )
        return table

    def rank_ledgers(self) -> LedgerTable | None:
        """What the ranks wrote themselves, where nobody lived to join it; None where they did not."""
        found = sorted(self.folder.glob("rank-*.ledger.csv"))
        tables: list[LedgerTable] = []
        for path in found:
            if path.stat().st_size > 0:
                self.present[path.name] = path
                table = self.ledger(path.name)
                tables += [table] if table is not None and table.rows_n else []
        if not tables:
            return None
        self.remarks.append(f"No {_LEDGER}: the rows are those of {', '.join(path.name for path in found)}.")
        return joined(tables)

    def remark_on(self, summary: Summary | None, rows: LedgerTable | None, plan: Plan | None) -> None:
        """Say what is missing."""
        if summary is None and _SUMMARY not in self.present:
            self.remarks.append(
                f"No {_SUMMARY}: the run did not end, or its summary was removed. Totals come from the ledger."
            )
        elif summary is not None and summary.status != "finished":
            self.remarks.append(f"The run is marked {summary.status!r}; figures cover what it did until then.")
        if rows is None:
            self.remarks.append(f"No {_LEDGER}: single rounds are not recorded. Totals come from the summary.")
        if plan is None and _PLAN not in self.present:
            self.remarks.append(f"No {_PLAN}: the plan, its price and its reasons are not recorded.")


def _schema_of(path: Path) -> str | None:
    """What the file says that it is; None where it cannot be told, which its reader then explains."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Schema).schema
    except (OSError, msgspec.DecodeError):
        return None


class _Schema(msgspec.Struct):
    schema: str


def _name(path: Path, summary: Summary | None, rows: LedgerTable | None) -> str:
    if summary is not None:
        return summary.run
    return rows.run if rows is not None and rows.run else path.resolve().name
