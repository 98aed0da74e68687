"""pyMOR operators fold into chains with the same values."""

from dataclasses import replace

import numpy as np
import pytest
from pymor.algorithms.rules import RuleTable
from pymor.models.examples import heat_equation_1d_example
from pymor.operators.constructions import (
    LincombOperator,
    LinearInputOperator,
    QuadraticFunctional,
    SelectionOperator,
)
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.parameters.functionals import ExpressionParameterFunctional, ProjectionParameterFunctional
from scipy.sparse.linalg import aslinearoperator

from operator_catalogue import (
    GATED,
    OPERATORS,
    PARAMETERS,
    N,
    array,
    gated,
    interpolated,
    matrix,
    parametric,
    vectors,
)
from torchmor.engine.errors import ParameterError, UnsupportedOperationError
from torchmor.engine.operator_trees import FoldRules, fold_operator
from torchmor.engine.operators import OdeFunctionOperator, componentwise_operator

LARGE = componentwise_operator("tanh", 50)
catalogue = pytest.mark.parametrize("name", OPERATORS)


@catalogue
@pytest.mark.parametrize("k", [1, 3])
def test_fold_equals_apply(name, k):
    op, mu = OPERATORS[name]()
    Y = op.source.random(k)
    expected = op.apply(Y, op.parameters.parse(mu)).to_numpy()
    value = fold_operator(op, mu)(Y.to_numpy())
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@catalogue
def test_fold_of_no_vectors(name):
    op, mu = OPERATORS[name]()
    assert fold_operator(op, mu)(np.zeros((op.source.dim, 0))).shape == (op.range.dim, 0)


@catalogue
def test_folded_chain_restricts(name):
    """What comes out is a chain like any other: it restricts exactly."""
    op, mu = OPERATORS[name]()
    chain = fold_operator(op, mu)
    y, dofs = array(op.source.dim, 2), np.array([op.range.dim - 1, 0])
    restricted, source_dofs = chain.restrict(dofs)
    np.testing.assert_allclose(restricted(y[source_dofs]), chain(y)[dofs], rtol=1e-12, atol=1e-12)


def test_time_and_input_stay_free():
    op = LincombOperator([gated(reads=("y", "u", "t")), matrix()], [2.0, 1.0]) @ gated(seed=1, reads=("y", "u"))
    y, u = array(N, 3), array(2)
    expected = op.apply(op.source.make_array(y), op.parameters.parse({"t": 0.3, "input": u})).to_numpy()
    for mu, free in ((None, (u[:, None], 0.3)), ({"t": 0.3}, (u[:, None],)), ({"input": u}, (None, 0.3))):
        np.testing.assert_allclose(fold_operator(op, mu)(y, *free), expected, rtol=1e-12, atol=1e-12)


def test_input_operator_multiplies_its_source_and_the_input():
    op, x, u = LinearInputOperator(matrix(3, 2)), array(1, 4), array(2)
    expected = op.apply(op.source.make_array(x), op.parameters.parse({"input": u})).to_numpy()
    np.testing.assert_allclose(fold_operator(op)(x, u[:, None]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mu", [PARAMETERS, [0.3, -0.7, 2.0], parametric().parameters.parse(PARAMETERS)])
def test_mu_in_the_forms_of_pymor(mu):
    Y = vectors(2)
    expected = parametric().apply(Y, parametric().parameters.parse(PARAMETERS)).to_numpy()
    np.testing.assert_allclose(fold_operator(parametric(), mu)(Y.to_numpy()), expected, rtol=1e-12)


def test_discretised_operators_fold():
    """Operators of pyMOR's discretisers, which assemble matrices."""
    fom = heat_equation_1d_example(0.25, 4)
    for op in (fom.operator, fom.h1_0_semi_product, fom.output_functional, fom.mass):
        mu = fom.parameters.parse(2.0)
        Y = op.source.random(2)
        expected = op.apply(Y, mu).to_numpy()
        np.testing.assert_allclose(fold_operator(op, mu)(Y.to_numpy()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", [LARGE, 2.0 * LARGE + matrix(50, 50)], ids=["restricted", "in full"])
def test_interpolation_evaluates_its_points_only(operator):
    assert [stage.size for stage in fold_operator(interpolated(operator, points=(30, 2))).stages] == [2]


def test_components_of_nonlinear_operators_evaluate_these_only():
    op = OPERATORS["components of a chain"]()[0]
    assert [stage.size for stage in fold_operator(op).stages][-1] == 1


def test_opaque_maps_stay_opaque():
    """A convolution inside a pyMOR tree never becomes a matrix."""

    def opaque(affine):
        return replace(affine, linear=aslinearoperator(affine.linear))

    stages = tuple(replace(stage, argument=opaque(stage.argument)) for stage in GATED.chain.stages)
    chain = replace(GATED.chain, stages=stages, output=opaque(GATED.chain.output))
    full = OdeFunctionOperator(chain)
    op = LincombOperator([full @ matrix()], [2.0])
    folded = fold_operator(op)
    assert all(affine.is_opaque for affine in folded.maps)
    y = array(N, 3)
    expected = op.apply(op.source.make_array(y)).to_numpy()
    np.testing.assert_allclose(folded(y), expected, rtol=1e-12, atol=1e-12)
    sampled = fold_operator(interpolated(full))
    assert not sampled.maps[-1].is_opaque


def test_rules_print():
    assert issubclass(FoldRules, RuleTable)
    text = str(FoldRules)
    assert "ProjectedEmpiricalInterpolatedOperator" in text
    assert "Composition" in text


@pytest.mark.parametrize("wrap", [lambda op: op, lambda op: 2.0 * (matrix(1) @ GATED) + op])
def test_unknown_operators_are_named(wrap):
    with pytest.raises(
        UnsupportedOperationError, match=r"'Q' of class QuadraticFunctional; supported are .*ZeroOperator"
    ):
        fold_operator(wrap(QuadraticFunctional(matrix(), name="Q")))


def test_unknown_operators_show_the_whole_support():
    with pytest.raises(UnsupportedOperationError) as caught:
        fold_operator(SelectionOperator([matrix()], ProjectionParameterFunctional("a"), []), {"a": 1.0})
    assert all(rule.condition_description in str(caught.value) for rule in FoldRules.rules)


def test_complex_matrices_are_refused():
    with pytest.raises(UnsupportedOperationError, match="real and imaginary parts"):
        fold_operator(NumpyMatrixOperator(np.eye(2) * 1j))


@pytest.mark.parametrize("mu", [None, {"a": [1.0, 2.0]}, {"a": 1.0, "b": 1.0}, [1.0], {**PARAMETERS, "c": 1.0}])
def test_parameters_that_do_not_fit(mu):
    with pytest.raises(
        ParameterError, match=r"expected values of the parameters \{a: 2, b: 1.*pass mu=\{'a': …, 'b': …"
    ):
        fold_operator(parametric(), mu)


def test_mu_without_a_value_is_refused():
    mu = LinearInputOperator(matrix(2)).parameters.parse({"input": np.zeros(N)})
    with pytest.raises(ParameterError, match="'a': …, 'b': …"):
        fold_operator(parametric(), mu)


def test_time_dependent_coefficients_need_a_time():
    op = LincombOperator([matrix()], [ExpressionParameterFunctional("sin(t[0])", {"t": 1})])
    with pytest.raises(ParameterError, match=r"pass mu=\{'t': …\} \(time and input stay free in OdeFunction"):
        fold_operator(op)
    np.testing.assert_allclose(fold_operator(op, {"t": 0.5})(np.eye(N)), np.sin(0.5) * array(N, N), rtol=1e-12)


def test_functions_of_time_are_refused():
    op = gated(reads=("y", "u"))
    with pytest.raises(ParameterError, match="at one time"):
        fold_operator(op, {"input": "[t[0], t[0]]"})
