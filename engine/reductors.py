"""pyMOR reductors for models of ODE layers."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pymor.reductors.basic import ProjectionBasedReductor
from pymor.vectorarrays.interface import VectorArray

from torchmor.engine.affine import AffineMap, Lift
from torchmor.engine.fitting import Training, fit_chain
from torchmor.engine.models import OdeLayerModel, ode_layer_model
from torchmor.engine.quadratics import compress_quadratics
from torchmor.engine.stages import Interpolation, StageChain


class OdeLayerReductor(ProjectionBasedReductor):
    """Petrov–Galerkin projection of an ODE layer's model, with its stages sampled one by one.

    The reduced-order model is ``z' = Wᵀ f̂(t, c + V z, u)``, ``z(0) = Wᵀ (y(0) − c)`` with the output
    ``y ≈ c + V z``; in f̂ each stage g that has an interpolation is ``lift @ g[points]``. Without interpolations it is
    the model of pyMOR's InstationaryRBReductor. In contrast to an EmpiricalInterpolatedOperator of the whole f,
    the linear parts of f stay exact and every stage of a layered f is evaluated at few points. Sums of products, as
    in a variance, become sums of few squares, exactly (:func:`~torchmor.engine.quadratics.compress_quadratics`).

    Parameters
    ----------
    fom
        Model built by :func:`~torchmor.engine.models.ode_layer_model`.
    RB
        VectorArray of r basis vectors V; None keeps the full state.
    interpolations
        Stage name → :class:`~torchmor.engine.stages.Interpolation`.
    test_basis
        VectorArray of r vectors W with ``Wᵀ V = I``; V by default, which must then be orthonormal.
    offset
        VectorArray of length 1: c, zero by default.

    Raises
    ------
    ValueError
        ``Wᵀ V`` is not the identity.
    """

    def __init__(
        self,
        fom: OdeLayerModel,
        RB: VectorArray | None = None,
        interpolations: Mapping[str, Interpolation] | None = None,
        test_basis: VectorArray | None = None,
        offset: VectorArray | None = None,
    ):
        if RB is None:
            super().__init__(fom, {}, check_orthonormality=False)
        else:
            test = RB if test_basis is None else test_basis
            defect = np.abs(test.inner(RB) - np.eye(len(test), len(RB))).max(initial=0.0)
            if len(test) != len(RB) or defect > 1e-6:
                raise ValueError(
                    f"expected bases with Wᵀ V = I, got {len(test)} × {len(RB)} vectors and an error of {defect:.1e}: "
                    "orthonormalise V, or scale W"
                )
            super().__init__(fom, {"RB": RB, "test": test}, check_orthonormality=False)  # WᵀV is checked
        self.__auto_init(locals())

    def project_operators(self) -> dict[str, Any]:
        if self.RB is None:
            return {"chain": self.reduced_chain(None, None, None)}
        trial, test = self.bases["RB"].to_numpy(), self.bases["test"].to_numpy()
        offset = None if self.offset is None else self.offset.to_numpy()[:, 0]
        c = np.zeros(len(trial)) if offset is None else offset
        return {
            "chain": self.reduced_chain(trial, test, offset),
            "encode": AffineMap.from_blocks({"y": test.T}, -test.T @ c),
            "decode": AffineMap.from_blocks({"y": trial}, c),
        }

    def reduced_chain(self, trial: np.ndarray | None, test: np.ndarray | None, offset: np.ndarray | None) -> StageChain:
        """Return the reduced chain for bases (n, r), which are None where the state is kept."""
        return compress_quadratics((-self.fom.operator.chain).reduce(trial, test, offset, self.interpolations))

    def project_operators_to_subbasis(self, dims: Mapping[str, int]) -> dict[str, Any]:
        if dims["RB"] != dims["test"]:
            raise ValueError(f"expected as many trial as test vectors, got {dims}")
        rom, r = self._last_rom, dims["RB"]
        part = np.eye(rom.solution_space.dim, r)
        return {
            "chain": (-rom.operator.chain).reduce(part, part),
            "encode": rom.initial_data.encode.project(part),
            "decode": rom.output_functional.chain.output.substitute({"y": Lift(part)}),
        }

    def build_rom(self, projected_operators: Mapping[str, Any], error_estimator: Any) -> OdeLayerModel:
        return ode_layer_model(
            time_stepper=self.fom.time_stepper,
            input_times=self.fom.input_times,
            interpolation=self.fom.interpolation,
            **projected_operators,
        )

    def reconstruct(self, u: VectorArray, basis: str = "RB") -> VectorArray:
        """Return ``c + V u``."""
        if self.RB is None:
            return u.copy()
        U = super().reconstruct(u, basis)
        return U if self.offset is None else U + self.offset[np.zeros(len(u), dtype=int)]


class FittedReductor(OdeLayerReductor):
    """Petrov–Galerkin projection of an ODE layer's model, with operators fitted to its sampled stages.

    As :class:`OdeLayerReductor`, but what follows a sampled stage is the regression of
    :func:`~torchmor.engine.fitting.fit_chain` instead of an interpolation.

    Parameters
    ----------
    fom, RB, test_basis, offset
        As in :class:`OdeLayerReductor`.
    points
        Stage name → evaluated components.
    training
        The :class:`~torchmor.engine.fitting.Training` data.
    ridge, absorbed
        As in :func:`~torchmor.engine.fitting.fit_chain`.

    Attributes
    ----------
    errors
        Of the last reduction: how well what reads sampled stages was fitted, as in
        :class:`~torchmor.engine.fitting.FittedChain`.
    """

    def __init__(
        self,
        fom: OdeLayerModel,
        RB: VectorArray | None,
        points: Mapping[str, np.ndarray],
        training: Training,
        test_basis: VectorArray | None = None,
        offset: VectorArray | None = None,
        ridge: float | None = None,
        absorbed: Collection[str] = (),
    ):
        super().__init__(fom, RB, None, test_basis, offset)
        self.__auto_init(locals())

    def reduced_chain(self, trial: np.ndarray | None, test: np.ndarray | None, offset: np.ndarray | None) -> StageChain:
        """Return the fitted chain for bases (n, r), which are None where the state is kept."""
        chain = -self.fom.operator.chain
        fitted = fit_chain(chain, trial, test, offset, self.points, self.training, self.ridge, self.absorbed)
        self.errors = fitted.errors
        return compress_quadratics(fitted.chain)
