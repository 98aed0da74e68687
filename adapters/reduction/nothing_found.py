"""What is said where a search found nothing, with what it did find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from torchmor.adapters.reduction.confidence import samples_needed
from torchmor.adapters.reduction.search import Search
from torchmor.engine.errors import NothingToReduceError
from torchmor.engine.explanation import Trial, frontier
from torchmor.engine.findings import Clock, ConfirmedLoss
from torchmor.engine.text_table import text_table

#: Rows of the table in the message.
MOST_ROWS = 8


def nothing_found(search: Search, best: nn.Module | None, timed: Sequence[Clock]) -> NothingToReduceError:
    """Return the error of a search without a result.

    Parameters
    ----------
    search
        The search.
    best
        The best reduced network.
    timed
        Times of those that were good enough, and were passed over for them.
    """
    wanted, rival = f"{search.wish.words} ({_metric(search)})", search.rival
    if timed:
        found = f"{len(timed)} that would do, but take longer than the full layer with coarse steps that do, too"
    elif rival is not None:
        found = f"none that is better than coarse steps of the full layer: {search.full(rival).solver} would do"
    else:
        found = "none"
    steps = [] if rival is None else ["error.network is the full network with these steps"]
    reached = [] if best is None else ["error.best the best reduction"]
    known = "; ".join(steps + reached) or "No size could be reduced"
    return _error(search, f"expected a reduction with {wanted}, found {found}. {known}. Try {_advice(search)}", best)


def not_confirmed(search: Search, found: ConfirmedLoss, best: nn.Module) -> NothingToReduceError:
    """Return the error of a search whose safest candidate's loss is not confirmed.

    Parameters
    ----------
    search
        The search.
    found
        The candidate's loss.
    best
        Its network.
    """
    bound = "no bound, as the outputs have no samples" if found.bound is None else f"at most {found.bound:.3g}"
    needed = samples_needed(search.wish.metric, found, search.wish.max_loss)
    more = "no number of samples would show it: allow more loss"
    if needed is not None:
        more = f"about {needed:,} samples of this kind would show it: with a fifth of calibration data, {5 * needed:,}"
    return _error(
        search,
        f"expected a reduction with {search.wish.words} ({_metric(search)}), with {100 * found.confidence:g} % "
        f"confidence, found a loss of {found.loss:.3g} on {found.samples:,} samples that nothing was chosen by, "
        f"{bound}; {more}. error.best is this network",
        best,
    )


def _error(search: Search, words: str, best: nn.Module | None) -> NothingToReduceError:
    error = NothingToReduceError("\n".join([words, "", *_table(search)]))
    error.curve, error.best = search.curve, best
    if search.rival is not None:
        error.network = search.material.with_steps(search.rival)
    return error


def _metric(search: Search) -> str:
    metric: Any = search.wish.metric
    return metric if isinstance(metric, str) else "of the given metric"


def _table(search: Search) -> list[str]:
    """Return what no other beats, and the full network, as lines of text."""
    shown: list[Trial] = [trial for trial in frontier(search.curve) if trial.loss < math.inf][-MOST_ROWS:]
    shown += [search.own] if search.own not in shown else []
    rows = [("network", "times less cost", "loss")]
    for trial in shown:
        tuned = ", tuned" if trial.tuned else ""
        size = "the full layer" if trial.sizes == "full" else trial.sizes
        rows.append((f"{size}, {trial.solver}{tuned}", f"{search.own.cost / trial.cost:.3g}", f"{trial.loss:.2g}"))
    return text_table(rows, right=[1, 2])


def _advice(search: Search) -> str:
    best = search.nearest()
    found = []
    if best is not None and math.isfinite(best.trial.loss) and best.trial.loss > search.wish.max_loss:
        found.append(f"max_loss={_rounded_up(best.trial.loss):g}")
    if search.tune is not None:
        found.append(f"effort={search.effort + 1}")
    return ", ".join([*found, "more calibration data"])


def _rounded_up(value: float) -> float:
    """Return the next number with two digits."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / scale) * scale
