"""Trained networks are kept, and found again only for the same settings."""

from dataclasses import replace

import pytest
import torch

from torchmor.adapters.solving.steps import Steps
from torchmor.engine.errors import FileFormatError
from torchmor.experiments.data.labelled import DataSet, Labelled
from torchmor.experiments.studies.networks import CONVOLUTIONAL, RECURRENT, Training
from torchmor.experiments.studies.trained import trained_network


def small_data(shape=(1, 6, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    part = Labelled(torch.rand(24, *shape, generator=generator), torch.arange(24) % 3)
    return DataSet("noise", part, part, part)


RECIPE = replace(
    CONVOLUTIONAL[0],
    training=Training(1, 2, batch_size=8, learning_rate=1e-3, weight_decay=0, solver=Steps("euler", 1)),
)


def test_second_call_reads_the_file(tmp_path):
    first = trained_network(RECIPE, small_data(), 0, tmp_path / "networks")
    (file,) = (tmp_path / "networks").iterdir()
    written = file.stat().st_mtime_ns
    again = trained_network(RECIPE, small_data(), 0, tmp_path / "networks")
    assert file.stat().st_mtime_ns == written
    assert not again.training
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert again.ode.settings == first.ode.settings


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"data": small_data(seed=1)},
        {"recipe": replace(RECIPE, training=replace(RECIPE.training, learning_rate=2e-3))},
        {"recipe": replace(CONVOLUTIONAL[1], training=RECIPE.training)},
    ],
)
def test_other_settings_train_another_network(tmp_path, changed):
    arguments = {"recipe": RECIPE, "data": small_data(), "seed": 0}
    trained_network(**arguments, folder=tmp_path)
    trained_network(**(arguments | changed), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_file_is_named(tmp_path):
    trained_network(RECIPE, small_data(), 0, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileFormatError, match=r"trained network in .*safetensors.*delete it, and it is trained again"):
        trained_network(RECIPE, small_data(), 0, tmp_path)


@pytest.mark.parametrize("recipe", RECURRENT, ids=lambda recipe: recipe.key)
def test_recurrent_networks_take_one_euler_step_for_each_time(recipe):
    data = small_data((10, 4))
    network = recipe.network(data, 0)
    times = []
    with network.ode.observe(lambda t, y, u: times.append(float(t))):
        scores = network(data.test.inputs)
    assert scores.shape == (24, 3)
    torch.testing.assert_close(torch.tensor(times), torch.arange(10) * 0.5)


@pytest.mark.parametrize(("size", "state"), [((1, 8, 8), (16, 8, 8)), ((1, 28, 28), (16, 14, 14))])
@pytest.mark.parametrize("recipe", CONVOLUTIONAL, ids=lambda recipe: recipe.key)
def test_convolutional_networks_fit_the_images(recipe, size, state):
    data = small_data(size)
    network = recipe.network(data, 0)
    seen = []
    with network.ode.observe(lambda t, y, u: seen.append(y.shape)):
        assert network(data.test.inputs[:2]).shape == (2, 3)
    assert seen[0] == (2, *state)


def test_small_data_is_passed_more_often():
    training = RECURRENT[0].training
    assert training.epochs_on(10**6) == training.epochs
    samples = 270
    steps = training.epochs_on(samples) * -(-samples // training.batch_size)
    assert training.least_steps <= steps < training.least_steps + -(-samples // training.batch_size)
    assert f"{training.epochs_on(samples)} epochs" in training.words(samples)
