"""``greentrain finetune``: from a person's own texts to a saved adapter, on their own devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from greentrain.cli._common import PROFILES_DIR, emit_json, json_option, sysroot_option
from greentrain.planners import PLANNERS

__all__ = ["command"]

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("finetune")
@click.option("--model", required=True, help="minilm, smollm2, or a folder with a model of transformers.")
@click.option("--data", required=True, type=_FILE, help="CSV with a header line, or JSONL.")
@click.option("--text", required=True, metavar="COLUMN", help="Column of the texts.")
@click.option("--label", required=True, metavar="COLUMN", help="Column of the labels.")
@click.option("--cluster", "cluster_path", type=_FILE, help="Devices to plan with [this machine alone].")
@click.option("--profiles", type=click.Path(path_type=Path), default=PROFILES_DIR, show_default=True)
@click.option("--device", "devices", multiple=True, help="Plan with these devices of the cluster only.")
@click.option(
    "--method", type=click.Choice(["parallel-adapters", "full", "lora", "ia3", "head"]), default="parallel-adapters",
    show_default=True, help="How; lora and ia3 need the package peft.",
)  # fmt: skip
@click.option("--objective", "minimise", type=click.Choice(["energy", "time", "edp"]), default="energy",
              show_default=True)  # fmt: skip
@click.option("--planner", type=click.Choice(list(PLANNERS)), default="auto", show_default=True,
              help="Of another method on a cluster, to compare with.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Texts per optimizer step.")
@click.option("--tokens", "tokens_n", type=click.IntRange(min=1), default=64, show_default=True,
              help="Longer texts are cut.")  # fmt: skip
@click.option("--reduction", type=click.IntRange(min=1), default=8, show_default=True,
              help="The side network is so many times narrower.")  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Step size; the method's usual one.")
@click.option("--test-ratio", type=click.FloatRange(0.01, 0.9), default=0.2, show_default=True,
              help="Part of the texts that is held out to know the accuracy.")  # fmt: skip
@click.option(
    "--cache", "cache", type=click.Choice(["auto", "disk", "memory", "encrypted", "none"]), default="auto",
    show_default=True, help="Where what the backbone computes is kept; auto: the plan says.",
)  # fmt: skip
@click.option("--cache-dtype", type=click.Choice(["float32", "float16", "int8"]), default="float16", show_default=True)
@click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), help="[runs/NAME/cache]")
@click.option("--cache-limit", metavar="20GB", help="Most bytes of all caches in that folder; the oldest make room.")
@click.option(
    "--cache-key",
    type=_FILE,
    help="Key of an encrypted cache here, made where there is none [runs/NAME/key]; hosts make their own.",
)
@click.option("--storage", metavar="80MB", help="Bytes per second of the devices' disks, for the plan.")
@click.option("--intensity", "intensity_g", type=click.FloatRange(min=0), metavar="G",
              help="Grid intensity in g CO2e per kWh [world average].")  # fmt: skip
@click.option("--run", "run", metavar="NAME", help="Folder under runs/; an unfinished run of that name goes on.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@sysroot_option
def command(**given: Any) -> None:
    """Fine-tune MODEL on your own texts and save the adapter, with its joules, CO2e and accuracy.

    Texts and what the model computes of them stay on the devices of the cluster. A run that was cut short goes on
    from its last whole epoch when the same command is given again with its --run NAME.
    """
    from greentrain.cli._finetune import FinetuneOptions, finetune, summary_text

    as_json = given["as_json"]
    folder, summary = finetune(FinetuneOptions(**given))
    if as_json:
        emit_json(summary)
    else:
        click.echo(summary_text(folder, summary))
