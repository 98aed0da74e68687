"""pyMOR operators that fold into stage chains, one of each kind, on few unknowns.

``OPERATORS[name]()`` returns an operator and its mu. None of them keeps time or input free.
"""

import numpy as np
import scipy.sparse as sps
from pymor.algorithms.projection import project
from pymor.operators.block import (
    BlockColumnOperator,
    BlockDiagonalOperator,
    BlockOperator,
    BlockRowOperator,
    SecondOrderModelOperator,
)
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
    LowRankUpdatedOperator,
    NumpyConversionOperator,
    ProjectedOperator,
    VectorArrayOperator,
    VectorFunctional,
    VectorOperator,
    ZeroOperator,
)
from pymor.operators.ei import EmpiricalInterpolatedOperator
from pymor.operators.numpy import (
    NumpyCirculantOperator,
    NumpyHankelOperator,
    NumpyMatrixOperator,
    NumpyToeplitzOperator,
)
from pymor.parameters.functionals import ExpressionParameterFunctional, ProjectionParameterFunctional
from pymor.vectorarrays.block import BlockVectorSpace
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.affine import AffineMap
from torchmor.engine.expressions import Expression, Instruction, apply_primitive
from torchmor.engine.operators import OdeFunctionOperator, componentwise_operator
from torchmor.engine.stages import Stage, StageChain

N = 4
SPACE = NumpyVectorSpace(N)
CUBE = apply_primitive("pow", [Expression.argument(0), 3.0])
GATE = Expression(2, (Instruction("sigmoid", ("%1",)), Instruction("mul", ("%0", "%2"))))


def array(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def vectors(count, dim=N, seed=0):
    return NumpyVectorSpace.make_array(array(dim, count, seed=seed))


def matrix(rows=N, columns=N, seed=0) -> NumpyMatrixOperator:
    return NumpyMatrixOperator(array(rows, columns, seed=seed))


def product(seed=0) -> NumpyMatrixOperator:
    """A symmetric positive definite, sparse matrix."""
    return NumpyMatrixOperator(
        sps.diags_array([-0.5, 2.0 + seed, -0.5], offsets=[-1, 0, 1], shape=(N, N), format="csc")
    )


def gated(size=N, seed=0, reads=("y",)) -> OdeFunctionOperator:
    """Two stages, the second a gate, with skip links."""
    known = {"y": N} | {s: width for s, width in {"u": 2, "t": 1}.items() if s in reads}

    def affine(rows):
        blocks = {s: 0.5 * array(rows, width, seed=seed) for s, width in known.items()}
        return AffineMap.from_blocks(blocks, array(rows, seed=seed))

    stages = []
    for name, expression, width in (("first", Expression.of("tanh"), 5), ("second", GATE, 3)):
        stages.append(Stage(name, expression, affine(expression.arity * width)))
        known[name] = width
    return OdeFunctionOperator(StageChain(N, 2 if "u" in reads else 0, tuple(stages), affine(size)))


def interpolated(operator, triangular=False, points=(3, 0)) -> EmpiricalInterpolatedOperator:
    """Interpolation of an operator; the operator must be kept, as pyMOR holds it weakly."""
    # with `triangular`, pyMOR reads the interpolation matrix below its diagonal only
    basis = vectors(len(points), operator.range.dim, seed=5)
    return EmpiricalInterpolatedOperator(operator, list(points), basis, triangular)


def parametric() -> LincombOperator:
    coefficients = [
        1.5,
        ProjectionParameterFunctional("a", 2, 1),
        ExpressionParameterFunctional("b[0]**2", {"b": 1}),
    ]
    return LincombOperator([matrix(), matrix(seed=1), gated()], coefficients)


PARAMETERS = {"a": [0.3, -0.7], "b": 2.0}
GATED = gated()  # kept for the interpolated operators
NESTED = ConcatenationOperator([componentwise_operator("sin", N), gated()])
FULL = LincombOperator([matrix(), GATED], [1.0, -1.0])  # a sum cannot be restricted by pyMOR
BASIS, OTHER_BASIS = vectors(2, seed=7), vectors(3, seed=8)

OPERATORS = {
    "stage chain": lambda: (GATED, None),
    "stage chain, rectangular": lambda: (gated(2), None),
    "stage chain at a time and input": lambda: (
        gated(reads=("y", "u", "t")),
        {"t": 0.3, "input": [1.0, -1.0]},
    ),
    "componentwise": lambda: (componentwise_operator("tanh", N), None),
    "componentwise with parameter": lambda: (componentwise_operator("elu", N, alpha=0.2), None),
    "componentwise expression": lambda: (componentwise_operator(CUBE, N), None),
    "matrix": lambda: (matrix(), None),
    "matrix, rectangular": lambda: (matrix(2), None),
    "matrix, sparse": lambda: (product(), None),
    "matrix, circulant": lambda: (NumpyCirculantOperator(array(N)), None),
    "matrix, Toeplitz": lambda: (NumpyToeplitzOperator(array(N), np.append(array(N)[0], array(2))), None),
    "matrix, Hankel": lambda: (NumpyHankelOperator(array(N), np.append(array(N)[-1], array(2))), None),
    "low rank": lambda: (LowRankOperator(vectors(2), array(2, 2), vectors(2, seed=1)), None),
    "low rank, inverted": lambda: (
        LowRankOperator(vectors(2), array(2, 2), vectors(2, seed=1), inverted=True),
        None,
    ),
    "low-rank update": lambda: (
        LowRankUpdatedOperator(matrix(), LowRankOperator(vectors(2), array(2, 2), vectors(2)), 2.0, -1.0),
        None,
    ),
    "identity": lambda: (IdentityOperator(SPACE), None),
    "conversion": lambda: (NumpyConversionOperator(BlockVectorSpace([SPACE, SPACE])), None),
    "zero": lambda: (ZeroOperator(NumpyVectorSpace(2), SPACE), None),
    "constant": lambda: (ConstantOperator(vectors(1, 2), SPACE), None),
    "vector array": lambda: (VectorArrayOperator(vectors(2)), None),
    "vector array, adjoint": lambda: (VectorArrayOperator(vectors(2), adjoint=True), None),
    "vector": lambda: (VectorOperator(vectors(1)), None),
    "functional": lambda: (VectorFunctional(vectors(1)), None),
    "functional with product": lambda: (VectorFunctional(vectors(1), product()), None),
    "linear combination": lambda: (2.0 * matrix() - GATED + ConstantOperator(vectors(1), SPACE), None),
    "linear combination, parametric": lambda: (parametric(), PARAMETERS),
    "linear combination of zeros": lambda: (LincombOperator([matrix(), GATED], [0.0, 0.0]), None),
    "concatenation": lambda: (matrix(2, 3) @ matrix(3), None),
    "concatenation, nonlinear": lambda: (NESTED @ (matrix() + GATED) @ matrix(seed=2), None),
    "concatenation through a sum": lambda: (GATED @ (matrix() + ConstantOperator(vectors(1), SPACE)), None),
    "concatenation with a constant": lambda: (
        GATED @ ConstantOperator(vectors(1), NumpyVectorSpace(3)),
        None,
    ),
    "adjoint": lambda: (AdjointOperator(matrix(2) + matrix(2, seed=1)), None),
    "adjoint with products": lambda: (AdjointOperator(matrix(), product(), product(1)), None),
    "inverse": lambda: (InverseOperator(product()), None),
    "fixed parameters": lambda: (
        FixedParameterOperator(parametric(), parametric().parameters.parse(PARAMETERS)),
        None,
    ),
    "affine": lambda: (AffineOperator(matrix() + ConstantOperator(vectors(1), SPACE)), None),
    "marked linear": lambda: (LinearOperator(matrix() + ZeroOperator(SPACE, SPACE)), None),
    "projection": lambda: (ProjectedOperator(GATED, BASIS, OTHER_BASIS), None),
    "projection with product": lambda: (ProjectedOperator(GATED, BASIS, None, product()), None),
    "projection of the state": lambda: (ProjectedOperator(parametric(), None, OTHER_BASIS), PARAMETERS),
    "projected by pyMOR": lambda: (project(parametric(), BASIS, OTHER_BASIS), PARAMETERS),
    "components": lambda: (ComponentProjectionOperator([3, 0, 3], SPACE), None),
    "components of a chain": lambda: (ComponentProjectionOperator([2], SPACE) @ NESTED, None),
    "interpolation": lambda: (interpolated(GATED), None),
    "interpolation, triangular": lambda: (interpolated(GATED, triangular=True), None),
    "interpolation of a concatenation": lambda: (interpolated(NESTED), None),
    "interpolation without points": lambda: (interpolated(GATED, points=()), None),
    "interpolation of a sum": lambda: (interpolated(FULL), None),
    "interpolation, projected": lambda: (project(interpolated(GATED), BASIS, OTHER_BASIS), None),
    "interpolation, triangular, projected": lambda: (
        project(interpolated(NESTED, triangular=True), BASIS, OTHER_BASIS),
        None,
    ),
    "interpolation of a sum, projected": lambda: (project(interpolated(FULL), BASIS, OTHER_BASIS), None),
    "block": lambda: (BlockOperator([[matrix(3), gated(3)], [None, matrix(2)]]), None),
    "block row": lambda: (BlockRowOperator([matrix(3, 2), gated(3)]), None),
    "block column": lambda: (BlockColumnOperator([GATED, matrix(2), parametric()]), PARAMETERS),
    "block diagonal": lambda: (BlockDiagonalOperator([GATED, matrix(3, 2)]), None),
    "block of blocks": lambda: (
        BlockDiagonalOperator([matrix(2), BlockColumnOperator([GATED, matrix(3)])]),
        None,
    ),
    # BlockProjectionOperator and BlockEmbeddingOperator are these; those of pyMOR 2026.1.1 cannot be built
    "block projection": lambda: (
        BlockRowOperator([ZeroOperator(SPACE, SPACE), IdentityOperator(SPACE)]),
        None,
    ),
    "block embedding": lambda: (
        BlockColumnOperator([ZeroOperator(SPACE, SPACE), IdentityOperator(SPACE)]),
        None,
    ),
    "second order": lambda: (SecondOrderModelOperator(0.5, -1.0, matrix(), matrix(seed=1)), None),
    "input at a value": lambda: (LinearInputOperator(matrix(3, 2)), {"input": [1.0, -2.0]}),
}
