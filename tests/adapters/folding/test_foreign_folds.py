"""`fold` of networks as strangers write them: masks, times as an argument, compiled and scripted parts, counters."""

import copy

import pytest
import torch
from torch import nn

from networks import Parts, Tanh
from torchmor.adapters import ReducedODELayer, fold
from torchmor.adapters.layers.ode_layer import OdeFunction
from torchmor.adapters.models.conversion import chain_to_module
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.errors import UnsupportedOperationError

pytestmark = pytest.mark.slow


def ode(n, r=3, **settings) -> ReducedODELayer:
    """A reduced layer with random operators."""
    chain = trace(OdeFunction(Tanh(r).double()), torch.zeros(2, r).double(), None)
    layer = ReducedODELayer(SolveSettings(**{"method": "rk4", **settings}), (n,), chain_to_module(chain), r)
    for parameter in (*layer.encode.parameters(), *layer.decode.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return layer


def network(forward, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Parts(forward, stem=nn.Linear(5, 20), ode=ode(20, **settings), head=nn.Linear(20, 2)).double().eval()


def arguments(batch, *masks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    return (x, *(torch.rand(batch, *shape, generator=generator) > 0.4 for shape in masks))


def selected(self, x, mask):
    return self.head(self.ode(self.stem(x))[mask])


def put(self, x, mask):
    y = self.ode(self.stem(x)).clone()
    y[mask] = 0.0
    return self.head(y)


def solved_where(self, x, mask):
    h = self.stem(x)
    y = torch.zeros_like(h)
    y[mask] = self.ode(h[mask])
    return {"scores": self.head(y), "kept": mask.sum()}


def counted(self, x, mask):
    y = self.ode(self.stem(x))[mask]
    return self.head(y) + torch.zeros_like(y[:, :1]), y.new_zeros(y.shape[0] + 1)


MASKS = {
    "samples": (selected, ()),
    "samples put": (put, ()),
    "entries put": (put, (20,)),
    "solve of some samples": (solved_where, ()),
    "numbers of kept samples": (counted, ()),
    "product": (lambda self, x, mask: self.head(self.ode(self.stem(x)) * mask), (20,)),
    "where": (lambda self, x, mask: self.head(torch.where(mask, self.ode(self.stem(x)), self.stem(x))), (20,)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    """Law: the copy is the same function of masks, whatever they keep."""
    forward, shape = MASKS[name]
    module = network(forward)
    folded = fold(module, *arguments(3, shape))
    for batch, seed in ((7, 1), (4, 2), (1, 3)):
        given = arguments(batch, shape, seed=seed)
        torch.testing.assert_close(folded(*given), module(*given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "settings", [{}, {"output": "trajectory"}, {"method": "dopri5"}, {"options": {"step_size": 0.3}}]
)
@pytest.mark.parametrize("batch", [2, 4])
def test_times_as_an_argument(settings, batch):
    """Law: the copy takes other times, projection and lifting are merged, also for as many times as samples."""
    module = network(lambda self, x, t: self.head(self.ode(self.stem(x), None, t)), **settings)
    folded = fold(module, *arguments(batch), torch.linspace(0, 1, 4).double())
    assert [part.result for part in folded.explain().parts] == ["exact", "exact"]
    other = torch.tensor([0.2, 0.4, 1.0, 1.5]).double()
    given = (*arguments(7, seed=1), other)
    torch.testing.assert_close(folded(*given), module(*given), rtol=1e-6, atol=1e-6)


def through(self, x):
    return self.head(self.ode(self.stem(x)))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_parts_are_named():
    module = network(through)
    module.head = torch.jit.script(module.head)
    with pytest.raises(
        UnsupportedOperationError, match=r"got the TorchScript module 'head', of which torch.export sees"
    ):
        fold(module, *arguments(3))


def kept(self, x):
    self.calls += 1
    self.count += 1
    self.last = self.ode(self.stem(x))
    return self.head(self.last)


def test_the_network_is_left_alone():
    """Counters, buffers, what it keeps, hooks and the random state; torch.compile is not asked either."""
    module, seen = network(kept), []
    module.register_buffer("count", torch.zeros(()))
    module.calls, module.last = 0, None
    module(*arguments(2))
    module.train()
    module.head.register_forward_hook(lambda *_: seen.append(1))
    compiled = torch.compile(module, backend=lambda *_: pytest.fail("compiled"))
    last, state, before = module.last, torch.get_rng_state(), copy.deepcopy(module.state_dict())
    folded = fold(compiled, *arguments(3))
    assert {part.layer for part in folded.explain().parts} == {"ode"}
    assert module.calls == 1 and module.last is last and module.training and len(module.head._forward_hooks) == 1
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_graph_that_is_another_function_is_refused():
    """What depends on more than the arguments shows in the comparison, and nothing is returned."""
    module = network(lambda self, x: through(self, x) * (1.0 if torch.compiler.is_exporting() else 2.0))
    with pytest.raises(
        UnsupportedOperationError, match=r"graph computes what it computes, got a relative difference of 0.5"
    ):
        fold(module, *arguments(3))
