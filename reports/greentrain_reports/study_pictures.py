"""Pictures of a study: who wins where, joules against devices, memory, and the lab beside its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from greentrain.objective import Parallelism
from greentrain.study import WAYS, StudyRow
from greentrain_reports.figure import INK, MUTED, bare_axes, device_colour, mark
from greentrain_reports.pictures import Picture, drawn, energy_scale
from greentrain_reports.study_tables import Cell, Measure, Scenario, Study, cell_sizes, scenario_of
from greentrain_reports.words import joules_per_sample, number, percent, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SHARED_WAYS", "lab_picture", "memory_picture", "participants_picture", "winners_picture"]

# One device has no colour of its own: it is what the others are compared with.
SHARED_WAYS: tuple[Parallelism, ...] = tuple(way for way in WAYS if way != "single")
_PLACES: dict[str, int] = {way: place for place, way in enumerate(SHARED_WAYS)}
_LETTERS: dict[str, str] = {
    "data": "D", "sequence": "S", "tensor": "T", "tensor+sequence": "TS", "pipeline": "P", "hybrid": "H",
}  # fmt: skip
_SERIES = tuple(f"{way} ({_LETTERS[way]})" for way in SHARED_WAYS)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MIB = 2**20


def _colour(way: str) -> str:
    return device_colour(_PLACES[way])


def _key(way: str) -> str:
    return f"s{_PLACES[way]}"


def winners_picture(name: str, scenarios: Sequence[Scenario], study: Study) -> Picture | None:
    """Which way wins at each number of devices and bandwidth, by joules and by time; None without a cell.

    Args:
        name: Unique in the page.
        scenarios: One map each, side by side; they differ in the boards.
        study: Where the cells are.
    """
    cells = {scenario: study.of(scenario) for scenario in scenarios}
    cells = {scenario: found for scenario, found in cells.items() if found}
    if not cells:
        return None
    panels: list[tuple[Measure, Scenario]] = [(how, it) for how in ("energy", "time") for it in cells]

    def fill(figure: Figure, narrow: bool) -> None:
        rows_n, columns_n = (len(panels), 1) if narrow else (2, len(cells))
        grid = figure.subplots(rows_n, columns_n, squeeze=False)
        for place, (measure, scenario) in enumerate(panels):
            axes: Axes = grid[place // columns_n][place % columns_n]
            _map(axes, cells[scenario], measure)
            words = "fewest joules" if measure == "energy" else "most samples per second"
            axes.set_title(f"{words}: {scenario.boards}", fontsize=11, color=INK, loc="left")

    words = "; ".join(
        f"{scenario.boards}, by {measure}: " + ", ".join(_cell_words(cell, measure) for cell in cells[scenario])
        for measure, scenario in panels
    )
    return drawn(
        name, fill, wide_px=430, narrow_px=230 * len(panels),
        alternative=f"Maps of the way that wins at each number of devices and bandwidth. {words}.",
        caption="Each field is the best plan of several devices there. A dot: it also beats one device of the same "
        "boards. A cross: no plan of several devices fits the memory.",
        series=_SERIES,
    )  # fmt: skip


def _cell_words(cell: Cell, measure: Measure) -> str:
    best = cell.winner(measure)
    where = f"{cell.devices_n} devices at {cell.bandwidth_mbit_per_s:g} Mbit/s"
    return f"{where} {best.way if best is not None else 'out of memory'}"


def _map(axes: Axes, cells: Sequence[Cell], measure: Measure) -> None:
    from matplotlib.patches import Rectangle

    devices, bandwidths = cell_sizes(cells)
    for cell in cells:
        x, y = devices.index(cell.devices_n), bandwidths.index(cell.bandwidth_mbit_per_s)
        best = cell.winner(measure)
        if best is None:
            axes.annotate("×", (x, y), ha="center", va="center", color=INK, fontsize=13)
            continue
        field = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=_colour(best.way), alpha=0.3, linewidth=0)
        axes.add_patch(field)
        better = cell.beats_single(measure)
        compared = {True: ", better than one device", False: ", worse than one device", None: ""}[better]
        said = f"{joules_per_sample(best.energy_j_per_sample)}, {number(best.samples_per_s)} samples/s"
        mark(field, key=_key(best.way), tip=f"{_cell_words(cell, measure)}: {said}{compared}")
        axes.annotate(
            f"{_LETTERS[best.way]}{' •' if better else ''}", (x, y), ha="center", va="center", color=INK, fontsize=11
        )
    axes.set_xticks(range(len(devices)), [str(n) for n in devices])
    axes.set_yticks(range(len(bandwidths)), [f"{it:g}" for it in bandwidths])
    axes.set_xlim(-0.55, len(devices) - 0.45)
    axes.set_ylim(-0.55, len(bandwidths) - 0.45)
    axes.set_xlabel("devices")
    axes.set_ylabel("Mbit/s")
    bare_axes(axes, grid="y")
    axes.grid(visible=False)


def participants_picture(name: str, scenario: Scenario, study: Study, bandwidths: Sequence[float]) -> Picture | None:
    """Joules per sample over the number of devices, one panel per bandwidth; None without a cell."""
    cells = [cell for cell in study.of(scenario) if cell.bandwidth_mbit_per_s in bandwidths]
    shown = [rate for rate in bandwidths if any(cell.bandwidth_mbit_per_s == rate for cell in cells)]
    if not cells:
        return None
    single = next((cell.single for cell in cells if cell.single is not None), None)

    def fill(figure: Figure, narrow: bool) -> None:
        grid = figure.subplots(*((len(shown), 1) if narrow else (1, len(shown))), squeeze=False, sharey=not narrow)
        for axes, rate in zip(grid.flat, shown, strict=True):
            own = sorted((cell for cell in cells if cell.bandwidth_mbit_per_s == rate), key=lambda it: it.devices_n)
            _lines(axes, own, single)
            axes.set_title(f"{rate:g} Mbit/s", fontsize=11, color=INK, loc="left")
            axes.set_xlabel("devices")
            axes.set_xticks(sorted({1, *(cell.devices_n for cell in own)}))
        grid[0][0].set_ylabel("J per sample")

    words = "; ".join(
        f"{cell.devices_n} devices at {cell.bandwidth_mbit_per_s:g} Mbit/s: "
        + ", ".join(f"{way} {joules_per_sample(row.energy_j_per_sample)}" for way, row in cell.rows.items())
        for cell in cells
    )
    alone = f" One device alone: {joules_per_sample(single.energy_j_per_sample)}." if single is not None else ""
    return drawn(
        name, fill, wide_px=280, narrow_px=220 * len(shown),
        alternative=f"Lines of the joules per sample over the number of devices. {words}.{alone}",
        caption=f"{scenario.model} on {scenario.boards}, batch {scenario.batch}; logarithmic. The dashed line is the "
        "best of the devices alone.",
        series=_SERIES,
    )  # fmt: skip


def _lines(axes: Axes, cells: Sequence[Cell], single: StudyRow | None) -> None:
    if single is not None and single.energy_j_per_sample is not None:
        line = axes.axhline(single.energy_j_per_sample, color=MUTED, linewidth=1.2, linestyle="--")
        mark(line, key="single", tip=f"one device: {joules_per_sample(single.energy_j_per_sample)}")
    for index, way in enumerate(SHARED_WAYS):
        known = [(cell.devices_n, cell.rows[way]) for cell in cells if way in cell.rows]
        points = [(n, row, row.energy_j_per_sample) for n, row in known if row.energy_j_per_sample is not None]
        if not points:
            continue
        (line,) = axes.plot([n for n, _, _ in points], [j for _, _, j in points], color=_colour(way), linewidth=1.4)
        mark(line, key=_key(way))
        for n, row, joules in points:
            (dot,) = axes.plot([n], [joules], color=_colour(way), marker=_MARKERS[index], markersize=5)
            mark(
                dot, key=_key(way),
                tip=f"{way}, {n} devices: {joules_per_sample(joules)}, {number(row.mean_power_w)} W, "
                f"{number(row.samples_per_s)} samples/s, {percent(row.idle_energy_ratio)} waiting",
            )  # fmt: skip
    axes.set_yscale("log")
    bare_axes(axes, grid="y")


def memory_picture(name: str, scenarios: Sequence[Scenario], study: Study) -> Picture | None:
    """Peak memory of a device over the number of devices where memory is short; None without such rows."""
    panels = {it: _memory_rows(it, study) for it in scenarios}
    panels = {it: rows for it, rows in panels.items() if rows}
    if not panels:
        return None

    def fill(figure: Figure, narrow: bool) -> None:
        grid = figure.subplots(*((len(panels), 1) if narrow else (1, len(panels))), squeeze=False)
        for axes, (scenario, rows) in zip(grid.flat, panels.items(), strict=True):
            _memory(axes, rows, scenario.memory_limit_mib or 0.0)
            axes.set_title(scenario.model, fontsize=11, color=INK, loc="left")
        grid[0][0].set_ylabel("MiB of the fullest device")

    words = "; ".join(
        f"{row.model}, {row.way} on {row.devices_n}: {size(row.peak_memory_bytes)}"
        f"{', out of memory' if row.status == 'out-of-memory' else ''}"
        for rows in panels.values()
        for row in rows
    )
    return drawn(
        name, fill, wide_px=290, narrow_px=230 * len(panels),
        alternative=f"Peak training memory of the fullest device over the number of devices. {words}.",
        caption="The dashed line is what each device has for training. A cross above it: out of memory, with what the "
        "smallest such plan would need; such a plan has no joules and no speed.",
        series=_SERIES,
    )  # fmt: skip


def _memory_rows(scenario: Scenario, study: Study) -> list[StudyRow]:
    own = [row for row in study.rows if scenario_of(row) == scenario and row.peak_memory_bytes is not None]
    fastest = max((row.bandwidth_mbit_per_s for row in own if row.devices_n > 1), default=0.0)
    return [row for row in own if row.devices_n == 1 or row.bandwidth_mbit_per_s == fastest]


def _memory(axes: Axes, rows: Sequence[StudyRow], limit_mib: float) -> None:
    axes.axhline(limit_mib, color=MUTED, linewidth=1.2, linestyle="--")
    for row in rows:
        assert row.peak_memory_bytes is not None
        lacking = row.status == "out-of-memory"
        at = _PLACES.get(row.way)
        (dot,) = axes.plot(
            # Beside each other where they are alike.
            [row.devices_n + (0 if at is None else 0.11 * (at - 2.5))], [row.peak_memory_bytes / _MIB], linestyle="",
            marker="x" if lacking else "*" if at is None else _MARKERS[at], markersize=7 if lacking else 5.5,
            color=INK if at is None else _colour(row.way), markeredgewidth=1.8 if lacking else 1,
        )  # fmt: skip
        said = f"out of memory, needs {size(row.peak_memory_bytes)}" if lacking else size(row.peak_memory_bytes)
        mark(dot, key="single" if at is None else f"s{at}", tip=f"{row.way}, {row.devices_n} devices: {said}")
    axes.set_xlabel("devices")
    axes.set_xticks(sorted({row.devices_n for row in rows}))
    axes.set_ylim(bottom=0)
    bare_axes(axes, grid="y")


def lab_picture(rows: Sequence[StudyRow]) -> Picture | None:
    """Joules per sample of every lab run beside its prediction; None without a run."""
    known = [(row, row.energy_j_per_sample) for row in rows if row.energy_j_per_sample is not None]
    if not known:
        return None
    scale, unit = energy_scale(max(joules for _, joules in known))

    def fill(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for y, (row, joules) in enumerate(known):
            (bar,) = axes.barh(
                y, joules * scale, height=0.6, linewidth=0, color=MUTED if row.way == "single" else _colour(row.way)
            )
            told = f"{joules_per_sample(joules)}, predicted {joules_per_sample(row.predicted_j_per_sample)}"
            mark(bar, key="single" if row.way == "single" else _key(row.way), tip=f"{lab_words(row)}: {told}")
            if row.predicted_j_per_sample is not None:
                axes.plot([row.predicted_j_per_sample * scale], [y], marker="|", markersize=15, color=INK)
        axes.set_yticks(
            range(len(known)), [lab_words(row, short=narrow) for row, _ in known], fontsize=10 if narrow else 11.5
        )
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit} per sample")
        axes.set_xlim(left=0)
        bare_axes(axes, grid="x")

    words = "; ".join(
        f"{lab_words(row)} {joules_per_sample(joules)}, predicted {joules_per_sample(row.predicted_j_per_sample)}"
        for row, joules in known
    )
    return drawn(
        "lab", fill, wide_px=70 + 24 * len(known), narrow_px=70 + 26 * len(known),
        alternative=f"Bars of the joules per sample of each run on emulated nodes: {words}.",
        caption="Bars: runs on emulated nodes, joules modelled from the processor time that was really used. Strokes: "
        "what the plan predicted before the run.",
    )  # fmt: skip


def lab_words(row: StudyRow, *, short: bool = False) -> str:
    """Which run it was."""
    if short:
        return f"{row.way}, {row.devices_n} at {row.bandwidth_mbit_per_s:g}"
    return f"{row.way}, quotas {row.quotas_percent} %, {row.bandwidth_mbit_per_s:g} Mbit/s"
