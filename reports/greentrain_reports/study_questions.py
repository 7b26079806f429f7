"""The four questions of the published energy study (arXiv 2404.17766), answered in figures of the rows.

Participants, parallelism, topology, fault tolerance. Each published conclusion is checked where the rows allow it; how
often it holds decides the verdict: in half of the cases or more it agrees, in a tenth or more it agrees in part.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Literal

import msgspec

from greentrain.objective import OPTIMIZER_STATES, Parallelism
from greentrain.study import WAYS, StudyRow
from greentrain_reports.study_tables import Cell, Measure, Study, value_of, winner_shares
from greentrain_reports.words import number, percent, size

__all__ = ["Claim", "Question", "questions"]

Verdict = Literal["agrees", "agrees in part", "does not agree", "cannot be said"]

_AGREES, _IN_PART = 0.5, 0.1
# "Comparable energy" and "much faster", as they are checked here.
_COMPARABLE_RATIO, _FASTER_RATIO = 1.25, 1.5
_INSIDE = ("sequence", "tensor", "tensor+sequence")
_PURE = ("data", "pipeline", *_INSIDE)
_MEASURES: tuple[Measure, Measure] = ("energy", "time")
# Devices of the plans that lose one.
_FAULT_DEVICES_N = 4
# Losses of a device per hour: the default of greentrain train.
_LOSSES_PER_HOUR = 0.1
_BYTES_PER_MBIT = 1e6 / 8


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A published conclusion beside the rows.

    Attributes:
        published: What was concluded.
        holds_n: Cases in which the rows show it.
        cases_n: Cases that could show it.
        figures: How it was checked, and what was found.
    """

    published: str
    holds_n: int
    cases_n: int
    figures: str

    @property
    def verdict(self) -> Verdict:
        """Whether the rows agree."""
        if self.cases_n == 0:
            return "cannot be said"
        ratio = self.holds_n / self.cases_n
        return "agrees" if ratio >= _AGREES else "agrees in part" if ratio >= _IN_PART else "does not agree"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One of the four questions.

    Attributes:
        name: In a word.
        asked: The question.
        answers: Sentences with figures.
        claims: Published conclusions that belong to it.
    """

    name: str
    asked: str
    answers: tuple[str, ...]
    claims: tuple[Claim, ...]


def questions(study: Study) -> tuple[Question, ...]:
    """All four, answered from the simulated rows."""
    return (_participants(study), _parallelism(study), _topology(study), _faults(study))


def _sweeps(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ in the number of devices only, where one device alone has figures too."""
    found: dict[object, list[Cell]] = {}
    for cell in cells:
        if cell.single is not None and cell.winner("energy") is not None:
            found.setdefault((cell.scenario, cell.bandwidth_mbit_per_s), []).append(cell)
    return [sorted(group, key=lambda cell: cell.devices_n) for group in found.values()]


def _participants(study: Study) -> Question:
    sweeps = _sweeps([cell for cell in study.cells if cell.scenario.network == "switch"])
    alone = sum(not any(cell.beats_single("energy") for cell in sweep) for sweep in sweeps)
    fastest: list[tuple[float, float, int]] = []
    for sweep in sweeps:
        cell = min(sweep, key=lambda cell: _of(cell.winner("time"), "time"))
        best, single = cell.winner("time"), cell.single
        assert single is not None
        fastest.append(
            (_of(single, "time") / _of(best, "time"), _of(best, "energy") / _of(single, "energy"), cell.devices_n)
        )
    holds = sum(speed >= _FASTER_RATIO and joules <= _COMPARABLE_RATIO for speed, joules, _ in fastest)
    quicker = [(speed, joules) for speed, joules, _ in fastest if speed > 1]
    answers: list[str] = []
    if fastest:
        answers.append(
            f"For the fewest joules one device is best in {alone} of {len(sweeps)} sweeps over the number of devices."
        )
        answers.append(
            f"The fastest plan of several devices is faster than one device in {len(quicker)} of {len(sweeps)} sweeps."
        )
    if quicker:
        speeds, joules = ([pair[at] for pair in quicker] for at in (0, 1))
        answers.append(
            f"Where it is, it is {number(statistics.median(speeds))} times as fast in the median (at most "
            f"{number(max(speeds))} times) for {number(statistics.median(joules))} times the joules (at the least "
            f"{number(min(joules))} times)."
        )
    answers += [_growth_words(sweeps), _mode_words(study)]
    alone_fits = [cell for cell in study.cells if cell.single is None and cell.winner("energy") is not None]
    if alone_fits:
        answers.append(f"In {len(alone_fits)} places one device cannot hold the training at all, several can.")
    return Question(
        name="participants", asked="How many devices should take part?",
        answers=tuple(text for text in answers if text),
        claims=(
            Claim(
                published="Collaborative training costs comparable energy to one device while being much faster.",
                holds_n=holds, cases_n=len(fastest),
                figures=f"The fastest plan of several devices is at least {_FASTER_RATIO:g} times as fast as one "
                f"device and needs at most {_COMPARABLE_RATIO:g} times its joules in {holds} of {len(fastest)} sweeps.",
            ),
        ),
    )  # fmt: skip


def _growth_words(sweeps: Sequence[Sequence[Cell]]) -> str:
    """Joules and speed of the best plans beside one device, by the number of devices."""
    found: dict[int, list[tuple[float, float]]] = {}
    for cell in (cell for sweep in sweeps for cell in sweep):
        joules = _of(cell.winner("energy"), "energy") / _of(cell.single, "energy")
        speed = _of(cell.single, "time") / _of(cell.winner("time"), "time")
        found.setdefault(cell.devices_n, []).append((joules, speed))
    if not found:
        return ""
    parts = [
        f"{devices_n} devices × {number(statistics.median(j for j, _ in pairs))} and "
        f"× {number(statistics.median(s for _, s in pairs))}"
        for devices_n, pairs in sorted(found.items())
    ]
    return f"Joules of the best plan and speed of the fastest beside one device, in the median: {', '.join(parts)}."


def _mode_words(study: Study) -> str:
    """What the lowest power mode does to the best plans."""
    plain = {(cell.scenario, cell.devices_n, cell.bandwidth_mbit_per_s): cell for cell in study.cells}
    ratios: list[tuple[float, float]] = []
    for cell in study.cells:
        usual = msgspec.structs.replace(cell.scenario, mode="default")
        other = plain.get((usual, cell.devices_n, cell.bandwidth_mbit_per_s))
        if cell.scenario.mode == "default" or other is None or None in (cell.winner("energy"), other.winner("energy")):
            continue
        joules, time = (_of(cell.winner(how), how) / _of(other.winner(how), how) for how in _MEASURES)
        ratios.append((joules, time))
    if not ratios:
        return ""
    joules, time = (statistics.median(pair[at] for pair in ratios) for at in (0, 1))
    return (
        f"The lowest power mode changes the joules of the best plan × {number(joules)} and its time × {number(time)} "
        f"in the median of {len(ratios)} places."
    )


def _of(row: StudyRow | None, measure: Measure) -> float:
    assert row is not None
    return value_of(row, measure)


def _parallelism(study: Study) -> Question:
    cells = [cell for cell in study.cells if cell.winner("energy") is not None]
    # Where nothing can be shared inside a sample there is no contest.
    contests = [cell for cell in cells if any(way in cell.rows for way in _INSIDE)]
    joules, time = winner_shares(cells, "energy"), winner_shares(cells, "time")
    turned_out = Counter(
        best.parallelism for cell in cells if (best := cell.winner("energy")) is not None and best.way == "hybrid"
    )
    # Of all plans, not of winners: what sharing inside a sample costs beside the best.
    inside = [
        value_of(cell.rows[way], "energy") / _of(cell.winner("energy"), "energy")
        for cell in contests
        for way in _INSIDE
        if way in cell.rows
    ]
    lacking = [cell for cell in study.cells if "data" in cell.too_large]
    saved = sum(
        any(way in cell.rows for way in ("pipeline", "hybrid", "tensor", "tensor+sequence")) for cell in lacking
    )
    answers = (
        f"Fewest joules among plans of several devices: {_shares_words(joules, len(cells))}.",
        f"Most samples per second: {_shares_words(time, len(cells))}.",
        "Where a hybrid needs the fewest joules it turned out as "
        + ", ".join(f"{form} in {n}" for form, n in turned_out.most_common())
        + " places."
        if turned_out
        else "A hybrid nowhere needs the fewest joules.",
        f"Sharing inside a sample needs {number(statistics.median(inside))} times the joules of the best plan in the "
        f"median of {len(inside)} plans, at the least {number(min(inside))} times."
        if inside
        else "No plan shares work inside a sample.",
        f"Data parallelism does not fit the memory in {len(lacking)} places of the map; in {saved} of them a plan "
        "that divides the weights does.",
    )
    return Question(
        name="parallelism", asked="How should they share the work?", answers=answers,
        claims=_sharing_claims(contests, lacking, saved),
    )  # fmt: skip


def _sharing_claims(contests: Sequence[Cell], lacking: Sequence[Cell], saved: int) -> tuple[Claim, ...]:
    """The published conclusions about the ways themselves."""
    good = {way: sum(_near_best(cell, way) for cell in contests) for way in ("pipeline", "data")}
    suffers = sum(_inside_suffers(cell) for cell in contests)
    return (
        *(
            Claim(
                published=f"{way.capitalize()} parallelism is among the most energy-efficient.",
                holds_n=good[way], cases_n=len(contests),
                figures=f"It needs at most {_COMPARABLE_RATIO:g} times the joules of the best of data, pipeline, "
                f"sequence, tensor and tensor+sequence in {good[way]} of {len(contests)} places where "
                "layers can also be shared inside a sample.",
            )
            for way in ("pipeline", "data")
        ),
        Claim(
            published="Sequence and tensor parallelism suffer from communication in every layer.",
            holds_n=suffers, cases_n=len(contests),
            figures=f"Sequence, tensor and tensor+sequence plans all wait for a larger part of their time than the "
            f"plan of the fewest joules in {suffers} of {len(contests)} places.",
        ),
        Claim(
            published="Pipelines and sharded forms train what others cannot fit.",
            holds_n=saved, cases_n=len(lacking),
            figures=f"Of {len(lacking)} places where data parallelism does not fit, a plan that divides the "
            f"weights fits in {saved}.",
        ),
    )  # fmt: skip


def _near_best(cell: Cell, way: str) -> bool:
    """Whether a way needs comparable energy to the best of those that are no mix."""
    known = {name: value_of(cell.rows[name], "energy") for name in _PURE if name in cell.rows}
    return way in known and known[way] <= _COMPARABLE_RATIO * min(known.values())


def _inside_suffers(cell: Cell) -> bool:
    best = cell.winner("energy")
    assert best is not None
    waits = [cell.rows[way].idle_time_ratio or 0.0 for way in _INSIDE if way in cell.rows]
    return min(waits) > (best.idle_time_ratio or 0.0)


def _shares_words(counts: Mapping[Parallelism, int], total: int) -> str:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{way} {percent(n / total)}" for way, n in ordered) + f" of {total} places" if total else "none"


def _topology(study: Study) -> Question:
    plain = {
        (cell.scenario, cell.devices_n, cell.bandwidth_mbit_per_s): cell
        for cell in study.cells
        if cell.scenario.network == "switch"
    }

    def twin(cell: Cell, bandwidth: float) -> Cell | None:
        return plain.get((msgspec.structs.replace(cell.scenario, network="switch"), cell.devices_n, bandwidth))

    rooms = [cell for cell in study.cells if cell.scenario.network == "rooms" and cell.bandwidth_mbit_per_s < 1000]
    air = [cell for cell in study.cells if cell.scenario.network == "shared"]
    by_way = {
        way: _ratios(rooms, way, lambda cell: twin(cell, 1000.0)) for way in ("data", *_INSIDE, "pipeline", "hybrid")
    }
    shared = {
        way: _ratios(air, way, lambda cell: twin(cell, cell.bandwidth_mbit_per_s))
        for way in ("data", *_INSIDE, "pipeline", "hybrid")
    }
    better = [
        (_least(cell, ("pipeline", "hybrid"), fast), _least(cell, ("data", *_INSIDE), fast))
        for cell in rooms
        if (fast := twin(cell, 1000.0)) is not None
    ]
    pairs = [(cut, group) for cut, group in better if cut is not None and group is not None]
    holds = sum(cut < group for cut, group in pairs)
    return Question(
        name="topology", asked="How should they be connected, and in which order?",
        answers=(
            "Two rooms with 1000 Mbit/s inside and a slower line between them, against 1000 Mbit/s everywhere: joules "
            f"per sample grow in the median {_ratio_words(by_way)}.",
            f"One shared medium in place of a switch of the same rate: {_ratio_words(shared)}.",
        ),
        claims=(
            Claim(
                published="Fast links belong inside a group, slow links at the narrow cuts of a pipeline.",
                holds_n=holds, cases_n=len(pairs),
                figures="Where a slow line divides two rooms, a pipeline or hybrid loses less against a fast network "
                f"than every plan that sums or gathers across the line in {holds} of {len(pairs)} places.",
            ),
        ),
    )  # fmt: skip


def _ratios(cells: Sequence[Cell], way: str, twin: Callable[[Cell], Cell | None]) -> list[float]:
    """Joules of a way on its network over those of the twin's."""
    found: list[float] = []
    for cell in cells:
        other = twin(cell)
        if other is not None and way in cell.rows and way in other.rows:
            found.append(value_of(cell.rows[way], "energy") / value_of(other.rows[way], "energy"))
    return found


def _least(cell: Cell, ways: Sequence[str], fast: Cell) -> float | None:
    found = [ratio for way in ways for ratio in _ratios([cell], way, lambda _: fast)]
    return min(found, default=None)


def _ratio_words(by_way: dict[str, list[float]]) -> str:
    known = [(way, statistics.median(ratios)) for way, ratios in by_way.items() if ratios]
    return ", ".join(f"{way} × {number(ratio)}" for way, ratio in known) if known else "not in these rows"


def _faults(study: Study) -> Question:
    rows = [row for cell in study.cells if cell.scenario.network == "switch" for row in cell.rows.values()]
    rows = [row for row in rows if row.sole_param_bytes is not None and row.devices_n == _FAULT_DEVICES_N]
    copies: dict[str, list[float]] = {}
    for row in rows:
        copies.setdefault(row.way, []).append(copy_share(row))
    fewer = _after_a_loss(study)
    safe = [row for row in rows if row.way in ("data", "sequence")]
    answers = [
        _sole_words(rows),
        "Copying what one device holds alone, weights and optimizer, to a neighbour as often as is best, and redoing "
        f"the rounds since the last copy, at {_LOSSES_PER_HOUR:g} losses per device and hour adds in the median: "
        + ", ".join(f"{way} {percent(statistics.median(shares))}" for way, shares in copies.items())
        + " to the time (Young's period, √(2 × copy ÷ losses)).",
    ]
    if fewer:
        answers.append(
            "Going on with three devices after the loss of one of four changes the joules per sample in the median by: "
            + ", ".join(f"{way} × {number(statistics.median(ratios))}" for way, ratios in fewer.items())
            + "."
        )
    return Question(
        name="fault tolerance", asked="What does the loss of a device cost?", answers=tuple(answers),
        claims=(
            Claim(
                published="Groups that share samples are their own replicas; single stages need copies, whose period "
                "is weighed against the joules of work that is done again.",
                holds_n=sum(not row.sole_param_bytes for row in safe), cases_n=len(safe),
                figures=f"No device holds weights alone in {sum(not row.sole_param_bytes for row in safe)} of "
                f"{len(safe)} data and sequence plans.",
            ),
        ),
    )  # fmt: skip


def _sole_words(rows: Sequence[StudyRow]) -> str:
    """What dies with one device."""
    ways = [way for way in WAYS if any(row.way == way for row in rows)]
    largest = {way: max(row.sole_param_bytes or 0 for row in rows if row.way == way) for way in ways}
    lost = ", ".join(f"{way} up to {size(held)}" for way, held in largest.items() if held)
    safe = " and ".join(way for way, held in largest.items() if not held)
    nothing = f"; nothing in {safe}" if safe else ""
    return f"Without copies a lost device takes with it: {lost} of weights{nothing} ({_FAULT_DEVICES_N} devices)."


def copy_share(row: StudyRow) -> float:
    """Least part of the time that copies and redone rounds take: Young (1974), ``√(2·C/M)``.

    C is the time of a copy of weights and Adam's state over the row's link, M the time between losses of any of the
    participants.
    """
    held = (row.sole_param_bytes or 0) * (1 + OPTIMIZER_STATES["adam"])
    copy_s = held / (row.bandwidth_mbit_per_s * _BYTES_PER_MBIT)
    between_s = 3600 / (_LOSSES_PER_HOUR * (row.participants_n or row.devices_n))
    return sqrt(2 * copy_s / between_s)


def _after_a_loss(study: Study) -> dict[str, list[float]]:
    three = {(cell.scenario, cell.bandwidth_mbit_per_s): cell for cell in study.cells if cell.devices_n == 3}
    found: dict[str, list[float]] = {}
    for cell in study.cells:
        other = three.get((cell.scenario, cell.bandwidth_mbit_per_s)) if cell.devices_n == 4 else None
        for way, row in cell.rows.items() if other is not None else ():
            if other is not None and way in other.rows:
                found.setdefault(way, []).append(value_of(other.rows[way], "energy") / value_of(row, "energy"))
    return found
