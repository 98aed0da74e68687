"""Ways to run a module: in torch, compiled, in ONNX Runtime, and an ODE layer in torchode."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer, export_onnx
from torchmor.adapters.solving.torch_private import mark_dynamic, recompiling

Call = Callable[[], object]

#: So many modules of one class, at so many batch sizes, are compiled: torch stops at eight otherwise.
MOST_COMPILED = 64


class TorchodeLayer(nn.Module):
    """A full ODE layer with torchode's dopri5, which steps for each sample by itself, at the layer's tolerances.

    Parameters
    ----------
    layer
        The layer.
    """

    def __init__(self, layer: ODELayer):
        super().__init__()
        import torchode

        function = layer.function

        def f(t: Tensor, y: Tensor) -> Tensor:
            return function(t.mean(), y.reshape(-1, *self.shape)).flatten(1)

        term = torchode.ODETerm(f)
        self.times, self._torchode = (layer.t[0], layer.t[-1]), torchode
        controller = torchode.IntegralController(atol=layer.atol, rtol=layer.rtol, term=term)
        self.solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)

    def forward(self, y0: Tensor) -> Tensor:
        """Return the final state (batch, …)."""
        self.shape = y0.shape[1:]
        times = torch.tensor(self.times).expand(len(y0), 2)
        problem = self._torchode.InitialValueProblem(y0=y0.flatten(1), t_eval=times)
        return self.solver.solve(problem).ys[:, -1].reshape(y0.shape)


def eager(module: nn.Module) -> Callable[[Tensor], Call]:
    """Run a module in torch as it is."""
    return lambda argument: lambda: module(argument)


def compiled(module: nn.Module) -> Callable[[Tensor], Call]:
    """Run a module compiled by torch for the threads at hand: once for a batch of 1, and once for all others."""
    function = torch.compile(module, fullgraph=True)

    def prepare(argument: Tensor) -> Call:
        if len(argument) > 1:
            mark_dynamic(argument, 0)
        with torch.no_grad(), recompiling(MOST_COMPILED):
            function(argument)
        return lambda: function(argument)

    return prepare


def in_onnx_runtime(
    module: nn.Module, folder: Path, name: str, example: Tensor
) -> Callable[[int], Callable[[Tensor], Call]]:
    """Export a module, and return how to run it in ONNX Runtime with a number of threads."""
    import onnxruntime

    path = folder / f"{name}.onnx"
    export_onnx(module, path, example, verbose=False)

    def with_threads(count: int) -> Callable[[Tensor], Call]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = count, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (name,) = (value.name for value in session.get_inputs())

        def prepare(argument: Tensor) -> Call:
            feed = {name: argument.numpy()}
            return lambda: session.run(None, feed)

        return prepare

    return with_threads
