"""Fine-tuning workloads by name, for profiles: ``minilm.adapters``, ``minilm.adapters-cached``, ``minilm.lora``."""

from __future__ import annotations

from dataclasses import replace

from greentrain.workloads.adapters.models import MODELS
from greentrain.workloads.adapters.task import METHODS, AdapterTask, Method, cached_workload, task_workload
from greentrain.workloads.workload import Workload

__all__ = ["NAMED_TOKENS_N", "is_adapter_name", "named_workload", "workload_name"]

NAMED_TOKENS_N = 32
_CACHED = "adapters-cached"


def workload_name(model: str, method: Method, *, cached: bool = False) -> str:
    """Name of a model's workload under a method; a folder is named by its last part."""
    short = model.rstrip("/").rpartition("/")[2]
    return f"{short}.{_CACHED if cached else 'adapters' if method == 'parallel-adapters' else method}"


def is_adapter_name(name: str) -> bool:
    """Whether a workload's name is of this form."""
    model, _, what = name.rpartition(".")
    return model in MODELS and what in ("adapters", _CACHED, *METHODS)


def named_workload(name: str) -> Workload:
    """Two classes, texts of 32 tokens; MiniLM's can be trained on the movie reviews."""
    model, _, what = name.rpartition(".")
    methods: dict[str, Method] = {method: method for method in METHODS}
    method = methods.get(what, "parallel-adapters")
    task = AdapterTask(model=model, classes_n=2, tokens_n=NAMED_TOKENS_N, method=method)
    made = cached_workload(task, name) if what == _CACHED else task_workload(task, name)
    return replace(made, dataset="movie-reviews") if model == "minilm" and what != _CACHED else made
