"""A stage chain as a torch module. Torch only: it runs inside reduced layers on machines without pyMOR."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.torch_functions import TORCH_FUNCTIONS
from torchmor.engine.expressions import Expression


class AffineModule(nn.Module):
    """The affine map ``weight @ [s_1; s_2; …] + bias`` of named sources, on rows.

    Parameters
    ----------
    sources
        Name → size, in the order of the columns of the weight.
    size
        Number of outputs.
    """

    def __init__(self, sources: Mapping[str, int], size: int, dtype=None, device=None):
        super().__init__()
        self.sources = dict(sources)
        self.weight = nn.Parameter(torch.zeros(size, sum(sources.values()), dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """Evaluate at values[s] of shape (batch, size of s); returns (batch, size)."""
        if len(self.sources) == 1:
            return F.linear(values[next(iter(self.sources))], self.weight, self.bias)
        if not self.sources:
            return self.bias.expand(values["y"].shape[0], -1)
        return F.linear(torch.cat([values[s] for s in self.sources], dim=-1), self.weight, self.bias)

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
        self.stages = nn.ModuleList(stages)
        self.output = output

    @property
    def reads_input(self) -> bool:
        """Whether f depends on the input u."""
        return any("u" in m.sources for m in (*self.stages, self.output))

    @property
    def reads_time(self) -> bool:
        """Whether f depends explicitly on the time t."""
        return any("t" in m.sources for m in (*self.stages, self.output))

    def forward(self, y: Tensor, u: Tensor | None = None, t: Tensor | float = 0.0) -> Tensor:
        """Evaluate f at states y (batch, n), inputs u (batch, p) and time t (a number or 0-dim tensor)."""
        values = {"y": y}
        if u is not None:
            values["u"] = u
        if self.reads_time:
            time = t.to(y.dtype) if isinstance(t, Tensor) else torch.full((), t, dtype=y.dtype, device=y.device)
            values["t"] = time.expand(y.shape[0], 1)
        for number, (expression, argument) in enumerate(zip(self.expressions, self.stages, strict=True), start=1):
            arguments = argument(values).chunk(expression.arity, dim=-1)
            values[f"g{number}"] = expression.evaluate(TORCH_FUNCTIONS, arguments)
        return self.output(values)

    def extra_repr(self) -> str:
        lines = [f"y({self.state_size})" + (f", u({self.input_size})" if self.input_size else "")]
        for number, expression in enumerate(self.expressions, start=1):
            names = [f"a{i}" for i in range(1, expression.arity + 1)]
            lines.append(f"g{number} = {expression.text(names)}")
        return "\n".join(lines)
