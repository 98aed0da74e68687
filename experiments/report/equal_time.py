"""Methods at equal time: who is more accurate within the same budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchmor.experiments.measure.accuracy import resampled_interval, unpacked
from torchmor.experiments.measure.comparison import Row, layer_wall_s
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.spread import Entry, row_key
from torchmor.experiments.report.verdict import to_beat

#: Budgets for the ODE layer at the largest batch, as shares of the time of the full solver to beat.
BUDGETS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)

#: Family → methods.
FAMILIES = {
    "model order reduction": tuple(key for key, method in METHODS.items() if method.ours),
    "SVD truncation": ("svd", "svd-dense"),
    "pruning": ("pruning", "torch-pruning"),
}


@dataclass(frozen=True)
class Choice:
    """The best row of a family within a budget.

    Parameters
    ----------
    row
        Of the first seed.
    accuracy
        On test data, in percent, mean over the seeds.
    behind
        95 % interval of how many points it is less accurate than model order reduction, over the test samples of all
        seeds, in pairs; None for model order reduction itself.
    """

    row: Row
    accuracy: float
    behind: tuple[float, float] | None = None


def at_equal_time(rows: Mapping[int, Sequence[Row]], found: Sequence[Entry]) -> list[tuple[float, dict[str, Choice]]]:
    """Return, for each budget in seconds, the choice of each family that has a row within it.

    A family's choice is its row of the largest mean validation accuracy, among those that all seeds have.

    Parameters
    ----------
    rows
        Seed → rows; those of the first seed have times.
    found
        Of :func:`~torchmor.experiments.report.spread.entries`.
    """
    rival = to_beat(found)
    if rival is None:
        return []
    by_seed = [{row_key(row): row for row in of_seed} for of_seed in rows.values()]
    shared = [
        row
        for key, row in by_seed[0].items()
        if row.layer and not row.impossible and all(key in of_seed for of_seed in by_seed)
    ]

    def of_seeds(row: Row) -> list[Row]:
        return [of_seed[row_key(row)] for of_seed in by_seed]

    result = []
    for share in BUDGETS:
        budget = share * layer_wall_s(rival.row)
        choices: dict[str, Choice] = {}
        for family, methods in FAMILIES.items():
            fast = [row for row in shared if row.method in methods and layer_wall_s(row) <= budget]
            if fast:
                best = max(fast, key=lambda row: sum(one.validation_accuracy for one in of_seeds(row)))
                accuracies = [one.accuracy for one in of_seeds(best)]
                choices[family] = Choice(best, sum(accuracies) / len(accuracies))
        ours = choices.get("model order reduction")
        for family, choice in choices.items():
            if ours is not None and choice is not ours:
                behind = _interval(of_seeds(ours.row), of_seeds(choice.row))
                choices[family] = Choice(choice.row, choice.accuracy, behind)
        result.append((budget, choices))
    return result


def _interval(ours: Sequence[Row], others: Sequence[Row]) -> tuple[float, float]:
    correct = [np.concatenate([unpacked(row.correct) for row in rows]) for rows in (ours, others)]
    return resampled_interval(correct[0] - correct[1])
