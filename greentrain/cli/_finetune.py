"""Running ``greentrain finetune``: plan both phases, start their workers, save the adapter, say what it cost."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from greentrain.carbon import co2e_kg
from greentrain.cli._common import say
from greentrain.cli._finetune_data import Texts, read_texts
from greentrain.cli._finetune_phases import MEMORY_FOLDER, Phases, phase_entries
from greentrain.cli._finetune_plan import (
    ASSUMED_STORAGE,
    cache_shape,
    phase_problems,
    plan_text,
    single_plan,
)
from greentrain.cli._finetune_worker import FINETUNE_SCHEMA, REPORT_SCHEMA, FinetuneSpec, SeatReport
from greentrain.cli._run import check_run_name, stopped_by_signals
from greentrain.errors import NotSupportedError, UsageError
from greentrain.files import file_sha256, read_json, write_json, writing
from greentrain.objective import Objective
from greentrain.parallel.adapters import CacheDtype
from greentrain.plan import Plan
from greentrain.units import format_quantity, parse_quantity
from greentrain.workloads.adapters.settings import SideSettings

if TYPE_CHECKING:
    from greentrain.planners.two_phase import FinetunePlan
    from greentrain.workloads.adapters.task import AdapterTask, Method

__all__ = ["FinetuneOptions", "FinetuneSummary", "finetune", "summary_text"]

SUMMARY_SCHEMA = "greentrain.finetune_summary/1"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The options as click gives them."""

    model: str
    data: Path
    text: str
    label: str
    cluster_path: Path | None
    profiles: Path
    devices: tuple[str, ...]
    method: Method
    minimise: Literal["energy", "time", "edp"]
    planner: str
    epochs: int
    batch: int
    tokens_n: int
    reduction: int
    learning_rate: float | None
    test_ratio: float
    cache: Literal["auto", "disk", "memory", "encrypted", "none"]
    cache_dtype: CacheDtype
    cache_dir: Path | None
    cache_limit: str | None
    cache_key: Path | None
    storage: str | None
    intensity_g: float | None
    run: str | None
    seed: int
    as_json: bool
    sysroot: Path


class EpochSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An epoch over all devices.

    Attributes:
        epoch: Counted from 1.
        loss: Mean loss.
        duration_s: Seconds of the slowest device.
        energy_j: Joules of all; None where a device was not measured.
        joules_per_sample: The same per sample.
        io_j: Joules of the cache's reading and writing, by its part of the time.
        cache_bytes: Bytes read from and written to caches.
    """

    epoch: int
    loss: float
    duration_s: float
    energy_j: float | None
    joules_per_sample: float | None
    io_j: float | None
    cache_bytes: int


class FinetuneSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a fine-tuning run cost and reached: ``runs/NAME/finetune_summary.json``.

    Attributes:
        run: Name of the run.
        model: The backbone.
        method: How it was trained.
        devices: All devices that took part.
        train_samples: Texts to train with.
        test_samples: Held-out texts.
        labels: Names of the classes.
        epochs: Every epoch.
        energy_j: Joules of all workers from loading to the end, redistribution included; None where not measured.
        source: ``measured``, ``modelled`` or ``mixed``.
        co2e_kg: CO2e of ``energy_j``.
        intensity: Grid intensity that was taken, in words.
        duration_s: Seconds of all phases of this call, starting the workers included.
        moved_bytes: Payload of the redistribution.
        moved_s: Seconds of it.
        cache_bytes: Bytes of all caches.
        cache_error_ratio: Root mean square error of what was cached.
        peak_bytes: Largest growth of a worker's memory, by phase.
        accuracy: Share of held-out texts whose label is right, by the saved adapter.
        accuracy_baseline: Share of the most frequent label.
        adapter: Folder of the saved adapter.
        adapter_bytes: Its bytes.
        predicted: The plan's prices; None without a cluster.
        remarks: What was wrong with a cache, one sentence each.
    """

    run: str
    model: str
    method: str
    devices: tuple[str, ...]
    train_samples: int
    test_samples: int
    labels: tuple[str, ...]
    epochs: tuple[EpochSummary, ...]
    energy_j: float | None
    source: str
    co2e_kg: float | None
    intensity: str
    duration_s: float
    moved_bytes: int
    moved_s: float
    cache_bytes: int
    cache_error_ratio: float | None
    peak_bytes: dict[str, int]
    accuracy: float
    accuracy_baseline: float
    adapter: str
    adapter_bytes: int
    predicted: FinetunePlan | None
    remarks: tuple[str, ...]


def finetune(options: FinetuneOptions) -> tuple[Path, FinetuneSummary]:
    """Run or resume a fine-tuning job.

    Raises:
        UsageError: The data, the model or an option is wrong.
        InfeasibleError: No plan fits the devices.
        RunError: A worker failed; finished epochs are kept.
    """
    texts = read_texts(options.data, options.text, options.label, test_ratio=options.test_ratio)
    if texts.train_n < options.batch:
        raise UsageError(
            f"{options.data}: leaves {texts.train_n} texts to train with, fewer than the batch of {options.batch}.",
            hint=f"Give --batch {max(texts.train_n // 4, 1)}, or more texts.",
        )
    run = options.run or f"{Path(options.model).name}-{options.method}"
    check_run_name(run)
    folder = Path("runs") / run
    begun_s = time.monotonic()
    with stopped_by_signals(), _in_memory(options, folder) as root:
        spec, planned = _spec(options, run, folder, texts, root)
        entries = phase_entries(spec, options.sysroot)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "finetune.json", spec, schema=FINETUNE_SCHEMA)
        phases = Phases(
            spec=spec, folder=folder, entries=entries, profiles=options.profiles, sysroot=options.sysroot,
            in_memory=options.cache == "memory", quiet=options.as_json,
        )  # fmt: skip
        phases.run()
        return folder, _finish(spec, folder, texts, options, planned, time.monotonic() - begun_s)


@contextlib.contextmanager
def _in_memory(options: FinetuneOptions, folder: Path) -> Generator[Path, None, None]:
    """Folder of the caches; one in memory is gone with the run."""
    if options.cache != "memory":
        yield options.cache_dir or folder / "cache"
        return
    memory = Path(MEMORY_FOLDER)
    if not memory.is_dir():
        raise NotSupportedError(f"--cache memory needs {memory}, which this machine lacks.", hint="Take --cache disk.")
    root = Path(tempfile.mkdtemp(prefix="greentrain-", dir=memory))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _task(options: FinetuneOptions, texts: Texts) -> AdapterTask:
    from greentrain.workloads.adapters.task import AdapterTask

    sizes = tuple(size for size in (4, 8, 16, 32, 64) if options.batch % size == 0) or (options.batch,)
    task = AdapterTask(
        model=options.model, classes_n=len(texts.labels), tokens_n=options.tokens_n, method=options.method,
        settings=SideSettings(reduction=options.reduction), batch=options.batch, micro_batches=sizes,
        learning_rate=options.learning_rate,
    )  # fmt: skip
    longest = task.source.longest
    if task.tokens_n > longest:
        raise UsageError(f"--tokens is {task.tokens_n}, {options.model} takes at most {longest}.")
    return task


def _spec(
    options: FinetuneOptions, run: str, folder: Path, texts: Texts, cache_root: Path
) -> tuple[FinetuneSpec, FinetunePlan | None]:
    """The run's specification: the one that lies there goes on where it is the same wish."""
    task = _task(options, texts)
    path = folder / "finetune.json"
    digest = file_sha256(options.data)
    if path.exists():
        found = read_json(path, FinetuneSpec, schema=FINETUNE_SCHEMA)
        same = (found.task, found.data_sha256, found.seed, found.test_ratio) == (
            task, digest, options.seed, options.test_ratio,
        )  # fmt: skip
        if not same:
            raise UsageError(
                f"{path}: is of another task, data or seed.",
                hint="Choose another --run NAME; runs are not overwritten.",
            )
        say(f"Run {run} goes on.", quiet=options.as_json)
        data = str(options.data.absolute())
        return msgspec.structs.replace(found, epochs=options.epochs, data=data, cache_root=str(cache_root)), None
    first, cached, planned = _plans(options, task, texts)
    key = None
    if options.cache == "encrypted":
        key = str((options.cache_key or folder / "key").absolute())
    spec = FinetuneSpec(
        run=run, task=task, labels=texts.labels, data=str(options.data.absolute()), data_sha256=digest,
        text=options.text, label=options.label, test_ratio=options.test_ratio, epochs=options.epochs,
        seed=options.seed, first=first, cached=cached, cache_root=str(cache_root), cache_dtype=options.cache_dtype,
        cache_key=key,
        cache_limit_bytes=int(parse_quantity(options.cache_limit, "bytes", where="--cache-limit"))
        if options.cache_limit else None,
        cluster=None if options.cluster_path is None else str(options.cluster_path),
    )  # fmt: skip
    return spec, planned


def _plans(options: FinetuneOptions, task: AdapterTask, texts: Texts) -> tuple[Plan, Plan | None, FinetunePlan | None]:
    """Plans of both phases: of one machine as it is, of a cluster the best."""
    from greentrain.workloads.adapters.task import cached_workload, task_workload

    wants_cache = options.method == "parallel-adapters" and options.cache != "none" and options.epochs > 1
    if options.planner != "auto" and (options.cluster_path is None or options.method == "parallel-adapters"):
        raise UsageError(
            f"--planner is {options.planner!r}, but "
            + ("there is no --cluster." if options.cluster_path is None else "both phases are planned together."),
            hint="It is for --method full, lora, ia3 or head on a cluster.",
        )
    if options.cluster_path is None:
        first = single_plan(task, task_workload(task, "backbone"), "here")
        cached = single_plan(task, cached_workload(task, "cached"), "here") if wants_cache else None
        return first, cached, None
    _, first, later = phase_problems(
        task, options.cluster_path, options.profiles, Objective(minimise=options.minimise), options.devices
    )
    if later is None:
        from greentrain.planners import load_planner

        return load_planner(options.planner)(first), None, None
    from greentrain.planners.two_phase import CacheRoom, plan_phases

    _, mask = task.source.encode(texts.texts[: texts.train_n], task.tokens_n)
    room = CacheRoom(
        shape=cache_shape(
            task, float(mask.sum(1).mean()), options.cache_dtype, encrypted=options.cache == "encrypted"
        ),
        storage_bytes_per_s=parse_quantity(options.storage or ASSUMED_STORAGE, "bytes", where="--storage"),
        storage_source="given" if options.storage else "assumed",
    )  # fmt: skip
    found = plan_phases(first, later, room, epochs=options.epochs if wants_cache else 1, samples=texts.train_n)
    say(plan_text(found), quiet=options.as_json)
    cached_plan = None if found.cached is None else found.cached.plan
    return found.first, cached_plan, found


def _finish(
    spec: FinetuneSpec, folder: Path, texts: Texts, options: FinetuneOptions, planned: FinetunePlan | None,
    duration_s: float,
) -> FinetuneSummary:  # fmt: skip
    """Save the adapter, load it back to know its accuracy, and write the summary."""
    import numpy as np
    from safetensors.torch import load_file

    from greentrain.runtime.adapter_state import epoch_file
    from greentrain.workloads.adapters.saved import load_adapter, save_adapter
    from greentrain_datasets.carbon import intensity

    adapter = folder / "adapter"
    save_adapter(adapter, spec.task, spec.labels, spec.seed, load_file(epoch_file(folder, spec.epochs)))
    held_out = texts.classes[texts.train_n :]
    scores = load_adapter(adapter).scores(texts.texts[texts.train_n :])
    reports = _reports(folder)
    energy_j = _energy_j(reports)
    grid = intensity(country=None, kg_per_kwh=None if options.intensity_g is None else options.intensity_g / 1e3)
    epochs = _epochs(folder, spec.epochs)
    found = [report.report for report in reports]
    sources = {report["source"] for report in found}
    peaks = {
        phase: max((r["peak_bytes"] for r in found if r["phase"] == phase), default=0)
        for phase in {r["phase"] for r in found}
    }
    summary = FinetuneSummary(
        run=spec.run, model=spec.task.model, method=spec.task.method,
        devices=tuple(dict.fromkeys((*spec.first.devices, *(spec.cached.devices if spec.cached else ())))),
        train_samples=texts.train_n, test_samples=len(held_out), labels=texts.labels, epochs=epochs,
        energy_j=energy_j, source=next(iter(sources)) if len(sources) == 1 else "mixed",
        co2e_kg=None if energy_j is None else co2e_kg(energy_j, grid),
        intensity=f"{grid.kg_per_kwh * 1e3:.4g} g/kWh: {grid.source}", duration_s=duration_s,
        moved_bytes=sum(r["moved"][0] for r in found), moved_s=max((r["moved_s"] for r in found), default=0.0),
        cache_bytes=sum(r["cache_bytes"] for r in found if r["phase"] == "cached"),
        cache_error_ratio=max((r["rms_error_ratio"] for r in found if r["rms_error_ratio"] is not None), default=None),
        peak_bytes=peaks, accuracy=float((scores.argmax(1).numpy() == held_out).mean()),
        accuracy_baseline=float(np.bincount(held_out).max() / len(held_out)), adapter=str(adapter),
        adapter_bytes=(adapter / "adapter.safetensors").stat().st_size, predicted=planned,
        remarks=tuple(remark for r in found for remark in r["remarks"]),
    )  # fmt: skip
    write_json(folder / "finetune_summary.json", summary, schema=SUMMARY_SCHEMA)
    return summary


def _reports(folder: Path) -> list[SeatReport]:
    files = sorted((*folder.glob("backbone-*-*.json"), *folder.glob("cached-*-*.json")))
    return [read_json(file, SeatReport, schema=REPORT_SCHEMA) for file in files]


def _energy_j(reports: Sequence[SeatReport]) -> float | None:
    """Joules of all workers; a meter that sees a whole board counts once per board and phase."""
    total = 0.0
    seen: set[tuple[str, str, int]] = set()
    for report in reports:
        body: Any = report.report
        key = (report.board, body["phase"], body["epochs"][0]["epoch"] if body["epochs"] else 0)
        if report.scope == "board" and key in seen:
            continue
        seen.add(key)
        if body["process_j"] is None:
            return None
        total += body["process_j"]
    return total if reports else None


def _epochs(folder: Path, epochs: int) -> tuple[EpochSummary, ...]:
    from greentrain.runtime.finetuning import EpochFigures

    found: list[EpochSummary] = []
    for epoch in range(1, epochs + 1):
        parts = msgspec.json.decode((folder / f"epoch-{epoch}.json").read_bytes(), type=list[EpochFigures])
        joules = [part.energy_j for part in parts if part.energy_j is not None]
        io_j = [part.io_j for part in parts if part.io_j is not None]
        energy_j = sum(joules) if joules else None
        found.append(
            EpochSummary(
                epoch=epoch,
                loss=sum(part.loss for part in parts),
                duration_s=max(part.duration_s for part in parts),
                energy_j=energy_j,
                joules_per_sample=None if energy_j is None else energy_j / parts[0].samples,
                io_j=sum(io_j) if io_j else None,
                cache_bytes=sum(part.read_bytes + part.written_bytes for part in parts),
            )
        )
    return tuple(found)


def summary_text(folder: Path, summary: FinetuneSummary) -> str:
    """The summary for people."""
    lines = [
        f"{summary.run}: {summary.model}, {summary.method}, on {', '.join(summary.devices)}: "
        f"{summary.train_samples} texts, {len(summary.epochs)} epochs in {format_quantity(summary.duration_s, 'time')}"
    ]
    for epoch in summary.epochs:
        joules = "not measured" if epoch.joules_per_sample is None else f"{epoch.joules_per_sample:.4g} J/sample"
        cache = f", cache {format_quantity(epoch.cache_bytes, 'bytes')}" if epoch.cache_bytes else ""
        lines.append(
            f"  epoch {epoch.epoch}     {format_quantity(epoch.duration_s, 'time')}, {joules}, "
            f"loss {epoch.loss:.4f}{cache}"
        )
    if summary.energy_j is not None and summary.co2e_kg is not None:
        lines.append(
            f"  energy      {format_quantity(summary.energy_j, 'energy')} in all, source={summary.source}; "
            f"{summary.co2e_kg * 1e3:.3g} g CO2e ({summary.intensity})"
        )
    if summary.moved_bytes:
        lines.append(
            f"  moved       {format_quantity(summary.moved_bytes, 'bytes')} to the samples' owners in "
            f"{format_quantity(summary.moved_s, 'time')}"
        )
    if summary.cache_error_ratio:
        lines.append(f"  cache       off by {summary.cache_error_ratio:.2g} (root mean square, relative)")
    peaks = ", ".join(f"{phase} {format_quantity(size, 'bytes')}" for phase, size in summary.peak_bytes.items())
    lines.append(f"  memory      {peaks} at most")
    lines.append(
        f"  accuracy    {summary.accuracy:.1%} of {summary.test_samples} held-out texts "
        f"(most frequent label: {summary.accuracy_baseline:.1%})"
    )
    lines += [f"  remark      {remark}" for remark in summary.remarks]
    lines.append(
        f"Written: {summary.adapter} ({format_quantity(summary.adapter_bytes, 'bytes')}), "
        f"{folder}/finetune_summary.json"
    )
    return "\n".join(lines)
