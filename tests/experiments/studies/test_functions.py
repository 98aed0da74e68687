"""ODE functions of published forms: what the networks compute, and the whole command in short."""

import json
from math import isfinite

import pytest
import torch
from torch import nn

from torchmor.experiments.architectures.function_networks import (
    ControlledFunction,
    DrivenClassifier,
    LatentOde,
    NormalisedFunction,
    NormalisedOde,
    RateFunction,
)
from torchmor.experiments.cli import main
from torchmor.experiments.data.images import load_images
from torchmor.experiments.studies.functions import enlarged

pytestmark = pytest.mark.slow


def test_the_whole_command(tmp_path, capsys):
    """Four networks are trained, reduced by one call each, and compared; the trained ones are kept."""
    with pytest.raises(SystemExit) as exit_:
        main(["functions", "--quick", "--out", str(tmp_path)])
    assert not exit_.value.code
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "functions.json").read_text())
    assert found["images"].endswith("8 × 8 pixels, enlarged to 28 × 28 (at most 200 samples of each part)")
    assert found["seed"] == 0
    outcomes = {outcome["network"].split()[0]: outcome for outcome in found["outcomes"]}
    assert list(outcomes) == ["Latent", "Rates,", "Neural", "Images,"]
    for outcome in outcomes.values():
        assert outcome["network"] in printed and outcome["function"][:20] in printed
        numbers = [*outcome["values"].values(), *outcome["gains"].values(), *outcome["offline_s"].values()]
        assert all(map(isfinite, numbers))
        assert all(gain > 0 for gain in outcome["gains"].values())
    assert outcomes["Latent"]["sizes"] == "state 15, g1 100 → 32, g2 100 → 32, g3 100 → 32"
    assert outcomes["Images,"]["sizes"] == "state 2,304 → 32, g3 2,304 → 128, g6 2,304 → 128; 7 stages absorbed"
    rates = outcomes["Rates,"]["values"]
    assert 0 < rates["best projection of rank 32"] < rates["reduced"]
    assert len(list((tmp_path / "networks").iterdir())) == 3


def test_small_images_are_enlarged():
    images = enlarged(load_images("digits"))
    assert images.train.inputs.shape[1:] == images.test.inputs.shape[1:] == (1, 28, 28)
    assert enlarged(images) is images


def test_normalised_function():
    torch.manual_seed(0)
    f = NormalisedFunction(4, 2).eval()
    y, t = torch.randn(3, 4, 5, 5), torch.tensor(0.3)
    channel = torch.full((3, 1, 5, 5), 0.3)
    inner = torch.cat([nn.functional.relu(nn.functional.group_norm(y, 2)), channel], 1)
    inner = nn.functional.relu(nn.functional.group_norm(f.convolutions[0].convolution(inner), 2))
    expected = nn.functional.group_norm(f.convolutions[1].convolution(torch.cat([inner, channel], 1)), 2)
    torch.testing.assert_close(f(t, y), expected)


def test_shapes():
    with torch.no_grad():
        assert NormalisedOde(10)(torch.randn(2, 1, 28, 28)).shape == (2, 10)
        assert NormalisedOde(10).stem(torch.randn(2, 1, 28, 28)).shape == (2, 64, 6, 6)
        assert LatentOde(9, 3)(torch.randn(2, 9, 3)).shape == (2, 9, 3)
        for function in (RateFunction(3, 8), ControlledFunction(3, 8, 5)):
            assert function(torch.tensor(0.0), torch.randn(2, 8), torch.randn(2, 3)).shape == (2, 8)


def test_slopes_add_up_to_the_sequence():
    """Law: y' = dX/dt moves the state by X(T) − X(0), and by the horizon in the channel of the time."""

    class Slope(nn.Module):
        def forward(self, t, y, u):
            return u

    network = DrivenClassifier(Slope(), (7, 2), 3, 4, slopes=True, horizon=2.5)
    x = torch.randn(5, 7, 2)
    with torch.no_grad():
        start = network.start(x[:, 0])
        moved = network.ode(start, network._slopes(x)) - start
    torch.testing.assert_close(moved[:, 0], torch.full((5,), 2.5))
    torch.testing.assert_close(moved[:, 1:], x[:, -1] - x[:, 0])
