"""What the run emitted: operation, making of the devices, and the Software Carbon Intensity (ISO/IEC 21031)."""

from __future__ import annotations

from greentrain.carbon import YEAR_S, Embodied
from greentrain_reports.carbon_account import CarbonAccount
from greentrain_reports.cards import grid_words
from greentrain_reports.markup import Html, definitions, esc, exact, gap, section, table
from greentrain_reports.tables import RunReport
from greentrain_reports.words import carbon_mass, energy, seconds

__all__ = ["carbon_section"]


def carbon_section(report: RunReport) -> Html:
    """E, I, M and R, each with where it comes from."""
    account, head = report.carbon, report.headline
    lacking = [share.device for share in account.embodied if share.embodied is None]
    pairs = [
        ("E, energy", exact(head.energy_j, energy(head.energy_j))),
        ("I, intensity of the grid", esc(grid_words(report)) if account.intensity is not None else gap()),
        ("E · I, operation", _mass(account.operational_kg)),
        ("M, making of the devices", _mass(account.embodied_kg, "not known for " + ", ".join(lacking))),
        ("R, unit", esc(_unit_words(report))),
        ("Operation per sample", _mass(account.operational_kg_per_sample)),
        ("SCI per sample", _mass(account.sci_kg_per_sample, "not known, as a part of it is not")),
    ]
    if account.tokens_per_sample is not None:
        pairs.append(("SCI per token", _mass(account.sci_kg_per_token, "not known, as a part of it is not")))
    return section(
        "carbon",
        "Carbon",
        Html(
            "<p>Software Carbon Intensity after ISO/IEC 21031: SCI = (E · I + M) / R. M is the part of the making of "
            "every device that falls on the seconds of this run, in which it did nothing else.</p>"
        ),
        definitions(pairs),
        _embodied_table(account, head.duration_s),
    )


def _embodied_table(account: CarbonAccount, duration_s: float | None) -> Html:
    rows = [
        (
            esc(share.device),
            _mass(share.share_kg),
            exact(share.embodied.kg, f"{share.embodied.kg:g} kg") if share.embodied is not None else gap(),
            esc(f"{share.embodied.life_s / YEAR_S:g} years") if share.embodied is not None else gap(),
            esc(_source_words(share.embodied)) if share.embodied is not None else gap("give it with --embodied"),
        )
        for share in account.embodied
    ]
    over = f"share of {seconds(duration_s)}" if duration_s is not None else "share of the run"
    heads = ("device", over, "making it", "spread over", "source")
    return table("Making of the devices", heads, rows, numeric=(1, 2, 3))


def _source_words(embodied: Embodied) -> str:
    return f"{embodied.source}, {embodied.year}" if embodied.year is not None else embodied.source


def _unit_words(report: RunReport) -> str:
    tokens_n = report.carbon.tokens_per_sample
    per_token = f"; {tokens_n} tokens in each" if tokens_n is not None else ""
    return f"one sample seen in training{per_token}"


def _mass(value_kg: float | None, otherwise: str = "not known") -> Html:
    shown, unit = carbon_mass(value_kg)
    return exact(value_kg, f"{shown} {unit} CO₂e") if value_kg is not None else gap(otherwise)
