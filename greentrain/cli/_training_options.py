"""What a run is told beside its plan: the options of ``greentrain train``, and the same as words for its workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from greentrain.errors import UsageError
from greentrain.runtime.options import Precision, TrainingOptions, parse_compression

__all__ = ["read_training_options", "training_options", "training_words"]

F = TypeVar("F", bound=Callable[..., Any])


def training_options(function: F) -> F:
    """``--compress``, ``--precision`` and ``--torch-device``."""
    compress = click.option(
        "--compress", metavar="none|fp16|powersgd[:RANK]", default="none", show_default=True,
        help="How gradients travel in a group: exact, as halves, or as thin matrices (no longer the exact gradient).",
    )  # fmt: skip
    precision = click.option(
        "--precision", type=click.Choice(["float32", "bf16", "fp16", "auto"]), default="float32", show_default=True,
        help="What is multiplied in; auto: bf16 on GPUs that have it (without hardware for it bf16 is slow).",
    )  # fmt: skip
    device = click.option(
        "--torch-device", metavar="cpu|cuda[:N]|auto", default="cpu", show_default=True,
        help="Where this worker computes, or all that are started here.",
    )  # fmt: skip
    return compress(precision(device(function)))


def read_training_options(compress: str, precision: Precision) -> TrainingOptions:
    """The options that all ranks share.

    Raises:
        UsageError: One is wrong, or they exclude each other.
    """
    compression, rank = parse_compression(compress)
    try:
        return TrainingOptions(compression=compression, compression_rank=rank, precision=precision)
    except ValueError as error:
        raise UsageError(f"{error}.", hint="Leave out --compress or --precision.") from error


def training_words(options: TrainingOptions, torch_device: str) -> list[str]:
    """The options as a worker's command has them; nothing by default."""
    words: list[str] = []
    if options.compression != "none":
        rank = f":{options.compression_rank}" if options.compression == "powersgd" else ""
        words += ["--compress", options.compression + rank]
    if options.precision != "float32":
        words += ["--precision", options.precision]
    return words + (["--torch-device", torch_device] if torch_device != "cpu" else [])
