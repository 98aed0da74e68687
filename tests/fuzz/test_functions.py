"""Laws of random functions and networks; each broken law is a line with the seed, the network and the numbers.

``pytest tests/fuzz/test_functions.py --fuzz 1 --fuzz-from SEED`` tries all laws on one seed. Of many seeds, those laws
that take reductions of much data are tried on some.
"""

import traceback
import warnings
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from fuzz.random_functions import Case
from fuzz.untouched import untouched
from torchmor.adapters import NetworkReductor
from torchmor.adapters.layers.ode_layer import OdeFunction
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.errors import LittleGainWarning, NotReducedWarning, UnsupportedOperationError

SAMPLES = 1_020  # of which 204 are held out
MOST_FAILURES = 20
USELESS = 0.2  # relative error of reduced networks that nobody would use


class Tried:
    """A case, and what several laws need of it."""

    def __init__(self, case):
        self.case = case
        self.sizes = {"state_dim": case.state_dim, "points": case.points}

    @cached_property
    def calibration(self):
        return self.case.arguments(SAMPLES, 1)

    @cached_property
    def exact(self):
        return outputs(self.reference(), self.case)

    @cached_property
    def reductor(self):
        return reductor(self.case.network(), self.calibration)

    @cached_property
    def small(self):
        return self.reduced(self.reductor, **self.sizes)

    @cached_property
    def error(self):
        """Relative error of the reduced network on fresh data."""
        return relative_error(outputs(self.small, self.case), self.exact)

    def reference(self, **options):
        """The network as it is used: in eval mode, with what closures hide."""
        network = self.case.network(**options).eval()
        network.field[0].eval()
        return network

    def reduced(self, reductor, **sizes):
        with untouched(reductor.network, *reductor.network.field):
            return reductor.reduce(**sizes).eval()


def reductor(network, calibration):
    with untouched(network, *network.field):
        return NetworkReductor(network, "ode", calibration, progress=False)


def outputs(network, case, samples=400):
    with torch.no_grad():
        return network(*case.arguments(samples, 7, network.head.weight.dtype)).double()


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


# -- laws --------------------------------------------------------------------------------------------------------------


def chain_is_the_function(tried):
    network, double = tried.case.network(), tried.reference(dtype=torch.float64)
    (f,), (exact,) = network.field, double.field
    t, y, u = tried.case.evaluations(network, 3, seed=5)[0]
    with untouched(network, f):
        chain = trace(OdeFunction(network.ode.func), y, u, float(t))
    for t, y, u in tried.case.evaluations(double, 5, seed=6):
        with torch.no_grad():
            expected = (exact(t, y.clone()) if u is None else exact(t, y.clone(), u)).flatten(1).numpy().T
        value = chain(y.flatten(1).numpy().T, None if u is None else u.numpy().T, float(t))
        error = np.abs(value - expected).max() / np.abs(expected).max()
        assert error <= 1e-12, f"the chain differs from f by {error:.1e} at t = {float(t):.2f} (at most 1e-12)"


def nothing_reduced_is_exact(tried):
    if tried.case.dtype != torch.float64:
        return
    small = tried.reduced(tried.reductor, state_dim="full", points="full")
    error = float((outputs(small, tried.case) - tried.exact).abs().max() / tried.exact.abs().max())
    assert error <= 1e-10, f"state full, points full: the output differs by {error:.1e} (at most 1e-10)"


def stated_error_is_the_measured_one(tried):
    stated = tried.small.get_submodule("ode").explain().errors["network output"]
    if stated > 1e-8:
        ratio = tried.error / stated
        assert 0.5 <= ratio <= 2, f"stated {stated:.2e}, measured on fresh data {tried.error:.2e} (a factor of 2)"


def order_of_samples_counts_little(tried):
    period = 1 + tried.case.seed // 16 % 4  # 1: sorted; 2: small and large ones in turn; …
    order = tried.calibration[0][:, 0].argsort().view(period, -1).T.flatten()
    other = reductor(tried.case.network(), tuple(argument[order] for argument in tried.calibration))
    error = relative_error(outputs(tried.reduced(other, **tried.sizes), tried.case), tried.exact)
    if min(error, tried.error) > USELESS:  # points are nearly as good as others, and which are taken is chance
        return
    spread = max(error, tried.error) / min(error, tried.error) if max(error, tried.error) > 1e-8 else 1.0
    assert spread <= 1.2, (
        f"errors on fresh data {tried.error:.2e}, and {error:.2e} with samples in {period} sorted strands: a factor of "
        f"{spread:.2f} (1.2)"
    )


def scale_changes_nothing(tried):
    if tried.case.dtype != torch.float64:
        return
    kinds = ("state", "stage") if tried.case.stages_can_be_scaled else ("state",)
    options = {"scaled": kinds[tried.case.seed // 2 % len(kinds)], "factor": (1e3, 1e-3)[tried.case.seed % 2]}
    words = "{scaled} times {factor:g}".format(**options)
    equivalent = relative_error(outputs(tried.reference(**options), tried.case), tried.exact)
    assert equivalent <= 1e-9, f"no equivalent network: the {words} changes the full output by {equivalent:.1e}"
    small = tried.reduced(reductor(tried.case.network(**options), tried.calibration), **tried.sizes)
    change = outputs(small, tried.case) - outputs(tried.small, tried.case)
    change = float(change.abs().max() / tried.exact.abs().max())
    assert change <= 1e-6, f"the {words} changes the reduced output by {change:.1e} (1e-6)"


#: Laws, and of how many cases which one they are tried on. Those of one case share its snapshots.
LAWS = {
    chain_is_the_function: (2, 1),
    nothing_reduced_is_exact: (16, 0),
    stated_error_is_the_measured_one: (16, 0),
    order_of_samples_counts_little: (32, 0),
    scale_changes_nothing: (32, 0),
}
STATISTICAL = stated_error_is_the_measured_one  # may fail in one of a hundred cases


def broken(law, tried):
    """Return what is wrong, or ""."""
    try:
        with warnings.catch_warnings():
            for ignored in (NotReducedWarning, LittleGainWarning):
                warnings.simplefilter("ignore", ignored)
            with torch.no_grad() if tried.case.context == "no_grad" else nullcontext():
                law(tried)
    except UnsupportedOperationError as error:
        return "" if tried.case.refusable else f"refused: {error}"
    except AssertionError as error:
        return str(error).splitlines()[0]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} [{Path(last.filename).name}:{last.lineno}]"
    return ""


def test_laws(fuzz_seeds):
    failures, outliers, cases = [], [], 0
    for number, seed in enumerate(fuzz_seeds):
        tried = Tried(Case(seed))
        for law in (law for law, (many, one) in LAWS.items() if number % many == one or len(fuzz_seeds) == 1):
            cases += law is STATISTICAL
            what = broken(law, tried)
            if what:
                statistical = law is STATISTICAL and what.startswith("stated")
                line = f"seed {seed}: {tried.case}\n    {law.__name__.replace('_', ' ')}: {what}"
                (outliers if statistical else failures).append(line)
        if len(failures) >= MOST_FAILURES:
            break
    if len(outliers) > cases / 100:
        failures += outliers
    if failures:
        pytest.fail("\n".join([f"{len(failures)} laws are broken, in {number + 1} cases", *failures]), pytrace=False)
