"""What several seeds say together of one row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmor.experiments.measure.comparison import Row, adequate, layer_wall_s
from torchmor.experiments.measure.methods import METHODS


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Parameters
    ----------
    mean, low, high
        Their mean, and the range that they fill.
    seeds
        Their number.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of some values."""
        return cls(sum(values) / len(values), min(values), max(values), len(values))


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the first seed, with what the other seeds add.

    Parameters
    ----------
    row
        The row of the first seed: the one with times.
    adequate
        Whether its validation accuracy is close enough to that of the full network of its seed.
    accuracy
        Accuracies on test data, in percent, of all seeds that have the row.
    difference
        Differences of these to the full network with its own solver of the same seed, in points.
    """

    row: Row
    adequate: bool
    accuracy: Spread
    difference: Spread

    @property
    def compressed(self) -> bool:
        """Whether the row is neither the full network nor the one without its ODE layer."""
        return self.row.method not in ("full", "skipped")


def entries(rows: Mapping[int, Sequence[Row]]) -> list[Entry]:
    """Return the rows of the first seed, each with the rows of the other seeds of the same method, sizes and solver.

    Parameters
    ----------
    rows
        Seed → rows, the first of each the full network with its own solver.
    """
    found = [{row_key(row): row for row in of_seed} for of_seed in rows.values()]
    references = [of_seed[0] for of_seed in rows.values()]
    result = []
    for key, row in found[0].items():
        pairs = [(of_seed[key], full) for of_seed, full in zip(found, references, strict=True) if key in of_seed]
        result.append(
            Entry(
                row,
                adequate(row, references[0]),
                Spread.of([one.accuracy for one, _ in pairs]),
                Spread.of([one.accuracy - full.accuracy for one, full in pairs]),
            )
        )
    return result


def best_of_methods(found: Sequence[Entry]) -> dict[str, Entry]:
    """Return the best entry of each method, in the order of :data:`METHODS`.

    That is the one with the fastest ODE layer among the adequate ones, impossible times left out; without one, the most
    accurate on validation data.
    """
    best = {}
    for method in METHODS:
        of_method = [entry for entry in found if entry.row.method == method]
        good = [entry for entry in of_method if entry.adequate and entry.row.layer and not entry.row.impossible]
        if good:
            best[method] = min(good, key=lambda entry: layer_wall_s(entry.row))
        elif of_method:
            best[method] = max(of_method, key=lambda entry: entry.row.validation_accuracy)
    return best


def short_list(found: Sequence[Entry]) -> list[Entry]:
    """Return the full network with its own solver, and the best entry of each method."""
    best = list(best_of_methods(found).values())
    return best if found[0] in best else [found[0], *best]


def row_key(row: Row) -> tuple[object, ...]:
    """Return what rows of several seeds have in common."""
    return row.method, tuple(sorted(row.sizes.items())), row.solver, row.own_solver
