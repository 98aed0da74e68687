"""The methods that are compared, and what they are called in tables and pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method of making a network faster.

    Parameters
    ----------
    words
        Its name.
    ours
        Whether it is model order reduction.
    explanation
        What it does, in a sentence.
    colour, marker
        How it is drawn: distinguishable without colour too.
    """

    words: str
    ours: bool
    explanation: str
    colour: str
    marker: str


#: Key → method, in the order of tables.
METHODS = {
    "full": Method("full", False, "The trained network, with its own solver and with coarse steps.", "#222222", "s"),
    "skipped": Method("ODE layer skipped", False, "The trained network without its ODE layer.", "#222222", "x"),
    "pod-deim": Method(
        "POD–DEIM",
        True,
        "The state is projected onto the r directions in which it varies most (POD); the nonlinearity is evaluated at "
        "m points, chosen one after the other where the interpolation errs most, and interpolated from them (DEIM).",
        "#d95f02",
        "o",
    ),
    "pod-qdeim": Method("POD–Q-DEIM", True, "The same with points from a pivoted QR decomposition.", "#1b6ca8", "^"),
    "pod-ei-greedy": Method(
        "POD–EI-greedy",
        True,
        "The same with points and basis from the snapshot that is interpolated worst, again and again.",
        "#5a9e3c",
        "v",
    ),
    "pod-galerkin": Method(
        "POD–Galerkin",
        True,
        "The same projection, with the nonlinearity evaluated everywhere: what interpolation saves and costs.",
        "#8a4fae",
        "d",
    ),
    "pruning": Method(
        "neuron pruning",
        False,
        "Units or channels whose activation is most often zero, or at most 1 % of the largest, are removed from the "
        "ODE: their state stays as it was at the start.",
        "#a8791b",
        "P",
    ),
    "svd": Method(
        "SVD of weights",
        False,
        "The weights of the ODE function are truncated to low rank: each becomes two.",
        "#c2185b",
        "X",
    ),
    "svd-dense": Method(
        "SVD of dense A",
        False,
        "The linear map of the ODE function is written as one dense matrix A, which is truncated to low rank.",
        "#e78ac3",
        "*",
    ),
    "torch-pruning": Method(
        "Torch-Pruning",
        False,
        "A well-known package removes the channels of the smallest weights from the whole network, the ODE's state "
        "included.",
        "#00897b",
        "D",
    ),
}
