"""What follows from constants alone."""

import torch

from torchmor.adapters.solving.constants import Constants, remembered


def test_remembered_computes_once():
    """Law: ``remembered(f)(*arguments) == f(*arguments)``."""
    calls = []

    @remembered
    def f(a, b):
        """Doc."""
        calls.append((a, b))
        return a + b

    assert (f(1, 2), f(1, 2), f(2, 2)) == (3, 3, 4)
    assert calls == [(1, 2), (2, 2)] and f.__doc__ == "Doc."


def test_constants_are_numbers_unless_a_graph_is_exported():
    class Module(torch.nn.Module):
        def forward(self, x):
            constant = Constants(x)
            seen.append(constant(0.1))
            return x * constant(0.1) + constant(0.1)

    seen = []
    x = torch.ones(3, dtype=torch.float64)
    Module()(x)
    assert seen == [0.1]
    program = torch.export.export(Module(), (x,))
    assert all(isinstance(number, torch.Tensor) for number in seen[1:]) and len(seen) > 1
    (value,) = program.constants.values()
    assert value.dtype == torch.float64 and value.item() == 0.1
