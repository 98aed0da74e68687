from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.evaluation import call_network
from torchmor.engine.errors import CalibrationError, DtypeError, NonFiniteError
from torchmor.engine.held_out import held_out_mask

X = torch.arange(14.0).reshape(7, 2)
LABELS = torch.arange(7)


def arguments(calibration):
    return [batch.arguments for batch in calibration]


def rows(calibration):
    """The first column of the first argument of all batches."""
    return [value for batch in calibration for value in batch.arguments[0][:, 0].tolist()]


class Repeating:
    """A re-iterable of batches that is no sequence."""

    def __iter__(self):
        yield from (X[:4], X[4:])


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (X, [3, 3, 1]),
        ([X[:4], X[4:]], [4, 3]),
        ([(X[:4],), [X[4:]]], [4, 3]),
        (Repeating(), [4, 3]),
        (((X[:4], 2.0), (X[4:], None)), [4, 3]),
        ([X, X[:0]], [7]),
        (DataLoader(X, batch_size=5), [5, 2]),
    ],
)
def test_every_form_of_data_becomes_batches(data, sizes):
    calibration = Calibration(data, 3)
    for _ in range(2):
        batches = list(calibration)
        assert [batch.size for batch in batches] == sizes
        assert np.concatenate([batch.samples for batch in batches]).tolist() == list(range(7))
        assert torch.equal(torch.cat([batch.arguments[0] for batch in batches]), X)
    assert calibration.count() == 7


def test_tuple_of_tensors_are_the_arguments_of_one_call():
    (first, labels), _ = arguments(Calibration((X, LABELS), 5))
    assert torch.equal(first, X[:5])
    assert torch.equal(labels, LABELS[:5])


def test_batch_to_inputs_maps_batches():
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=4)
    calibration = Calibration(loader, batch_to_inputs=lambda b: b[0])
    assert [len(args) for args in arguments(calibration)] == [1, 1] and rows(calibration) == X[:, 0].tolist()
    calibration = Calibration([{"x": X, "t": 1.0}], batch_to_inputs=lambda b: (b["x"], b["t"]))
    ((x, t),) = arguments(calibration)
    assert torch.equal(x, X) and t == 1.0


def test_total_batches():
    assert Calibration(X, 3).total_batches() == 3
    assert Calibration((X, LABELS), 7).total_batches() == 1
    assert Calibration([X, X]).total_batches() == 2
    assert Calibration(Repeating()).total_batches() is None


def test_shuffling_loaders_give_the_same_batches_in_every_pass():
    calibration = Calibration(DataLoader(X, batch_size=2, shuffle=True))
    state = torch.get_rng_state()
    first = rows(calibration)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert rows(calibration) == first != sorted(first)
    assert rows(Calibration(DataLoader(X, batch_size=2, shuffle=True), seed=1)) != first


def test_random_numbers_of_the_network_do_not_mix_with_those_of_the_loader():
    calibration = Calibration(DataLoader(X, batch_size=2, shuffle=True))
    first = rows(calibration)
    for batch, expected in zip(calibration, first[::2], strict=True):
        torch.rand(5)
        assert batch.arguments[0][0, 0] == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((x for x in [X]), "can be read several times, got the one-shot iterator generator: pass a list"),
        (iter([X]), "one-shot iterator list_iterator"),
        ([], "at least one sample, got none: is the loader empty"),
        ([X[:0]], "at least one sample, got none"),
        (X[:0], "at least one sample, got none"),
        ((X, X[:3]), r"one length along dimension 0, got shapes \[\(7, 2\), \(3, 2\)\]"),
        (torch.tensor(1.0), "one length along dimension 0"),
        (X.numpy(), "got ndarray: convert it with torch.from_numpy"),
        ([X.numpy()], "expected calibration batch 0 to be a Tensor or a tuple or list of arguments, got ndarray"),
        ({"x": X}, r'got dict: map batches to arguments, batch_to_inputs=lambda b: \(b\["x"\],\)'),
        ([{"x": X}], r"calibration batch 0 .* got dict: map batches to arguments, batch_to_inputs=lambda b: \(b"),
        (3.0, "expected a Tensor, a tuple of Tensors .*, got float"),
        ([(1.0, None)], "among the arguments of calibration batch 0, got float, NoneType"),
        (TensorDataset(X), r"got the dataset TensorDataset, which holds single samples: pass DataLoader\(dataset"),
    ],
)
def test_bad_data_is_refused(data, text):
    with pytest.raises(CalibrationError, match=text):
        list(Calibration(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_data_names_the_batch(value):
    bad = X.clone()
    bad[4, 0] = value
    with pytest.raises(NonFiniteError, match="got NaN or infinity in batch 1, argument 0: clean the data"):
        list(Calibration(bad, 4))


def test_batch_size_must_be_positive():
    with pytest.raises(CalibrationError, match="expected batch_size to be at least 1, got 0"):
        Calibration(X, 0)


# -- held-out samples
# --------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(0, 9))
def test_held_out_mask(n_samples, seed):
    mask = held_out_mask(n_samples, seed)
    assert mask.shape == (n_samples,)
    assert np.array_equal(mask, held_out_mask(n_samples, seed))
    if n_samples > 1:
        assert mask.sum() == max(1, round(0.2 * n_samples))
        assert not mask.all()
    else:
        assert not mask.any()


def test_held_out_mask_depends_on_the_seed():
    assert not np.array_equal(held_out_mask(50, 0), held_out_mask(50, 1))


@pytest.mark.parametrize("data", [X, [X[:4], X[4:]], DataLoader(X, batch_size=2, shuffle=True)])
def test_split_is_by_sample(data):
    calibration = Calibration(data, 3)
    fit, held_out = calibration.split(seed=0)
    assert sorted(rows(fit) + rows(held_out)) == X[:, 0].tolist()
    assert len(rows(held_out)) == 1
    assert rows(fit) == [x for x in rows(calibration) if x not in rows(held_out)]
    assert rows(calibration.split(seed=0)[0]) == rows(fit)
    for batch in fit:
        assert len(batch.arguments[0]) == batch.size == len(batch.samples)
    fit_samples = np.concatenate([batch.samples for batch in fit])
    assert np.array_equal(fit_samples, np.flatnonzero(~held_out_mask(7, 0)))


def test_selection_keeps_arguments_that_are_not_batched():
    times = torch.linspace(0, 1, 3)
    fit, _ = Calibration([(X, times, 2.0)]).split()
    ((x, t, scale),) = arguments(fit)
    assert x.shape == (6, 2)
    assert t is times
    assert scale == 2.0


def test_data_that_grows_between_passes_is_refused():
    data = [X]
    fit, _ = Calibration(data).split()
    data.append(X)
    with pytest.raises(CalibrationError, match="expected 7 calibration samples, got more"):
        list(fit)


# -- running the network
# -----------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Dropout().eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("noise", torch.full((), torch.nan))

    def forward(self, x):
        self.calls = self.calls + 1
        self.noise.fill_(torch.rand(()))
        return self.norm(x)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_leaves_no_trace(fails):
    network = Stateful()
    network.norm.training = True
    calls, state = network.calls, torch.get_rng_state()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(KeyError) if fails else nullcontext(), evaluation(network):
        assert not network.norm.training
        assert not network(X).requires_grad
        if fails:
            raise KeyError
    assert [module.training for module in network.modules()] == modes == [True, True, False]
    assert network.calls is calls
    for name, value in network.state_dict().items():
        assert torch.equal(value.nan_to_num(-1), before[name].nan_to_num(-1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_labelled_batches_are_explained():
    batch = next(iter(Calibration(DataLoader(TensorDataset(X, LABELS), batch_size=4))))
    text = r"got 2 in calibration batch 0: if the batches hold labels, pass batch_to_inputs=lambda b: b\[0\]"
    with pytest.raises(CalibrationError, match=text):
        call_network(nn.Sequential(nn.Linear(2, 2)), batch)


def test_labels_that_the_signature_would_take_are_explained():
    class Loose(nn.Module):
        def forward(self, *args):
            if len(args) > 1:
                raise TypeError("one argument only")

    batch = next(iter(Calibration((X, LABELS))))
    with pytest.raises(CalibrationError, match=r"one argument only; if the batches hold labels, pass batch_to_inputs"):
        call_network(Loose(), batch)


def test_errors_of_the_network_pass_through():
    class Failing(nn.Module):
        def forward(self, x):
            return x + "text"

    batch = next(iter(Calibration(X)))
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor"):
        call_network(Failing(), batch)


def test_wrong_shape_is_explained():
    batch = next(iter(Calibration(X)))
    with pytest.raises(
        CalibrationError, match=r"the network failed on calibration batch 0 \(.*\): .*shapes cannot be multiplied"
    ):
        call_network(nn.Linear(3, 3), batch)


def test_another_dtype_is_explained():
    batch = next(iter(Calibration(X.double())))
    with pytest.raises(DtypeError, match=r"the arguments in calibration batch 0 of torch.float32, as the parameters"):
        call_network(nn.Linear(2, 2), batch)
