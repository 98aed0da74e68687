"""pyMOR operators of a stage chain."""

from typing import Any

import numpy as np
import scipy.sparse as sps
from pymor.algorithms.projection import ProjectRules, ProjectToSubbasisRules
from pymor.algorithms.rules import match_class
from pymor.operators.interface import Operator
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.parameters.base import Mu
from pymor.vectorarrays.interface import VectorArray
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.affine import AffineMap
from torchmor.engine.chain_algebra import componentwise, linear_chain
from torchmor.engine.expressions import Expression, Parameter
from torchmor.engine.stages import StageChain


class OdeFunctionOperator(Operator):
    """A stage chain as one pyMOR operator ``y ↦ f(t, y, u)``.

    It is opaque to pyMOR on purpose: pyMOR's `expand`, which `project` falls back to, distributes concatenations
    over sums even through nonlinear operators. As one operator, projection is exact:
    ``project(op, W, V).apply(z) == Wᵀ f(V z)``.

    The time is the parameter 't', the input is the parameter 'input'.

    Parameters
    ----------
    chain
        The :class:`~torchmor.engine.stages.StageChain`.
    solver
        pyMOR solver for `apply_inverse`.
    name
        Name of the operator.
    """

    def __init__(self, chain: StageChain, solver: Any = None, name: str | None = None):
        self.__auto_init(locals())
        self.source = NumpyVectorSpace(chain.state_size)
        self.range = NumpyVectorSpace(chain.output.size)
        self.linear = chain.is_linear
        self.parameters_own = {
            **({"input": chain.input_size} if chain.reads("u") else {}),
            **({"t": 1} if chain.reads("t") else {}),
        }

    def _input_and_time(self, mu: Any) -> tuple[np.ndarray | None, float]:
        assert self.parameters.assert_compatible(mu)
        u = mu["input"][:, np.newaxis] if self.chain.reads("u") else None
        return u, (mu["t"][0] if self.chain.reads("t") else 0.0)

    def apply(self, U: VectorArray, mu: Mu | None = None) -> VectorArray:
        assert U in self.source
        u, t = self._input_and_time(mu)
        return self.range.make_array(self.chain(U.to_numpy(), u, t))

    def apply_adjoint(self, V: VectorArray, mu: Mu | None = None) -> VectorArray:
        if not self.linear:
            return super().apply_adjoint(V, mu)
        assert V in self.range
        zeros = np.zeros((self.source.dim, len(V)))
        return self.source.make_array(self.chain.output.adjoint(V.to_numpy()).get("y", zeros))

    def jacobian(self, U: VectorArray, mu: Mu | None = None) -> Operator:
        """Return ∂f/∂y at U: a matrix operator for chains of matrices, known by its products otherwise."""
        assert len(U) == 1
        if self.linear:
            return self
        u, t = self._input_and_time(mu)
        jacobian = self.chain.jacobian(U.to_numpy(), u, t)
        name = f"{self.name}_jacobian"
        if any(affine.is_opaque for affine in self.chain.maps):
            return OdeFunctionOperator(linear_chain(jacobian), solver=self._jacobian_solver, name=name)
        return NumpyMatrixOperator(jacobian @ np.eye(self.source.dim), solver=self._jacobian_solver, name=name)

    def restricted(self, dofs: np.ndarray) -> tuple["OdeFunctionOperator", np.ndarray]:
        """Restrict to some components, exactly.

        Law: ``op.apply(Y).dofs(dofs) == restricted_op.apply(Y.dofs(source_dofs))``.
        """
        chain, source_dofs = self.chain.restrict(dofs)
        return OdeFunctionOperator(chain, name=f"{self.name}_restricted"), source_dofs


def componentwise_operator(function: Expression | str, size: int, **parameters: Parameter) -> OdeFunctionOperator:
    """Return the pyMOR operator ``y ↦ φ(y)`` of a componentwise function, for models built with pyMOR.

    It has everything that reduction needs (`jacobian`, `restricted`), and folds into a torch module.

    Parameters
    ----------
    function, size, parameters
        As in :func:`~torchmor.engine.chain_algebra.componentwise`: ``componentwise_operator("elu", size, alpha=0.5)``.

    Raises
    ------
    ShapeError, ValueError
        As there.
    """
    chain = componentwise(function, size, **parameters)
    return OdeFunctionOperator(chain, name=function if isinstance(function, str) else function.text(["y"]))


class InitialStateOperator(Operator):
    """The initial state as data of a model: ``1 ↦ encode(initial_state)``, linear, with parameter 'initial_state'.

    Parameters
    ----------
    dim
        Size n of the parameter 'initial_state'.
    encode
        Affine map of the source "y" from n to the model's state; None for the identity.
    name
        Name of the operator.
    """

    linear = True

    def __init__(self, dim: int, encode: AffineMap | None = None, name: str | None = None):
        self.__auto_init(locals())
        self.source = NumpyVectorSpace(1)
        self.range = NumpyVectorSpace(dim if encode is None else encode.size)
        self.parameters_own = {"initial_state": dim}

    @property
    def encoding(self) -> AffineMap:
        """The affine map from the initial state to the model's state, the identity too."""
        if self.encode is not None:
            return self.encode
        return AffineMap.from_blocks({"y": sps.eye_array(self.dim, format="csr")})

    def apply(self, U: VectorArray, mu: Mu | None = None) -> VectorArray:
        assert U in self.source
        assert mu is not None and self.parameters.assert_compatible(mu)
        state = mu["initial_state"][:, np.newaxis]
        if self.encode is not None:
            state = self.encode.apply({"y": state})
        return self.range.make_array(state * U.to_numpy())


@match_class(OdeFunctionOperator)
def _project(rules: ProjectRules, op: OdeFunctionOperator) -> OdeFunctionOperator:
    test, trial = (None if b is None else b.to_numpy() for b in (rules.range_basis, rules.source_basis))
    return op.with_(chain=op.chain.reduce(trial=trial, test=test))


@match_class(OdeFunctionOperator)
def _project_to_subbasis(rules: ProjectToSubbasisRules, op: OdeFunctionOperator) -> OdeFunctionOperator:
    chain = op.chain
    trial = None if rules.dim_source is None else np.eye(chain.state_size, rules.dim_source)
    test = None if rules.dim_range is None else np.eye(chain.output.size, rules.dim_range)
    return op.with_(chain=chain.reduce(trial=trial, test=test))


@match_class(InitialStateOperator)
def _project_initial_state(rules: ProjectRules, op: InitialStateOperator) -> InitialStateOperator:
    return op.with_(encode=op.encoding.project(rules.range_basis.to_numpy()))


@match_class(InitialStateOperator)
def _project_initial_state_to_subbasis(rules: ProjectToSubbasisRules, op: InitialStateOperator) -> InitialStateOperator:
    return op.with_(encode=op.encoding.restrict(np.arange(rules.dim_range)))


# pyMOR's own extension point: `project` then returns chains of small matrices, not generic wrappers that lift.
for _table, _rule in (
    (ProjectRules, _project),
    (ProjectRules, _project_initial_state),
    (ProjectToSubbasisRules, _project_to_subbasis),
    (ProjectToSubbasisRules, _project_initial_state_to_subbasis),
):
    _rule.name = f"action{_rule.action.__name__}"
    _table.insert_rule(0, _rule)
