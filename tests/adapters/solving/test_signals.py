import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchmor.adapters.solving.signals import SampledSignal, input_signal, round_to
from torchmor.engine.errors import DtypeError, InputError

DOUBLE = {"dtype": torch.float64}
TIMES = (0.0, 0.5, 0.6, 2.0)


def samples(batch=3, times=4, p=2, **kind):
    return torch.randn(batch, times, p, **(kind or DOUBLE))


def instant(time, dtype=torch.float64):
    return torch.tensor(time, dtype=dtype)


def on_device(signal, t):
    """u(t) by tensor operations, as on a GPU; on the CPU those are for times that require gradients."""
    return signal(t.clone().requires_grad_()).detach()


def both(signal, time, dtype=torch.float64):
    """u(time) by the two ways of evaluation, which must agree."""
    t = instant(time, dtype)
    value, on_host = on_device(signal, t), signal(t)
    torch.testing.assert_close(signal.along([time])[0], on_host, rtol=2 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(on_host, value, rtol=4 * torch.finfo(dtype).eps, atol=0)
    return value


@given(st.floats(-1e6, 1e6), st.sampled_from([torch.float64, torch.float32]))
def test_round_to_is_the_rounding_of_torch(x, dtype):
    expected = torch.tensor(x, dtype=torch.float64).to(dtype).item()
    assert round_to(x, dtype) == expected or abs(x) < 1e-37  # subnormal numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_round_to_rounds_to_half_precision(dtype):
    for x in torch.linspace(-3, 3, 1001).double().tolist():
        assert round_to(x, dtype) == torch.tensor(x, dtype=torch.float64).to(dtype).item() or abs(x) < 1e-4


@pytest.mark.parametrize("interpolation", ["linear", "previous"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_signal_equals_the_samples_at_their_times(interpolation, sign, dtype):
    """Law: ``signal(times[i]) == samples[:, i]`` in the dtype of t."""
    u, times = samples(dtype=dtype), [sign * time for time in TIMES]
    signal = SampledSignal(u, times, interpolation)
    for i, time in enumerate(times):
        assert torch.equal(on_device(signal, instant(time, dtype)), u[:, i])
        assert torch.equal(signal(instant(time, dtype)), u[:, i])
        assert torch.equal(signal.along([time])[0], u[:, i])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("interpolation", ["linear", "previous"])
def test_signal_is_constant_outside_its_times(sign, interpolation):
    u, times = samples(), [sign * time for time in TIMES]
    signal = SampledSignal(u, times, interpolation)
    assert torch.equal(both(signal, sign * -7.0), u[:, 0])
    assert torch.equal(both(signal, sign * 7.0), u[:, -1])


@pytest.mark.parametrize("sign", [1, -1])
def test_linear_interpolation(sign):
    u, times = samples(), [sign * time for time in TIMES]
    value = both(SampledSignal(u, times), sign * 0.95)
    torch.testing.assert_close(value, 0.75 * u[:, 2] + 0.25 * u[:, 3], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_previous_changes_at_a_time_and_is_the_old_value_one_unit_before(sign, dtype):
    """Adaptive solvers nudge t by one unit in the last place to look at either side of a jump."""
    u, times = samples(dtype=dtype), [sign * time for time in TIMES]
    signal = SampledSignal(u, times, "previous")
    for i in (1, 2, 3):
        time = instant(times[i], dtype)
        before, after = (torch.nextafter(time, time - sign * d) for d in (1, -1))
        for t, expected in ((before, i - 1), (time, i), (after, i)):
            assert torch.equal(on_device(signal, t), u[:, expected])
            assert torch.equal(signal(t), u[:, expected])


@given(st.floats(-1, 3), st.sampled_from(["linear", "previous"]), st.sampled_from([1, -1]))
def test_host_and_device_evaluation_agree(time, interpolation, sign):
    u = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(1), **DOUBLE).abs() + 1
    both(SampledSignal(u, [sign * knot for knot in TIMES], interpolation), sign * time)


@given(
    st.lists(st.floats(-1, 3, width=16), min_size=1, max_size=6),
    st.sampled_from(["linear", "previous"]),
    st.sampled_from([1, -1]),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_several_times_at_once(times, interpolation, sign, dtype):
    """Law: ``along(times)`` equals ``torch.stack([signal(t) for t in times])``."""
    u = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    signal = SampledSignal(u, [sign * knot for knot in TIMES], interpolation)
    expected = torch.stack([signal(instant(time, dtype)) for time in times])
    value = signal.along(times)
    assert value.shape == (len(times), 2, 3)
    torch.testing.assert_close(value, expected, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_samples_at_their_own_times_are_not_copied():
    u = samples()
    signal = SampledSignal(u, TIMES)
    assert signal.along(TIMES[1:]).data_ptr() == u[:, 1].data_ptr()
    with torch.no_grad():
        u[:, 2] = torch.inf  # not looked at: the weight of the next sample is 0
    assert torch.equal(signal.along((0.5, 0.2))[0], u[:, 1])


def test_gradients_at_several_times():
    u = samples().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: SampledSignal(u, TIMES).along((0.2, 3.0, 0.5, 1.0)), (u,))


def test_callable_is_called_with_each_time():
    y0, seen = torch.zeros(3, 5, **DOUBLE), []

    def u(t):
        seen.append(t)
        return t * torch.ones(3, 2, **DOUBLE)

    value = input_signal(u, (0.0, 1.0), "linear", y0).along((0.5, 0.25), y0)
    assert value[:, 0, 0].tolist() == [0.5, 0.25] == [t.item() for t in seen]
    assert all(t.shape == () and t.dtype == torch.float64 for t in seen)


def test_one_sample_is_a_constant_without_kinks():
    u = samples(times=1)
    signal = SampledSignal(u, (0.3,))
    assert torch.equal(both(signal, 5.0), u[:, 0])
    assert signal.kinks == ()


def test_kinks():
    assert SampledSignal(samples(), TIMES, "linear").kinks == TIMES
    assert SampledSignal(samples(), TIMES, "previous").kinks == TIMES[1:]


@pytest.mark.parametrize("interpolation", ["linear", "previous"])
@pytest.mark.parametrize("time", [-1.0, 0.2, 0.5, 1.9, 3.0])
def test_gradients_in_samples_and_time(interpolation, time):
    u = samples().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: SampledSignal(u, TIMES, interpolation)(instant(time)), (u,))
    if interpolation == "linear" and time not in TIMES:
        t = instant(time).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: SampledSignal(u, TIMES)(t), (t,))


def test_callable_signal_passes_values_through():
    y0 = torch.zeros(3, 5, **DOUBLE)
    value = torch.randn(3, 2, **DOUBLE)
    signal = input_signal(lambda t: t * value, (0.0, 1.0), "linear", y0)
    assert torch.equal(signal(instant(0.5)), 0.5 * value)
    assert signal.kinks == ()
    assert signal.parameters() == ()


def test_callable_module_contributes_its_parameters():
    module = nn.Linear(1, 2)
    assert input_signal(module, (0.0, 1.0), "linear", torch.zeros(3, 5)).parameters() == tuple(module.parameters())


@pytest.mark.parametrize(
    ("u", "error", "text"),
    [
        (
            [1.0, 2.0],
            InputError,
            "expected u to be a callable of t or a Tensor of samples, got list: convert",
        ),
        (
            samples()[0],
            InputError,
            r"shape \(batch, times, p\), got shape \(4, 2\): for one input use u.unsqueeze",
        ),
        (samples(batch=4), InputError, "for a batch of 3, got 4 in shape"),
        (samples(times=5), InputError, "expected 4 input samples, .* got 5 .*set input_times to the 5 times"),
        (samples() / 0, InputError, "expected finite input samples, got NaN or infinity in u"),
        (
            samples().float(),
            DtypeError,
            r"state's dtype torch.float64, got torch.float32: use u.to\(y0.dtype\)",
        ),
    ],
)
def test_bad_input_is_refused(u, error, text):
    with pytest.raises(error, match=text):
        input_signal(u, TIMES, "linear", torch.zeros(3, 5, **DOUBLE))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (
            torch.zeros(2, **DOUBLE),
            InputError,
            r"shape \(batch, p\) with batch = 3, got \(2,\): return one row",
        ),
        (torch.zeros(1, 2, **DOUBLE), InputError, r"got \(1, 2\): return one row per sample"),
        (1.0, InputError, "got a float"),
        (
            torch.zeros(3, 2),
            DtypeError,
            r"expected u\(t\) of the state's dtype torch.float64, got torch.float32",
        ),
    ],
)
def test_bad_value_of_a_callable_is_refused(value, error, text):
    signal = input_signal(lambda t: value, TIMES, "linear", torch.zeros(3, 5, **DOUBLE))
    with pytest.raises(error, match=text):
        signal(instant(0.0))


def test_times_that_are_one_number_in_the_dtype_are_refused():
    with pytest.raises(InputError, match="expected input times that differ in the state's dtype"):
        SampledSignal(samples(times=2, dtype=torch.float16), (1.0, 1.0001))
