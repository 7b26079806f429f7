"""``greentrain schedule --method parallel-adapters``: both phases of fine-tuning planned together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from greentrain.cli._common import emit_json, say
from greentrain.cli._finetune_plan import ASSUMED_STORAGE, cache_shape, phase_problems, plan_text
from greentrain.errors import UsageError
from greentrain.files import write_json
from greentrain.objective import Objective
from greentrain.parallel.adapters import CacheDtype
from greentrain.plan import PLAN_SCHEMA
from greentrain.profile_files import model_names
from greentrain.units import parse_quantity

__all__ = ["AdapterOptions", "schedule_adapters"]

_SUFFIX = ".adapters"


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Options of ``schedule`` that only this method has.

    Attributes:
        method: ``parallel-adapters``.
        cache_dtype: How outputs are cached.
        cache_disk: Most bytes of the cache on each device, with unit; None: not limited.
        storage: Bytes per second of the devices' disks, with unit; None: assumed.
        tokens: Mean tokens of a sample; None: the profile's.
    """

    method: str
    cache_dtype: CacheDtype
    cache_disk: str | None
    storage: str | None
    tokens: float | None


def schedule_adapters(given: dict[str, Any], options: AdapterOptions) -> None:
    """Plan epoch 1 and the cached epochs, say whether the cache pays, and write both plans.

    Args:
        given: The options of ``schedule`` as click gives them.
        options: Those of this method.

    Raises:
        UsageError: The model was not profiled, or the job's length is not known.
        InfeasibleError: No pair of plans keeps the limits.
    """
    from greentrain.planners.two_phase import FINETUNE_PLAN_SCHEMA, CacheRoom, plan_phases
    from greentrain.workloads.adapters.named import NAMED_TOKENS_N
    from greentrain.workloads.adapters.task import AdapterTask

    if given["epochs"] is None:
        raise click.UsageError("--method parallel-adapters needs --epochs: whether a cache pays depends on them.")
    model = _model(given["profiles"], given["model"])
    batch = given["batch"] or 32
    sizes = given["micro_batches"] or tuple(size for size in (4, 8, 16, 32) if batch % size == 0) or (batch,)
    task = AdapterTask(model=model, classes_n=2, tokens_n=NAMED_TOKENS_N, batch=batch, micro_batches=tuple(sizes))
    samples = given["samples"] or _samples(model)
    deadline = given["deadline"]
    objective = Objective(
        minimise=given["minimise"], count_idle_of_unused=given["count_unused"], job_samples=samples * given["epochs"],
        deadline_s=None if deadline is None else parse_quantity(deadline, "time", where="--deadline"),
    )  # fmt: skip
    _, first, later = phase_problems(task, given["cluster_path"], given["profiles"], objective, _devices(given))
    assert later is not None
    tokens = options.tokens or float(NAMED_TOKENS_N)
    disk = options.cache_disk
    room = CacheRoom(
        shape=cache_shape(task, tokens, options.cache_dtype, encrypted=False),
        storage_bytes_per_s=parse_quantity(options.storage or ASSUMED_STORAGE, "bytes", where="--storage"),
        disk_bytes=None if disk is None else int(parse_quantity(disk, "bytes", where="--cache-disk")),
        storage_source="given" if options.storage else "assumed",
    )  # fmt: skip
    say(f"Planning both phases of {model} over {len(first.cluster.devices)} devices …", quiet=given["as_json"])
    found = plan_phases(first, later, room, epochs=given["epochs"], samples=samples)
    output: Path = given["output"]
    write_json(output, found, schema=FINETUNE_PLAN_SCHEMA)
    written = [output]
    for name, plan in (("epoch-1", found.first), ("cached", None if found.cached is None else found.cached.plan)):
        if plan is not None:
            path = output.with_suffix(f".{name}.json")
            write_json(path, plan, schema=PLAN_SCHEMA)
            written.append(path)
    if given["as_json"]:
        emit_json({"plan": found, "files": [str(path) for path in written]})
    else:
        click.echo(f"{plan_text(found)}\nWritten: {' and '.join(str(path) for path in written)}")


def _model(profiles: Path, wanted: str | None) -> str:
    """The backbone: as given, or the first one that was profiled with its side network."""
    if wanted is not None:
        return wanted.removesuffix(_SUFFIX)
    known = [name.removesuffix(_SUFFIX) for name in model_names(profiles) if name.endswith(_SUFFIX)]
    if not known:
        raise UsageError(
            f"{profiles}: holds no model profiled with parallel adapters.",
            hint="Run on every device: greentrain measure --model minilm.adapters --model minilm.adapters-cached",
        )
    return known[0]


def _devices(given: dict[str, Any]) -> tuple[str, ...]:
    from greentrain.cli._cluster import load_cluster
    from greentrain.cli._problem import select_devices

    file, cluster = load_cluster(given["cluster_path"])
    selection = select_devices(
        file, cluster, include=given["include"], exclude=given["exclude"], simulated=given["simulated"]
    )
    return tuple(device.id for device in selection.cluster.devices)


def _samples(model: str) -> int:
    """Texts that MiniLM's workload comes with; of others nothing is known."""
    from greentrain.workloads.adapters.named import named_workload
    from greentrain_datasets.loaders import dataset_names, load_dataset

    dataset = named_workload(f"{model}{_SUFFIX}").dataset
    if dataset not in dataset_names():
        raise click.UsageError(f"--method parallel-adapters needs --samples for {model}: no data set belongs to it.")
    return len(load_dataset(dataset).train_targets)
