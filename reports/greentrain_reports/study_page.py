"""The page of a study of parallelisms: maps, curves, tables and the four questions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from greentrain.files import utc_now
from greentrain.objective import Parallelism
from greentrain.study import GRADIENT_TOLERANCE_RATIO, WAYS, GradientRow, StudyRow
from greentrain.version import VERSION
from greentrain_reports.markup import (
    Html,
    card,
    chip,
    details,
    esc,
    exact,
    figure,
    gap,
    join,
    section,
    table,
)
from greentrain_reports.page_frame import whole_page
from greentrain_reports.study_pictures import (
    lab_picture,
    lab_words,
    memory_picture,
    participants_picture,
    winners_picture,
)
from greentrain_reports.study_questions import Question
from greentrain_reports.study_tables import Scenario, Study, scenario_of, winner_shares
from greentrain_reports.words import count, joules_per_sample, number, percent, power, signed_percent, size

__all__ = ["study_page"]

_CURVE_BANDWIDTHS = (10.0, 100.0, 1000.0)
_HEADS = ("form", "J/sample", "W", "samples/s", "sent per sample", "memory", "idle time", "idle joules", "source")
_NETWORKS = {"switch": "switched", "shared": "shared medium", "rooms": "two rooms"}
_METHOD = (
    "Every way uses all devices of its place on the map at one operating point, the micro-batch size is the one that "
    "needs fewest joules, the global batch is the same for all. Hybrid is the fastest mix of stages and groups over "
    "all devices; it may turn out as a pipeline or as data parallelism, see the column parallelism of study.csv.",
    "Simulated rows: layer times are the model's floating-point operations over an assumed share of the board's peak "
    "rate, watts are those of the catalogue (busy = the budget of the power mode); one round runs in the simulator of "
    "discrete events. Times and joules are modelled, not measured. Links cost time; their joules per byte are not "
    "known and not counted beyond the idle watts of the boards that wait, nor are switches.",
    "Lab rows: real training in network namespaces with processor quotas and shaped links. Seconds, bytes and memory "
    "are measured; joules are modelled from the processor time that each node really used. Runs are a few rounds "
    "long, the first round counts.",
    "A plan that does not fit a device's memory is marked, it has no joules. Little memory is an assumption: a board "
    "that also does something else.",
)  # fmt: skip


def study_page(
    study: Study, asked: Sequence[Question], *, sha256: dict[str, str], command: str, host: str,
    now_utc: str | None = None,
) -> str:  # fmt: skip
    """The whole page.

    Args:
        study: Rows and cells.
        asked: The answered questions.
        sha256: Hashes of the files behind it, by name.
        command: What makes it again.
        host: The machine that made it, in words.
        now_utc: When the page was made; now when not given.
    """
    sections = [
        _questions_section(asked),
        *(_model_section(model, study) for model in study.models),
        _memory_section(study),
        _lab_section(study.lab_rows),
        _gradients_section(study.gradients),
        _method_section(sha256, command, host),
    ]
    foot = Html(
        f"<footer>Made by greentrain {esc(VERSION)} on {esc(now_utc or utc_now())}. It needs no network; every figure "
        "is computed from study.csv beside it, whose columns data_dictionary.csv explains.</footer>"
    )
    return whole_page("Energy of the parallelisms", join((_header(study), _cards(study), *sections, foot)))


def _header(study: Study) -> Html:
    lab = f"{len(study.lab_rows)} runs on emulated nodes" if study.lab_rows else "no measured part"
    simulated = sum(row.part == "simulated" for row in study.rows)
    lede = f"{', '.join(study.models)} · {count(simulated)} plans simulated on catalogue boards · {lab}"
    return Html(
        '<header><p class="eyebrow">greentrain study parallelism</p><h1>Energy of the parallelisms</h1>'
        f'<p class="lede">{esc(lede)}</p></header>'
    )


def _cards(study: Study) -> Html:
    cells = [cell for cell in study.cells if cell.winner("energy") is not None]
    compared = [better for cell in cells if (better := cell.beats_single("energy")) is not None]
    quicker = [better for cell in cells if (better := cell.beats_single("time")) is not None]
    lacking = sum(row.status == "out-of-memory" for row in study.rows)
    shown = [
        card(
            "Fewer joules than one device", _of(sum(compared), len(compared)), "",
            esc("Places of the map where the best plan of several devices beats one of them."),
        ),
        card(
            "Faster than one device", _of(sum(quicker), len(quicker)), "",
            esc("Places of the map where the fastest plan of several devices beats one of them."),
        ),
        card("Out of memory", exact(lacking, count(lacking)), "plans", esc("Marked, never counted as 0.")),
        _winner_card("Fewest joules most often", winner_shares(cells, "energy"), len(cells)),
        _winner_card("Fastest most often", winner_shares(cells, "time"), len(cells)),
        _gradient_card(study.gradients),
    ]  # fmt: skip
    return Html(f'<div class="cards">{join(shown)}</div>')


def _of(part: int, whole: int) -> Html:
    return exact(part, percent(part / whole)) if whole else gap("not known")


def _winner_card(title: str, counts: Mapping[Parallelism, int], cells_n: int) -> Html:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    if not ordered:
        return card(title, gap("nothing"), "", esc("No plan of several devices has figures."))
    rest = ", ".join(f"{way} {percent(wins / cells_n)}" for way, wins in ordered[1:]) or "no other"
    text = f"In {percent(ordered[0][1] / cells_n)} of {cells_n} places of the map; {rest}."
    return card(title, esc(ordered[0][0]), "", esc(text))


def _gradient_card(rows: Sequence[GradientRow]) -> Html:
    if not rows:
        return card("Equal gradients", gap("not verified"), "", esc("This study was run without the check."))
    worst = max(row.largest_difference_ratio for row in rows)
    equal = sum(row.equal for row in rows)
    text = f"Ways whose gradients equal the unsplit model's; largest relative difference {worst:.1e}."
    return card("Equal gradients", esc(f"{equal} of {len(rows)}"), "", esc(text))


def _questions_section(asked: Sequence[Question]) -> Html:
    parts: list[Html] = []
    for question in asked:
        parts.append(Html(f"<h3>{esc(question.asked)}</h3>"))
        parts += [Html(f"<p>{esc(answer)}</p>") for answer in question.answers]
    claims = [
        Html(
            f"<p><strong>{esc(claim.verdict.capitalize())}</strong> ({claim.holds_n} of {claim.cases_n}): "
            f"{esc(claim.published)} <span class='muted'>{esc(claim.figures)}</span></p>"
        )
        for question in asked
        for claim in question.claims
    ]
    return section(
        "questions", "The four questions", *parts,
        Html("<h3>Beside the published conclusions (arXiv 2404.17766)</h3>"), *claims,
        Html(
            "<p class='small muted' style='margin-top:.6rem'>Agrees: in half of the cases or more; in part: in a tenth "
            "or more. The published study measured boards; these rows are simulated with modelled watts.</p>"
        ),
    )  # fmt: skip


def _model_section(model: str, study: Study) -> Html:
    plain = [
        it
        for it in study.scenarios()
        if it.model == model and it.network == "switch" and it.memory_limit_mib is None and it.mode == "default"
    ]
    largest = max((it.batch for it in plain), default=0)
    shown = [it for it in plain if it.batch == largest]
    parts: list[Html] = []
    maps = winners_picture(f"map-{model}", shown, study)
    if maps is not None:
        parts += [Html(f"<h3>Who wins where, batch of {largest}</h3>"), figure(maps)]
    # Pictures of the others would make the page heavy: they are in the tables.
    curves = participants_picture(f"devices-{model}", shown[0], study, _CURVE_BANDWIDTHS) if shown else None
    if curves is not None:
        parts += [Html("<h3>Energy against participants</h3>"), figure(curves)]
    others = [it for it in study.scenarios() if it.model == model and it not in shown]
    parts.append(_place_table(plain, study))
    parts += [_other_table(others, study)] if others else []
    return section(f"model-{model}", model, *parts)


def _place_table(scenarios: Sequence[Scenario], study: Study) -> Html:
    """Every figure of one place: the most devices, the middle bandwidth."""
    parts: list[Html] = []
    for it in scenarios:
        cells = study.of(it)
        rates = sorted({cell.bandwidth_mbit_per_s for cell in cells})
        most = max(cell.devices_n for cell in cells)
        place = (min(4, most), rates[len(rates) // 2])
        rows = [
            row
            for row in study.rows
            if scenario_of(row) == it and (row.devices_n == 1 or (row.devices_n, row.bandwidth_mbit_per_s) == place)
        ]
        words = f"{it.boards}, batch {it.batch}: {place[0]} devices at {place[1]:g} Mbit/s, and one device"
        parts.append(details(f"All figures on {words}", _figures_table(words, rows)))
    return join(parts)


def _figures_table(label: str, rows: Iterable[StudyRow]) -> Html:
    ordered = sorted(rows, key=lambda row: WAYS.index(row.way))
    return table(
        label,
        ("way", *_HEADS),
        [_figures(row) for row in ordered], numeric=(2, 3, 4, 5, 6, 7, 8),
    )  # fmt: skip


def _figures(row: StudyRow) -> tuple[Html, ...]:
    if row.status != "ok":
        lacks = f" (lacks {size(row.lacking_bytes)})" if row.lacking_bytes is not None else ""
        return (esc(row.way), gap(f"{row.status.replace('-', ' ')}{lacks}"), *(gap("–"),) * 8)
    return (
        esc(row.way), esc(row.parallelism), exact(row.energy_j_per_sample, joules_per_sample(row.energy_j_per_sample)),
        exact(row.mean_power_w, power(row.mean_power_w)), exact(row.samples_per_s, number(row.samples_per_s)),
        exact(row.sent_bytes_per_sample, size(row.sent_bytes_per_sample)),
        exact(row.peak_memory_bytes, size(row.peak_memory_bytes)),
        exact(row.idle_time_ratio, percent(row.idle_time_ratio)),
        exact(row.idle_energy_ratio, percent(row.idle_energy_ratio)), chip(row.energy_source),
    )  # fmt: skip


def _other_table(scenarios: Sequence[Scenario], study: Study) -> Html:
    """Who wins with other batches, networks, power modes and memories."""
    rows: list[tuple[Html, ...]] = []
    for it in scenarios:
        cells = study.of(it)
        named = [_most_often(winner_shares(cells, "energy")), _most_often(winner_shares(cells, "time"))]
        least = min(
            (best for cell in cells if (best := cell.winner("energy")) is not None),
            key=lambda row: row.energy_j_per_sample or 0.0, default=None,
        )  # fmt: skip
        lacking = sum(len(cell.too_large) for cell in cells)
        joules = None if least is None else least.energy_j_per_sample
        rows.append(
            (
                esc(it.boards), esc(it.batch), esc(_NETWORKS[it.network]),
                esc(it.mode), esc("all" if it.memory_limit_mib is None else f"{it.memory_limit_mib:g} MiB"),
                *named, exact(joules, joules_per_sample(joules)), esc(lacking),
            )
        )  # fmt: skip
    heads = (
        "boards", "batch", "network", "power mode", "memory", "fewest joules", "fastest", "least J/sample of several",
        "out of memory",
    )  # fmt: skip
    listed = table("Other batches, networks, power modes and memories", heads, rows, numeric=(1, 7, 8))
    return join((Html("<h3>Other batches, networks, power modes and memories</h3>"), listed))


def _most_often(counts: Mapping[Parallelism, int]) -> Html:
    best = max(counts.items(), key=lambda pair: pair[1], default=None)
    return gap("none fits") if best is None else esc(f"{best[0]} ({best[1]} of {sum(counts.values())})")


def _memory_section(study: Study) -> Html:
    limited = [it for it in study.scenarios() if it.memory_limit_mib is not None]
    picture = memory_picture("memory", limited, study)
    if picture is None:
        return Html("")
    return section("memory", "Where memory is short", figure(picture))


def _lab_section(rows: Sequence[StudyRow]) -> Html:
    title = "On emulated nodes"
    picture = lab_picture(rows)
    if not rows:
        said = "The measured part needs root; this study has the simulated part only."
        return section("lab", title, Html(f"<p>{gap(said)}</p>"))
    cells = [
        (
            esc(lab_words(row)), *_figures(row)[1:],
            _difference(row.predicted_step_s, row.step_s),
            _difference(row.predicted_j_per_sample, row.energy_j_per_sample),
        )
        for row in rows
    ]  # fmt: skip
    heads = ("run", *_HEADS, "time predicted", "joules predicted")
    return section(
        "lab", title,
        Html(f"<p>{esc(rows[0].model)}, batch {rows[0].batch}. {esc(_lab_sentence(rows))}</p>"),
        figure(picture) if picture is not None else Html(""),
        table("Runs on emulated nodes", heads, cells, numeric=(2, 3, 4, 5, 6, 7, 8, 10, 11)),
    )  # fmt: skip


def _difference(predicted: float | None, found: float | None) -> Html:
    if predicted is None or found is None:
        return gap("–")
    return esc(signed_percent((predicted / found - 1) * 100))


def _lab_sentence(rows: Sequence[StudyRow]) -> str:
    pairs = [(row.predicted_step_s, row.step_s) for row in rows]
    errors = [abs(predicted / found - 1) for predicted, found in pairs if predicted is not None and found is not None]
    if not errors:
        return "No run finished."
    return (
        f"The predicted length of a round is off by {percent(statistics.median(errors))} in the median of "
        f"{len(errors)} runs, by {percent(max(errors))} at the most."
    )


def _gradients_section(rows: Sequence[GradientRow]) -> Html:
    title = "The same training: gradients"
    if not rows:
        return section("gradients", title, Html(f"<p>{gap('not verified in this study')}</p>"))
    cells = [
        (
            esc(row.model), esc(row.way), esc(row.devices_n), esc(row.stages), esc(row.tensors_n),
            exact(row.largest_difference_ratio, f"{row.largest_difference_ratio:.1e}"),
            exact(row.loss_difference_ratio, f"{row.loss_difference_ratio:+.1e}"), esc("yes" if row.equal else "no"),
        )
        for row in rows
    ]  # fmt: skip
    heads = ("model", "way", "processes", "stages", "tensors", "largest difference", "loss", "equal")
    said = (
        f"One round on real processes, float32; equal means that no element differs by more than "
        f"{GRADIENT_TOLERANCE_RATIO:g} of its tensor's largest one (at least a thousandth of the model's largest)."
    )
    return section(
        "gradients", title, Html(f"<p>{esc(said)}</p>"),
        table("Gradients beside the unsplit model's", heads, cells, numeric=(2, 4, 5, 6)),
    )  # fmt: skip


def _method_section(sha256: dict[str, str], command: str, host: str) -> Html:
    files = ", ".join(f"{name} {digest}" for name, digest in sha256.items())
    return section(
        "method", "Method", *(Html(f"<p>{esc(text)}</p>") for text in _METHOD),
        Html(f"<p>Made again by: <code>{esc(command)}</code> (rows that are there are kept).</p>"),
        Html(f"<p>Machine: {esc(host)}.</p>"),
        Html(f"<p class='small muted' style='overflow-wrap:anywhere'>SHA-256: {esc(files)}</p>"),
    )  # fmt: skip
