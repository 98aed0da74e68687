"""POD–DEIM of an ODE layer's model: sizes, rules, laws and errors."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import module
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.affine import AffineMap
from torchmor.engine.bases import pod
from torchmor.engine.errors import NonFiniteError, SizeError
from torchmor.engine.expressions import Expression
from torchmor.engine.models import ode_layer_model
from torchmor.engine.points import INTERPOLATING, SELECTIONS, interpolate
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.reductors import OdeLayerReductor
from torchmor.engine.sizes import BASES, FITS
from torchmor.engine.stages import Stage, StageChain
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

TIMES = tuple(np.linspace(0.0, 1.0, 9))
over_selections = pytest.mark.parametrize("selection", INTERPOLATING)


METHODS = [("omp", "least_squares"), ("omp", "interpolation"), ("deim", "interpolation"), ("qdeim", "least_squares")]


class Squared(nn.Module):
    def forward(self, x):
        return x * x


class Layered(nn.Module):
    """Two stages and a skip link, on states that stay near a few directions."""

    def __init__(self, n, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n, width), nn.Tanh(), nn.Linear(width, n), nn.Softplus())

    def forward(self, t, y, u=None):
        return self.net(y) - 2 * y


def model(f, n) -> tuple:
    """The model of a function of one state, and its snapshots on states that vary in four directions."""
    f = f.double()
    chain = trace(lambda t, y, u: f(t, y), torch.randn(2, n, dtype=torch.float64))
    fom = ode_layer_model(chain, RungeKuttaTimeStepper("rk4", TIMES))
    rng = np.random.default_rng(0)
    initial = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 12)) / 4
    snapshots = np.hstack([fom.solve(y).to_numpy() for y in initial.T])
    return fom, snapshots, initial


@pytest.fixture(scope="module")
def layered():
    torch.manual_seed(0)
    return model(Layered(24, 30), 24)


@pytest.fixture(scope="module")
def tanh_network():
    torch.manual_seed(0)
    return model(module(lambda self, t, y: torch.tanh(self.A(y)), A=nn.Linear(16, 16)), 16)


def error(fom, reduction, initial):
    """Largest relative error of trajectories."""
    errors = []
    for y in initial.T:
        full, reduced = fom.solve(y).to_numpy(), reduction.rom.output(y)
        errors.append(np.linalg.norm(reduced - full) / np.linalg.norm(full))
    return max(errors)


@over_selections
@pytest.mark.parametrize("sizes", [(16, 16), ("full", "full")])
def test_full_sizes_reproduce_the_full_model(tanh_network, sizes, selection):
    """r = n and m = n: the trajectories of a tanh network of width n, to 1e-10."""
    fom, snapshots, initial = tanh_network
    reduction = SnapshotReductor(fom, snapshots).reduce(state_dim=sizes[0], points=sizes[1], selection=selection)
    assert error(fom, reduction, initial) < 1e-10
    assert [part.reduced for part in reduction.parts] == [16, 16]
    assert all(part.fate == "kept" for part in reduction.parts)
    assert reduction.bases == reduction.points == reduction.reductor.interpolations == {}


@over_selections
def test_almost_full_sizes(tanh_network, selection):
    """One less than everything projects and interpolates indeed, and is close where the data is rich enough."""
    fom, _, initial = tanh_network
    rich = np.random.default_rng(1).normal(size=(16, 200))
    reduction = SnapshotReductor(fom, rich).reduce(state_dim=15, points=15, selection=selection)
    assert [part.reduced for part in reduction.parts] == [15, 15]
    assert reduction.bases["state"].shape == (16, 15) and reduction.bases["g1"].shape == (16, 15)
    assert 1e-6 < error(fom, reduction, initial) < 0.3


@over_selections
def test_a_basis_of_all_directions_reproduces_the_full_model(tanh_network, selection):
    """The same law without the shortcut for full sizes: V and U square, through projection and interpolation."""
    fom, _, initial = tanh_network
    rich = np.random.default_rng(1).normal(size=(16, 200))
    values = fom.operator.chain.evaluate(rich)["g1"]
    V = fom.solution_space.make_array(pod(rich).modes)
    sampled = interpolate(values, pod(values), 16, selection)
    rom = OdeLayerReductor(fom, V, {"g1": sampled}).reduce()
    for y in initial.T:
        np.testing.assert_allclose(rom.output(y), fom.solve(y).to_numpy(), rtol=1e-10, atol=1e-10)


@over_selections
def test_errors_fall_with_the_sizes(layered, selection):
    fom, snapshots, initial = layered
    errors = [
        error(fom, SnapshotReductor(fom, snapshots).reduce(state_dim=r, points=m, selection=selection), initial)
        for r, m in ((2, 4), (6, 10), (14, 20))
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-3


@over_selections
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
def test_energy_rule_chooses_the_sizes(layered, rtol, selection):
    """Every size is the smallest r with ``Σ_{i>r} σ_i² ≤ rtol² Σ σ_i²``, of the states and of each stage's values."""
    fom, snapshots, initial = layered
    reduction = SnapshotReductor(fom, snapshots).reduce(energy_rtol=rtol, selection=selection)
    values = (-fom.operator.chain).evaluate(snapshots)
    for part, data in zip(reduction.parts, (snapshots, values["g1"], values["g2"]), strict=True):
        spectrum = np.linalg.svd(data, compute_uv=False)
        tails = np.append(np.cumsum(spectrum[::-1] ** 2)[::-1], 0.0)
        assert part.reduced == max(1, np.flatnonzero(tails <= rtol**2 * tails[0])[0])
        assert part.dropped_energy == pytest.approx(tails[part.reduced] / tails[0], rel=1e-3, abs=1e-13)
        assert f"energy_rtol={rtol:g}" in part.why
    assert error(fom, reduction, initial) < 4 * rtol


def test_result_is_what_it_says(layered):
    fom, snapshots, initial = layered
    reduction = SnapshotReductor(fom, snapshots).reduce(state_dim=4, points=[6, "full"], selection="qdeim")
    state, first, second = reduction.parts
    assert (state.name, state.full, state.reduced, state.why) == ("state", 24, 4, "POD, as asked")
    assert (first.name, first.what, first.full, first.reduced, first.why) == (
        "g1",
        "tanh(a1)",
        30,
        6,
        "qdeim, as asked",
    )
    assert (second.name, second.full, second.reduced, second.why) == ("g2", 24, 24, "kept: as asked")
    assert set(reduction.bases) == {"state", "g1"} and set(reduction.points) == {"g1"}
    V, sampled = reduction.bases["state"], reduction.reductor.interpolations["g1"]
    np.testing.assert_allclose(V, pod(snapshots).modes[:, :4], atol=1e-12)
    np.testing.assert_allclose(sampled.lift @ sampled.basis[sampled.points], sampled.basis, atol=1e-10)
    assert first.constant == sampled.constant and first.condition == sampled.condition
    assert [s.size for s in reduction.rom.operator.chain.stages] == [6, 24]
    y = initial[:, 0]
    solution = reduction.rom.solve(y)
    np.testing.assert_allclose(solution.to_numpy()[:, 0], V.T @ y, atol=1e-13)
    lifted = reduction.reductor.reconstruct(solution).to_numpy()
    np.testing.assert_allclose(lifted, reduction.rom.output(y), atol=1e-13)
    full = pod(snapshots).singular_values
    np.testing.assert_allclose(reduction.singular_values["state"][:4], full[:4], rtol=1e-9)


def test_stages_of_fewer_components_than_points_are_kept(layered):
    """points=26 samples the stage of 30 components and keeps that of 24."""
    fom = layered[0]
    rich = np.random.default_rng(0).normal(size=(24, 300))
    _, first, second = SnapshotReductor(fom, rich).reduce(state_dim=3, points=26).parts
    assert (first.reduced, second.reduced, second.why) == (26, 24, "kept: no more components than points")


def test_inputs_and_times_of_the_snapshots_count():
    """A stage of (t, u) is interpolated on its values at the snapshots' own times and inputs."""
    rng = np.random.default_rng(0)
    argument = AffineMap.from_blocks({"u": rng.normal(size=(12, 2)), "t": rng.normal(size=(12, 1))})
    stage = Stage("g1", Expression.of("sin"), argument)
    chain = StageChain(12, 2, (stage,), AffineMap.from_blocks({"y": -np.eye(12), "g1": np.eye(12)}))
    fom = ode_layer_model(chain, RungeKuttaTimeStepper("rk4", TIMES))
    y, u, t = rng.normal(size=(12, 5)), rng.normal(size=(2, 5)), rng.normal(size=5)
    sampled = SnapshotReductor(fom, y, u, t).reduce(state_dim="full", points=5).reductor.interpolations["g1"]
    g = np.sin(argument.linear @ np.vstack([u, t]))
    np.testing.assert_allclose(sampled.lift @ g[sampled.points], g, atol=1e-10)


def test_dead_stage():
    """A stage that is zero on all calibration data is kept by the rule, and gone on request."""
    f = module(lambda self, t, y: torch.relu(self.a(y)) - y, a=nn.Linear(6, 6))
    with torch.no_grad():
        f.a.bias.fill_(-50.0)
    fom, snapshots, _ = model(f, 6)
    reduction = SnapshotReductor(fom, snapshots).reduce(energy_rtol=0.1)
    assert reduction.parts[1].why == "kept: zero on all calibration data"
    for selection, fit in METHODS:
        reduction = SnapshotReductor(fom, snapshots).reduce(state_dim=2, points=2, selection=selection, fit=fit)
        chain, V = reduction.rom.operator.chain, reduction.bases["state"]
        assert not chain.stages and len(reduction.points["g1"]) == 0 and reduction.parts[1].reduced == 0
        assert reduction.parts[1].why == f"{selection}, as asked, but its mean says all"
        np.testing.assert_allclose(chain(V.T @ snapshots), V.T @ snapshots, atol=1e-10)  # A = -f = y


@pytest.mark.parametrize("fit", FITS)
def test_stage_that_is_constant_on_the_snapshots(fit):
    """Its mean says all: no points, and the constant is in what reads it."""
    f = module(lambda self, t, y: self.b(torch.sigmoid(1e-9 * self.a(y) + 2)) - y, a=nn.Linear(6, 5), b=nn.Linear(5, 6))
    fom, snapshots, _ = model(f, 6)
    reduction = SnapshotReductor(fom, np.tile(snapshots[:, :1], 9)).reduce(
        state_dim="full", points=2, selection="omp", fit=fit
    )
    assert not reduction.rom.operator.chain.stages
    np.testing.assert_allclose(
        reduction.rom.operator.chain(snapshots[:, :1]), fom.operator.chain(snapshots[:, :1]), rtol=1e-7
    )


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("product", [False, True])
def test_stage_that_nothing_sees(fit, product):
    """Output weights of zero: neither it nor what serves it alone gets points."""
    f = module(
        lambda self, t, y: 0 * self.c(self.g(torch.tanh(self.b(torch.tanh(self.a(y)))))) - torch.sin(y),
        a=nn.Linear(6, 7),
        b=nn.Linear(7, 8),
        c=nn.Linear(8, 6),
        g=nn.Identity() if not product else Squared(),
    )
    fom, snapshots, _ = model(f, 6)
    reduction = SnapshotReductor(fom, snapshots).reduce(state_dim=3, points=5, selection="omp", fit=fit)
    assert [stage.expression.text(["a"]) for stage in reduction.rom.operator.chain.stages] == ["sin(a)"]
    sizes = {part.what: part.reduced for part in reduction.parts[1:]}
    assert sizes.pop("sin(a1)") > 0 and set(sizes.values()) == {0}


def test_states_that_are_all_zero(layered):
    for sizes in ({"state_dim": 2, "points": "full"}, {"energy_rtol": 0.1}):
        with pytest.raises(SizeError, match="expected calibration states that are not all zero"):
            SnapshotReductor(layered[0], np.zeros((24, 5))).reduce(**sizes)


def test_one_snapshot(layered):
    fom, snapshots, initial = layered
    reduction = SnapshotReductor(fom, snapshots[:, :1]).reduce(energy_rtol=1e-3)
    assert [part.reduced for part in reduction.parts] == [1, 1, 1]
    assert np.isfinite(error(fom, reduction, initial))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"state_dim": 25, "points": 4}, "expected state_dim of at most 24, the full size, got 25"),
        ({"state_dim": 4, "points": 31}, "expected points of at most 30, the full size, got 31"),
        ({"state_dim": 4, "points": [4, 25]}, "expected points of stage 'g2' of at most 24, the full size, got 25"),
        ({"state_dim": 4, "points": [4]}, "expected one entry of points for each of the 2 stages, got 1"),
        ({"state_dim": 4, "points": 4, "modes": [4, 4, 4]}, "expected one entry of modes for each of the 2 stages"),
        (
            {"state_dim": 4, "points": 6, "modes": 7},
            "expected at most as many modes as points, got 7 modes for 6 points",
        ),
        ({"state_dim": 0, "points": 4}, 'expected sizes to be positive ints, "full" or None, got 0'),
        ({"state_dim": 2.5, "points": 4}, 'positive ints, "full" or None, got 2.5'),
        ({"state_dim": True, "points": 4}, 'positive ints, "full" or None, got True'),
        ({"state_dim": 4, "points": "half"}, "got 'half'"),
        ({"state_dim": 4}, "got neither for some part: give state_dim and points, or energy_rtol"),
        ({"points": 4}, "got neither for some part"),
        ({"energy_rtol": 1.0}, "expected 0 ≤ energy_rtol < 1, got 1.0"),
        ({"energy_rtol": -0.1}, "expected 0 ≤ energy_rtol < 1, got -0.1"),
    ],
)
def test_impossible_sizes(layered, sizes, text):
    with pytest.raises(SizeError) as raised:
        SnapshotReductor(*layered[:2]).reduce(**sizes)
    assert text in str(raised.value)


def test_sizes_above_the_rank_of_the_data(layered):
    fom, snapshots, initial = layered
    with pytest.raises(SizeError, match="state_dim at most the numerical rank 4 of the calibration states, got 5"):
        SnapshotReductor(fom, initial).reduce(state_dim=5, points="full")
    text = "stage 'g2', .*numerically 3; got 4: ask for points=3 or fewer"
    with pytest.raises(SizeError, match=text):
        SnapshotReductor(fom, snapshots[:, :3]).reduce(state_dim="full", points=4)


def test_unknown_methods(layered):
    for argument in ("basis", "selection", "fit"):
        with pytest.raises(ValueError, match=f"expected {argument} to be one of .*, got 'best'"):
            SnapshotReductor(*layered[:2]).reduce(state_dim=2, points=2, **{argument: "best"})


def test_snapshots_that_are_not_finite(layered):
    fom, snapshots, _ = layered
    snapshots = snapshots.copy()
    snapshots[3, 4] = np.nan
    with pytest.raises(NonFiniteError, match="expected finite snapshots"):
        SnapshotReductor(fom, snapshots).reduce(state_dim=3, points=3)


@over_selections
def test_sizes_do_not_depend_on_reductions_before(layered, selection):
    """Law: a reduction depends on its arguments and the snapshots alone; the offline stage is shared."""
    fom, snapshots = layered[:2]
    shared = SnapshotReductor(fom, snapshots)
    for r, m in ((5, 9), (3, 4), (5, 12)):
        alone = SnapshotReductor(fom, snapshots).reduce(state_dim=r, points=m, selection=selection)
        again = shared.reduce(state_dim=r, points=m, selection=selection)
        assert alone.parts == again.parts
        np.testing.assert_array_equal(alone.bases["state"], again.bases["state"])
        for name, sampled in alone.reductor.interpolations.items():
            np.testing.assert_array_equal(sampled.points, again.reductor.interpolations[name].points)
            np.testing.assert_allclose(sampled.lift, again.reductor.interpolations[name].lift, rtol=0, atol=1e-11)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("modes", [None, 6])
def test_every_basis_with_every_selection_and_fit(layered, basis, selection, fit, modes):
    """Two stages, more points than modes too: the trajectories are close, and the result says what it is."""
    fom, snapshots, initial = layered
    gradients = np.random.default_rng(2).normal(size=(24, 40))
    reduction = SnapshotReductor(fom, snapshots, gradients=lambda: gradients).reduce(
        state_dim=8, points=12, modes=modes, basis=basis, selection=selection, fit=fit
    )
    assert error(fom, reduction, initial) < (0.2 if modes else 0.05)
    assert [part.reduced for part in reduction.parts] == [8, 12, 12]
    assert all(len(set(points)) == 12 for points in reduction.points.values())
    assert reduction.parts[0].why == {"pod": "POD", "balanced": "balanced"}[basis] + ", as asked"
    assert ("test" in reduction.bases) == (basis == "balanced")
    for part in reduction.parts[1:]:
        fitted_only = (selection, fit) == ("omp", "least_squares")
        assert (part.constant is None) == fitted_only
        assert part.why == f"{selection}, as asked" + (", 6 modes" if modes and not fitted_only else "")
    lifted = reduction.reductor.reconstruct(reduction.rom.solve(initial[:, 0])).to_numpy()
    np.testing.assert_allclose(lifted, reduction.rom.output(initial[:, 0]), atol=1e-12)


def test_balanced_bases_need_gradients(layered):
    with pytest.raises(ValueError, match='expected gradients of the output for basis="balanced", got none'):
        SnapshotReductor(*layered[:2]).reduce(state_dim=3, points=4, basis="balanced")


def test_balanced_reduction_keeps_its_spectrum_and_offset(layered):
    fom, snapshots, _ = layered
    gradients = np.random.default_rng(2).normal(size=(24, 3))
    calls = []
    reductor = SnapshotReductor(fom, snapshots, gradients=lambda: calls.append(1) or gradients)
    reduction = reductor.reduce(state_dim=6, points="full", basis="balanced")
    reductor.reduce(state_dim=2, points="full", basis="balanced")
    assert calls == [1]
    assert len(reduction.singular_values["state"]) == 3, "three gradients: the rest is padded with POD modes"
    V, W = reduction.bases["state"], reduction.bases["test"]
    np.testing.assert_allclose(W.T @ V, np.eye(6), atol=1e-8)
    mean = snapshots.mean(axis=1)
    np.testing.assert_allclose(reduction.reductor.offset.to_numpy()[:, 0], mean, atol=1e-14)
    rule = reductor.reduce(energy_rtol=0.3, basis="balanced", selection="omp", fit="least_squares")
    squares, r = rule.singular_values["state"] ** 2, rule.parts[0].reduced
    assert squares[r:].sum() <= 0.3**2 * squares.sum() < squares[r - 1 :].sum()


def test_users_who_read_the_log_see_nothing_of_reductors(layered, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    fom, y, _ = layered
    reductor, records = OdeLayerReductor, []
    monkeypatch.setattr(reductor._logger, "handle", records.append)
    before = reductor._logger.isEnabledFor(logging.INFO)
    SnapshotReductor(fom, y).reduce(state_dim=4, points=6)
    assert not records
    assert before and reductor._logger.isEnabledFor(logging.INFO), "as before"
