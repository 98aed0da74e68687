"""Reductions of deep functions: every stage has points of its own, errors fall, and the explanation tells it all."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from catalogue import CATALOGUE, GroupNormalised, traced, varied
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Explanation
from torchmor.engine.models import ode_layer_model
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

TIMES = tuple(np.linspace(0.0, 1.0, 5))
FITTED = {"selection": "omp", "fit": "least_squares"}
METHODS = {"fitted": FITTED, "interpolated": {"selection": "deim", "fit": "interpolation"}}


def model(chain):
    return ode_layer_model(chain, RungeKuttaTimeStepper("midpoint", TIMES))


class Deep:
    """torchdiffeq's example, nine stages, on trajectories that start in few directions, with a little noise."""

    def __init__(self):
        torch.manual_seed(0)
        f = varied(GroupNormalised(6, 3)).double().eval()
        self.n = 6 * 4 * 4
        self.chain = trace(lambda t, y, u: f(t, y), torch.randn(2, 6, 4, 4, dtype=torch.float64))
        self.fom = model(self.chain)
        self.reductor = SnapshotReductor(self.fom, *self.snapshots(100, 1))
        self.y, _, self.t = self.snapshots(40, 2)
        self.value = self.chain(self.y, None, self.t)

    def snapshots(self, samples, seed):
        """Where the midpoint method evaluates f, those of a sample next to each other."""
        rng = np.random.default_rng(seed)
        directions = np.random.default_rng(0).normal(size=(self.n, 5))
        y = directions @ rng.normal(size=(5, samples)) + 0.02 * rng.normal(size=(self.n, samples))
        states, times = [], []
        for start, end in pairwise(TIMES):
            middle = (start + end) / 2
            half = y + (middle - start) * self.chain(y, None, start)
            states += [y, half]
            times += [start, middle]
            y = y + (end - start) * self.chain(half, None, middle)
        return np.stack(states, axis=2).reshape(self.n, -1), None, np.tile(times, samples)

    def errors(self, **sizes):
        """Relative error of the derivative, projected and lifted, at states that the reduction has not seen."""
        reduction = self.reductor.reduce(**sizes, **FITTED)
        V = reduction.bases["state"]
        exact, reduced = V.T @ self.value, -reduction.rom.operator.chain(V.T @ self.y, None, self.t)
        norm = np.linalg.norm
        return norm(exact - reduced) / norm(exact), norm(self.value - V @ reduced) / norm(self.value)


@pytest.fixture(scope="module")
def deep():
    return Deep()


def each(m):
    """Points of each stage: squares, deviation and quotient of three group normalisations."""
    return [m, "full", m] * 3


def test_errors_of_nine_stages_fall_with_the_points(deep):
    """Down to that of the projection without sampling."""
    errors = [deep.errors(state_dim=8, points=each(m))[0] for m in (8, 24, 72)]
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]
    assert errors[2] < 1.3 * deep.errors(state_dim=8, points="full")[0]


def test_absorbed_normalisations_cost_less_for_the_same_error(deep):
    """What is left are the stages of ReLUs, and the first variances, which are exact."""
    absorbed, composed = (deep.reductor.reduce(state_dim=8, points=m, **FITTED) for m in (48, each(24)))
    assert [part.reduced for part in absorbed.parts] == [8, 24, 3, 48, 0, 0, 48, 0, 0, 0]
    assert sum(part.operations for part in absorbed.parts) < sum(part.operations for part in composed.parts)
    assert deep.errors(state_dim=8, points=48)[0] < deep.errors(state_dim=8, points=each(24))[0]
    errors = [deep.errors(state_dim=8, points=m)[0] for m in (6, 24, 90)]
    assert errors[0] > 1.1 * errors[1] > 1.1**2 * errors[2]


def test_errors_fall_with_the_state(deep):
    errors = [deep.errors(state_dim=r, points=each(72))[1] for r in (4, 16, 64)]
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


def test_every_stage_takes_its_own_points(deep):
    sizes = [4, "full", 11, 12, "full", 13, 14, "full", 15]
    reduction = deep.reductor.reduce(state_dim=8, points=sizes, **FITTED)
    assert [part.reduced for part in reduction.parts] == [8, 4, 3, 11, 12, 3, 13, 14, 3, 15]
    assert [len(points) for points in reduction.points.values()] == [15, 14, 13, 12, 11, 4]  # from the output inwards
    assert [stage.size for stage in reduction.rom.operator.chain.stages] == [p.reduced for p in reduction.parts[1:]]


def test_variances_are_exact_where_that_takes_no_more_squares_than_points(deep):
    """Three groups of three directions: nine to twelve squares instead of 96, or of 16 fitted ones."""
    sampled = deep.reductor.reduce(state_dim=8, points=each(16), **FITTED).parts[1]
    assert sampled.reduced == 16 and sampled.why == "omp, as asked"
    exact = deep.reductor.reduce(state_dim=3, points=each(16), **FITTED)
    assert 9 <= exact.parts[1].reduced <= 12 and exact.parts[1].why == "kept: exact, as few squares"
    assert "g1" not in exact.points
    V = exact.bases["state"]
    values = -exact.rom.operator.chain, deep.reductor.reduce(state_dim=3, points="full").rom.operator.chain
    z = V.T @ deep.y
    variances = [c.stages[1].argument.apply(c.evaluate(z, None, deep.t)) for c in values]
    np.testing.assert_allclose(*variances, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_function_is_reduced(name, method):
    """Full points: the projection, exactly; fewer: finite values, sizes as said, and the parts of one evaluation."""
    entry, chain = CATALOGUE[name], traced(name)
    rng, r = np.random.default_rng(3), max(1, entry.n // 2)
    y, u = rng.normal(size=(entry.n, 120)), rng.normal(size=(entry.p, 120)) if entry.p else None
    reductor = SnapshotReductor(model(chain), y, u, rng.uniform(0, 1, size=120))
    full = reductor.reduce(state_dim=r, points="full", **METHODS[method])
    V = full.bases.get("state", np.eye(entry.n))
    z = V.T @ y[:, :4]
    inputs = None if u is None else u[:, :4]
    np.testing.assert_allclose(
        -full.rom.operator.chain(z, inputs, 0.3), V.T @ entry.values(V @ z, inputs, 0.3), rtol=1e-9, atol=1e-9
    )
    largest = max((stage.size for stage in chain.stages), default=1)
    reduced = reductor.reduce(state_dim=r, points=max(1, largest // 2), **METHODS[method])
    small = reduced.rom.operator.chain
    assert np.isfinite(small(z, inputs, 0.3)).all()
    assert [part.reduced for part in reduced.parts[1:] if part.fate != "absorbed"] == [
        stage.size for stage in small.stages
    ]
    assert [part.reads for part in reduced.parts[1:]] == [stage.argument.sources for stage in chain.stages]
    assert sum(part.operations for part in reduced.parts) == sum(np.prod(m.linear.shape) for m in small.maps)
    for part in reduced.parts[1:]:
        assert (part.name in reduced.points) == (part.fate == "reduced")
        assert (part.reduced == 0) == (part.fate == "absorbed")
        if part.name in chain.time_stages:
            assert part.fate == "kept"


def test_stages_of_the_time_alone_are_kept():
    """They cost nothing for the state, and at few times there is nothing to fit to."""
    chain = traced("time, embedded")
    assert chain.time_stages == {"g1", "g2", "g3"}
    assert traced("group normalisation").time_stages == traced("forcing").time_stages - {"g1"} == frozenset()
    y = np.random.default_rng(0).normal(size=(5, 100))
    reductor = SnapshotReductor(model(chain), y, None, np.tile([0.0, 0.5], 50))
    parts = reductor.reduce(state_dim="full", points=4, **FITTED).parts
    assert [part.reduced for part in parts] == [5, 3, 3, 8, 4]
    assert parts[3].why == "kept: depends on the time alone"
    reduced = reductor.reduce(state_dim="full", points=["full", "full", 1, 4], **FITTED)
    assert [part.reduced for part in reduced.parts] == [5, 3, 3, 1, 4], "what is asked for by name is done"


def test_fewer_points_where_no_others_say_more(deep):
    """States of two directions: what 30 points could say, the first few say; interpolation refuses."""
    rng = np.random.default_rng(4)
    y = rng.normal(size=(96, 2)) @ rng.normal(size=(2, 300))
    reductor = SnapshotReductor(deep.fom, y, None, np.zeros(300))
    sizes = {"state_dim": "full", "points": [30, *["full"] * 8]}
    part = reductor.reduce(**sizes, **FITTED).parts[1]
    assert part.reduced == 3 and part.why == "omp, as asked, but 3 of 30 say all"
    with pytest.raises(SizeError, match=r"stage 'g1', a1 \* a1: expected at most as many points"):
        reductor.reduce(**sizes)


# -- the explanation -------------------------------------------------------------------------------------------------


def explained(deep, **method):
    parts = deep.reductor.reduce(state_dim=8, points=32, **method).parts
    return Explanation(parts, {"basis": "pod"}, "midpoint", 400, 100, 8, (10**6, 10**4), {"layer output": 0.1})


def test_errors_are_those_of_what_reads_a_stage(deep):
    """On columns that the fit has not seen: the quotient of a group normalisation reads its square root, and so on."""
    reduction = deep.reductor.reduce(state_dim=8, points=each(24), **FITTED)
    errors, parts = reduction.reductor.errors, {part.name: part for part in reduction.parts}
    assert set(errors) == {"g2", "g4", "g5", "g6", "g7", "g8", "g9", "output"}
    assert parts["g9"].error == parts["state"].error == errors["output"]
    assert parts["g3"].error == max(errors["g4"], errors["g6"])
    assert parts["g1"].error == errors["g2"] and parts["g8"].error == errors["g9"]
    assert parts["g2"].error is None, "what it is read by is exact, for the reduced state"
    assert all(0 < error < 1 for error in errors.values())
    more = deep.reductor.reduce(state_dim=8, points=each(90), **FITTED).parts
    assert more[-1].error < parts["g9"].error


@pytest.mark.parametrize("method", METHODS)
def test_table_of_nine_stages_fits_on_a_line(deep, method):
    explanation = explained(deep, **METHODS[method])
    lines = str(explanation).splitlines()
    assert max(map(len, lines)) <= 120
    rows = {line.split()[0]: line for line in lines if line}
    assert "relu(a1 / a2)" in rows["g3"] and "y, g2" in rows["g3"] and "t, g3, g5" in rows["g6"]
    shares = [
        float(line.split(" %")[0].split()[-1]) for name, line in rows.items() if name == "state" or name[0] == "g"
    ]
    assert len(shares) == 10 and abs(sum(shares) - 100) < 5
    assert ("error" in rows["part"]) == (method == "fitted")
    assert ("constant" in rows["part"]) == (method == "interpolated")


def test_explanation_as_data(deep):
    """``from_json(to_json())`` is the same, through text; files of before have no sources, errors and operations."""
    explanation = explained(deep, **FITTED)
    data = json.loads(json.dumps(explanation.to_json()))
    assert Explanation.from_json(data) == explanation
    for part in data["parts"]:
        for name in ("reads", "error", "operations"):
            del part[name]
    old = Explanation.from_json(data)
    assert all(part.reads == () and part.error is part.operations is None for part in old.parts)
    assert "omp, as asked" in str(old) and "operations:" not in str(old)


def test_a_known_part_beside_a_network_is_exact():
    """A few products in closed form are kept, whatever becomes of the network: they are not fitted away."""
    chain = traced("physics and network")  # predators and prey, and a network of seven units
    y = np.random.default_rng(5).normal(size=(2, 200))
    reductor = SnapshotReductor(model(chain), y)
    reduced = reductor.reduce(state_dim="full", points=2, **FITTED)
    assert [(part.what, part.reduced) for part in reduced.parts[1:]] == [("a1 * a2", 1), ("tanh(a1)", 2)]
    small = -reduced.rom.operator.chain
    far = 100.0 * np.random.default_rng(6).normal(size=(2, 5))
    product = chain.evaluate(far)["g1"]
    np.testing.assert_allclose(small.evaluate(far)["g1"], product, rtol=1e-12)
    np.testing.assert_allclose(small.output.blocks()["g1"], _block(chain, "g1"), atol=1e-12)
    np.testing.assert_allclose(small.output.blocks()["y"], _block(chain, "y"), atol=1e-12)


def _block(chain, source):
    block = chain.output.blocks()[source]
    return block.toarray() if hasattr(block, "toarray") else block
