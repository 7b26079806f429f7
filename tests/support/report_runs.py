"""Run folders for tests of reports: two devices, three rounds, every file that a run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from greentrain.carbon import Intensity
from greentrain.cluster import Cluster, Link
from greentrain.device import Device, OperatingPoint
from greentrain.files import write_json
from greentrain.ledger import LedgerRow, total_energy_j, write_ledger
from greentrain.objective import Objective
from greentrain.plan import PLAN_SCHEMA, Certificate, Estimate, Plan, Stage
from greentrain.power import PowerModel, Source, physical_curve
from greentrain.summary import SUMMARY_SCHEMA, Outcome, Summary
from greentrain_reports.carbon_account import CarbonBasis
from greentrain_reports.report import ReportFiles

__all__ = [
    "BASIS", "GRID", "NASTY", "cluster_of_test", "html_of", "ledger_row", "ledger_rows", "make_run", "page_of",
    "plan_of_test", "predicted_rows", "single_of_test",
]  # fmt: skip

GRID = Intensity(kg_per_kwh=0.056, place="FRA", year=2023, source="a table")
BASIS = CarbonBasis(grid=GRID)
NASTY = "sensor <script>alert('x')</script> & \"quoted\""
ROUND_S = (0.10, 0.12, 0.14)


def _estimate(*, joules: float, step_s: float) -> Estimate:
    return Estimate(
        step_s=step_s,
        samples_per_s=16 / step_s,
        energy_j_per_sample=joules / 16,
        energy_j={
            "fast": {"compute": joules * 0.5, "send": joules * 0.1, "wait": joules * 0.1},
            "slow": {"compute": joules * 0.2, "wait": joules * 0.1},
        },
        busy_s={"fast": 0.06, "slow": 0.05},
        peak_bytes={"fast": 40_000_000, "slow": 20_000_000},
    )


def plan_of_test(*, joules: float = 1.6, step_s: float = 0.1, shares: tuple[int, int] = (3, 1)) -> Plan:
    return Plan(
        model="digits",
        structure_sha256="a" * 64,
        cluster="desk",
        planner="exact",
        objective=Objective(max_slowdown=1.5),
        batch=16,
        micro_batch=4,
        optimizer="adam",
        stages=(
            Stage(
                start=0, stop=5, devices=("fast", "slow"), sharing="samples", shares=shares,
                points=("stock", "15W"), in_flight=1, param_bytes=400_000, output_bytes=0, gradient_bytes=0,
            ),
        ),
        estimate=_estimate(joules=joules, step_s=step_s),
        certificate=Certificate(
            lower_bound=0.1, gap_ratio=0.0, method="all plans priced", unit="J/sample", considered_n=42
        ),
        reasons={"fast": "the fewest joules per sample", "third": "its idle power costs more than it saves"},
    )  # fmt: skip


def single_of_test() -> Plan:
    """One device, 25 % more energy and half as fast."""
    whole = plan_of_test(joules=2.0, step_s=0.2)
    stage = msgspec.structs.replace(whole.stages[0], devices=("fast",), shares=(4,), points=("stock",))
    return msgspec.structs.replace(whole, stages=(stage,), planner="single")


class _Frontier(msgspec.Struct, kw_only=True):
    rows: list[dict[str, object]]
    exact: bool = True
    method: str = "all plans were priced"
    model: str = "digits"


def _frontier_rows() -> list[dict[str, object]]:
    figures = ((200.0, 0.125), (160.0, 0.1), (120.0, 0.09))
    return [
        {
            "number": number, "step_s": 16 / rate, "samples_per_s": rate, "energy_j_per_sample": energy_j,
            "parallelism": "data", "devices": ["fast", "slow"], "points": ["stock", "15W"], "marks": [],
        }
        for number, (rate, energy_j) in enumerate(figures, start=1)
    ]  # fmt: skip


def ledger_row(
    device: str, rank: int, step: int, action: str, start_s: float, duration_s: float, **more: object
) -> LedgerRow:
    base = LedgerRow(
        run="demo", device=device, rank=rank, step=step, action=action, t_start_s=start_s, duration_s=duration_s,
        energy_j=None, error_j=None, bytes=0, source="measured", meter="ina3221",
    )  # fmt: skip
    return msgspec.structs.replace(base, **more)


def ledger_rows(rounds_s: Sequence[float] = ROUND_S) -> list[LedgerRow]:
    rows: list[LedgerRow] = []
    start_s = 0.0
    kinds: tuple[tuple[str, Source, str, float], ...] = (
        ("fast", "measured", "ina3221", 11.1),
        ("slow", "modelled", "modelled", 5.7),
    )
    for step, round_s in enumerate(rounds_s):
        for rank, (device, source, meter, power_w) in enumerate(kinds):
            joules = power_w * round_s + 1e-6 * (step % 3 + rank)
            whole = {"source": source, "meter": meter}
            rows += [
                ledger_row(
                    device, rank, step, "step", start_s, round_s, energy_j=joules, error_j=0.05 * joules, **whole
                ),
                ledger_row(device, rank, step, "compute", start_s, round_s * 0.6, **whole),
                ledger_row(device, rank, step, "send", start_s + round_s * 0.6, round_s * 0.1, bytes=2048, **whole),
                ledger_row(device, rank, step, "sum", start_s + round_s * 0.7, round_s * 0.1, bytes=4096, **whole),
                ledger_row(device, rank, step, "update", start_s + round_s * 0.8, round_s * 0.05, **whole),
                ledger_row(device, rank, step, "wait", start_s + round_s * 0.85, round_s * 0.15, **whole),
            ]
        start_s += round_s
    return rows


def predicted_rows() -> list[LedgerRow]:
    more: dict[str, object] = {"source": "modelled", "meter": "simulator"}
    return [
        ledger_row("fast", 0, 0, "compute", 0.0, 0.06, energy_j=0.8, **more),
        ledger_row("fast", 0, 0, "send", 0.06, 0.01, energy_j=0.16, bytes=2048, **more),
        ledger_row("fast", 0, 0, "wait", 0.07, 0.03, energy_j=0.16, **more),
        ledger_row("slow", 1, 0, "compute", 0.0, 0.05, energy_j=0.32, **more),
        ledger_row("slow", 1, 0, "wait", 0.05, 0.05, energy_j=0.16, **more),
    ]


def _summary(rows: Sequence[LedgerRow], *, rounds: int, notes: dict[str, str]) -> Summary:
    total_j = total_energy_j(rows)
    assert total_j is not None
    samples = 16 * rounds
    causes = {
        "fast": {"compute": 2.0, "send": 0.3, "sum": 0.2, "update": 0.1, "wait": 0.4},
        "slow": {"compute": 0.8, "sum": 0.2, "wait": 0.6},
    }
    measured = Outcome(
        joules_per_sample=total_j / samples, error_j_per_sample=0.01, samples_per_s=131.0, step_s=0.12,
        energy_j=causes, peak_bytes={"fast": 41_000_000}, source="mixed",
    )  # fmt: skip
    predicted = msgspec.structs.replace(measured, joules_per_sample=0.1, energy_j={}, peak_bytes={}, source="modelled")
    return Summary(
        run="demo", status="finished", model="digits", plan_sha256="b" * 64, parallelism="data",
        devices=("fast", "slow"), meters=notes, samples=samples, rounds=rounds, epochs=3.0, duration_s=0.36,
        energy_j=total_j, energy_j_by_device={}, joules_per_sample=total_j / samples, error_j_per_sample=0.01,
        source="mixed", samples_per_s=131.0, loss=0.4, loss_by_epoch=(2.2, 0.9, 0.4), accuracy=0.961,
        accuracy_baseline=0.101, test_samples=360, predicted=predicted, measured=measured,
        dataset="digits (scikit-learn, public domain)", host="a Linux box", versions={"torch": "2.13.0"},
        started_utc="2026-11-21T10:00:00Z",
    )  # fmt: skip


def cluster_of_test() -> Cluster:
    def device(name: str) -> Device:
        names = ("stock", "15W")
        curves = tuple(
            physical_curve(point=point, idle_w=2, busy_w=10, cubic_share=0.3, fit="catalogue") for point in names
        )
        power = PowerModel(idle_w=2, curves=curves, source="modelled", provenance="a test")
        points = tuple(OperatingPoint(name=point) for point in names)
        return Device(id=name, kind="box", memory_bytes=10**9, points=points, power=power)

    link = Link(src="*", dst="*", bandwidth_bytes_per_s=1e7)
    return Cluster(name="desk", devices=tuple(map(device, ("fast", "slow", "third"))), default_link=link)


def make_run(folder: Path, *, rounds_s: Sequence[float] = ROUND_S, note: str = NASTY) -> Path:
    rows = ledger_rows(rounds_s)
    folder.mkdir(parents=True)
    notes = {"fast": note, "slow": "catalogue watts, no sensor"}
    write_ledger(folder / "ledger.csv", rows)
    write_ledger(folder / "predicted.csv", predicted_rows())
    write_json(folder / "plan.json", plan_of_test(), schema=PLAN_SCHEMA)
    write_json(
        folder / "time_optimal.plan.json", plan_of_test(joules=2.0, step_s=0.08, shares=(2, 2)), schema=PLAN_SCHEMA
    )
    write_json(folder / "single.plan.json", single_of_test(), schema=PLAN_SCHEMA)
    write_json(folder / "frontier.json", _Frontier(rows=_frontier_rows()), schema="greentrain.frontier/1")
    write_json(folder / "summary.json", _summary(rows, rounds=len(rounds_s), notes=notes), schema=SUMMARY_SCHEMA)
    write_json(folder / "cluster.json", cluster_of_test(), schema="greentrain.cluster/1")
    return folder


def html_of(files: ReportFiles) -> Path:
    """Where the page was written."""
    assert files.html is not None
    return files.html


def page_of(files: ReportFiles) -> str:
    """The page's text."""
    return html_of(files).read_text(encoding="utf-8")
