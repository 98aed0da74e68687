"""pyMOR operators as stage chains: a tree of known parts folds into one chain, exactly."""

from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import scipy.linalg as spla
import scipy.sparse as sps
from pymor.algorithms.rules import RuleTable, match_class
from pymor.algorithms.to_matrix import to_matrix
from pymor.core.exceptions import NoMatchingRuleError
from pymor.models.basic import InstationaryModel
from pymor.operators.block import BlockOperatorBase
from pymor.operators.constructions import (
    AdjointOperator,
    AffineOperator,
    ComponentProjectionOperator,
    ConcatenationOperator,
    ConstantOperator,
    FixedParameterOperator,
    IdentityOperator,
    InverseOperator,
    LincombOperator,
    LinearInputOperator,
    LinearOperator,
    LowRankOperator,
    NumpyConversionOperator,
    ProjectedOperator,
    VectorArrayOperator,
    ZeroOperator,
)
from pymor.operators.ei import EmpiricalInterpolatedOperator, ProjectedEmpiricalInterpolatedOperator
from pymor.operators.interface import Operator
from pymor.operators.numpy import (
    NumpyCirculantOperator,
    NumpyHankelOperator,
    NumpyMatrixBasedOperator,
    NumpyToeplitzOperator,
)
from pymor.parameters.base import Mu, Parameters
from pymor.vectorarrays.interface import VectorArray

from torchmor.engine.affine import AffineMap
from torchmor.engine.chain_algebra import (
    block_chain,
    component_chain,
    compose,
    constant_chain,
    fix,
    left_divide,
    linear_chain,
    linear_combination,
    transpose,
    trim,
)
from torchmor.engine.errors import ParameterError, UnsupportedOperationError
from torchmor.engine.expressions import Expression
from torchmor.engine.operators import OdeFunctionOperator
from torchmor.engine.stages import Stage, StageChain

#: Parameters that a chain may keep free: they are its time "t" and its input "u".
FREE_PARAMETERS = ("t", "input")


def fold_operator(op: Operator, mu: Any = None) -> StageChain:
    """Fold a pyMOR operator into one stage chain; ``print(FoldRules)`` lists the operators that are known.

    Law: ``fold_operator(op, mu)(Y.to_numpy()) == op.apply(Y, mu).to_numpy()``, with the blocks of block
    vectors one below the other. Concatenations and sums of nonlinear operators are exact as well.

    Parameters
    ----------
    op
        The operator.
    mu
        Values of the operator's parameters, in any form that pyMOR parses. The time 't' and the 'input' of an
        OdeFunctionOperator stay free if they are left out.

    Raises
    ------
    UnsupportedOperationError
        The tree contains an operator that is not known, or complex numbers.
    ParameterError
        Values of parameters are missing or do not fit.
    """
    rules = FoldRules(parameter_values(op.parameters, mu, op.name, free=FREE_PARAMETERS))
    if rules.mu.time_dependent_values.keys() & op.parameters.keys():
        raise ParameterError(
            f"expected mu of numbers for an operator, got functions of time for "
            f"{sorted(rules.mu.time_dependent_values)}: give their values at one time, mu.at_time(t)"
        )
    try:
        return trim(rules.apply(op))
    except NoMatchingRuleError as error:
        unknown = error.obj
        known = ", ".join(rule.condition_description for rule in FoldRules.rules)
        raise UnsupportedOperationError(
            f"expected operators that fold into a stage chain, got '{unknown.name}' of class "
            f"{type(unknown).__name__}; supported are {known}: write the model with these, and its nonlinear "
            f"parts with componentwise_operator"
        ) from error


def parameter_values(parameters: Parameters, mu: Any, name: str, free: Collection[str] = ()) -> Mu:
    """Return values of the parameters of an operator or a model, except those that may stay free.

    Parameters
    ----------
    parameters
        The parameters.
    mu
        Values in any form that pyMOR parses: Mu, dict, or the numbers in alphabetical order of the names.
    name
        Name of the operator or model, for messages.
    free
        Names of parameters that `mu` may leave out.

    Raises
    ------
    ParameterError
        A value is missing, superfluous or of the wrong size.
    """
    given = mu if isinstance(mu, Mapping) else {}
    needed = Parameters({k: v for k, v in parameters.items() if k in given or k not in free})
    try:
        if not isinstance(mu, Mu):
            return needed.parse(mu)
        if not needed.is_compatible(mu, allow_time_dependent=True):
            raise ValueError(needed.why_incompatible(mu, allow_time_dependent=True))
    except ValueError as error:
        raise ParameterError(
            f"expected values of the parameters {needed} of '{name}': {error}; pass {_example(needed)}"
        ) from error
    return mu


def model_parameter_values(model: InstationaryModel, mu: Any, free: Collection[str] = ()) -> Mu:
    """Return values of the parameters that solving a model needs, as :func:`parameter_values`; 'input' is one."""
    parameters = dict(model.parameters)  # pyMOR keeps the input apart from the others
    if "input" in model.operator.parameters or "input" in model.rhs.parameters:
        parameters["input"] = model.dim_input
    return parameter_values(Parameters(parameters), mu, model.name, free)


def _example(parameters: Iterable[str]) -> str:
    return f"mu={{{', '.join(f'{k!r}: …' for k in parameters)}}}"


class FoldRules(RuleTable):
    """Rules that fold pyMOR operators into stage chains.

    Parameters
    ----------
    mu
        Parameter values.
    """

    def __init__(self, mu: Mu):
        super().__init__()
        self.__auto_init(locals())

    @match_class(OdeFunctionOperator)
    def action_chain(self, op: OdeFunctionOperator) -> StageChain:
        """Its chain, with time and input fixed where mu has them"""
        t = self.mu.get("t")
        return fix(op.chain, self.mu.get("input"), None if t is None else t[0])

    @match_class(
        NumpyMatrixBasedOperator,
        NumpyCirculantOperator,
        NumpyHankelOperator,
        NumpyToeplitzOperator,
        LowRankOperator,
        VectorArrayOperator,
    )
    def action_matrix(self, op: Operator) -> StageChain:
        """The matrix, dense or sparse"""
        self._require(op)
        return linear_chain(to_matrix(op, mu=self.mu))

    @match_class(IdentityOperator, NumpyConversionOperator)
    def action_identity(self, op: IdentityOperator | NumpyConversionOperator) -> StageChain:
        """The sparse identity"""
        return linear_chain(sps.eye_array(op.source.dim, format="csr"))

    @match_class(ZeroOperator)
    def action_zero(self, op: ZeroOperator) -> StageChain:
        """The constant zero"""
        return constant_chain(np.zeros(op.range.dim), op.source.dim)

    @match_class(ConstantOperator)
    def action_constant(self, op: ConstantOperator) -> StageChain:
        """The constant"""
        return constant_chain(op.value.to_numpy()[:, 0], op.source.dim)

    @match_class(ComponentProjectionOperator)
    def action_components(self, op: ComponentProjectionOperator) -> StageChain:
        """A sparse matrix of zeros and ones"""
        return component_chain(op.components, op.source.dim)

    @match_class(LincombOperator)
    def action_linear_combination(self, op: LincombOperator) -> StageChain:
        """Linear combination with the coefficients at mu"""
        self._require(op, Parameters.of(op.coefficients))
        coefficients = [c.evaluate(self.mu) if hasattr(c, "evaluate") else c for c in op.coefficients]
        return linear_combination([self.apply(part) for part in op.operators], coefficients)

    @match_class(ConcatenationOperator)
    def action_concatenation(self, op: ConcatenationOperator) -> StageChain:
        """Composition"""
        chains = [self.apply(part) for part in op.operators]
        return reduce(lambda inner, outer: compose(outer, inner), reversed(chains))

    @match_class(AdjointOperator)
    def action_adjoint(self, op: AdjointOperator) -> StageChain:
        """Transpose; with products, P_s⁻¹ Aᵀ P_r"""
        chain = transpose(self.apply(op.operator))
        if op.range_product is not None:
            chain = compose(chain, self.apply(op.range_product))
        return chain if op.source_product is None else left_divide(self.apply(op.source_product), chain)

    @match_class(InverseOperator)
    def action_inverse(self, op: InverseOperator) -> StageChain:
        """Inverse matrix"""
        return left_divide(self.apply(op.operator), linear_chain(sps.eye_array(op.source.dim, format="csr")))

    @match_class(FixedParameterOperator)
    def action_fixed_parameters(self, op: FixedParameterOperator) -> StageChain:
        """The operator at its own mu"""
        return FoldRules(op.mu or Mu()).apply(op.operator)

    @match_class(AffineOperator, LinearOperator)
    def action_proxy(self, op: AffineOperator | LinearOperator) -> StageChain:
        """The wrapped operator"""
        return self.apply(op.operator)

    @match_class(ProjectedOperator)
    def action_projection(self, op: ProjectedOperator) -> StageChain:
        """Wᵀ P A(V ·)"""
        chain = self.apply(op.operator)
        if op.source_basis is not None:
            chain = compose(chain, linear_chain(op.source_basis.to_numpy()))
        if op.product is not None:
            chain = compose(self.apply(op.product), chain)
        return chain if op.range_basis is None else compose(linear_chain(op.range_basis.to_numpy().T), chain)

    @match_class(EmpiricalInterpolatedOperator)
    def action_empirical_interpolation(self, op: EmpiricalInterpolatedOperator) -> StageChain:
        """U (U[points])⁻¹ A(·)[points]"""
        points = op.interpolation_dofs
        if len(points) == 0:
            return constant_chain(np.zeros(op.range.dim), op.source.dim)
        if hasattr(op, "restricted_operator"):
            values = compose(self.apply(op.restricted_operator), component_chain(op.source_dofs, op.source.dim))
        else:
            values = compose(component_chain(points, op.range.dim), self.apply(op.operator))
        return compose(_interpolation(op, op.collateral_basis), values)

    @match_class(ProjectedEmpiricalInterpolatedOperator)
    def action_projected_empirical_interpolation(self, op: ProjectedEmpiricalInterpolatedOperator) -> StageChain:
        """Wᵀ U (U[points])⁻¹ A(V ·)[points]"""
        lift = linear_chain(op.source_basis_dofs.to_numpy())
        values = compose(self.apply(op.restricted_operator), lift)
        return compose(_interpolation(op, op.projected_collateral_basis), values)

    @match_class(BlockOperatorBase)
    def action_blocks(self, op: BlockOperatorBase) -> StageChain:
        """Block matrix of chains"""
        return block_chain([[self.apply(block) for block in row] for row in op.blocks])

    @match_class(LinearInputOperator)
    def action_input(self, op: LinearInputOperator) -> StageChain:
        """x B u for a scalar x, with products of x and u where the input stays free"""
        if "input" in self.mu:
            return compose(self.apply(op.B), linear_chain(self.mu["input"][:, np.newaxis]))
        identity, zeros = np.eye(op.B.source.dim), np.zeros_like
        scalar = np.ones((len(identity), 1))
        arguments = {"y": np.vstack((scalar, zeros(scalar))), "u": np.vstack((zeros(identity), identity))}
        stage = Stage("g1", Expression.of("mul"), AffineMap.from_blocks(arguments))
        product = StageChain(1, len(identity), (stage,), AffineMap.from_blocks({"g1": identity}))
        return compose(self.apply(op.B), product)

    def _require(self, op: Operator, parameters: Parameters | None = None) -> None:
        """Raise ParameterError unless mu has values of the parameters."""
        missing = {k: v for k, v in (op.parameters if parameters is None else parameters).items() if k not in self.mu}
        if missing:
            raise ParameterError(
                f"expected values of the parameters {missing} on which '{op.name}' of class "
                f"{type(op).__name__} depends, got none: pass {_example(missing)} (time and input stay free in "
                f"OdeFunctionOperators only)"
            )


def _interpolation(
    op: EmpiricalInterpolatedOperator | ProjectedEmpiricalInterpolatedOperator, basis: VectorArray
) -> StageChain:
    """Return the matrix ``basis (interpolation matrix)⁻¹``."""
    matrix, vectors = op.interpolation_matrix, basis.to_numpy()
    if op.triangular:
        lift = spla.solve_triangular(matrix, vectors.T, lower=True, trans="T", unit_diagonal=True).T
    else:
        lift = spla.solve(matrix.T, vectors.T).T
    return linear_chain(lift)
