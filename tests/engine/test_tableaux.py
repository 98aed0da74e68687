"""Butcher tableaux: order conditions, and the numbers of other packages."""

import numpy as np
import pytest
from scipy.integrate import RK23, RK45

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

    def product(x, y):
        return [p * q for p, q in zip(x, y, strict=True)]

    squares = product(c, c)
    return {
        1: [sum(b) - 1],
        2: [weighted(c) - 1 / 2],
        3: [weighted(squares) - 1 / 3, weighted(times(c)) - 1 / 6],
        4: [
            weighted([x**3 for x in c]) - 1 / 4,
            weighted(product(c, times(c))) - 1 / 8,
            weighted(times(squares)) - 1 / 12,
            weighted(times(times(c))) - 1 / 24,
        ],
        5: [
            weighted([x**4 for x in c]) - 1 / 5,
            weighted(product(squares, times(c))) - 1 / 10,
            weighted(product(c, times(squares))) - 1 / 15,
            weighted(product(c, times(times(c)))) - 1 / 30,
            weighted(product(times(c), times(c))) - 1 / 20,
            weighted(times([x**3 for x in c])) - 1 / 20,
            weighted(times(product(c, times(c)))) - 1 / 40,
            weighted(times(times(squares))) - 1 / 60,
            weighted(times(times(times(c)))) - 1 / 120,
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


@pytest.mark.parametrize(("method", "scipy"), [("bosh3_fixed", RK23), ("dopri5_fixed", RK45)])
def test_embedded_pairs_are_those_of_scipy(method, scipy):
    tableau = TABLEAUX[method]
    rows = [[*row, *[0.0] * (scipy.A.shape[1] - len(row))] for row in tableau.a]
    np.testing.assert_allclose(rows, scipy.A, rtol=1e-15)
    np.testing.assert_allclose(tableau.b, scipy.B, rtol=1e-15)
    np.testing.assert_allclose(tableau.c, scipy.C, rtol=1e-15)


def test_classical_rule_is_not_that_of_torchdiffeq():
    """Kutta's 1/6, 1/3, 1/3, 1/6; torchdiffeq's "rk4" has 1/8, 3/8, 3/8, 1/8."""
    assert TABLEAUX["rk4_classic"].b == (1 / 6, 1 / 3, 1 / 3, 1 / 6) != TABLEAUX["rk4"].b
