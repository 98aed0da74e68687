"""Input signals of models: the ways to give one, and the law of samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymor.analyticalproblems.functions import ConstantFunction, ExpressionFunction

from torchmor.adapters.solving.signals import SampledSignal
from torchmor.engine.errors import InputError
from torchmor.engine.inputs import SampledInput, input_function

TIMES = (0.0, 0.5, 2.0)
SAMPLES = np.array([[1.0, -1.0], [3.0, 0.0], [0.0, 4.0]])
directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "backward"])


def at(function, t):
    return function(np.array([t]))


@directions
@pytest.mark.parametrize("interpolation", ["linear", "previous"])
def test_samples_at_their_times_and_constant_outside(sign, interpolation):
    signal = SampledInput(SAMPLES, [sign * t for t in TIMES], interpolation)
    for t, sample in zip(TIMES, SAMPLES, strict=True):
        np.testing.assert_array_equal(at(signal, sign * t), sample)
    np.testing.assert_array_equal(at(signal, sign * -5.0), SAMPLES[0])
    np.testing.assert_array_equal(at(signal, sign * 5.0), SAMPLES[-1])


@directions
def test_between_samples(sign):
    times = [sign * t for t in TIMES]
    np.testing.assert_allclose(at(SampledInput(SAMPLES, times), sign * 0.25), [2.0, -0.5])
    np.testing.assert_array_equal(at(SampledInput(SAMPLES, times, "previous"), sign * 1.99), SAMPLES[1])


@given(
    gaps=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=5),
    sign=st.sampled_from([1.0, -1.0]),
    interpolation=st.sampled_from(["linear", "previous"]),
    t=st.floats(-20, 20),
)
def test_samples_are_read_as_by_the_layer(gaps, sign, interpolation, t):
    times = sign * np.cumsum([-3.0, *gaps])
    samples = np.random.default_rng(0).normal(size=(len(times), 2))
    layer = SampledSignal(torch.from_numpy(samples[np.newaxis]), tuple(times), interpolation)
    for time in (t, *times):
        expected = layer(torch.tensor(time, dtype=torch.float64))[0].numpy()
        np.testing.assert_allclose(at(SampledInput(samples, times, interpolation), time), expected, atol=1e-13)


def test_many_times_at_once():
    signal = SampledInput(SAMPLES, TIMES)
    t = np.linspace(-1, 3, 12).reshape(3, 4, 1)
    assert signal(t).shape == (3, 4, 2)
    np.testing.assert_array_equal(signal(t)[1, 2], at(signal, t[1, 2, 0]))
    assert (signal.dim_domain, signal.shape_range) == (1, (2,))


def test_kinks_are_where_adaptive_solvers_must_stop():
    assert SampledInput(SAMPLES, TIMES).kinks == TIMES
    assert SampledInput(SAMPLES, TIMES, "previous").kinks == TIMES[1:]


@pytest.mark.parametrize(
    "u",
    [
        lambda t: [np.sin(t), 2.0],
        lambda t: np.array([[np.sin(t)], [2.0]]),
        lambda t: torch.tensor([np.sin(t), 2.0]),
        "[sin(t[0]), 2]",
        ["sin(t[0])", 2.0],
        ExpressionFunction("[sin(x[0]), 2]", 1),
    ],
    ids=["callable", "callable of a column", "callable of a tensor", "expression", "expressions", "pyMOR Function"],
)
def test_functions_of_time(u):
    from pymor.parameters.base import Parameters

    mu = Parameters(input=2).parse(input_function(u, 2)).at_time(0.7)
    np.testing.assert_allclose(mu["input"], [np.sin(0.7), 2.0])


def test_constants_are_returned_as_arrays():
    np.testing.assert_array_equal(input_function([1, 2], 2), [1.0, 2.0])
    np.testing.assert_array_equal(input_function(3, 1), [3.0])
    function = ConstantFunction(np.ones(2), 1)
    assert input_function(function, 2) is function


@pytest.mark.parametrize(
    ("u", "text"),
    [
        (np.ones((3, 1)), r"expected input samples of shape \(3, 2\), one row for each .* got \(3, 1\)"),
        (np.ones((4, 2)), r"expected input samples of shape \(3, 2\), .* got \(4, 2\)"),
        (np.ones((1, 3, 2)), r"got \(1, 3, 2\)"),
        (np.ones(3), r"expected an input of 2 channels, got shape \(3,\)"),
        (0.5, r"expected an input of 2 channels, got shape \(\)"),
    ],
)
def test_wrong_shapes(u, text):
    with pytest.raises(InputError, match=text):
        input_function(u, 2, TIMES)


def test_wrong_values_of_a_callable():
    with pytest.raises(InputError, match=r"expected an input of 2 channels, got shape \(3,\)"):
        at(input_function(lambda t: np.ones(3), 2), 0.0)


def test_samples_without_times():
    with pytest.raises(InputError, match=r"expected input samples of shape \(times, 2\)"):
        input_function(SAMPLES, 2)


def test_unknown_interpolation():
    with pytest.raises(InputError, match="expected interpolation 'linear' or 'previous', got 'cubic'"):
        SampledInput(SAMPLES, TIMES, "cubic")
