"""How often bounds hold: exact statements on a share that was counted."""

from scipy.stats import binom, binomtest


def interval(held: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval for the share of bounds that hold, of which `held` of `runs` did.

    References
    ----------
    Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika 1934.
    """
    found = binomtest(held, runs).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def fewest_held(runs: int, confidence: float, level: float = 0.01) -> int:
    """Return the fewest bounds of so many that hold where each holds with that confidence, but for a share of studies.

    Law: fewer come with a probability of at most `level`, and it is the largest such number.
    """
    return int(binom.ppf(level, runs, confidence))
