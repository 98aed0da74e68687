"""A stage chain as a torch module. Torch only: it runs inside reduced layers on machines without pyMOR."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.layers.torch_functions import TORCH_FUNCTIONS, exact_functions
from torchmor.adapters.solving.constants import Constants
from torchmor.adapters.solving.signals import instants
from torchmor.engine.expressions import Expression

#: Terms ``values[source] @ matrix`` of an affine map, as pairs (source, matrix).
Products = list[tuple[str, Tensor]]

#: For each map of a chain its shift, and the products that remain.
Known = list[tuple[Tensor, Products]]


class AffineModule(nn.Module):
    """The affine map ``weight @ [s_1; s_2; …] + bias`` of named sources, on rows.

    Parameters
    ----------
    sources
        Name → size, in the order of the columns of the weight.
    size
        Number of outputs.
    """

    def __init__(self, sources: Mapping[str, int], size: int, dtype: Any = None, device: Any = None):
        super().__init__()
        self.sources = dict(sources)
        self.weight = nn.Parameter(torch.zeros(size, sum(sources.values()), dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """Evaluate at values[s] of shape (batch, size of s); returns (batch, size)."""
        shift, products = self.split({})
        return _sum(shift, products, values) if products else shift.expand(values["y"].shape[0], -1)

    def split(self, known: Mapping[str, Tensor]) -> tuple[Tensor, Products]:
        """Return the map as ``shift + Σ values[s] @ matrix_s`` over the sources s whose values are not known yet.

        Parameters
        ----------
        known
            Values (…, size of s) of some sources.

        Returns
        -------
        The shift: the bias (size,), or (…, size) with the terms of known sources; and pairs (source, matrix) with views
        (size of s, size) of the weight, without sources of size 0.
        """
        shift: Tensor = self.bias
        products: Products = []
        start = 0
        for source, size in self.sources.items():
            columns = self.weight if len(self.sources) == 1 else self.weight[:, start : start + size]
            start += size
            if size == 0:
                continue
            if source not in known:
                products.append((source, columns.t()))
            elif size == 1:  # the time, mostly
                shift = torch.addcmul(shift, known[source], columns[:, 0])
            elif shift is self.bias:
                shift = F.linear(known[source], columns, shift)
            else:
                shift = shift + F.linear(known[source], columns)
        return shift, products

    def extra_repr(self) -> str:
        return f"{' + '.join(f'{s}({n})' for s, n in self.sources.items()) or 'constant'} -> {self.weight.shape[0]}"


class ChainModule(nn.Module):
    """A stage chain of matrices as a module ``(y, u, t) ↦ f(t, y, u)``.

    Law: ``module(Y.T, U.T, t) == chain(Y, U, t).T``. All matrices and shifts are parameters.

    Parameters
    ----------
    state_size
        Size n of y.
    input_size
        Size p of u, 0 for none.
    expressions
        Componentwise function of each stage, in the order of evaluation; stages are named g1, g2, … in order.
    maps
        Sources (name → size) and number of outputs of each stage's map, and of the output's map last.
    dtype, device
        Of the parameters, which are zero at first.
    """

    def __init__(
        self,
        state_size: int,
        input_size: int,
        expressions: Sequence[Expression],
        maps: Sequence[tuple[Mapping[str, int], int]],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.state_size, self.input_size = state_size, input_size
        self.expressions = tuple(expressions)
        *stages, output = (AffineModule(sources, size, dtype, device) for sources, size in maps)
        self.stages: Any = nn.ModuleList(stages)  # of AffineModule
        self.output = output

        #: Whether f depends on the input u, and explicitly on the time t.
        self.reads_input, self.reads_time = (any(s in sources for sources, _ in maps) for s in ("u", "t"))

    def forward(
        self, y: Tensor, u: Tensor | None = None, t: Tensor | float = 0.0, *, known: Known | None = None
    ) -> Tensor:
        """Evaluate f.

        Parameters
        ----------
        y
            States (batch, n).
        u
            Inputs (batch, p).
        t
            Time, a number or 0-dim tensor.
        known
            An entry of what :meth:`along` returns, instead of u and t.

        Returns
        -------
        Tensor (batch, n).
        """
        if known is None:
            given = {} if u is None else {"u": u}
            if self.reads_time:
                time = t.to(y.dtype) if isinstance(t, Tensor) else torch.full((), t, dtype=y.dtype, device=y.device)
                given["t"] = time.reshape(1, 1)
            known = self._split(given)
        values, (*stages, output) = {"y": y}, known
        for number, (shift, products) in enumerate(stages, start=1):
            if products:
                values[f"g{number}"] = self._stage(number, _sum(shift, products, values))
        shift, products = output
        return _sum(shift, products, values) if products else shift.expand(y.shape[0], -1)

    def along(self, times: Sequence[float], u: Tensor | None, like: Tensor) -> list[Known]:
        """Compute what does not depend on the state, for several evaluations at once.

        Law: ``module(y, known=module.along(times, u, y)[i]) == module(y, u[i], times[i])``, for the parameters as they
        are now.

        Parameters
        ----------
        times
            Times of k evaluations.
        u
            Inputs (k, batch, p), or None.
        like
            Tensor of the dtype and device of the states.
        """
        given = {} if u is None else {"u": u}
        if self.reads_time:
            given["t"] = instants(times, like)[:, None, None]
        known = self._split(given)
        if not given:
            return [known] * len(times)
        columns = [shift.unbind() if shift.ndim == 3 else [shift] * len(times) for shift, _ in known]
        products = [products for _, products in known]
        return [list(zip(shifts, products, strict=True)) for shifts in zip(*columns, strict=True)]

    def _split(self, given: dict[str, Tensor]) -> Known:
        """Split all maps; stages that depend on what is given alone become given."""
        known = []
        for number, argument in enumerate(self.stages, start=1):
            shift, products = argument.split(given)
            if not products:
                given[f"g{number}"] = self._stage(number, shift)
            known.append((shift, products))
        return [*known, self.output.split(given)]

    def _stage(self, number: int, argument: Tensor) -> Tensor:
        expression = self.expressions[number - 1]
        arguments = (argument,) if expression.arity == 1 else argument.chunk(expression.arity, dim=-1)
        functions = exact_functions(Constants(argument)) if torch.compiler.is_exporting() else TORCH_FUNCTIONS
        return expression.evaluate(functions, arguments)

    def extra_repr(self) -> str:
        lines = [f"y({self.state_size})" + (f", u({self.input_size})" if self.input_size else "")]
        for number, expression in enumerate(self.expressions, start=1):
            names = [f"a{i}" for i in range(1, expression.arity + 1)]
            lines.append(expression.text(names, f"g{number}"))
        return "\n".join(lines)


def _sum(shift: Tensor, products: Products, values: Mapping[str, Tensor]) -> Tensor:
    """Return ``shift + Σ values[source] @ matrix``."""
    for source, matrix in products:
        shift = torch.addmm(shift, values[source], matrix)
    return shift
