"""One device's worker of a phase of ``greentrain finetune``: ``python -m greentrain.cli._finetune_worker SEAT``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
import msgspec

from greentrain.cli._finetune_data import read_texts
from greentrain.cli._run import runnable_entry, stopped_by_signals
from greentrain.device import CURRENT_POINT, Device
from greentrain.errors import GreentrainError, UsageError
from greentrain.files import file_sha256, read_json, write_json
from greentrain.parallel.adapters import CacheDtype
from greentrain.plan import Plan
from greentrain.workloads.adapters.task import AdapterTask

if TYPE_CHECKING:
    from greentrain.cluster_file import DeviceEntry
    from greentrain.runtime.cache_stores import CacheAsk
    from greentrain.runtime.finetuning import PhaseReport

__all__ = ["FINETUNE_SCHEMA", "FinetuneSpec", "Seat", "main", "report_path"]

FINETUNE_SCHEMA = "greentrain.finetune/1"
REPORT_SCHEMA = "greentrain.phase_report/1"


class FinetuneSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all workers of a fine-tuning run agree on: ``runs/NAME/finetune.json``. It holds no text.

    Attributes:
        run: Name of the run.
        task: What is trained.
        labels: Name of each class.
        data: File of the texts.
        data_sha256: Its hash; another file is refused.
        text: Its column of texts.
        label: Its column of labels.
        test_ratio: Part that is held out.
        epochs: Epochs of the run.
        seed: Of weights and orders.
        first: Plan of the epochs with the backbone.
        cached: Plan of the epochs from the cache; None: there is none.
        cache_root: Folder of the caches.
        cache_dtype: How outputs are kept.
        cache_key: File of the key; None: the cache is not encrypted.
        cache_limit_bytes: Most bytes of all caches in the folder.
        cluster: cluster.toml; None: this machine alone.
    """

    run: str
    task: AdapterTask
    labels: tuple[str, ...]
    data: str
    data_sha256: str
    text: str
    label: str
    test_ratio: float
    epochs: int
    seed: int
    first: Plan
    cached: Plan | None
    cache_root: str
    cache_dtype: CacheDtype
    cache_key: str | None
    cache_limit_bytes: int | None
    cluster: str | None


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of which phase a worker takes."""

    spec: str
    device: str
    phase: Literal["backbone", "cached"]
    start_epoch: int
    stop_epoch: int
    host: str
    port: int
    meet_port: int
    resumed: bool
    sysroot: str = "/"
    message_timeout_s: float = 120.0


class SeatReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker leaves for the command that started it.

    Attributes:
        board: Its board; ranks on one board share its meter.
        scope: ``board`` or ``process``: what its meter sees.
        report: What it did.
    """

    board: str
    scope: str
    report: Any


def report_path(run_dir: Path, phase: str, start_epoch: int, device: str) -> Path:
    """Where a worker's report lies."""
    return run_dir / f"{phase}-{start_epoch}-{device}.json"


def main(argument: str) -> None:
    """Work, and exit as the command line does."""
    from greentrain.runtime.lifeline import end_with_launcher

    end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    seat = msgspec.json.decode(argument, type=Seat)
    try:
        with stopped_by_signals():
            _work(seat)
    except GreentrainError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint is not None:
            click.echo(f"Hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _work(seat: Seat) -> None:
    from greentrain_harness.environment import machine_id
    from greentrain_harness.meters import open_named
    from greentrain_harness.sampler import Sampler

    run_dir = Path(seat.spec).parent
    spec = read_json(Path(seat.spec), FinetuneSpec, schema=FINETUNE_SCHEMA)
    entry, device = _device(spec, seat.device)
    meter_name = "auto" if entry is None else entry.meter
    if entry is not None:
        from greentrain.cli._work import restrain

        restrain(entry)
    plan = spec.first if seat.phase == "backbone" else (spec.cached or spec.first)
    point = _point(plan, seat.device)
    meter = open_named(meter_name, sysroot=Path(seat.sysroot), device=_at_point(device, point))
    with _held(point, Path(seat.sysroot), meter.name), Sampler(meter) as sampler:
        board = entry.board if entry is not None and entry.board else machine_id()
        report = _phase(spec, seat, run_dir, board, sampler)
        done = SeatReport(board=board, scope=sampler.scope, report=report)
    write_json(report_path(run_dir, seat.phase, seat.start_epoch, seat.device), done, schema=REPORT_SCHEMA)


def _device(spec: FinetuneSpec, name: str) -> tuple[DeviceEntry | None, Device | None]:
    if spec.cluster is None:
        return None, None
    from greentrain.cli._cluster import load_cluster

    file, cluster = load_cluster(Path(spec.cluster))
    return runnable_entry(file, name), cluster.device(name)


def _point(plan: Plan, device: str) -> str:
    pairs = ((d, p) for stage in plan.stages for d, p in zip(stage.devices, stage.points, strict=True))
    return dict(pairs).get(device, CURRENT_POINT)


def _at_point(device: Device | None, point: str) -> Device | None:
    if device is None:
        return None
    kept = tuple(known for known in device.points if known.name == point) or device.points
    return msgspec.structs.replace(device, points=kept)


@contextlib.contextmanager
def _held(point: str, sysroot: Path, meter: str) -> Generator[None, None, None]:
    """Hold the plan's operating point; the present one needs no control."""
    if point == CURRENT_POINT:
        yield
        return
    from greentrain_harness.controls import control_with

    with control_with(point, sysroot=sysroot, meter=meter) as control:
        control.set(point)
        yield


def _phase(spec: FinetuneSpec, seat: Seat, run_dir: Path, board: str, sampler: Any) -> PhaseReport:
    import numpy as np

    from greentrain.runtime.cache_stores import Stores, key_of
    from greentrain.runtime.finetuning import (
        PhaseJob,
        cached_epoch_order,
        epoch_order,
        run_cached,
        run_with_backbone,
    )
    from greentrain.workloads.adapters.pairs import cached_entries
    from greentrain.workloads.adapters.task import backbone_sha256, cached_workload, task_workload

    inputs, targets = _inputs(spec)
    lengths = inputs[1].sum(1).astype(np.int64)
    samples_n = len(targets)
    order = (
        partial(epoch_order, spec.seed, samples_n=samples_n)
        if spec.cached is None
        else cached_epoch_order(spec.seed, spec.first, spec.cached, samples_n)
    )
    with_backbone = seat.phase == "backbone"
    first = task_workload(spec.task, f"{spec.run}-backbone")
    plan = spec.first if with_backbone or spec.cached is None else spec.cached
    job = PhaseJob(
        run=spec.run, plan=plan, device=seat.device, board=board,
        workload=first if with_backbone else cached_workload(spec.task, f"{spec.run}-cached"), inputs=inputs,
        targets=targets, seed=spec.seed, start_epoch=seat.start_epoch, stop_epoch=seat.stop_epoch, epochs=spec.epochs,
        order=order,
        run_dir=run_dir, host=seat.host, port=seat.port, message_timeout_s=seat.message_timeout_s,
    )  # fmt: skip
    ask = _cache_ask(spec)
    first_order = epoch_order(spec.seed, 0, samples_n)
    key_file = run_dir / "backbone.sha256"

    def stores_of(model_sha256: str, entries: Any) -> Stores:
        return Stores(
            ask=ask, key=key_of(model_sha256, inputs, lengths), entries=entries, lengths=lengths, device=seat.device
        )

    if with_backbone:

        def opened(blocks: Any) -> Stores | None:
            if spec.cached is None or seat.start_epoch > 0:
                return None
            digest = backbone_sha256(blocks)
            key_file.write_text(digest)
            stores = stores_of(digest, cached_entries(blocks))
            stores.open_computed(spec.first, first_order)
            return stores

        return run_with_backbone(job, opened, sampler, _print)
    import torch

    from greentrain.workloads.adapters.task import task_blocks

    with torch.device("meta"):
        entries = cached_entries(task_blocks(spec.task, spec.seed, skeleton=True))
    return run_cached(
        job, stores_of(key_file.read_text(), entries), inputs[1], spec.first, first_order,
        lambda: task_blocks(spec.task, spec.seed), sampler, _print, meet_port=seat.meet_port, resumed=seat.resumed,
    )  # fmt: skip


def _inputs(spec: FinetuneSpec) -> tuple[tuple[Any, Any], Any]:
    path = Path(spec.data)
    if file_sha256(path) != spec.data_sha256:
        raise UsageError(f"{path}: has changed since the run began.", hint="Start a new run with another --run NAME.")
    texts = read_texts(path, spec.text, spec.label, test_ratio=spec.test_ratio)
    ids, mask = spec.task.source.encode(texts.texts[: texts.train_n], spec.task.tokens_n)
    return (ids, mask), texts.classes[: texts.train_n]


def _cache_ask(spec: FinetuneSpec) -> CacheAsk:
    from greentrain.runtime.cache_cipher import CacheCipher, read_or_make_key
    from greentrain.runtime.cache_stores import CacheAsk

    cipher = None if spec.cache_key is None else CacheCipher(read_or_make_key(Path(spec.cache_key)))
    return CacheAsk(
        root=Path(spec.cache_root), dtype=spec.cache_dtype, cipher=cipher, limit_bytes=spec.cache_limit_bytes
    )


def _print(progress: object) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.write(msgspec.json.encode(cast("Any", progress)).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
