"""pyMOR operators and models become torch modules with the same values."""

import copy
import logging

import numpy as np
import pytest
import scipy.sparse as sps
import torch
from pymor.algorithms.ei import deim, interpolate_operators
from pymor.algorithms.pod import pod
from pymor.algorithms.timestepping import (
    DiscreteTimeStepper,
    ExplicitEulerTimeStepper,
    ImplicitEulerTimeStepper,
    ImplicitMidpointTimeStepper,
)
from pymor.models.basic import InstationaryModel, StationaryModel
from pymor.models.examples import (
    heat_equation_1d_example,
    heat_equation_example,
    heat_equation_non_parametric_example,
)
from pymor.operators.constructions import (
    ConstantOperator,
    LincombOperator,
    LinearInputOperator,
    QuadraticFunctional,
    VectorOperator,
)
from pymor.operators.ei import EmpiricalInterpolatedOperator
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.parameters.functionals import ExpressionParameterFunctional
from pymor.reductors.basic import InstationaryRBReductor
from pymor.vectorarrays.numpy import NumpyVectorSpace
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from operator_catalogue import CUBE, OPERATORS, array, gated, matrix, vectors
from torchmor.adapters import ODELayer, full_order_model, reduce_network
from torchmor.adapters.layers.recurrences import LinearRecurrence, NonlinearRecurrence
from torchmor.adapters.models import to_torch
from torchmor.adapters.models.to_torch import to_module
from torchmor.engine.errors import ParameterError, ShapeError, SizeError, UnsupportedOperationError
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.operator_trees import fold_operator
from torchmor.engine.operators import InitialStateOperator, OdeFunctionOperator, componentwise_operator
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

catalogue = pytest.mark.parametrize("name", OPERATORS)


def rows(array) -> torch.Tensor:
    """The columns of a VectorArray as a batch."""
    return torch.from_numpy(np.ascontiguousarray(array.to_numpy().T))


def assert_close(value: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def module_and_batch(name, batch=3):
    op, mu = OPERATORS[name]()
    Y = op.source.random(batch)
    return to_module(op, mu), rows(Y), rows(op.apply(Y, op.parameters.parse(mu)))


# operators


@catalogue
@pytest.mark.parametrize("batch", [1, 3])
def test_module_equals_apply(name, batch):
    module, y, expected = module_and_batch(name, batch)
    assert_close(module(y), expected)


@catalogue
def test_module_of_empty_batch(name):
    module, y, expected = module_and_batch(name)
    assert module(y[:0]).shape == expected[:0].shape


@catalogue
def test_gradients_in_state_and_every_parameter(name):
    module, y, _ = module_and_batch(name, 2)
    names, values = zip(*module.named_parameters(), strict=True)

    def f(y, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (y,))

    assert gradcheck(f, (y.requires_grad_(), *values))


@catalogue
def test_state_dict_round_trip(name):
    module, y, expected = module_and_batch(name)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7.0)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(y), module(y))
    assert_close(module(y), expected)


@catalogue
def test_deepcopy_is_another_module(name):
    module, y, expected = module_and_batch(name)
    other = copy.deepcopy(module)
    assert torch.equal(other(y), module(y))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_close(module(y), expected)


@catalogue
def test_module_moves_to_float32(name):
    module, y, expected = module_and_batch(name)
    value = module.to(torch.float32)(y.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected.float(), rtol=1e-4, atol=1e-4)


def test_dtype_and_device():
    module = to_module(matrix(), dtype=torch.float32, device="meta")
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.float32, "meta")}


def test_input_and_time_become_arguments():
    op = gated(reads=("y", "u", "t")) @ gated(seed=1, reads=("y", "u"))
    Y, u = op.source.random(3), array(2)
    expected = rows(op.apply(Y, op.parameters.parse({"t": 0.3, "input": u})))
    inputs = torch.from_numpy(u).expand(3, -1)
    assert_close(to_module(op)(rows(Y), inputs, 0.3), expected)
    assert_close(to_module(op, {"t": 0.3})(rows(Y), inputs), expected)
    assert_close(to_module(op, {"input": u})(rows(Y), t=0.3), expected)


# linear models

HEAT = {
    "2d, parametric, rhs in time": (lambda: heat_equation_example(8, 12), [1.0, 30.0]),
    "2d": (lambda: heat_equation_non_parametric_example(0.25, 12), [None]),
    "1d, parametric": (lambda: heat_equation_1d_example(0.05, 12), [1.0, 0.1]),
}


def reduced_by_pymor(fom, mus, modes=5, **options):
    U = fom.solution_space.empty()
    for mu in mus:
        U.append(fom.solve(mu))
    return InstationaryRBReductor(fom, pod(U, modes=modes)[0], **options).reduce()


def assert_solves(model, mu=None) -> torch.nn.Module:
    """Law: the module's own trajectory is the model's."""
    module = to_module(model, mu)
    expected = rows(model.solve(mu))
    value = module()[:, 0]
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= 1e-12 * expected.abs().max()
    return module


@pytest.fixture(scope="module", params=HEAT)
def heat(request):
    build, mus = HEAT[request.param]
    fom = build()
    return fom, reduced_by_pymor(fom, mus), mus[-1]


@pytest.mark.parametrize("stepper", [ImplicitEulerTimeStepper, ImplicitMidpointTimeStepper])
@pytest.mark.parametrize("num_values", [None, 4, 30])
def test_heat_equation(heat, stepper, num_values):
    fom, rom, mu = heat
    module = assert_solves(rom.with_(time_stepper=stepper(12), num_values=num_values), mu)
    assert isinstance(module, LinearRecurrence)
    assert module.step_matrix.shape == (5, 5)
    assert len(module.shift) == (12 if "t" in rom.rhs.parameters else 1)
    assert_solves(fom.with_(time_stepper=stepper(12), num_values=num_values), mu)


def test_recurrence_from_other_initial_states(heat):
    """pyMOR from the states of the batch one by one."""
    _, rom, mu = heat
    module, Z = to_module(rom, mu), rom.solution_space.random(3)
    trajectories = module(rows(Z))
    for i in range(3):
        expected = rows(rom.with_(initial_data=Z[i]).solve(mu))
        torch.testing.assert_close(trajectories[:, i], expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
    assert module(rows(Z)[:0]).shape == (13, 0, 5)


def explicit_model(**options):
    A = NumpyMatrixOperator(np.diag([1.0, 2.0, 3.0, 4.0]) + 0.1 * array(4, 4))
    arguments = {"T": 1, "initial_data": vectors(1), "operator": A, "rhs": None, **options}
    return InstationaryModel(time_stepper=ExplicitEulerTimeStepper(20), **arguments)


def test_explicit_euler():
    assert isinstance(assert_solves(explicit_model()), LinearRecurrence)
    assert_solves(explicit_model(rhs=vectors(1, seed=1)))
    affine = matrix() + ConstantOperator(vectors(1), NumpyVectorSpace(4))
    assert isinstance(assert_solves(explicit_model(operator=affine)), LinearRecurrence)


def test_nonlinear_explicit_euler_in_time():
    operator = matrix() + gated(reads=("y", "t"))
    rhs = LincombOperator([matrix(4, 1)], [ExpressionParameterFunctional("cos(t[0])", {"t": 1})])
    assert isinstance(assert_solves(explicit_model(operator=operator, rhs=rhs)), NonlinearRecurrence)


def test_input_of_a_model_is_fixed_by_mu():
    model = explicit_model(rhs=LinearInputOperator(matrix(4, 2)))
    for value in ([1.0, -1.0], "[sin(t[0]), t[0]]"):
        assert_close(to_module(model, {"input": value})()[:, 0], rows(model.solve(input=value)))
    with pytest.raises(ParameterError, match=r"pass mu=\{'input': …\}"):
        to_module(model)


def test_mass_matrix_of_explicit_euler():
    """pyMOR refuses it; the module solves M z' = −A z."""
    mass = np.eye(4) + 0.1 * array(4, 4, seed=3) @ array(4, 4, seed=3).T
    with_mass = explicit_model(mass=NumpyMatrixOperator(mass), rhs=vectors(1))
    inverse = np.linalg.inv(mass)
    divided = explicit_model(
        operator=NumpyMatrixOperator(inverse @ with_mass.operator.matrix),
        rhs=NumpyVectorSpace.make_array(inverse @ array(4, 1)),
    )
    assert_close(to_module(with_mass)()[:, 0], rows(divided.solve()))


@pytest.mark.parametrize("build", [lambda: to_module(explicit_model(rhs=vectors(1))), lambda: nonlinear_module()])
def test_recurrences_are_modules(build):
    module = build()
    z0 = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters(), strict=True)
    assert gradcheck(
        lambda z0, *values: functional_call(module, dict(zip(names, values, strict=True)), (z0,))[1:4],
        (z0, *values),
    )
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(), module())
    value = other.to(torch.float32)(z0.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, module(z0).float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ShapeError, match=r"shape \(batch, 4\), got \(4,\)"):
        module(z0[0])


def nonlinear_module():
    operator = matrix() @ componentwise_operator("tanh", 4)
    rhs = LincombOperator([matrix(4, 1)], [ExpressionParameterFunctional("cos(t[0])", {"t": 1})])
    return to_module(explicit_model(operator=operator, rhs=rhs))


# the Allen–Cahn equation u' = ε u_xx + u − u³, from matrices and our componentwise stage

POINTS, DIFFUSION = 100, 1e-3


def allen_cahn(cube) -> InstationaryModel:
    """The full-order model with y ↦ y³ as the given operator."""
    h = 2 / (POINTS - 1)
    laplace = sps.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(POINTS, POINTS)).tolil()
    laplace[0, 1] = laplace[-1, -2] = 2.0  # no flux through the boundary
    linear = NumpyMatrixOperator(-DIFFUSION / h**2 * laplace.tocsc() - sps.eye_array(POINTS, format="csc"))
    x = np.linspace(-1, 1, POINTS)
    return InstationaryModel(
        T=4.0,
        initial_data=NumpyVectorSpace.make_array(0.5 * np.cos(3 * np.pi * x[:, None]) + 0.2 * x[:, None]),
        operator=LincombOperator([linear, cube], [1.0, 1.0]),
        rhs=None,
        time_stepper=ExplicitEulerTimeStepper(80),
    )


def scaled_cube():
    """y³ as a concatenation (D⁻³ ·) ∘ cube ∘ D with a scaling D."""
    scaling = np.linspace(0.5, 2.0, POINTS)
    outer, inner = (NumpyMatrixOperator(sps.diags_array(d, format="csc")) for d in (scaling**-3, scaling))
    return outer @ componentwise_operator(CUBE, POINTS) @ inner


CUBES = {"stage": lambda: componentwise_operator(CUBE, POINTS), "concatenation": scaled_cube}


@pytest.fixture(params=CUBES)
def cube(request, caplog):
    caplog.set_level(logging.ERROR)  # pyMOR logs that a concatenation with matrices is evaluated in full
    return CUBES[request.param]()


def largest_dimension(module) -> int:
    return max(dim for parameter in module.parameters() for dim in parameter.shape)


def test_allen_cahn_in_full(cube):
    module = assert_solves(allen_cahn(cube))
    assert isinstance(module, NonlinearRecurrence)
    assert [stage.weight.shape[0] for stage in module.increment.stages] == [POINTS]


def test_allen_cahn_projected(cube):
    rom = reduced_by_pymor(allen_cahn(cube), [None], modes=6)
    module = assert_solves(rom)
    assert module.initial_state.shape == (6,)


def test_allen_cahn_interpolated(cube):
    """POD and DEIM by pyMOR: no matrix has the size of the full-order model."""
    fom = allen_cahn(cube)
    r, m = 6, 9
    points, collateral, _ = deim(cube.apply(fom.solve()), modes=m)
    sampled = EmpiricalInterpolatedOperator(cube, points, collateral, triangular=False)
    linear = fom.operator.operators[0]
    interpolated = fom.with_(operator=LincombOperator([linear, sampled], [1.0, 1.0]))
    assert_solves(interpolated)
    rom = reduced_by_pymor(interpolated, [None], modes=r)
    assert (rows(fom.solve()) - rows(interpolated.solve())).abs().max() < 1e-3
    module = assert_solves(rom)
    weights = {name: tuple(p.shape) for name, p in module.increment.named_parameters() if "weight" in name}
    assert weights == {"stages.0.weight": (m, r), "output.weight": (r, r + m)}
    assert largest_dimension(module) == r + m
    Z = rom.solution_space.random(3)
    assert_close(to_module(rom.operator)(rows(Z)), rows(rom.operator.apply(Z)))


@pytest.mark.parametrize("alg", ["ei_greedy", "deim"])
def test_models_of_interpolate_operators(alg):
    """pyMOR's interpolate_operators on a model over one stage chain."""
    fom = allen_cahn(componentwise_operator(CUBE, POINTS))
    fom = fom.with_(operator=OdeFunctionOperator(fold_operator(fom.operator)))
    eim, _ = interpolate_operators(fom, ["operator"], [fom.parameters.parse(None)], max_interpolation_dofs=8, alg=alg)
    rom = reduced_by_pymor(eim, [None], modes=4)
    module = assert_solves(rom)
    # each point reads itself and its two neighbours
    assert largest_dimension(module) <= 4 + 8
    assert [stage.weight.shape for stage in module.increment.stages] == [(8, 4)]


@pytest.mark.parametrize("fault", ["sign", "transpose"])
def test_planted_faults_are_caught(fault, monkeypatch):
    """The comparison with pyMOR sees the sign of A and a transposed step."""
    original = to_torch.to_tensor

    def broken(array, *arguments):
        return original(-array if fault == "sign" else array.T if array.shape == (4, 4) else array, *arguments)

    monkeypatch.setattr(to_torch, "to_tensor", broken)
    with pytest.raises(AssertionError):
        assert_solves(explicit_model())


# models of ODE layers


class RateNetwork(nn.Module):
    """y' = −y + W tanh(y + t) + B u."""

    def __init__(self, size, inputs):
        super().__init__()
        self.recurrent, self.drive = nn.Linear(size, size), nn.Linear(inputs, size)

    def forward(self, t, y, u):
        return -y + self.recurrent(torch.tanh(y + t)) + self.drive(u)


@pytest.fixture
def layer():
    t = (0.5, 0.8, 1.4)
    return ODELayer(
        RateNetwork(6, 2), t=t, method="rk4", options={"step_size": 0.13, "interp": "cubic"}, output="trajectory"
    ).double()


@pytest.fixture(params=["rk4", "dopri5", "dopri5, previous", "backward"])
def any_layer(request, layer):
    if request.param.startswith("dopri5"):
        layer.options, layer.method = None, "dopri5"
    if request.param.endswith("previous"):
        layer.interpolation, layer.input_times = "previous", (0.6, 0.8, 1.4)
    if request.param == "backward":
        layer.t = (1.4, 0.8, 0.5)
    return layer


def assert_is_layer(module, model, y0, u, atol):
    """Law: the layer's trajectory is the model's output, sample by sample."""
    for i in range(len(y0)):
        expected = model.output({"initial_state": y0[i].numpy()}, input=u[i].numpy())
        value = module(y0[i : i + 1], u[i : i + 1])[:, 0]
        torch.testing.assert_close(value, torch.from_numpy(expected.T.copy()), rtol=0, atol=atol)


def test_full_order_model_becomes_its_layer(any_layer):
    y0, u = torch.randn(2, 6).double(), torch.randn(2, 3, 2).double()
    module = to_module(full_order_model(any_layer, y0, u[:, 0]))
    torch.testing.assert_close(module(y0[:1], u[:1]), any_layer(y0[:1], u[:1]), rtol=0, atol=1e-12)
    assert_is_layer(module, full_order_model(any_layer, y0, u[:, 0]), y0, u, 1e-12)


@pytest.mark.parametrize("with_product", [False, True])
def test_models_reduced_by_pymor_become_layers(layer, with_product):
    y0, u = torch.randn(2, 6).double(), torch.randn(2, 3, 2).double()
    fom = full_order_model(layer, y0, u[:, 0])
    U = fom.solve({"initial_state": y0[0].numpy()}, input=u[0].numpy())
    product = NumpyMatrixOperator(np.diag(np.arange(1.0, 7.0))) if with_product else None
    basis = pod(U, product=product, modes=3)[0]
    rom = InstationaryRBReductor(fom, basis, product=product, product_is_mass=with_product).reduce()
    module = to_module(rom)
    assert module.encode.weight.shape == (3, 6)
    assert_is_layer(module, OdeLayerModel(input_times=layer.t, **model_parts(rom)), y0, u, 1e-12)


def model_parts(rom) -> dict:
    names = ("T", "initial_data", "operator", "rhs", "mass", "time_stepper", "output_functional")
    return {name: getattr(rom, name) for name in names}


def test_reduced_layers_survive_the_way_through_pymor(layer):
    y0, u = torch.randn(20, 6).double(), torch.randn(20, 3, 2).double()
    options = {"basis": "pod", "selection": "deim", "fit": "interpolation", "progress": False}
    small = reduce_network(layer, "", (y0, u), state_dim=4, points=5, **options)
    module = to_module(small.rom)
    torch.testing.assert_close(module(y0, u), small(y0, u), rtol=0, atol=1e-12)
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}


def test_pymor_models_with_our_time_stepper(layer):
    """Allen–Cahn with right-hand side, mass and rk4: the layer maps initial states to solutions."""
    stepper = RungeKuttaTimeStepper("rk4", np.linspace(0, 1, 5), step_size=0.05)
    cube = componentwise_operator(CUBE, 4)
    model = explicit_model(operator=matrix() + cube, rhs=vectors(1)).with_(time_stepper=stepper)
    y0 = torch.from_numpy(model.initial_data.as_range_array().to_numpy().T.copy())
    assert_close(to_module(model)(y0)[:, 0], rows(model.solve()))
    mass = np.diag([1.0, 2.0, 3.0, 4.0])
    scaled = model.with_(
        mass=NumpyMatrixOperator(mass),
        operator=NumpyMatrixOperator(mass) @ model.operator,
        rhs=VectorOperator(NumpyVectorSpace.make_array(mass @ array(4, 1))),
    )
    assert_close(to_module(scaled)(y0)[:, 0], rows(model.solve()))
    driven = model.with_(rhs=LinearInputOperator(matrix(4, 2)))
    value = to_module(driven)(y0, torch.ones(1, 5, 2, dtype=torch.float64))
    assert_close(value[:, 0], rows(driven.solve(input=[1.0, 1.0])))


# what is refused


def test_refused_models():
    nonlinear = componentwise_operator("tanh", 4)
    in_time = LincombOperator([matrix()], [ExpressionParameterFunctional("t[0]", {"t": 1})])
    cases = [
        (explicit_model().with_(time_stepper=DiscreteTimeStepper()), "time stepper among ExplicitEuler"),
        (
            explicit_model(operator=nonlinear).with_(time_stepper=ImplicitEulerTimeStepper(5)),
            "ExplicitEulerTimeStepper",
        ),
        (explicit_model(operator=in_time), "time-dependent coefficients"),
        (explicit_model(operator=QuadraticOperator(4)), "class QuadraticOperator; supported are"),
        (StationaryModel(matrix(), vectors(1)), "InstationaryModel, got a StationaryModel"),
    ]
    for model, text in cases:
        with pytest.raises(UnsupportedOperationError, match=text):
            to_module(model)
    to_output = explicit_model(operator=nonlinear, initial_data=InitialStateOperator(4)).with_(
        time_stepper=RungeKuttaTimeStepper("rk4", (0, 1)), output_functional=matrix(1)
    )
    with pytest.raises(UnsupportedOperationError, match="lifted state, of size 4, as output"):
        to_module(to_output)
    odd = to_output.with_(initial_data=matrix() @ InitialStateOperator(4), output_functional=matrix())
    with pytest.raises(UnsupportedOperationError, match="projection of 'initial_state', got a ConcatenationOperator"):
        to_module(odd)
    driven = explicit_model(operator=gated(reads=("y", "u")))
    with pytest.raises(UnsupportedOperationError, match="only the right-hand side"):
        to_module(driven, {"input": "[t[0], t[0]]"})
    with pytest.raises(UnsupportedOperationError, match="supported are"):
        to_module(QuadraticFunctional(matrix()))


class QuadraticOperator(QuadraticFunctional):
    """An operator that nobody knows."""

    def __init__(self, size):
        super().__init__(matrix(size, size))
        self.__auto_init(locals())
        self.range = self.source


def test_too_large_models_are_refused():
    large = NumpyMatrixOperator(sps.eye_array(20_000, format="csc"))
    with pytest.raises(SizeError, match="got one of 20000 × 20000: reduce"):
        to_module(large)
    with pytest.raises(SizeError, match="20000 unknowns: reduce"):
        to_module(explicit_model(operator=large, initial_data=large.source.zeros(1)))
