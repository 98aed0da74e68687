"""Butcher tableaux: order conditions, and the numbers of torchdiffeq."""

import pytest

from torchmor.engine.tableaux import TABLEAUX

METHODS = pytest.mark.parametrize("method", TABLEAUX)


def conditions(a, b, c):
    """Left sides minus right sides of the order conditions, by order [Hairer, Nørsett, Wanner, II.2]."""
    stages = range(len(b))
    full = [[*row, *[0.0] * (len(b) - len(row))] for row in a]

    def times(x):
        return [sum(full[i][j] * x[j] for j in stages) for i in stages]

    def weighted(x):
        return sum(b[i] * x[i] for i in stages)

    squares = [x**2 for x in c]
    return {
        1: [sum(b) - 1],
        2: [weighted(c) - 1 / 2],
        3: [weighted(squares) - 1 / 3, weighted(times(c)) - 1 / 6],
        4: [
            weighted([x**3 for x in c]) - 1 / 4,
            weighted([x * y for x, y in zip(c, times(c), strict=True)]) - 1 / 8,
            weighted(times(squares)) - 1 / 12,
            weighted(times(times(c))) - 1 / 24,
        ],
    }


@METHODS
def test_order(method):
    """The order is the stated one: its conditions hold, and one of the next order does not."""
    tableau = TABLEAUX[method]
    residuals = conditions(tableau.a, tableau.b, tableau.c)
    for order, left in residuals.items():
        holds = all(abs(x) < 1e-15 for x in left)
        assert holds == (order <= tableau.order)


@METHODS
def test_explicit_and_consistent(method):
    tableau = TABLEAUX[method]
    assert [len(row) for row in tableau.a] == list(range(len(tableau.b)))
    assert [sum(row) for row in tableau.a] == pytest.approx(tableau.c, abs=1e-15)
