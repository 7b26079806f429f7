"""CarbonAccount: what a run emitted, and its Software Carbon Intensity (ISO/IEC 21031)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import msgspec
import numpy as np

from greentrain.carbon import Embodied, Intensity, IntensitySeries, co2e_kg
from greentrain.errors import UsageError
from greentrain_reports.energy import DeviceEnergy
from greentrain_reports.rounds import RoundTable
from greentrain_reports.run_folder import RunFolder

__all__ = ["CarbonAccount", "CarbonBasis", "EmbodiedShare", "carbon_account", "grid_of_run"]


class CarbonBasis(msgspec.Struct, frozen=True, kw_only=True):
    """What the carbon of runs is computed with.

    Attributes:
        grid: Intensity of the electricity: one value, or a series over time.
        embodied: What making a device emitted, by device id or kind; the id wins.
        tokens_per_sample: Tokens in a sample, for figures per token; None where nobody said.
    """

    grid: Intensity | IntensitySeries
    embodied: Mapping[str, Embodied] = {}
    tokens_per_sample: int | None = None


class EmbodiedShare(msgspec.Struct, frozen=True, kw_only=True):
    """The part of making one device that falls on a run.

    Attributes:
        device: Device id.
        share_kg: Kilograms of CO2e; None where nobody says what making it emitted.
        embodied: The whole figure; None likewise.
    """

    device: str
    share_kg: float | None
    embodied: Embodied | None


class CarbonAccount(msgspec.Struct, frozen=True, kw_only=True):
    """SCI = (E · I + M) / R; ``None`` where a part is not known.

    Attributes:
        intensity: I: kilograms of CO2e per kilowatt-hour; of a series the mean over the run's joules.
        operational_kg: E · I of the whole run.
        operational_kg_per_sample: E · I of a sample.
        embodied: M by device.
        embodied_kg: M of the whole run; None where the figure of one device is not known.
        sci_kg_per_sample: (E · I + M) / R with R = samples.
        sci_kg_per_token: The same with R = tokens.
        tokens_per_sample: Tokens in a sample.
        remark: Why there is no figure; empty when there is one.
    """

    intensity: Intensity | None
    operational_kg: float | None
    operational_kg_per_sample: float | None
    embodied: tuple[EmbodiedShare, ...]
    embodied_kg: float | None
    sci_kg_per_sample: float | None
    sci_kg_per_token: float | None
    tokens_per_sample: int | None
    remark: str


def carbon_account(
    run: RunFolder,
    rounds: RoundTable | None,
    devices: Sequence[DeviceEnergy],
    basis: CarbonBasis,
    *,
    energy_j: float | None,
    joules_per_sample: float | None,
    samples: int | None,
    duration_s: float | None,
) -> CarbonAccount:
    """The account of one run.

    Args:
        run: Its files.
        rounds: Its rounds, for a series over time.
        devices: Every device that counts, also one without a part: it was there all the same.
        basis: What to compute with.
        energy_j: Joules of the run.
        joules_per_sample: Joules per sample.
        samples: Samples trained on.
        duration_s: Seconds of training.
    """
    intensity, remark = grid_of_run(run, rounds, basis.grid)
    kinds = {device.id: device.kind for device in run.cluster.devices} if run.cluster is not None else {}
    shares = tuple(_share(device.device, kinds, basis.embodied, duration_s) for device in devices)
    known_kg = [share.share_kg for share in shares if share.share_kg is not None]
    embodied_kg = sum(known_kg) if shares and len(known_kg) == len(shares) else None
    per_sample_kg = None
    if joules_per_sample is not None and intensity is not None:
        per_sample_kg = co2e_kg(joules_per_sample, intensity)
    sci_kg = None
    if per_sample_kg is not None and embodied_kg is not None and samples:
        sci_kg = per_sample_kg + embodied_kg / samples
    tokens_n = basis.tokens_per_sample
    return CarbonAccount(
        intensity=intensity,
        operational_kg=co2e_kg(energy_j, intensity) if energy_j is not None and intensity is not None else None,
        operational_kg_per_sample=per_sample_kg,
        embodied=shares,
        embodied_kg=embodied_kg,
        sci_kg_per_sample=sci_kg,
        sci_kg_per_token=sci_kg / tokens_n if sci_kg is not None and tokens_n else None,
        tokens_per_sample=tokens_n,
        remark=remark,
    )


def grid_of_run(
    run: RunFolder, rounds: RoundTable | None, grid: Intensity | IntensitySeries
) -> tuple[Intensity | None, str]:
    """The intensity that holds for a run, or None and why: of a series the mean, weighted by each round's joules."""
    if isinstance(grid, Intensity):
        return grid, ""
    started_utc = run.summary.started_utc if run.summary is not None else ""
    if not started_utc or rounds is None:
        return None, f"When the run took place is not recorded, so {grid.source} cannot be applied."
    start = datetime.fromisoformat(started_utc.replace("Z", "+00:00"))
    known_G = rounds.energy_uj_G > 0
    if not known_G.any():
        return None, f"No joules are recorded, so {grid.source} cannot be applied."
    try:
        found = grid.mean_of_load(
            start.timestamp() + rounds.t_start_s_G[known_G],
            rounds.duration_s_G[known_G],
            rounds.energy_uj_G[known_G].astype(np.float64),
        )
    except UsageError as error:
        return None, f"{error.message} CO2e is not known."
    return msgspec.structs.replace(found, year=start.astimezone(timezone.utc).year), ""


def _share(
    device: str, kinds: Mapping[str, str], embodied: Mapping[str, Embodied], duration_s: float | None
) -> EmbodiedShare:
    figure = embodied.get(device) or embodied.get(kinds.get(device, ""))
    share_kg = figure.share_kg(duration_s) if figure is not None and duration_s is not None else None
    return EmbodiedShare(device=device, share_kg=share_kg, embodied=figure)
