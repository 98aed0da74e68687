"""Modules that run their own forward, in which an ODE layer answers the solves; and what an argument decides."""

import copy
import threading

import pytest
import torch
import torchdiffeq
from torch import nn
from torchdiffeq import odeint

from foreign_networks import Field
from networks import Parts, chain
from torchmor.adapters import ODELayer, ReducedODELayer, find_ode_layers, load, reduce_network, save
from torchmor.adapters.layers.own_forward import own_form
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.engine.errors import FrozenArgumentWarning, InputError, NotReducedWarning, UnsupportedOperationError

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
FULL = {"state_dim": "full", "points": "full"}
generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


X, TIMES = draw(12, 6), draw(12, 3).abs().cumsum(1)


def last(func, y, t=T):
    return odeint(func, y, t, method="midpoint")[-1]


def network(forward, **parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"stem": nn.Linear(6, 6), "func": Field(6, 8), "head": nn.Linear(6, 3)} | parts
        return Parts(forward, **parts).double().eval()


class Kept(nn.Module):
    """Reads an attribute that somebody sets."""

    def __init__(self):
        super().__init__()
        self.field, self.condition = Field(6, 8), None

    def forward(self, t, y):
        return self.field(t, y) + self.condition


def kept(self, x, u):
    self.func.condition = torch.sin(u)
    return last(self.func, x)


def looped(self, x, u):
    for _ in range(2):
        x = last(lambda t, y: self.func(t, y) * u.mean(1, keepdim=True), self.stem(x))
    return x


def remembered(self, x):
    self.last = last(self.func, self.stem(x))
    return self.last + self.last.sin()


SLOTS = torch.linspace(0, 1, 5, dtype=torch.float64)
T_SAMPLED = torch.tensor([0.05, 0.9], dtype=torch.float64)  # jumps lie between the steps


class Driven(nn.Module):
    """Reads samples of controls (batch, T, p) at the time, or a callable, that somebody sets."""

    def __init__(self, read):
        super().__init__()
        self.field, self.enter, self.read, self.controls = Field(6, 8), nn.Linear(2, 6), read, None

    def forward(self, t, y):
        return self.field(t, y) + self.enter(self.read(self.controls, t))


def interpolated(u, t):
    i = torch.searchsorted(SLOTS, t).clamp(1, 4)
    share = (t - SLOTS[i - 1]) / (SLOTS[i] - SLOTS[i - 1])
    return (1 - share) * u[:, i - 1] + share * u[:, i]


READ = {
    "interpolated": interpolated,
    "held": lambda u, t: u[:, torch.bucketize(t, SLOTS) - 1],
    "called": lambda u, t: u(t),
    "forgotten": lambda u, t: u(t),
}


def with_controls(self, x, u):
    self.func.controls = u
    return last(self.func, x, T_SAMPLED)


def with_callable(self, x, u):
    self.func.controls = lambda t: u[:, 0] * torch.cos(t) + u[:, 1]
    return last(self.func, x)


def with_forgotten(self, x, u):
    self.func.controls = lambda t: u[:, 0] * torch.cos(t) + u[:, 1]
    y = last(self.func, x)
    self.func.controls = None
    return y


CONTROLS = draw(12, 5, 2)

# name: forward, arguments, and whether the module goes on to run its own forward
DECIDED = {
    "encoder inside": (lambda self, x: last(self.func, torch.sin(x)), (X,), True),
    "decoder inside": (lambda self, x: odeint(self.func, x, T, method="euler")[-1].sin(), (X,), True),
    "other output": (lambda self, x: {"y": last(self.func, x)}["y"].sum(1, keepdim=True).expand(-1, 8), (X,), True),
    "two solves": (lambda self, x: last(self.func, last(self.func, x)), (X,), True),
    "hidden input": (lambda self, x: last(lambda t, y: self.func(t, y) + x.cos(), x), (X,), True),
    "an attribute that is set": (remembered, (X,), True),
    "first row of the times": (lambda self, x, t: last(self.func, x, t[0]), (X, TIMES), True),
    "column of the times": (lambda self, x, t: last(self.func, x, t[:, 0].sort().values), (X, TIMES), True),
    "part of the times": (lambda self, x, t: last(self.func, x, t[-1][:2]), (X, TIMES), True),
    "all times": (lambda self, x, t: last(self.func, x, torch.unique(t)[:4]), (X, TIMES), True),
    "an end": (lambda self, x, t: last(self.func, x, torch.linspace(0, t, 3).to(x)), (X, 0.75), True),
    "an end as a tensor": (lambda self, x, t: last(self.func, x, T * t), (X, torch.tensor([0.75]).double()), True),
    "times of the state": (lambda self, x: last(self.func, x, T * x.norm()), (X,), True),
    "a factor": (lambda self, x, a: last(lambda t, y: self.func(t, y) * a, x), (X, torch.tensor(0.5).double()), True),
    "a number": (lambda self, x, a: last(lambda t, y: self.func(t, y) * a, x), (X, 0.5), True),
    "a mask": (lambda self, x, m: last(lambda t, y: self.func(t, y) * m, x), (X, draw(12, 6) > 0), False),
    "a condition": (lambda self, x, u: last(lambda t, y: self.func(t, y) + u, x), (X, draw(12, 6)), False),
    "a number for each": (
        lambda self, x, u: last(lambda t, y: self.func(t, y) + u[:, None], x),
        (X, draw(12)),
        False,
    ),
    "a default": (lambda self, x, u: last(lambda t, y, c=u: self.func(t, y) + c, x), (X, draw(12, 6)), False),
    "two": (lambda self, x, u: last(lambda t, y: self.func(t, y) * u + x, x), (X, draw(12, 6)), True),
    "an attribute": (kept, (X, draw(12, 6)), True),
    "interpolated": (with_controls, (X, CONTROLS), False),
    "held": (with_controls, (X, CONTROLS), False),
    "called": (with_callable, (X, CONTROLS), False),
    "forgotten": (with_forgotten, (X, CONTROLS), False),
    "a loop": (looped, (X, draw(12, 6)), True),
    "between layers": (lambda self, x: self.head(last(self.func, self.stem(x))), (X,), True),
    "a state without a batch": (lambda self, x: torch.stack([last(self.func, one) for one in x]), (X,), True),
}


def decided(case):
    forward, arguments, own = DECIDED[case]
    func = Kept() if case == "an attribute" else Driven(READ[case]) if case in READ else None
    return network(forward, **({} if func is None else {"func": func})), arguments, own


def others(arguments):
    """Other values than those of the calibration, of fewer samples."""

    def other(value):
        if isinstance(value, float) or not value.ndim or len(value) == 1:
            return value * 1.5
        return ~value[:5] if value.dtype == torch.bool else 0.5 * value[:5]

    return tuple(map(other, arguments))


@pytest.mark.parametrize("case", DECIDED)
def test_what_an_argument_decides_is_passed_on(case):
    """Law: the stand-in gives what the network gives, where every argument has other values; parameters keep names."""
    whole, arguments, own = decided(case)
    given = others(arguments)
    with torch.no_grad():
        other, name = with_ode_layer(whole, "", Calibration([arguments]))
        assert name == "layer" and isinstance(other.layer, ODELayer)
        assert (own_form(other) is not None) == own
        torch.testing.assert_close(other(*given), whole(*given), rtol=0, atol=1e-12)
    parts = {key for key, _ in other.named_parameters() if not key.startswith("layer.")}
    assert parts <= {key for key, _ in whole.named_parameters()}
    assert not own or parts >= {"stem.weight", "head.bias"}
    assert own_form(whole) is None and "layer" not in dict(whole.named_modules()), "the network is unchanged"


@pytest.mark.parametrize("case", ["between layers", "first row of the times", "two", "an attribute", *READ])
def test_reduced_saved_and_copied(case, tmp_path):
    whole, arguments, own = decided(case)
    given = others(arguments)
    with pytest.warns(NotReducedWarning):
        small = reduce_network(whole, "", arguments, **FULL, progress=False)
    assert isinstance(small.layer, ReducedODELayer)
    torch.testing.assert_close(small(*given), whole(*given), rtol=0, atol=1e-7)
    assert not any("inner" in key for key in small.state_dict()), "parameters of the ODE function alone are gone"
    small.load_state_dict(whole.state_dict(), strict=False)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", network=whole)
    for one in (again, copy.deepcopy(small)):
        assert torch.equal(one(*given), small(*given))
        assert not own or one.forward.module is one
    (found,) = find_ode_layers(whole, *arguments)
    assert found.name == "" and found.reducible and (found.output == "by its own forward") == own
    assert find_ode_layers(small, *arguments) == []


def test_small_network_is_exported():
    whole, arguments, _ = decided("between layers")
    small = reduce_network(whole, "", arguments, state_dim=4, points=5, progress=False)
    dims = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(small, arguments, dynamic_shapes={"arguments": dims})
    x = draw(5, 6)
    torch.testing.assert_close(program.module()(x), small(x), rtol=0, atol=1e-14)


def test_threads_solve_on_their_own():
    """Law: while a forward runs with its solves answered, other threads solve as ever, and both may run at once."""
    whole, arguments, _ = decided("between layers")
    small, _ = with_ode_layer(whole, "", Calibration(arguments[0]))
    code, wrong = torchdiffeq.odeint.__code__, []

    def run(one):
        with torch.no_grad():
            wrong.extend(1 for _ in range(20) if not torch.equal(one(X), expected))

    with torch.no_grad():
        expected = whole(X)
    threads = [threading.Thread(target=run, args=(one,)) for one in (small, whole, small)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and torchdiffeq.odeint.__code__ is code


def test_module_inside_a_network():
    def forward(self, x, t):
        return torch.sin(last(self.func, self.stem(x), t[0]))

    whole = Parts(lambda self, x, t: self.end(self.block(x, t)), block=network(forward), end=nn.Linear(6, 2)).double()
    other, name = with_ode_layer(whole, "block", Calibration([(X, TIMES)]))
    assert name == "block.layer" and torch.equal(other(X[:3], TIMES[3:6]), whole(X[:3], TIMES[3:6]))


# -- what stays refused, or is frozen ---------------------------------------------------------------------------------


def test_another_solve_than_on_the_calibration_data():
    def forward(self, x, k=2, method="midpoint"):
        return odeint(lambda t, y: self.func(t, y) * k, self.stem(x), T, method=method)[-1].sin()

    small, _ = with_ode_layer(network(forward), "", Calibration(X))
    with pytest.raises(InputError, match=r"expected k=2, which the ODE function reads.*got 3"):
        small(X, 3)
    with pytest.raises(InputError, match=r"a solve by odeint, midpoint.*got odeint, rk4"):
        small(X, 2, "rk4")


def test_functions_that_change_or_draw():
    def forward(self, x):
        y = last(self.func, x)
        return last(self.again, y)

    with pytest.raises(UnsupportedOperationError, match=r"one ODE function in the network itself.*self\.func and self"):
        with_ode_layer(network(forward, again=Field(6, 8)), "", Calibration(X))

    def noisy(self, x):
        return last(lambda t, y: self.func(t, y) + torch.randn_like(y), x.sin())

    with pytest.raises(UnsupportedOperationError, match=r"differs by up to .* random numbers"):
        with_ode_layer(network(noisy), "", Calibration(X))


class Slots:
    """Holds a value where nobody looks for it."""

    __slots__ = ("value",)


def test_argument_that_nothing_explains_is_frozen_with_a_warning():
    slots = Slots()

    def forward(self, x, scale):
        slots.value = scale
        return last(lambda t, y: self.func(t, y) * slots.value, x)

    whole = network(forward)
    with pytest.warns(FrozenArgumentWarning, match=r"argument number 1 decides about the ODE"):
        with_ode_layer(whole, "", Calibration([(X, torch.tensor([0.5]).double())]))
    with pytest.raises(UnsupportedOperationError, match=r"differs by up to .* reads in a place where none is found"):
        with_ode_layer(whole, "", Calibration([(X, torch.tensor([s]).double()) for s in (0.5, 0.6)]))


def test_later_batches_are_looked_at():
    """What is the same in the first batch and its half, but not in the last, is no constant."""
    whole = chain(block=network(lambda self, x: last(self.func, x, T * (1.0 if len(x) < 20 else 2.0)))).double()
    batches = [draw(12, 6), draw(12, 6), draw(20, 6)]
    other, _ = with_ode_layer(whole, "block", Calibration(batches))
    with torch.no_grad():
        assert torch.equal(other(batches[2]), whole(batches[2])) and torch.equal(other(batches[0]), whole(batches[0]))
