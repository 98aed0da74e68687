"""Butcher tableaux of the explicit Runge–Kutta methods, as data.

Pure Python: the pyMOR time stepper and the torch solver read the same numbers.

References
----------
.. [BS89] Bogacki, Shampine: A 3(2) Pair of Runge–Kutta Formulas, Appl. Math. Lett. 1989.
.. [DP80] Dormand, Prince: A Family of Embedded Runge–Kutta Formulae, J. Comput. Appl. Math. 1980.
"""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class ButcherTableau:
    """Coefficients of an explicit Runge–Kutta method.

    One step from t to t + h is ``k_i = f(t + c_i h, y + h Σ_{j<i} a_ij k_j)`` and ``y + h Σ_i b_i k_i``.

    Parameters
    ----------
    a
        Strictly lower triangle, row by row: row i has i entries.
    b
        Weights.
    c
        Nodes.
    order
        Order of convergence.
    exact_end
        Whether a node of 1 is evaluated at the end of the step itself, not at t + h: one rounding apart, which decides
        between the two sides of an input that jumps there. torchdiffeq's methods differ in it.

    Tableaux are compared and hashed by identity.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    exact_end: bool = False

    def times(self, t0: float, t1: float) -> list[float]:
        """Return the times at which a step from t0 to t1 evaluates f."""
        return [t1 if c == 1.0 and self.exact_end else t0 + c * (t1 - t0) for c in self.c]


#: The methods of torchdiffeq by its names, where ``rk4`` is Kutta's 3/8 rule, then those that it lacks. The embedded
#: pairs [BS89]_ [DP80]_ stand without the stage of their error estimate, which is the first one of the next step.
TABLEAUX = {
    "euler": ButcherTableau(a=((),), b=(1.0,), c=(0.0,), order=1),
    "midpoint": ButcherTableau(a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2), order=2),
    "heun2": ButcherTableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0), order=2),
    "heun3": ButcherTableau(a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), c=(0.0, 1 / 3, 2 / 3), order=3),
    "rk4": ButcherTableau(
        a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        c=(0.0, 1 / 3, 2 / 3, 1.0),
        order=4,
        exact_end=True,
    ),
    "rk4_classic": ButcherTableau(
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 1 / 2, 1 / 2, 1.0),
        order=4,
        exact_end=True,
    ),
    "bosh3_fixed": ButcherTableau(
        a=((), (1 / 2,), (0.0, 3 / 4)), b=(2 / 9, 1 / 3, 4 / 9), c=(0.0, 1 / 2, 3 / 4), order=3
    ),
    "dopri5_fixed": ButcherTableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        order=5,
        exact_end=True,
    ),
}

#: Methods that torchdiffeq lacks.
OWN_METHODS = ("rk4_classic", "bosh3_fixed", "dopri5_fixed")
