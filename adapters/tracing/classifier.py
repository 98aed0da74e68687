"""From an ODE function in torch to its stage chain.

The function is traced, not pattern-matched: each operation of its captured graph is classified by how it depends on
(y, u, t): constant, affine, or componentwise in affine values. Anything else is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sps
import torch

from torchmor.adapters.layers.arrays import to_columns
from torchmor.adapters.solving.torch_private import argument_schemas, operation_name, tree_leaves, tree_map
from torchmor.adapters.tracing.affine_regions import AffineNode, RegionOperator
from torchmor.adapters.tracing.capture import capture, frozen_copy
from torchmor.adapters.tracing.operations import (
    AFFINE,
    ARITHMETIC,
    COMPONENTWISE,
    IDENTITY,
    MATRIX_PRODUCTS,
    REARRANGEMENTS,
    REFUSED,
    SHAPE_ONLY,
)
from torchmor.adapters.tracing.pointwise import Pointwise, expand, fuse, rearrange
from torchmor.engine.affine import AffineMap, Matrix
from torchmor.engine.errors import SignatureError, UnsupportedOperationError
from torchmor.engine.expressions import PARAMETERS
from torchmor.engine.stages import Stage, StageChain

#: Affine maps with at most this many entries become dense matrices at once; larger ones stay opaque.
DENSE_ENTRIES = 2**20

#: A torch.fx.Node of an operation: its target is one of torch's, which types cannot tell.
Node = Any

_OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


def trace(f: Callable[..., Any], y: torch.Tensor, u: torch.Tensor | None = None, t: float = 0.0) -> StageChain:
    """Trace an ODE function into its stage chain.

    Law: ``chain(y.T, u.T, t) == f(t, y, u).T`` with the state flattened, in float64; it is checked at the example.

    Parameters
    ----------
    f
        Function or module f(t, y, u) → tensor of the shape of y, independent of the other samples of the batch.
        A module is copied: its counters do not move.
    y
        Example state (batch, …).
    u
        Example input (batch, p), or None.
    t
        Example time.

    Raises
    ------
    UnsupportedOperationError
        f contains an operation that is neither affine nor componentwise, branches on data, or mixes samples.
    SignatureError
        f returns another shape than the state's.
    """
    f = frozen_copy(f)
    time = torch.tensor(t, dtype=y.dtype, device=y.device)
    value = f(time, y.clone(), u)  # errors of its own come as they are
    if value.shape != y.shape:
        raise SignatureError(
            f"the ODE function returned shape {tuple(value.shape)} for a state of shape {tuple(y.shape)}: torchmor "
            "needs dy/dt in the shape of the state"
        )
    return _trace(f, y, u, t, y.shape[1:])


def trace_map(f: Callable[..., Any], x: torch.Tensor) -> StageChain:
    """Trace a function of one argument into a stage chain, whatever the shape of its value.

    Law: ``chain(x.T) == f(x).T`` with argument and value flattened, in float64; it is checked at the example.

    Parameters
    ----------
    f
        Function f(x) → tensor (batch, …), independent of the other samples of the batch.
    x
        Example (batch, …).

    Raises
    ------
    UnsupportedOperationError
        As :func:`trace`.
    """
    return _trace(lambda t, y, u: f(y), x, None, 0.0, f(x.clone()).shape[1:])


def _trace(
    f: Callable[..., Any], y: torch.Tensor, u: torch.Tensor | None, t: float, output_shape: torch.Size
) -> StageChain:
    time = torch.tensor(t, dtype=y.dtype, device=y.device)
    with torch.no_grad():
        graph = capture(f, time, y[:1].clone(), None if u is None else u[:1])
        chain = _Classifier(graph, y.shape[1:], None if u is None else u.shape[1], output_shape).chain()
        _check(chain, f, y, u, t)
    return chain


def _check(chain: StageChain, f: Callable[..., Any], y: torch.Tensor, u: torch.Tensor | None, t: float) -> None:
    """Compare chain and f on a batch of distinct samples."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(max(3, len(y)), *y.shape[1:], generator=generator).to(y)
    batch = y[torch.arange(len(noise)) % len(y)] + (y.std() if y.numel() > 1 else 1.0) * 0.1 * noise
    inputs = None if u is None else u[torch.arange(len(noise)) % len(u)]
    expected = f(torch.tensor(t, dtype=y.dtype, device=y.device), batch.clone(), inputs)
    with np.errstate(all="ignore"):
        value = chain(to_columns(batch), None if inputs is None else to_columns(inputs), t)
        expected = to_columns(expected)
        same = (value == expected) | (np.isnan(value) & np.isnan(expected))  # infinities, and where f is undefined
        error = np.abs(np.where(same, 0.0, value - expected)).max()
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    tolerance = 1e4 * torch.finfo(y.dtype).eps * scale
    if not error <= tolerance:
        raise UnsupportedOperationError(
            f"the traced ODE function differs from the function by {error:.1e} (allowed {tolerance:.1e}): it "
            "mixes the samples of a batch (batch normalisation without running statistics does), keeps a hidden "
            "state, is random, leaves torch or computes in a lower precision; expected a function of (t, y, u) alone, "
            "in the dtype of y"
        )


@dataclass(eq=False)
class _Classifier:
    """Walks the graph once; `stages` and the output are collected on the way."""

    graph: torch.fx.GraphModule
    state_shape: torch.Size
    input_size: int | None
    output_shape: torch.Size
    stages: list[tuple[str, Pointwise]] = field(default_factory=list)
    sources: dict[str, AffineNode] = field(default_factory=dict)
    materialised: dict[Pointwise, AffineNode] = field(default_factory=dict)

    def chain(self) -> StageChain:
        placeholders = iter(("t", "y", "u"))
        shapes = {"t": (), "y": (1, *self.state_shape), "u": (1, self.input_size)}
        values: dict[torch.fx.Node, Any] = {}
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                name = next(placeholders)
                values[node] = self._source(name, shapes[name])
            elif node.op == "get_attr":
                values[node] = getattr(self.graph, node.target)
            elif node.op == "output":
                (result,) = node.args
                output = self._affine(values[result] if isinstance(result, torch.fx.Node) else result)
            else:
                given = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = self._operation(node, *given)
        stages = tuple(
            Stage(name, value.expression, self._map([expand(leaf, value.shape) for leaf in value.leaves]))
            for name, value in self.stages
        )
        n = int(np.prod(self.state_shape))
        return StageChain(n, self.input_size or 0, stages, self._map([expand(output, (1, *self.output_shape))]))

    def _source(self, name: str, shape: Sequence[int]) -> AffineNode:
        self.sources[name] = AffineNode.source(name, torch.Size(shape))
        return self.sources[name]

    def _operation(self, node: Node, args: Any, kwargs: Any) -> Any:
        name = _name(node.target)
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if random and name not in COMPONENTWISE and name not in REFUSED:
            raise self._unsupported(node, "it is random; call eval(), or draw the numbers once, outside")
        if not any(_depends(a) for a in _flat((args, kwargs))):
            return node.target(*args, **kwargs)
        if node.target is operator.getitem:
            value, index = args
            if isinstance(value, list | tuple):
                return value[index]
            if isinstance(value, Pointwise):  # further results of a componentwise operation are for its gradient
                return value
            return AffineNode.call(operator.getitem, args, {})
        if name in SHAPE_ONLY:
            like = [torch.zeros(a.shape, dtype=torch.float64) if _depends(a) else a for a in args]
            return node.target(*like, **kwargs)
        if name in IDENTITY:
            dtype = kwargs.get("dtype") or torch.float64
            if not dtype.is_floating_point:
                raise self._unsupported(node, f"it converts to {dtype}")
            return args[0]
        if name == "copy":  # out-of-place copy of args[1] into the shape of args[0]
            return expand(self._affine(args[1]), args[0].shape)
        if name in ARITHMETIC:
            return self._arithmetic(node, name, args, kwargs)
        if name in AFFINE and not (name == "where" and _depends(args[0])):
            return self._affine_call(node, name, args, kwargs)
        if name in COMPONENTWISE:
            return self._componentwise(node, name, args, kwargs)
        raise self._unsupported(node, REFUSED.get(name, "it is neither affine nor componentwise"))

    def _affine_call(self, node: Node, name: str, args: Any, kwargs: Any) -> Any:
        dependent = {i for i, a in enumerate(args) if any(_depends(v) for v in _flat(a))}
        if any(_depends(v) for v in _flat(kwargs)) or not any(dependent <= set(p) for p in AFFINE[name]):
            if name in MATRIX_PRODUCTS and not kwargs:
                return self._matrix_product(name, args)
            raise self._unsupported(node, "it is not affine in those arguments that depend on the state")
        if name.endswith("batch_norm") and args[5]:
            raise self._unsupported(node, "it divides by statistics of the state; use running statistics and eval()")
        if name == "slice_scatter" and len(args) > 4:  # vmap cannot represent an end far beyond
            args = (*args[:4], min(args[4], args[0].shape[args[2]]), *args[5:])
        # a view of what was contiguous in the original program may have to copy here
        function = torch.reshape if name == "reshape" else node.target
        if name == "expand" and torch.empty(args[0].shape, device="meta").expand(args[1]).shape == args[0].shape:
            return args[0]
        if name in REARRANGEMENTS and isinstance(args[0], Pointwise) and args[0] not in self.materialised:
            return rearrange(args[0], lambda x: AffineNode.call(function, (x, *args[1:]), kwargs), self._affine)
        args = tree_map(lambda a: self._affine(a) if _depends(a) else a, args)
        return AffineNode.call(function, args, kwargs)

    def _matrix_product(self, name: str, args: Any) -> Any:
        """Multiply matrices that both depend on the state, the input or the time: products, and their sums."""
        *added, a, b = args

        def unsqueezed(value: Any, dim: int) -> Any:
            def move(x: Any) -> AffineNode:
                return AffineNode.call(torch.unsqueeze, (x, dim), {})

            return rearrange(value, move, self._affine) if isinstance(value, Pointwise) else move(value)

        if name.endswith("mv"):
            products = self._fuse("mul", [a, b])
            value = AffineNode.call(torch.sum, (self._affine(products), -1), {})
        else:
            products = self._fuse("mul", [unsqueezed(a, -1), unsqueezed(b, -3)])  # (…, n, p, q)
            value = AffineNode.call(torch.sum, (self._affine(products), -2), {})
        return self._combined("add", added[0], value) if added else value

    def _arithmetic(self, node: Node, name: str, args: Any, kwargs: Any) -> Any:
        a, *rest = (_scalar(x) for x in args)
        b = rest[0] if rest else None
        if name == "neg":
            return self._scaled(a, -1.0)
        alpha = kwargs.get("alpha", rest[1] if len(rest) > 1 else 1)
        if kwargs.get("rounding_mode") is not None:
            raise self._unsupported(node, "it rounds")
        if name == "rsub":
            name, a, b = "sub", b, a
        if name in ("add", "sub"):
            return self._combined(name, a, self._scaled(b, alpha) if alpha != 1 else b)
        if _depends(b) and (name == "div" or _depends(a)):
            return self._fuse(name, [a, b])
        if isinstance(b, AffineNode | Pointwise):
            a, b = b, a  # constant times dependent
        return self._combined(name, a, b)

    def _scaled(self, a: Any, factor: Any) -> Any:
        return self._combined("mul", a, float(factor)) if _depends(a) else a * factor

    def _combined(self, name: str, a: Any, b: Any) -> Any:
        """Return a sum, or a multiple by a constant: affine, or componentwise for what is componentwise in it."""
        a, b = (self.materialised.get(x, x) if isinstance(x, Pointwise) else x for x in (a, b))

        def as_affine() -> AffineNode:
            operands = [self._affine(x) if _depends(x) else x for x in (a, b)]
            return AffineNode.call(_OPERATORS[name], tuple(operands), {})

        scalar = isinstance(a, float) or isinstance(b, float)
        shape = torch.broadcast_shapes(*(x.shape for x in (a, b) if not isinstance(x, float)))
        pointwise = [x for x in (a, b) if isinstance(x, Pointwise) and x.shape == shape]
        if not pointwise:
            return as_affine()
        fused = self._fuse(name, [a, b])
        together = len(pointwise) == 2 and set(a.leaves) == set(b.leaves)
        if (scalar or together) and all(x.as_affine is None for x in pointwise):
            return fused  # one stage, that includes the factor or the sum
        return replace(fused, as_affine=as_affine)

    def _componentwise(self, node: Node, name: str, args: Any, kwargs: Any) -> Any:
        schema = argument_schemas(node.target)
        given = {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        operands, parameters = [], {}
        for argument in schema:
            value = given.get(argument.name, argument.default_value if argument.has_default_value() else None)
            if argument.name in PARAMETERS.get(COMPONENTWISE[name], ()):
                if _depends(value):
                    raise self._unsupported(node, f"its parameter '{argument.name}' depends on the state")
                parameters[argument.name] = _scalar(value) if value is not None else None
            elif "Tensor" in str(argument.type) or argument.name in ("self", "other", "exponent"):
                operands.append(_scalar(value))
        if name.startswith("rrelu"):
            if given.get("training"):
                raise self._unsupported(node, "it is random in training mode; call eval() on the function")
            operands = operands[:1]
            parameters = {"negative_slope": (given.get("lower", 1 / 8) + given.get("upper", 1 / 3)) / 2}
        if name == "pow" and isinstance(operands[1], float) and operands[1] == 1.0:
            return operands[0]
        return self._fuse(COMPONENTWISE[name], operands, parameters)

    def _fuse(self, primitive: str, operands: Sequence[Any], parameters: Mapping[str, Any] | None = None) -> Pointwise:
        """Apply a primitive to operands of broadcast shape, as one componentwise function of all their leaves."""
        shape = torch.broadcast_shapes(*(x.shape for x in operands if not isinstance(x, float)))
        prepared = []
        for x in operands:
            if isinstance(x, torch.Tensor):
                x = AffineNode.constant(x)
            elif isinstance(x, Pointwise) and x.shape != shape:
                x = self._affine(x)
            prepared.append(x)
        return fuse(primitive, prepared, shape, parameters)

    def _affine(self, value: Any) -> AffineNode:
        """Return the value as an affine node: a componentwise function becomes a stage and its value a source."""
        if isinstance(value, torch.Tensor):
            return AffineNode.constant(value)
        if isinstance(value, AffineNode):
            return value
        if value not in self.materialised:
            if value.as_affine is not None:
                self.materialised[value] = value.as_affine()
            else:
                name = f"g{len(self.stages) + 1}"
                self.stages.append((name, value))
                self.materialised[value] = self._source(name, value.shape)
        return self.materialised[value]

    def _map(self, nodes: Sequence[AffineNode]) -> AffineMap:
        """Stack affine nodes into one affine map of the sources they read."""
        names = [s for s in self.sources if any(s in node.sources for node in nodes)]
        sources = {s: self.sources[s] for s in names}
        sizes = tuple(source.size for source in sources.values())
        if len(nodes) == 1 and nodes[0] in sources.values():
            return AffineMap(tuple(names), sizes, sps.eye_array(sizes[0], format="csr"), np.zeros(sizes[0]))
        region = RegionOperator(sources, nodes)
        linear: Matrix = region
        if region.shape[0] * region.shape[1] <= DENSE_ENTRIES:
            linear = region @ np.eye(region.shape[1]) if names else np.zeros(region.shape)
        return AffineMap(tuple(names), sizes, linear, region.shift)

    def _unsupported(self, node: Node, reason: str) -> UnsupportedOperationError:
        place = node.meta.get("stack_trace", "")
        return UnsupportedOperationError(
            f"the ODE function contains '{_name(node.target)}'{place}, which cannot be reduced: {reason}. "
            "Supported are affine operations (linear layers, convolutions, average pooling, padding, batch "
            "normalisation in eval mode, slicing, reshaping), componentwise functions, their sums, products and "
            "compositions"
        )


def _name(target: Any) -> str:
    name = operation_name(target)
    if name is None:
        return getattr(target, "__name__", str(target))
    if name in ("view", "view_copy", "_unsafe_view", "_reshape_copy", "unsafe_view"):
        return "reshape"
    name = name.removesuffix("_copy") if name not in ("_to_copy", "lift_fresh_copy") else name
    return {"unsafe_split": "split", "divide": "div", "subtract": "sub", "multiply": "mul"}.get(name, name)


def _depends(value: Any) -> bool:
    return isinstance(value, AffineNode | Pointwise)


def _flat(value: Any) -> list[Any]:
    return tree_leaves(value)


def _scalar(value: Any) -> Any:
    """Return numbers, and constant tensors of one element, as floats."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return float(value)
    return float(value) if isinstance(value, int | float | bool) else value
