"""`single_step`: the loop outside."""

import pytest
import torch

from networks import DOUBLE
from reduced_entries import arguments_of, reduced_entry
from torchmor.adapters import export_onnx, export_program, single_step
from torchmor.adapters.solving.signals import SampledSignal
from torchmor.engine.errors import ExportError, InputError
from torchmor.engine.tableaux import TABLEAUX

methods = pytest.mark.parametrize("method", TABLEAUX)
#: Without an input, with the time, with an input.
ENTRIES = ("two hidden layers", "forcing", "GRU")


def layer_and_step(name, method="midpoint", t=(0.2, 0.5, 0.8), **settings):
    layer = reduced_entry(name)
    for key, value in {"t": t, "method": method, "output": "final", **settings}.items():
        setattr(layer, key, value)
    return layer, single_step(layer)


def looped(layer, step, y0, u=None):
    z = layer.encode(y0.flatten(1))
    signal = None if u is None else SampledSignal(u, layer.t)
    for t in step.times:
        t = torch.tensor(t, **DOUBLE)
        if signal is None:
            z = step(t, z)
        else:
            z = step(t, z, torch.stack([signal(t + c * step.step_size) for c in step.nodes], 1))
    return layer.decode(z).reshape(y0.shape)


@methods
@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(
    ("t", "options"), [((0.2, 0.5, 0.8), {}), ((1.0, 0.0), {"step_size": 0.25})], ids=["forward", "backward"]
)
def test_looping_it_equals_the_layer(name, method, t, options):
    """Law: looping the step over its times, between encoder and decoder, is the layer."""
    layer, step = layer_and_step(name, method, t, options=options)
    arguments = arguments_of(name, layer, 3)
    torch.testing.assert_close(looped(layer, step, *arguments), layer(*arguments), rtol=1e-12, atol=1e-13)


def test_an_input_held_for_the_step():
    layer, step = layer_and_step("GRU", "rk4")
    u, z = torch.randn(3, 3, **DOUBLE), torch.randn(3, layer.ode.state_size, **DOUBLE)
    torch.testing.assert_close(step(0.2, z, u), step(0.2, z, u[:, None].expand(-1, 4, -1)), rtol=1e-15, atol=1e-15)


def test_shares_the_layers_parameters_and_says_what_it_is():
    layer, step = layer_and_step("forcing", "rk4")
    assert step.ode is layer.ode
    assert step.times == pytest.approx((0.2, 0.5)) and step.step_size == pytest.approx(0.3)
    assert "one step of rk4, h = 0.3" in repr(step)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.slow
def test_exported_step(name, tmp_path):
    layer, step = layer_and_step(name, "heun2")
    p, r = layer.ode.input_size, layer.ode.state_size
    example = (torch.tensor(0.3, **DOUBLE), torch.randn(2, r, **DOUBLE), torch.randn(2, p, **DOUBLE))[: 3 if p else 2]
    for agreement in (
        export_onnx(step, tmp_path / "step.onnx", *example, verbose=False),
        export_program(step, tmp_path / "step.pt2", *example, verbose=False),
    ):
        assert agreement.relative < 1e-13
    program = torch.export.load(tmp_path / "step.pt2").module()
    later = (torch.tensor(0.7, **DOUBLE), *(torch.cat([a, a - 1]) for a in example[1:]))
    torch.testing.assert_close(program(*later), step(*later).detach(), rtol=1e-14, atol=1e-14)
    assert name != "forcing" or not torch.equal(program(*later), program(example[0], later[1]))  # t is no constant


def test_errors():
    layer, step = layer_and_step("GRU", "rk4")
    z = torch.randn(2, layer.ode.state_size, **DOUBLE)
    with pytest.raises(InputError, match=r"shape \(batch, 3\) or \(batch, 4, 3\), got none"):
        step(0.0, z)
    with pytest.raises(InputError, match=r"got \(2, 2, 3\)"):
        step(0.0, z, torch.zeros(2, 2, 3, **DOUBLE))
    step = layer_and_step("forcing")[1]
    with pytest.raises(InputError, match="expected no input u"):
        step(0.0, torch.zeros(2, step.ode.state_size, **DOUBLE), torch.zeros(2, 3, **DOUBLE))
    with pytest.raises(ExportError, match=r"steps of one size, got steps from 0.1 to 0.4: set .*\"step_size\": 0.25"):
        layer_and_step("forcing", t=(0.0, 0.4, 0.5))
    with pytest.raises(ExportError, match="fixed-step method, got the layer with method='dopri5'"):
        layer_and_step("forcing", "dopri5")
    with pytest.raises(ExportError, match="expected a ReducedODELayer, got a Linear"):
        single_step(torch.nn.Linear(2, 2))
