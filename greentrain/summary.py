"""Summary: what a run cost and reached, predicted beside measured (``runs/NAME/summary.json``)."""

from __future__ import annotations

import msgspec

from greentrain._checks import require_non_negative
from greentrain.power import Source

__all__ = ["SUMMARY_SCHEMA", "Outcome", "Recovery", "Summary"]

SUMMARY_SCHEMA = "greentrain.summary/1"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side of predicted beside measured; ``None`` where a figure is not known.

    Attributes:
        joules_per_sample: Energy of all devices over the samples.
        error_j_per_sample: Its ±.
        samples_per_s: Throughput.
        step_s: Median seconds per round.
        energy_j: Joules by device and by cause. Device totals are exact; causes of a measured run are
            attributed by time and idle power.
        peak_bytes: Peak training memory by device.
        source: ``measured`` or ``modelled`` joules; ``mixed`` when devices differ.
    """

    joules_per_sample: float | None
    error_j_per_sample: float | None
    samples_per_s: float | None
    step_s: float | None
    energy_j: dict[str, dict[str, float]]
    peak_bytes: dict[str, int]
    source: str


class Recovery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the devices while a run went on.

    Attributes:
        round: The round that was interrupted.
        lost: Devices that were lost.
        joined: Devices that came (back).
        detected_s: Seconds from the last sign of life of the lost device until its loss was known; None for a join.
        repaired_s: Seconds from then until training went on.
        redone_rounds: Completed rounds that were rolled back and done again.
        moved_bytes: Weights and optimizer state that travelled.
        energy_j: Joules of all devices in the interrupted round, the repair and the rounds that were undone; None
            when not measured.
        generation: How often the devices had changed by then.
    """

    round: int
    lost: tuple[str, ...]
    joined: tuple[str, ...]
    detected_s: float | None
    repaired_s: float | None
    redone_rounds: int
    moved_bytes: int
    energy_j: float | None = None
    generation: int = 0


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished (or stopped) run.

    Attributes:
        run: Its name.
        status: ``finished``, ``interrupted`` or ``failed``.
        model: Workload.
        plan_sha256: Hash of the plan that ran.
        parallelism: single, data, pipeline or hybrid.
        devices: Participants by rank.
        meters: Meter of each device, with its note.
        samples: Samples trained on.
        rounds: Rounds completed.
        metered_rounds: Rounds in which every device's meter answered; joules per sample are of these only. None
            in summaries written before it was told.
        epochs: Epochs completed (a fraction when stopped inside one).
        duration_s: Seconds of training, without start-up and evaluation.
        energy_j: Joules of all devices over the run; None when nothing was measured.
        energy_j_by_device: Exact joules by device.
        joules_per_sample: Same as ``measured.joules_per_sample``.
        error_j_per_sample: Same as ``measured.error_j_per_sample``.
        source: Same as ``measured.source``.
        samples_per_s: Same as ``measured.samples_per_s``.
        loss: Training loss of the last round.
        loss_by_epoch: Mean training loss per epoch.
        accuracy: Share of held-out samples classified rightly; None when not evaluated.
        accuracy_baseline: Share of the most frequent class in the held-out samples.
        test_samples: Number of held-out samples.
        predicted: From the plan.
        measured: From the run.
        dataset: Name, source and licence of the data.
        host: The machine that launched the run.
        versions: Package versions.
        started_utc: Start of the run.
        recoveries: Devices that were lost or joined, in order.
    """

    run: str
    status: str
    model: str
    plan_sha256: str
    parallelism: str
    devices: tuple[str, ...]
    meters: dict[str, str]
    samples: int
    rounds: int
    epochs: float
    duration_s: float
    energy_j: float | None
    energy_j_by_device: dict[str, float]
    joules_per_sample: float | None
    error_j_per_sample: float | None
    source: Source | str
    samples_per_s: float | None
    loss: float | None
    loss_by_epoch: tuple[float, ...]
    accuracy: float | None
    accuracy_baseline: float | None
    test_samples: int
    predicted: Outcome
    measured: Outcome
    dataset: str
    host: str
    versions: dict[str, str]
    started_utc: str
    metered_rounds: int | None = None
    recoveries: tuple[Recovery, ...] = ()

    def __post_init__(self) -> None:
        require_non_negative(duration_s=self.duration_s, energy_j=self.energy_j, samples=self.samples)
