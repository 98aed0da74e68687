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
    "balanced-galerkin": Method(
        "balanced Galerkin",
        True,
        "The state is projected onto the r directions that the network's output sees most, by its gradients along the "
        "trajectories (balanced basis); the nonlinearity is evaluated everywhere.",
        "#6b7a99",
        "p",
    ),
    "fitted": Method(
        "balanced, fitted",
        True,
        "A balanced basis; the nonlinearity is evaluated at the m points that say most about the projected derivative "
        "(matching pursuit), and what follows is fitted by least squares. The default of torchmor.",
        "#d4001a",
        "h",
    ),
    "distilled": Method(
        "balanced, distilled",
        True,
        "The fitted operators, tuned to the full network's outputs without labels.",
        "#7a0010",
        "H",
    ),
    "control": Method(
        "random, distilled",
        False,
        "The control of it: the same shape, started from random numbers and distilled in the same way. Where it is as "
        "good, model order reduction earns nothing.",
        "#9e9e9e",
        "8",
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
