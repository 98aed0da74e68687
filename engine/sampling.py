"""Where the stages of a chain are evaluated: snapshots of their values, bases of them, and points for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from torchmor.engine.affine import AffineMap
from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.errors import NonFiniteError, SizeError
from torchmor.engine.fitting import Training, row_units, without
from torchmor.engine.matching_pursuit import matching_pursuit
from torchmor.engine.normalisation import absorbing_form, fitted_argument, sources_read
from torchmor.engine.planning import StagePlan
from torchmor.engine.points import (
    NESTED,
    CollateralBasis,
    collateral_basis,
    interpolate,
    oversample,
    too_many_points,
)
from torchmor.engine.regression import ROUNDING
from torchmor.engine.sizes import ReductionRequest
from torchmor.engine.stages import Stage, StageChain


class StageSampler:
    """Chooses points of stages, by the values of all of them at snapshots.

    Parameters
    ----------
    chain
        The chain of f.
    y, u, t
        Snapshots: states (n, k), inputs (p, k), times (k,).
    samples
        Index (k,) of the sample of each; None where each is a sample of its own.
    """

    def __init__(
        self,
        chain: StageChain,
        y: np.ndarray,
        u: np.ndarray | None,
        t: np.ndarray,
        samples: np.ndarray | None = None,
    ):
        self.chain, self.y, self.u, self.t, self.samples = chain, y, u, t, samples
        self.spectra: dict[str, np.ndarray] = {}
        self._bases: dict[tuple[object, ...], PodBasis] = {}
        self._interpolations: dict[tuple[str, str], CollateralBasis] = {}
        self._pursuits: dict[tuple[object, ...], tuple[np.ndarray, int]] = {}

    @cached_property
    def training(self) -> Training:
        """The snapshots, with the values of all stages and of f there, as of :meth:`StageChain.evaluate`."""
        found = self.chain.evaluate(self.y, self.u, self.t)
        values = {name: np.ascontiguousarray(values) for name, values in found.items()}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(
                    f"expected finite values of '{name}' at the snapshots, got NaN or infinity: look at the weights of "
                    "the ODE function, or calibrate with smaller states"
                )
        return Training(self.y, self.u, self.t, values, self.samples)

    def snapshots(self, name: str) -> np.ndarray:
        """Return the "state", or the values of a stage (size, k)."""
        return self.y if name == "state" else self.training.values[name]

    def pod(self, name: str, modes: int | None, energy_rtol: float | None) -> PodBasis:
        """Return the POD of the "state" or of a stage; every request up to 512 modes shares one."""
        key = (name, energy_rtol) if modes is None else (name, max(modes, SPECTRUM))
        if key not in self._bases:
            self._bases[key] = pod(self.snapshots(name), modes, energy_rtol)
        self.spectra[name] = self._bases[key].singular_values
        return self._bases[key]

    def sample(
        self, plan: StagePlan, plans: Mapping[str, StagePlan], request: ReductionRequest, test: np.ndarray | None
    ) -> StagePlan:
        """Choose the points of a stage, with an interpolation where its basis vectors or the fit ask for one.

        Parameters
        ----------
        plan
            What becomes of the stage.
        plans
            What becomes of all stages: the later ones have their points.
        request
            How points are chosen, and what for.
        test
            What of f matters (n, r): test basis, weighted; None where the state is kept.

        Raises
        ------
        SizeError
            The values of the stage do not span so much. A fit takes fewer points where others say nothing more, and
            none where nothing sees the stage, or its values are all the same.
        """
        name, m = plan.stage.name, plan.size
        d = m if plan.modes is None else plan.modes
        if d > m:
            raise SizeError(f"expected at most as many modes as points, got {d} modes for {m} points")
        if request.selection == "omp":
            points = self._pursuit(plan.stage, m, test, plans)
            if request.fit == "least_squares" or not len(points):
                return replace(plan, points=points)
            if len(points) < m:
                raise SizeError(too_many_points(m, len(points)))
            basis = self.pod(name, d, None)
            if d > basis.rank:
                raise SizeError(too_many_points(d, basis.rank))
            found = collateral_basis(points, np.ascontiguousarray(basis.modes[:, :d]))
        else:
            basis = self.pod(name, d, None)
            if basis.rank == 0:
                return replace(plan, points=np.zeros(0, dtype=np.int64))
            found = self._interpolation(name, basis, d, request.selection)
            if d < m:
                found = oversample(found, m)
        return replace(plan, points=found.points, interpolation=found)

    def _interpolation(self, name: str, basis: PodBasis, points: int, selection: str) -> CollateralBasis:
        known = self._interpolations.get((name, selection))
        if known is not None and len(known.points) >= points:
            return known.leading(points)
        found = interpolate(self.snapshots(name), basis, points, selection)
        if selection in NESTED:
            self._interpolations[name, selection] = found
        return found

    def _pursuit(self, stage: Stage, m: int, test: np.ndarray | None, plans: Mapping[str, StagePlan]) -> np.ndarray:
        sampled = {name: plan.points for name, plan in plans.items() if plan.points is not None}
        absorbed = frozenset(name for name, plan in plans.items() if plan.fate == "absorbed")
        served = [(name, points.tobytes()) for name, points in sampled.items()]
        key = (stage.name, None if test is None else test.tobytes(), *served, *sorted(absorbed))
        known, asked = self._pursuits.get(key, (np.zeros(0, dtype=np.int64), 0))
        if asked < m:
            known = matching_pursuit(self.snapshots(stage.name), self._target(stage, test, sampled, absorbed), m)
            self._pursuits[key] = known, m
        return known[:m]

    def _target(
        self, stage: Stage, test: np.ndarray | None, sampled: Mapping[str, np.ndarray], absorbed: frozenset[str]
    ) -> np.ndarray:
        """Return what the points of a stage have to explain (q, k): its share of all that reads it.

        That is the projected derivative, weighted by how much it matters, and the arguments of later stages at their
        points, all of the same weight, whatever they are measured in. What reads absorbed stages counts as a whole.
        """

        def own(affine: AffineMap) -> np.ndarray:
            others = [name for name in affine.sources if name != stage.name]
            return without(affine, others).apply({stage.name: self.snapshots(stage.name)})

        output, f, shares = self.chain.output, self.training.values["output"], []
        if stage.name in sources_read(self.chain, output, absorbed):
            whole = seen = f if test is None else test.T @ f
            if absorbed.isdisjoint(output.sources):
                seen = own(output if test is None else output.project(test))
            shares.append((seen, whole))
        for later in self.chain.stages:
            if later.name in absorbed or stage.name not in sources_read(self.chain, later.argument, absorbed):
                continue
            part = later.restrict(sampled[later.name]) if later.name in sampled else later
            if absorbed.isdisjoint(part.argument.sources):
                seen, whole = own(part.argument), part.argument.apply(self.training.sources)
            else:
                form = absorbing_form(self.chain, part, absorbed)
                seen = whole = fitted_argument(part, form, self.training.sources)[1]
            units = row_units(whole)
            shares.append((seen / units, whole / units))
        return np.concatenate([np.zeros((0, self.y.shape[1])), *(_normalised(*share) for share in shares)])


def _normalised(share: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a share without its mean, of norm 1; zero where it is rounding of itself or of the whole."""
    centred = share - share.mean(axis=1, keepdims=True)
    norm, rounding = np.linalg.norm(centred), ROUNDING * max(np.linalg.norm(share), np.linalg.norm(whole))
    return centred / norm if norm > rounding else np.zeros_like(centred)
