"""Networks as strangers write them: times as an argument, masks, nested and constant arguments, solvers left over."""

import copy

import pytest
import torch
import torchdiffeq
from torch import nn

from networks import Parts, Tanh
from torchmor.adapters import ODELayer, export_onnx, export_program
from torchmor.adapters.export.failure import explain_failure
from torchmor.adapters.export.graph import check_example, exportable, resized
from torchmor.adapters.export.time_arguments import time_arguments
from torchmor.adapters.solving.runge_kutta import solve_at, solve_fixed_step
from torchmor.engine.errors import ExportError
from torchmor.engine.tableaux import TABLEAUX

pytestmark = pytest.mark.slow

T = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)


def x(batch=4, n=5):
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(forward, **parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Parts(forward, **{name: make() for name, make in parts.items()}).double().eval()


def layer(**settings):
    return lambda: ODELayer(Tanh(5), **{"method": "rk4", **settings})


def at_times(self, x, t):
    return self.ode(x, None, t)


def loaded(path):
    return torch.export.load(path).module()


@pytest.mark.parametrize("method", TABLEAUX)
@pytest.mark.parametrize("t", [T, T.flip(0)])
def test_times_as_a_tensor(method, t):
    """Law: steps between times that nobody looks at are those between the same numbers, to rounding."""

    def f(s, y):
        return torch.sin(3 * s) * y

    for final in (True, False):
        expected = solve_fixed_step(f, x(), t.tolist(), TABLEAUX[method], final=final)
        torch.testing.assert_close(solve_at(f, x(), t, TABLEAUX[method], final=final), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("batch", [3, 4])
def test_program_takes_other_times(batch, tmp_path):
    """Law: the times of the file are its argument, also where there are as many as samples in the example."""
    module = network(at_times, ode=layer(output="trajectory"))
    export_program(module, tmp_path / "net.pt2", x(batch), T, verbose=False)
    other = torch.tensor([0.5, 0.4, 0.1, -1.0]).double()
    torch.testing.assert_close(loaded(tmp_path / "net.pt2")(x(7), other), module(x(7), other).detach())


def test_onnx_file_takes_times(tmp_path):
    assert export_onnx(network(at_times, ode=layer()), tmp_path / "net.onnx", x(), T, verbose=False).relative < 1e-12


def test_times_that_decide_how_many_steps():
    module = network(at_times, ode=layer(options={"step_size": 0.25}))
    with pytest.raises(
        ExportError, match=r"one step from each time to the next.*options\['step_size'\] = 0.25 decides"
    ):
        export_program(module, "net.pt2", x(3), T)


def test_times_as_numbers_are_constants(tmp_path):
    module = network(at_times, ode=layer(options={"step_size": 0.25}))
    export_program(module, tmp_path / "net.pt2", x(3), [0.0, 0.4, 1.0], verbose=False)
    program = loaded(tmp_path / "net.pt2")
    torch.testing.assert_close(program(x(2), [0.0, 0.4, 1.0]), module(x(2), [0.0, 0.4, 1.0]).detach())
    with pytest.raises(RuntimeError, match=r"to be equal to 1\.0, but got 2\.0"):
        program(x(2), [0.0, 0.4, 2.0])


def test_which_arguments_are_times():
    """They have no batch, and are other times at other batches."""
    module, example = network(at_times, ode=layer()), (x(), T)
    times = time_arguments(module, example)
    assert times == {1} and not time_arguments(module, (x(), [0.0, 1.0])) and module.ode.func.nfe == 0
    assert check_example((x(6), T)) == 6  # of another length
    rows, other = resized(example, 2, times)
    assert rows.shape == (2, 5) and torch.allclose(other, T / 1.25)
    assert resized(example, 4, times)[1].tolist() == T.tolist()


def nested(self, batch, count):
    y = self.head(batch["x"])
    return {"y": (y[:, :count], batch["x"].shape[0]), "count": count, "none": None}


def test_nested_and_constant_arguments(tmp_path):
    module = network(nested, head=lambda: nn.Linear(5, 3))
    found = [
        export(module, tmp_path / f"net{suffix}", {"x": x()}, 2, verbose=False)
        for export, suffix in ((export_program, ".pt2"), (export_onnx, ".onnx"))
    ]
    assert all(agreement.batches == (4, 1, 7) and agreement.relative < 1e-12 for agreement in found)
    output = loaded(tmp_path / "net.pt2")({"x": x(6)}, 2)
    assert output["y"][0].shape == (6, 2) and (output["y"][1], output["count"], output["none"]) == (6, 2, None)


def some(self, x, known):
    y = torch.zeros_like(x)
    y[known] = self.ode(x[known])
    return y


def test_layer_of_the_samples_in_a_mask(tmp_path):
    known = torch.tensor([True, False, True, False])
    found = export_program(network(some, ode=layer()), tmp_path / "net.pt2", x(), known, verbose=False)
    assert found.relative < 1e-12


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.func = Tanh(5)

    def forward(self, y):
        return torchdiffeq.odeint(self.func, y, torch.tensor([0.0, 1.0]).to(y), method="rk4")[-1]


def test_solver_that_is_left(tmp_path, capfd):
    module = network(lambda self, x: self.second(self.first(x)), first=layer(), second=Foreign)
    with pytest.raises(ExportError, match=r"part 'second', a Foreign, still calls a solver of torchdiffeq") as info:
        export_program(module, tmp_path / "net.pt2", x())
    assert r"return torchdiffeq.odeint(" in str(info.value) and "reduce_network(…, 'second', …)" in str(info.value)
    assert len(str(info.value)) < 500 and info.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_failures_in_a_sentence():
    """The innermost part, the line, and the cause; the first line of what torch says, where it is nothing known."""

    def fail(self, x):
        raise ValueError("no such thing\n" + 300 * "graph\n")

    module = network(lambda self, x: self.part(x), part=lambda: Parts(fail))
    with pytest.raises(ValueError, match="no such thing") as info:
        module(x())
    words = explain_failure(info.value, module)
    assert words.startswith("its part 'part', a Parts, cannot be traced (ValueError: no such thing) (")
    assert "raise ValueError" in words and words.endswith(": write it with tensor operations")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_parts_are_named():
    module = nn.Sequential(nn.Linear(5, 5), torch.jit.script(nn.Linear(5, 5)))
    with pytest.raises(ExportError, match=r"got the TorchScript module '1', of which torch.export sees one batch only"):
        export_program(module, "net.pt2", torch.ones(2, 5))


def kept(self, x):
    self.calls += 1
    self.count += 1
    self.last = self.head(x)
    return self.last + torch.zeros_like(x[:, :3])


def test_the_network_is_left_alone(tmp_path):
    """Its counters, buffers, modes, hooks, what it keeps, and the random state; torch.compile is not asked either."""
    module = network(kept, head=lambda: nn.Linear(5, 3)).train()
    module.register_buffer("count", torch.zeros(()))
    module.calls, module.last, seen = 0, None, []
    module(x())
    module.head.register_forward_hook(lambda *_: seen.append(1))
    compiled = torch.compile(module, backend=lambda *_: pytest.fail("compiled"))
    module.head.compile(backend=lambda *_: pytest.fail("compiled"))
    last, hooks, state = module.last, len(module.head._forward_hooks), torch.get_rng_state()
    before = copy.deepcopy(module.state_dict())
    assert exportable(compiled).head._compiled_call_impl is None and module.head._compiled_call_impl is not None
    export_program(compiled, tmp_path / "net.pt2", x(), verbose=False)
    assert module.calls == 1 and module.last is last and len(module.head._forward_hooks) == hooks
    assert module.training and module.head.training and module.head.weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
