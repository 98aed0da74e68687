"""Where the stages of a chain are evaluated: snapshots of their values, bases of them, and points for each."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np

from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.errors import SizeError
from torchmor.engine.fitting import Training, without
from torchmor.engine.matching_pursuit import matching_pursuit
from torchmor.engine.normalisation import fitted_argument, sources_read
from torchmor.engine.points import (
    NESTED,
    CollateralBasis,
    collateral_basis,
    interpolate,
    oversample,
    too_many_points,
)
from torchmor.engine.stages import Stage, StageChain


class StageSampler:
    """Chooses points of stages, by the values of all of them at snapshots.

    Parameters
    ----------
    chain
        The chain of f.
    y, u, t
        Snapshots: states (n, k), inputs (p, k), times (k,).
    """

    def __init__(self, chain: StageChain, y: np.ndarray, u: np.ndarray | None, t: np.ndarray):
        self.chain, self.y, self.u, self.t = chain, y, u, t
        self.spectra: dict[str, np.ndarray] = {}
        self._bases: dict[tuple, PodBasis] = {}
        self._interpolations: dict[tuple[str, str], CollateralBasis] = {}
        self._pursuits: dict[tuple, np.ndarray] = {}

    @cached_property
    def training(self) -> Training:
        """The snapshots, with the values of all stages and of f there, as of :meth:`StageChain.evaluate`."""
        found = self.chain.evaluate(self.y, self.u, self.t)
        values = {name: np.ascontiguousarray(values) for name, values in found.items()}
        return Training(self.y, self.u, self.t, values)

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
        self,
        stage: Stage,
        m: int,
        d: int | None,
        selection: str,
        fit: str,
        test: np.ndarray | None,
        sampled: dict[str, np.ndarray],
        absorbed: Collection[str] = (),
    ) -> CollateralBasis | np.ndarray:
        """Choose m points of a stage, with an interpolation where d basis vectors or the fit ask for one.

        Parameters
        ----------
        test
            What of f matters (n, r): test basis, weighted; None where the state is kept.
        sampled
            Points of the later stages.
        absorbed
            Stages that a fit does without, as of :func:`~torchmor.engine.normalisation.absorbed_stages`.

        Raises
        ------
        SizeError
            The values of the stage do not span so much. A fit takes fewer points where others say nothing more.
        """
        d = m if d is None else d
        if d > m:
            raise SizeError(f"expected at most as many modes as points, got {d} modes for {m} points")
        if selection != "omp":
            basis = self.pod(stage.name, d, None)
            found = self._interpolation(stage.name, basis, d, selection)
            return found if d == m else oversample(found, m)
        points = self._pursuit(stage, m, test, sampled, absorbed)
        if fit == "least_squares" and len(points):
            return points
        if len(points) < m:
            raise SizeError(too_many_points(m, len(points)))
        basis = self.pod(stage.name, d, None)
        if d > basis.rank:
            raise SizeError(too_many_points(d, basis.rank))
        return collateral_basis(points, np.ascontiguousarray(basis.modes[:, :d]))

    def _interpolation(self, name: str, basis: PodBasis, points: int, selection: str) -> CollateralBasis:
        known = self._interpolations.get((name, selection))
        if known is not None and len(known.points) >= points:
            return known.leading(points)
        found = interpolate(self.snapshots(name), basis, points, selection)
        if selection in NESTED:
            self._interpolations[name, selection] = found
        return found

    def _pursuit(self, stage: Stage, m: int, test, sampled, absorbed) -> np.ndarray:
        served = [(name, points.tobytes()) for name, points in sampled.items()]
        key = (stage.name, None if test is None else test.tobytes(), *served, *sorted(absorbed))
        known, asked = self._pursuits.get(key, (np.zeros(0, dtype=np.int64), 0))
        if asked < m:
            known = matching_pursuit(self.snapshots(stage.name), self._target(stage, test, sampled, absorbed), m)
            self._pursuits[key] = known, m
        return known[:m]

    def _target(
        self,
        stage: Stage,
        test: np.ndarray | None,
        sampled: dict[str, np.ndarray],
        absorbed: Collection[str],
    ) -> np.ndarray:
        """Return what the points of a stage have to explain (q, k): its share of all that reads it.

        That is the projected derivative, weighted by how much it matters, and the arguments of later stages at their
        points, all of the same weight. What reads absorbed stages counts as a whole.
        """
        readers = [(None, self.chain.output)]
        readers += [(later, later.argument) for later in self.chain.stages if later.name not in absorbed]
        shares = []
        for later, affine in readers:
            if stage.name not in sources_read(self.chain, affine, absorbed):
                continue
            if later is not None and later.name in sampled:
                affine = affine.restrict(later.rows(sampled[later.name]))
            whole = not set(absorbed).isdisjoint(affine.sources)
            if later is None and whole:
                f = self.training.values["output"]
                share = f if test is None else test.T @ f
            elif whole:
                share = fitted_argument(later, affine, self.training.sources)[1]
            else:
                affine = affine if later is not None or test is None else affine.project(test)
                share = without(affine, [name for name in affine.sources if name != stage.name]).apply(
                    {stage.name: self.snapshots(stage.name)}
                )
            shares.append(share - share.mean(axis=1, keepdims=True))
        return np.concatenate([share / max(np.linalg.norm(share), np.finfo(float).tiny) for share in shares])
