"""What an experiment found: a report with pictures, a flat table for other programs, and a summary for the terminal."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.experiments.measure.comparison import ADEQUATE_POINTS, BATCHES, Row
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.surroundings import surroundings, threads_in_words
from torchmor.experiments.report.equal_time import BUDGETS, FAMILIES, at_equal_time
from torchmor.experiments.report.pictures import pictures_of
from torchmor.experiments.report.report import (
    Contents,
    Details,
    Explanations,
    Heading,
    Paragraph,
    Part,
    Picture,
    Points,
    Settings,
    Table,
    write_report,
)
from torchmor.experiments.report.results import NetworkResult
from torchmor.experiments.report.spread import Entry, entries, short_list
from torchmor.experiments.report.table import (
    NOTHING,
    impossible_note,
    method_cells,
    method_header,
    method_notes,
    milliseconds,
    print_methods,
    ratio,
    signed,
    spread_words,
)
from torchmor.experiments.report.verdict import PARTS, findings, ranking, to_beat, wall_s, winners

LARGEST = max(BATCHES)

#: Every time that is compared: of what, and at which batch size.
TIMES = tuple((part, batch) for part in PARTS for batch in sorted(BATCHES, reverse=True))


def write_experiment_report(
    folder: Path, title: str, command: str, networks: Sequence[NetworkResult], settings: Mapping[str, Any]
) -> None:
    """Write report.html, which holds everything, its pictures in plots/, and results.csv.

    Parameters
    ----------
    folder
        An existing folder.
    title
        Title of the report.
    command
        The command that repeats the experiment.
    networks
        What was found, network by network.
    settings
        What else the numbers depend on, by name.
    """
    (folder / "plots").mkdir(exist_ok=True)
    found = {network.key: entries(network.rows) for network in networks}
    headings = {network.key: network.heading for network in networks}
    sections: dict[str, list[Part]] = {
        "": _introduction(networks, found, list(headings.values())),
        _HOW: _how_to_read(networks, found),
    }
    for network in networks:
        of_network = found[network.key]
        pictures = pictures_of(network, of_network)
        for name, picture in pictures.items():
            with atomic_path(folder / "plots" / f"{network.key}-{name}.png") as temporary:
                temporary.write_bytes(picture.png)
        sections[headings[network.key]] = _section(network, of_network, pictures)
    sections[_REPEAT] = _repeat(command, settings)
    write_results_table(folder / "results.csv", networks)
    write_report(folder / "report.html", title, sections)


def print_summary(console: Console, networks: Sequence[NetworkResult]) -> None:
    """Print the best row of each method, and the findings, for each network."""
    for network in networks:
        found = entries(network.rows)
        console.print()
        console.rule(network.heading, align="left")
        print_methods(console, short_list(found), *_rivals(found))
        for finding in findings(found):
            console.print(f"• {finding}", highlight=False)
        for failure in network.failures:
            console.print(f"• not measured: {failure}", highlight=False, style="dim")
    console.print(
        f"\nA row is the fastest of its method within {ADEQUATE_POINTS} points of the full network on validation data, "
        "or, dimmed, the most accurate there. ms: medians.",
        style="dim",
        highlight=False,
    )


def write_results_table(path: Path, networks: Sequence[NetworkResult]) -> None:
    """Write all rows of all networks and seeds to a CSV file, one a line; what was not measured is empty."""
    sizes = list(dict.fromkeys(size for _, _, row in _all_rows(networks) for size in row.sizes))
    lines = []
    for network, seed, row in _all_rows(networks):
        line = {"network": network.key, "seed": seed, "method": row.method}
        line |= {size: row.sizes.get(size, "") for size in sizes}
        line |= {
            "solver": row.solver,
            "own_solver": row.own_solver,
            "evaluations": row.evaluations,
            "parameters": row.parameters,
            "validation_accuracy_percent": row.validation_accuracy,
            "accuracy_percent": row.accuracy,
            "agreement_percent": row.agreement,
            "difference_low_points": row.difference_interval[0],
            "difference_high_points": row.difference_interval[1],
            "offline_s": row.offline_s,
            "impossible_times": "; ".join(row.impossible),
        }
        for part, batch in TIMES:
            timing = getattr(row, part).get(batch)
            for key in ("wall_s", "low_s", "high_s", "repeats", "threads"):
                line[f"{part}_batch_{batch}_{key}"] = "" if timing is None else getattr(timing, key)
        lines.append(line)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


def _all_rows(networks: Sequence[NetworkResult]) -> list[tuple[NetworkResult, int, Row]]:
    return [(network, seed, row) for network in networks for seed, rows in network.rows.items() for row in rows]


_HOW = "How to read this"
_REPEAT = "How to repeat this"


def _introduction(
    networks: Sequence[NetworkResult], found: Mapping[str, Sequence[Entry]], headings: Sequence[str]
) -> list[Part]:
    titles = ["network", "full network\naccuracy %", "skipping the layer\ncosts, points", "full solver\nto beat"]
    titles += [f"fastest {PARTS[part]}\nbatch {LARGEST}" for part in PARTS]
    lines = [_overview(network, found[network.key]) for network in networks]
    return [
        Paragraph(
            "Each network below has an ODE layer that was trained as it is. Then every method made the network faster, "
            "without training it again, at several levels of compression. What did that gain, and what did it cost?"
        ),
        Table(titles, lines, kind="words"),
        Contents([*headings, _HOW, _REPEAT]),
    ]


def _overview(network: NetworkResult, found: Sequence[Entry]) -> list[str]:
    line = [f"{network.key}: {network.title}", spread_words(found[0].accuracy)]
    skipped = [entry.difference for entry in found if entry.row.method == "skipped"]
    line.append(signed(-skipped[0].mean).removeprefix("+") if skipped else NOTHING)
    rival = to_beat(found)
    line.append(NOTHING if rival is None else f"{rival.row.solver}\n{rival.accuracy.mean:.1f} %")
    for part in PARTS:
        ranked = ranking(found, part, LARGEST)
        best = winners(ranked, part, LARGEST)
        if rival is None or not best:
            line.append(NOTHING)
            continue
        full = next(row for row in ranked if row.method == "full")
        factor = ratio(wall_s(full, part, LARGEST) / wall_s(best[0], part, LARGEST))
        gain = (
            "nothing good enough is faster" if best == [full] else f"{factor} times as fast as the full solver to beat"
        )
        line.append(f"{', '.join(METHODS[row.method].words for row in best)}\n{gain}")
    return line


def _how_to_read(networks: Sequence[NetworkResult], found: Mapping[str, Sequence[Entry]]) -> list[Part]:
    used = {entry.row.method for of_network in found.values() for entry in of_network}
    seeds = list(dict.fromkeys(seed for network in networks for seed in network.rows))
    timings = [entry.row.layer[LARGEST] for entry in next(iter(found.values())) if LARGEST in entry.row.layer]
    several = (
        f" The seeds {', '.join(map(str, seeds))} stand for as many trained networks: accuracies are means over them, "
        f"with their range; times are those of seed {seeds[0]}."
        if len(seeds) > 1
        else " All this is one trained network, of one seed."
    )
    timed = (
        f" Times are medians of repeated forward passes with {threads_in_words(timings[0].threads)}, each timed in "
        "turns with one and the same call, a yardstick, and scaled to it, so that a machine that is now fast and now "
        "slow disturbs the comparison little."
        if timings
        else ""
    )
    return [
        Paragraph(
            "The reference is the network with its own solver, not the exact ODE. But the same network with fewer "
            "steps is faster too, so a method has to beat the cheapest full solver that is good enough, and it may "
            f"take coarse steps itself. Good enough is: at most {ADEQUATE_POINTS} points of accuracy below the full "
            "network on validation data, which decide everything that is chosen; test data only give the numbers."
            f"{several}{timed}"
        ),
        Explanations([method for method in METHODS if method in used]),
    ]


def _section(network: NetworkResult, found: Sequence[Entry], pictures: Mapping[str, Picture]) -> list[Part]:
    rival, full = _rivals(found)
    best = short_list(found)
    parts: list[Part] = [Paragraph(network.description), Points(findings(found), "findings")]
    parts += [pictures[f"accuracy-{part}-time"] for part in PARTS if f"accuracy-{part}-time" in pictures]
    parts += [Heading("The best row of each method")]
    parts += [
        Paragraph(
            f"The one with the fastest ODE layer at batch {LARGEST} among those that are good enough; for a method "
            "without such a row, in grey, the most accurate on validation data."
        ),
        Table(
            method_header(rival, full),
            [method_cells(entry, rival, full) for entry in best],
            [*method_notes(full, list(network.rows)), *impossible_note([entry.row for entry in best])],
            weak=[i for i, entry in enumerate(best) if not entry.adequate],
            kind="words2",
        ),
    ]
    if rival is not None:
        parts += [Heading("Who is fastest, by what counts"), _fastest_table(found)]
        parts += [Heading("Who is most accurate at equal time"), _equal_time_table(network, found)]
    methods = [entry.row.method for entry in found]
    parts.append(
        Details(
            f"All {len(found)} rows",
            [
                Table(
                    method_header(rival, full),
                    [method_cells(entry, rival, full) for entry in found],
                    impossible_note([entry.row for entry in found]),
                    best=[i for i, entry in enumerate(found) if entry in best and entry.adequate],
                    weak=[i for i, entry in enumerate(found) if not entry.adequate],
                    groups=[i for i in range(1, len(found)) if methods[i] != methods[i - 1]],
                    kind="words2",
                )
            ],
        )
    )
    parts += [picture for name, picture in pictures.items() if not name.startswith("accuracy-")]
    for words, first in _HEADINGS.items():
        place = next((j for j, part in enumerate(parts) if part is pictures.get(first)), None)
        if place is not None:
            parts.insert(place, Heading(words))
    if network.failures:
        parts += [Heading("What could not be measured"), Points(network.failures)]
    return parts


_HEADINGS = {
    "Every method by itself": "methods-layer-time",
    "How much state and nonlinearity vary": "singular-values",
    "Where the nonlinearity is evaluated": "points",
    "Trajectories": "trajectories",
}


def _fastest_table(found: Sequence[Entry]) -> Table:
    """The fastest adequate row of each method, by each time."""
    ranked = {key: ranking(found, *key) for key in TIMES}
    methods = [method for method in METHODS if any(row.method == method for rows in ranked.values() for row in rows)]
    lines, best = [], []
    for i, method in enumerate(methods):
        line = [METHODS[method].words]
        for j, (key, rows) in enumerate(ranked.items()):
            row = next((row for row in rows if row.method == method), None)
            if row is None:
                line.append(NOTHING)
                continue
            size = "" if method == "full" else f"\n{row.size}"
            line.append(f"{milliseconds(wall_s(row, *key))} ms{size}\n{row.solver}")
            if row in winners(rows, *key):
                best.append((i, j + 1))
        lines.append(line)
    titles = ["method", *(f"{PARTS[part]}\nbatch {batch}" for part, batch in TIMES)]
    notes = [
        "rows that are good enough only; marked: the fastest, with those that take at most 10 % longer, and the full "
        "network alone where nothing is noticeably faster"
    ]
    return Table(titles, lines, notes, best=best, kind="words")


def _equal_time_table(network: NetworkResult, found: Sequence[Entry]) -> Table:
    """The most accurate choice of each family within each budget."""
    lines, best = [], []
    for i, (budget, choices) in enumerate(at_equal_time(network.rows, found)):
        line = [f"{milliseconds(budget)} ms"]
        for family in FAMILIES:
            choice = choices.get(family)
            if choice is None:
                line.append("nothing so fast")
                continue
            behind = ""
            if choice.behind is not None:
                behind = f"\nours better by {signed(choice.behind[0])} to {signed(choice.behind[1])}"
            size = f"{METHODS[choice.row.method].words}, {choice.row.size}\n{choice.row.solver}"
            line.append(f"{choice.accuracy:.1f} %{behind}\n{size}")
        top = max((choice.accuracy for choice in choices.values()), default=0.0)
        best += [
            (i, j + 1) for j, family in enumerate(FAMILIES) if family in choices and choices[family].accuracy == top
        ]
        lines.append(line)
    notes = [
        f"budgets: {', '.join(f'{share:g}' for share in BUDGETS)} times the time of the full layer with the solver to "
        f"beat, batch {LARGEST}; a family's choice is its row of the best validation accuracy within the budget, among "
        "those that were measured on all seeds",
        "accuracy: on test data, mean over the seeds; ours better by: 95 % interval in points, paired bootstrap over "
        "the test samples of all seeds",
    ]
    return Table(["budget", *FAMILIES], lines, notes, best=best, kind="words")


def _rivals(found: Sequence[Entry]) -> tuple[Row | None, Row]:
    """The cheapest adequate full network, if anything was timed, and the one with its own solver."""
    rival = to_beat(found)
    return None if rival is None else rival.row, found[0].row


def _repeat(command: str, settings: Mapping[str, Any]) -> list[Part]:
    known = {"command": command, **settings}
    where = {name: value for name, value in surroundings().items() if name not in known and name != "threads"}
    return [
        Paragraph(
            "The same command repeats it: networks, rows and choices are the same on the same versions, and wall times "
            "differ from run to run. Beside this file, results.csv has all rows, results.jsonl the raw numbers, plots/ "
            "the pictures."
        ),
        Settings(known | where),
    ]
