"""Algebra of stage chains: composition, linear combination, stacking, exact for nonlinear chains too.

Stages of the parts are renamed apart; the input "u" and the time "t" are shared. Opaque maps stay opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import scipy.linalg as spla
import scipy.sparse as sps
from scipy.sparse.linalg import LinearOperator, splu

from torchmor.engine.affine import AffineMap, Lift, Matrix, accumulate, by_products, dense
from torchmor.engine.errors import ShapeError, UnsupportedOperationError
from torchmor.engine.expressions import Expression, Parameter
from torchmor.engine.stages import Stage, StageChain


def linear_chain(matrix: Matrix, shift: np.ndarray | None = None) -> StageChain:
    """Return the chain without stages ``y ↦ matrix @ y + shift``.

    Parameters
    ----------
    matrix
        Array, sparse matrix or LinearOperator (size, n).
    shift
        Array (size,); None for zero.

    Raises
    ------
    UnsupportedOperationError
        The matrix or the shift is complex.
    """
    if not isinstance(matrix, LinearOperator):
        matrix = _real(sps.csr_array(matrix) if sps.issparse(matrix) else np.asarray(matrix))
    size, n = matrix.shape
    shift = np.zeros(size) if shift is None else _real(np.asarray(shift))
    return StageChain(n, 0, (), AffineMap(("y",), (n,), matrix, shift))


def constant_chain(value: np.ndarray, state_size: int) -> StageChain:
    """Return the chain ``y ↦ value``, without any matrix."""
    return StageChain(state_size, 0, (), AffineMap.from_blocks({}, _real(np.asarray(value))))


def component_chain(components: np.ndarray, state_size: int) -> StageChain:
    """Return the chain ``y ↦ y[components]``; any order, repeats allowed."""
    return linear_chain(sps.eye_array(state_size, format="csr")[np.asarray(components, dtype=np.int64)])


def componentwise(function: Expression | str, size: int, **parameters: Parameter) -> StageChain:
    """Return the chain of one stage ``y ↦ φ(y)``.

    Parameters
    ----------
    function
        φ: an Expression of one argument, or the name of a primitive of one argument.
    size
        Size of y.
    parameters
        Parameters of the primitive, as in ``componentwise("leaky_relu", size, negative_slope=0.1)``.

    Raises
    ------
    ShapeError
        φ has several arguments.
    ValueError
        The name is no primitive, or the primitive has no such parameter.
    """
    if isinstance(function, Expression) and parameters:
        raise ValueError(
            f"expected parameters with the name of a primitive only, got {sorted(parameters)} with an "
            "Expression: write them into the Expression"
        )
    expression = function if isinstance(function, Expression) else Expression.of(function, **parameters)
    if expression.arity != 1:
        raise ShapeError(
            f"expected a function of one argument, got {function!r} of {expression.arity}: fix the others, as "
            'in apply_primitive("pow", [Expression.argument(0), 3.0])'
        )
    identity = sps.eye_array(size, format="csr")
    stage = Stage("g1", expression, AffineMap.from_blocks({"y": identity}))
    return StageChain(size, 0, (stage,), AffineMap.from_blocks({"g1": identity}))


def compose(outer: StageChain, inner: StageChain) -> StageChain:
    """Compose two chains.

    Law: ``compose(outer, inner)(y, u, t) == outer(inner(y, u, t), u, t)``.

    Raises
    ------
    ShapeError
        The output of `inner` does not fit the state of `outer`, or their inputs differ in size.
    """
    if outer.state_size != inner.output.size:
        raise ShapeError(
            f"expected an inner chain with {outer.state_size} outputs, the state size of the outer one, got "
            f"{inner.output.size}"
        )
    outer, inner = outer.numbered(len(inner.stages) + 1), inner.numbered()
    stages = tuple(replace(s, argument=_through(s.argument, "y", inner.output)) for s in outer.stages)
    output = _through(outer.output, "y", inner.output)
    return StageChain(inner.state_size, _input_size(outer, inner), (*inner.stages, *stages), output)


def linear_combination(chains: Sequence[StageChain], coefficients: Sequence[float]) -> StageChain:
    """Combine chains of the same state linearly; a chain with coefficient zero is left out.

    Law: ``linear_combination(chains, c)(y) == Σ c_i chains_i(y)``.

    Raises
    ------
    ShapeError
        The chains differ in the sizes of their states, outputs or inputs.
    UnsupportedOperationError
        A coefficient is complex.
    """
    sizes = {(chain.state_size, chain.output.size) for chain in chains}
    if len(sizes) != 1:
        raise ShapeError(f"expected chains of one state size and one output size, got (state, output) {sorted(sizes)}")
    ((state_size, size),) = sizes
    kept = [(chain, float(_real(c))) for chain, c in zip(chains, coefficients, strict=True) if c]
    if not kept:
        return constant_chain(np.zeros(size), state_size)
    stages: list[Stage] = []
    outputs: list[AffineMap] = []
    for chain, _ in kept:
        chain = chain.numbered(len(stages) + 1)
        stages.extend(chain.stages)
        outputs.append(chain.output)
    output = _sum(outputs, [coefficient for _, coefficient in kept])
    return StageChain(state_size, _input_size(*(chain for chain, _ in kept)), tuple(stages), output)


def stack(chains: Sequence[StageChain]) -> StageChain:
    """Stack the outputs of chains of the same state: ``y ↦ [chains_1(y); chains_2(y); …]``."""
    identity = sps.eye_array(sum(chain.output.size for chain in chains), format="csc")
    ends = np.cumsum([chain.output.size for chain in chains])
    embedded = [
        compose(linear_chain(identity[:, end - chain.output.size : end]), chain)
        for chain, end in zip(chains, ends, strict=True)
    ]
    return linear_combination(embedded, [1.0] * len(chains))


def block_chain(blocks: Sequence[Sequence[StageChain]]) -> StageChain:
    """Arrange chains as a block matrix.

    Law: ``block_chain(blocks)([y_1; y_2; …]) == [Σ_j blocks_1j(y_j); Σ_j blocks_2j(y_j); …]``.
    """
    ends = np.cumsum([chain.state_size for chain in blocks[0]])
    parts = [
        component_chain(np.arange(end - chain.state_size, end), ends[-1])
        for chain, end in zip(blocks[0], ends, strict=True)
    ]
    return stack(
        [
            linear_combination([compose(f, part) for f, part in zip(row, parts, strict=True)], [1.0] * len(row))
            for row in blocks
        ]
    )


def transpose(chain: StageChain) -> StageChain:
    """Return ``v ↦ Aᵀ v`` for a linear chain ``y ↦ A y``.

    Raises
    ------
    UnsupportedOperationError
        The chain is not linear.
    """
    return linear_chain(_linear_part(chain, "transpose").T)


def left_divide(divisor: StageChain, chain: StageChain) -> StageChain:
    """Return ``y ↦ A⁻¹ chain(y)`` for a linear, invertible divisor ``y ↦ A y``.

    Raises
    ------
    UnsupportedOperationError
        The divisor is not linear.
    """
    matrix = _linear_part(divisor, "invert")
    if isinstance(matrix, LinearOperator):
        matrix = divisor.output.blocks()["y"]

    def solve(columns: Matrix) -> np.ndarray:
        columns = dense(columns)
        if sps.issparse(matrix):
            return splu(sps.csc_array(matrix)).solve(np.ascontiguousarray(columns))
        return spla.solve(matrix, columns)

    blocks = {source: solve(block) for source, block in chain.output.blocks().items()}
    return replace(chain, output=AffineMap.from_blocks(blocks, solve(chain.output.shift[:, np.newaxis])[:, 0]))


def fix(chain: StageChain, u: np.ndarray | None = None, t: float | None = None) -> StageChain:
    """Fix the input u (p,) or the time t of a chain; what is None stays free.

    Law: ``fix(chain, u, t)(y) == chain(y, u, t)``.
    """
    values = {"u": u, "t": None if t is None else np.atleast_1d(float(t))}
    lifts = {
        source: Lift(np.zeros((len(value), 0)), np.asarray(value, dtype=np.float64))
        for source, value in values.items()
        if value is not None and chain.reads(source)
    }

    def fixed(affine: AffineMap) -> AffineMap:
        return affine.substitute(lifts).select({}) if set(lifts) & set(affine.sources) else affine

    stages = tuple(replace(stage, argument=fixed(stage.argument)) for stage in chain.stages)
    return replace(
        chain, stages=stages, output=fixed(chain.output), input_size=0 if u is not None else chain.input_size
    )


def trim(chain: StageChain) -> StageChain:
    """Drop the components of stages that nothing reads; chains with opaque maps are returned as they are.

    Law: ``trim(chain)(y, u, t) == chain(y, u, t)``.
    """
    if any(affine.is_opaque for affine in chain.maps):
        return chain
    restricted, dofs = chain.restrict(np.arange(chain.output.size))
    return restricted.reduce(trial=sps.eye_array(chain.state_size, format="csr")[dofs])


def _through(affine: AffineMap, source: str, inner: AffineMap) -> AffineMap:
    """Write one source of a map as an affine map of other sources: ``affine(…, source = inner(…), …)``."""
    if source not in affine.sources:
        return affine
    shift = affine.shift + affine.derivative({source: inner.shift[:, np.newaxis]})[:, 0]
    if not (affine.is_opaque or inner.is_opaque):
        blocks = affine.blocks()
        block = blocks.pop(source)
        accumulate(blocks, {s: block @ b for s, b in inner.blocks().items()})
        return AffineMap.from_blocks(blocks, shift)

    def forward(tangents: dict[str, np.ndarray]) -> np.ndarray:
        # the source itself may also be one of inner: its tangent belongs to inner alone
        direct = {s: tangent for s, tangent in tangents.items() if s != source}
        return affine.derivative({**direct, source: inner.derivative(tangents)})

    def reverse(cotangent: np.ndarray) -> dict[str, np.ndarray]:
        total = affine.adjoint(cotangent)
        accumulate(total, inner.adjoint(total.pop(source)))
        return total

    sizes = dict(zip(affine.sources, affine.sizes, strict=True))
    del sizes[source]
    sizes |= dict(zip(inner.sources, inner.sizes, strict=True))
    return _opaque(sizes, shift, forward, reverse)


def _sum(maps: Sequence[AffineMap], coefficients: Sequence[float]) -> AffineMap:
    """Return ``Σ coefficients_i maps_i``."""
    terms = list(zip(coefficients, maps, strict=True))
    shift = sum((c * affine.shift for c, affine in terms), np.zeros(maps[0].size))
    if not any(affine.is_opaque for affine in maps):
        blocks: dict[str, np.ndarray | sps.sparray] = {}
        for c, affine in terms:
            accumulate(blocks, {s: c * block for s, block in affine.blocks().items()})
        return AffineMap.from_blocks(blocks, shift)

    def forward(tangents: dict[str, np.ndarray]) -> np.ndarray:
        return reduce(np.add, (c * affine.derivative(tangents) for c, affine in terms))

    def reverse(cotangent: np.ndarray) -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for c, affine in terms:
            accumulate(total, affine.adjoint(c * cotangent))
        return total

    sizes = reduce(dict.__or__, (dict(zip(m.sources, m.sizes, strict=True)) for m in maps))
    return _opaque(sizes, shift, forward, reverse)


def _opaque(
    sizes: Mapping[str, int],
    shift: np.ndarray,
    forward: Callable[[dict[str, np.ndarray]], np.ndarray],
    reverse: Callable[[np.ndarray], dict[str, np.ndarray]],
) -> AffineMap:
    """Return a map known by its products with tangents, and its transposed products, per source."""
    if not sizes:
        return AffineMap.from_blocks({}, shift)
    shape, ends = (len(shift), sum(sizes.values())), np.cumsum(list(sizes.values()))[:-1]

    def product(columns: np.ndarray) -> np.ndarray:
        parts = np.split(columns.reshape(shape[1], -1), ends)
        return np.broadcast_to(forward(dict(zip(sizes, parts, strict=True))), (shape[0], parts[0].shape[1]))

    def transposed_product(columns: np.ndarray) -> np.ndarray:
        total = reverse(columns.reshape(shape[0], -1))
        return np.concatenate([total[source] for source in sizes])

    return AffineMap(tuple(sizes), tuple(sizes.values()), by_products(shape, product, transposed_product), shift)


def _input_size(*chains: StageChain) -> int:
    sizes = {chain.input_size for chain in chains if chain.reads("u")}
    if len(sizes) > 1:
        raise ShapeError(f"expected chains that share one input u, got inputs of the sizes {sorted(sizes)}")
    return sizes.pop() if sizes else max(chain.input_size for chain in chains)


def _linear_part(chain: StageChain, verb: str) -> Matrix:
    if not chain.is_linear:
        raise UnsupportedOperationError(
            f"expected a linear chain to {verb}, got one with {len(chain.stages)} stages that reads "
            f"{sorted({s for affine in chain.maps for s in affine.sources})} or has a shift"
        )
    return chain.output.linear if chain.output.sources else sps.csr_array((chain.output.size, chain.state_size))


def _real(array: Any) -> Any:
    if np.iscomplexobj(array):
        raise UnsupportedOperationError(
            "expected real numbers, got complex ones, which stage chains and their modules do not hold: write "
            "the model in real and imaginary parts"
        )
    return array.astype(np.float64) if hasattr(array, "astype") else array
