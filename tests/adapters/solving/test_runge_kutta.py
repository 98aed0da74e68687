import functools
import itertools
import math

import pytest
import torch
import torchdiffeq
from hypothesis import given
from hypothesis import strategies as st

from torchmor.adapters.solving.runge_kutta import BLOCK, integrate, is_fixed_step, solve_fixed_step
from torchmor.adapters.solving.signals import SampledSignal
from torchmor.adapters.solving.solve_request import SolveRequest
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX

DOUBLE = {"dtype": torch.float64}
GRIDS = {
    "forward": (0.0, 0.5, 1.0),
    "backward": (1.0, 0.2, -0.5),
    "non-uniform": (0.3, 0.31, 0.9, 1.1),
    "offset": (-3.0, -1.0),
}
TORCHDIFFEQ_METHODS = [method for method in TABLEAUX if method not in OWN_METHODS]
#: Relative error of a linear problem with 16 steps: 1.5 times what is expected.
BOUNDS = {
    "euler": 0.3,
    "midpoint": 0.012,
    "heun2": 0.012,
    "heun3": 3.5e-4,
    "rk4": 9e-6,
    "rk4_classic": 9e-6,
    "bosh3_fixed": 3.5e-4,
    "dopri5_fixed": 3e-7,
}


def f(t, y):
    return torch.tanh(y @ MATRIX.T.to(y)) * torch.cos(3 * t)


MATRIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
Y0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), **DOUBLE)


def assert_equal_to_rounding(value, expected, rtol=1e-14):
    assert value.shape == expected.shape
    assert value.dtype == expected.dtype
    assert (value - expected).abs().max() <= rtol * expected.abs().max()


@pytest.mark.parametrize("method", TORCHDIFFEQ_METHODS)
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_torchdiffeq(method, grid):
    """Law: equals ``torchdiffeq.odeint`` with the same method and options, to rounding."""
    t = GRIDS[grid]
    for step_size, interp in itertools.product((None, 0.1, 0.07, 5.0), ("linear", "cubic")):
        options = {"interp": interp} | ({} if step_size is None else {"step_size": step_size})
        expected = torchdiffeq.odeint(f, Y0, torch.tensor(t, **DOUBLE), method=method, options=options)
        assert_equal_to_rounding(solve_fixed_step(f, Y0, t, TABLEAUX[method], **options), expected)
        assert_equal_to_rounding(solve_fixed_step(f, Y0, t, TABLEAUX[method], **options, final=True), expected[-1])


@given(
    method=st.sampled_from(TORCHDIFFEQ_METHODS),
    t=st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=5, unique=True).map(sorted),
    backward=st.booleans(),
    step_size=st.sampled_from([None, 0.1, 0.3]),
    interp=st.sampled_from(["linear", "cubic"]),
)
def test_equals_torchdiffeq_on_any_grid(method, t, backward, step_size, interp):
    t = t[::-1] if backward else t
    options = {"interp": interp} | ({} if step_size is None else {"step_size": step_size})
    expected = torchdiffeq.odeint(f, Y0, torch.tensor(t, **DOUBLE), method=method, options=options)
    assert_equal_to_rounding(solve_fixed_step(f, Y0, t, TABLEAUX[method], **options), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", TORCHDIFFEQ_METHODS)
def test_equals_torchdiffeq_in_low_precision(method, dtype):
    t, options = (0.0, 1.0), {"step_size": 0.05}
    expected = torchdiffeq.odeint(f, Y0.to(dtype), torch.tensor(t, **DOUBLE), method=method, options=options)
    value = solve_fixed_step(f, Y0.to(dtype), t, TABLEAUX[method], **options)
    assert_equal_to_rounding(value, expected, rtol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", TORCHDIFFEQ_METHODS)
@pytest.mark.parametrize("interpolation", ["linear", "previous"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torchdiffeq_with_an_input_that_jumps_at_steps(method, interpolation, dtype):
    """Both see the same side of each jump, also where times are rounded: t0 + (t1 − t0) may not be t1."""
    rounded = [0.09, 0.43, 3.0, 3.1]
    assert rounded[0] + (rounded[1] - rounded[0]) < rounded[1]
    for t in ([i / 25 for i in range(26)], [1 - i / 7 for i in range(8)], rounded, [-s for s in rounded]):
        u = torch.randn(3, len(t), 4, **DOUBLE).to(dtype)
        signal = SampledSignal(u, t, interpolation)
        expected = torchdiffeq.odeint(
            lambda s, y, signal=signal: f(s, y) + signal(s),
            Y0.to(dtype),
            torch.tensor(t, **DOUBLE),
            method=method,
        )
        value = solve_fixed_step(lambda s, y, u: f(s, y) + u, Y0.to(dtype), t, TABLEAUX[method], signal=signal)
        assert_equal_to_rounding(value, expected, rtol=40 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", TABLEAUX)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_order_of_convergence(method, times):
    """y' = A y against expm, and the observed order within 0.1."""
    a = torch.tensor([[-1.0, 2.0], [-2.0, -0.5]], **DOUBLE)
    y0 = torch.tensor([[1.0, 0.5]], **DOUBLE)
    exact = y0 @ torch.linalg.matrix_exp((times[1] - times[0]) * a).T

    def error(steps):
        solution = solve_fixed_step(lambda t, y: y @ a.T, y0, times, TABLEAUX[method], step_size=1 / steps, final=True)
        return ((solution - exact).abs().max() / exact.abs().max()).item()

    steps = 32 if TABLEAUX[method].order == 5 else 256  # more, and the error is rounding
    order = math.log2(error(steps) / error(2 * steps))
    assert abs(order - TABLEAUX[method].order) < 0.1
    assert error(16) < BOUNDS[method]


@pytest.mark.parametrize("method", [method for method in TABLEAUX if method != "euler"])
def test_order_of_convergence_in_time(method):
    """y' = cos(3 t) y, whose solution is exp(sin(3 t)/3): wrong nodes c would be seen."""
    y0 = torch.ones(1, 1, **DOUBLE)
    # where leading errors do not cancel, and rounding is smaller
    end, steps = (1.0, 32) if TABLEAUX[method].order == 5 else (1.5, 128)

    def error(steps):
        solution = solve_fixed_step(
            lambda t, y: torch.cos(3 * t) * y,
            y0,
            (0.0, end),
            TABLEAUX[method],
            step_size=end / steps,
            final=True,
        )
        return abs(solution.item() - math.exp(math.sin(3 * end) / 3))

    assert abs(math.log2(error(steps) / error(2 * steps)) - TABLEAUX[method].order) < 0.15
    assert error(256) < 1e-5


def test_cubic_interpolation_is_more_accurate_than_linear():
    t = [i / 30 for i in range(31)]
    exact = torch.exp(torch.tensor(t, **DOUBLE))[:, None, None]

    def error(interp):
        y0 = torch.ones(1, 1, **DOUBLE)
        solution = solve_fixed_step(lambda t, y: y, y0, t, TABLEAUX["rk4"], step_size=0.25, interp=interp)
        return (solution - exact).abs().max().item()

    assert error("cubic") < 1e-4 < error("linear") < 3e-2


@pytest.mark.parametrize("method", TABLEAUX)
def test_a_sample_alone_gives_the_same_result(method):
    t = (0.0, 0.4, 1.0)
    whole = solve_fixed_step(f, Y0, t, TABLEAUX[method], step_size=0.1)
    alone = solve_fixed_step(f, Y0[1:2], t, TABLEAUX[method], step_size=0.1)
    assert_equal_to_rounding(alone, whole[:, 1:2])


@pytest.mark.parametrize("method", TABLEAUX)
def test_gradients(method):
    y0 = Y0[:2].clone().requires_grad_()
    u = torch.randn(2, 3, 4, **DOUBLE).requires_grad_()
    weight = MATRIX.clone().requires_grad_()

    def solve(y0, u, weight):
        signal = SampledSignal(u, (0.0, 0.2, 1.0))
        return solve_fixed_step(
            lambda t, y, u: torch.tanh(y @ weight.T) + u,
            y0,
            (0.0, 0.4),
            TABLEAUX[method],
            step_size=0.2,
            signal=signal,
        )

    assert torch.autograd.gradcheck(solve, (y0, u, weight))


@pytest.mark.parametrize("method", TABLEAUX)
def test_f_at_many_times_at_once(method):
    """Law: ``integrate(lambda times: [partial(f, t) for t in times], …)`` equals ``solve_fixed_step(f, …)``."""
    t, options, blocks = (1.0, 0.4, -0.5), {"step_size": 0.02, "interp": "cubic"}, []

    def slopes(times):
        blocks.append(len(times))
        return [functools.partial(f, torch.tensor(s, **DOUBLE)) for s in times]

    value = integrate(slopes, Y0, t, TABLEAUX[method], **options)
    assert torch.equal(value, solve_fixed_step(f, Y0, t, TABLEAUX[method], **options))
    assert set(blocks[:-1]) <= {BLOCK} and 0 < blocks[-1] <= BLOCK
    assert 75 * len(TABLEAUX[method].b) <= sum(blocks) <= 75 * len(TABLEAUX[method].b) + 2  # and at ends of steps


def test_time_arrives_as_a_scalar_of_the_states_dtype():
    seen = []

    def rhs(t, y):
        seen.append(t)
        return y

    solve_fixed_step(rhs, Y0.float(), (0.0, 1.0), TABLEAUX["rk4"])
    assert all(t.shape == () and t.dtype == torch.float32 for t in seen)
    torch.testing.assert_close(torch.stack(seen), torch.tensor([0, 1 / 3, 2 / 3, 1]))


def test_is_fixed_step():
    assert all(map(is_fixed_step, ("euler", "midpoint", "heun2", "heun3", "rk4", "rk4_classic", "dopri5_fixed")))
    assert not any(map(is_fixed_step, ("dopri5", "explicit_adams", "scipy_solver")))


class _Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = SolveSettings((0.0, 0.3, 1.0), "rk4", options={"step_size": 0.25}, input_times=(0.0, 0.3, 1.0))
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, y0, u):
        return SolveRequest.of(self.settings, y0, u, input_use="required").solve(self.f, y0)

    def f(self, t, y, u):
        return torch.tanh(self.linear(y)) * t + u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exports_with_a_dynamic_batch(dtype):
    """The graph holds no number that a float32 cannot hold, only tensors of the dtype of the state."""
    layer, y0, u = _Layer().to(dtype), torch.randn(5, 4, dtype=dtype), torch.randn(5, 3, 4, dtype=dtype)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (y0, u), dynamic_shapes=({0: batch}, {0: batch}))
    numbers = [a for node in program.graph.nodes for a in (*node.args, *node.kwargs.values()) if type(a) is float]
    assert numbers == []
    for size in (1, 7):
        y0, u = torch.randn(size, 4, dtype=dtype), torch.randn(size, 3, 4, dtype=dtype)
        torch.testing.assert_close(program.module()(y0, u), layer(y0, u))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_as_one_graph():
    layer, y0, u = _Layer(), torch.randn(5, 4), torch.randn(5, 3, 4)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(y0, u), layer(y0, u))
