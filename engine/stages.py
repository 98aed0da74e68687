"""The stage chain: what an ODE function f(t, y, u) computes, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse.linalg import LinearOperator

from torchmor.engine import functions
from torchmor.engine.affine import AffineMap, Lift, accumulate, by_products
from torchmor.engine.errors import ShapeError
from torchmor.engine.expressions import Expression


@dataclass(frozen=True, eq=False)
class Stage:
    """A componentwise stage ``g = φ(a_1, …, a_q)`` with ``[a_1; …; a_q] = argument(sources)``.

    Products and gates are stages whose expression has several arguments.

    Parameters
    ----------
    name
        Name under which later maps read the stage as a source.
    expression
        The componentwise function φ of q arguments.
    argument
        Affine map with q · size rows: all rows of a_1, then all of a_2, ….
    """

    name: str
    expression: Expression
    argument: AffineMap

    def __post_init__(self) -> None:
        if self.expression.arity == 0 or self.argument.size % self.expression.arity:
            raise ShapeError(
                f"stage '{self.name}' has {self.expression.arity} arguments, so its map needs a multiple of "
                f"that many rows, got {self.argument.size}"
            )

    @property
    def size(self) -> int:
        """Number of components of g."""
        return self.argument.size // self.expression.arity

    def rows(self, dofs: np.ndarray) -> np.ndarray:
        """Rows of the argument map that the components ``dofs`` of g read."""
        offsets = self.size * np.arange(self.expression.arity)
        return (offsets[:, np.newaxis] + np.asarray(dofs, dtype=np.int64)).ravel()

    def restrict(self, dofs: np.ndarray) -> Stage:
        """Keep the components ``dofs`` of g; any order, repeats allowed."""
        return replace(self, argument=self.argument.restrict(self.rows(dofs)))

    def sources_of_arguments(self) -> list[set[str]]:
        """Return what each argument reads, as random tangents tell."""
        rng = np.random.default_rng(0)
        found: list[set[str]] = [set() for _ in range(self.expression.arity)]
        for source, size in zip(self.argument.sources, self.argument.sizes, strict=True):
            moved = self.split(self.argument.derivative({source: rng.normal(size=(size, 1))}))
            for reads, part in zip(found, moved, strict=True):
                if np.any(part):
                    reads.add(source)
        return found

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Split rows (q · size, k) of the argument map into the q arguments (size, k)."""
        return np.split(values, self.expression.arity)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Sampling of a stage: ``g ≈ lift @ g[points]``.

    Parameters
    ----------
    points
        Integer array (m,): the evaluated components of the stage.
    lift
        Array (size, m); for interpolation with a collateral basis U it is ``U (U[points])⁻¹``.
    """

    points: np.ndarray
    lift: np.ndarray


@dataclass(frozen=True, eq=False)
class StageChain:
    """``f(t, y, u)`` as affine maps with componentwise stages between them.

    Stages are in the order of evaluation; each reads the state "y", the input "u", the time "t" and earlier
    stages by name, and so does ``output``, whose value is f. Sums and skip links are further sources of a map.

    Parameters
    ----------
    state_size
        Size n of y.
    input_size
        Size p of u; 0 when there is none.
    stages
        The stages.
    output
        The affine map to f.

    Raises
    ------
    ShapeError
        A map reads a source that does not exist at its place, or with another size.
    """

    state_size: int
    input_size: int
    stages: tuple[Stage, ...]
    output: AffineMap

    def __post_init__(self) -> None:
        known = {"y": self.state_size, "u": self.input_size, "t": 1}
        parts = [*((s.name, s.size, s.argument) for s in self.stages), ("output", self.output.size, self.output)]
        for name, rows, affine in parts:
            for source, size in zip(affine.sources, affine.sizes, strict=True):
                if known.get(source) != size:
                    raise ShapeError(f"'{name}' reads {size} entries of '{source}', which has {known.get(source)}")
            if name in known:
                raise ShapeError(f"there are two stages named '{name}'")
            known[name] = rows

    @property
    def maps(self) -> tuple[AffineMap, ...]:
        """All affine maps, in the order of evaluation."""
        return (*(stage.argument for stage in self.stages), self.output)

    @property
    def named_maps(self) -> dict[str, AffineMap]:
        """The maps by the names of the stages, and "output"."""
        return {**{stage.name: stage.argument for stage in self.stages}, "output": self.output}

    def reads(self, source: str) -> bool:
        """Whether any map reads the source."""
        return any(source in affine.sources for affine in self.maps)

    @property
    def time_stages(self) -> frozenset[str]:
        """Names of the stages that depend on the time alone, as embeddings of the time do."""
        found: set[str] = set()
        for stage in self.stages:
            if set(stage.argument.sources) <= {"t", *found}:
                found.add(stage.name)
        return frozenset(found)

    @property
    def is_linear(self) -> bool:
        """Whether f is linear in y and reads nothing else."""
        return not self.stages and set(self.output.sources) <= {"y"} and not np.any(self.output.shift)

    def evaluate(
        self, y: np.ndarray, u: np.ndarray | None = None, t: np.ndarray | float = 0.0
    ) -> dict[str, np.ndarray]:
        """Evaluate all sources, stages and the output.

        Parameters
        ----------
        y
            Array (n, k).
        u
            Array (p, k) or (p, 1); None when the chain reads no input.
        t
            Time, or array (k,) of times.

        Returns
        -------
        dict
            Name → array (size, k) for "y", each stage and "output"; "u" and "t" where given.
        """
        values = {"y": y, "t": np.reshape(np.asarray(t, dtype=np.float64), (1, -1))}
        if u is not None:
            values["u"] = u
        k = y.shape[1]
        for stage in self.stages:
            g = functions.evaluate(stage.expression, stage.split(stage.argument.apply(values)))
            values[stage.name] = np.broadcast_to(g, (stage.size, k))
        values["output"] = np.broadcast_to(self.output.apply(values), (self.output.size, k))
        return values

    def __call__(self, y: np.ndarray, u: np.ndarray | None = None, t: np.ndarray | float = 0.0) -> np.ndarray:
        """Evaluate f at columns y (n, k); returns (output size, k)."""
        return np.array(self.evaluate(y, u, t)["output"])

    def jacobian(self, y: np.ndarray, u: np.ndarray | None = None, t: float = 0.0) -> LinearOperator:
        """Return ∂f/∂y at one state y (n, 1), by its products (forward mode) and transposed products (reverse)."""
        values = self.evaluate(y, u, t)
        slopes = {
            stage.name: functions.derivatives(stage.expression, stage.split(stage.argument.apply(values)))
            for stage in self.stages
        }

        def forward(columns: np.ndarray) -> np.ndarray:
            tangents = {"y": columns.reshape(self.state_size, -1)}
            k = tangents["y"].shape[1]
            for stage in self.stages:
                parts = stage.split(stage.argument.derivative(tangents))
                total = sum(d * a for d, a in zip(slopes[stage.name], parts, strict=True))
                tangents[stage.name] = np.broadcast_to(total, (stage.size, k))
            return np.array(np.broadcast_to(self.output.derivative(tangents), (self.output.size, k)))

        def reverse(columns: np.ndarray) -> np.ndarray:
            columns = columns.reshape(self.output.size, -1)
            cotangents = {"y": np.zeros((self.state_size, columns.shape[1]))}
            accumulate(cotangents, self.output.adjoint(columns))
            for stage in reversed(self.stages):
                if stage.name in cotangents:
                    parts = [d * cotangents[stage.name] for d in slopes[stage.name]]
                    accumulate(cotangents, stage.argument.adjoint(np.concatenate(parts)))
            return cotangents["y"]

        return by_products((self.output.size, self.state_size), forward, reverse)

    def restrict(self, dofs: np.ndarray) -> tuple[StageChain, np.ndarray]:
        """Restrict f to the components ``dofs``, evaluating only what they need.

        Law: ``chain(y)[dofs] == restricted(y[source_dofs])``.

        Parameters
        ----------
        dofs
            Integer array: components of f, in any order, repeats allowed.

        Returns
        -------
        restricted
            Chain of state size len(source_dofs).
        source_dofs
            Sorted integer array: the entries of y that are read.
        """
        output = self.output.restrict(dofs)
        kept: dict[str, np.ndarray] = {}
        needed = _needs({}, output)
        arguments = {}
        for stage in reversed(self.stages):
            kept[stage.name] = needed.get(stage.name, np.zeros(0, dtype=np.int64))
            if len(kept[stage.name]):
                arguments[stage.name] = stage.restrict(kept[stage.name]).argument
                _needs(needed, arguments[stage.name])
        source_dofs = needed.get("y", np.zeros(0, dtype=np.int64))
        columns = {"y": source_dofs, **kept}
        stages = tuple(
            replace(stage, argument=arguments[stage.name].select(columns))
            for stage in self.stages
            if stage.name in arguments
        )
        return StageChain(len(source_dofs), self.input_size, stages, output.select(columns)), source_dofs

    def reduce(
        self,
        trial: np.ndarray | None = None,
        test: np.ndarray | None = None,
        offset: np.ndarray | None = None,
        interpolations: Mapping[str, Interpolation] | None = None,
    ) -> StageChain:
        """Project the chain onto a trial space and sample its stages.

        The result is again a chain, of small matrices: ``testᵀ f(t, offset + trial z, u)``, with each stage g named
        in ``interpolations`` replaced by ``lift @ g[points]``. Nothing is approximated without interpolations.

        Parameters
        ----------
        trial
            Array V (n, r), or None to keep the state.
        test
            Array W (output size, r), or None to keep all rows.
        offset
            Array c (n,), or None for zero.
        interpolations
            Stage name → sampling.
        """
        lifts = {}
        if trial is not None:
            lifts["y"] = Lift(trial, offset)
        elif offset is not None:
            lifts["y"] = Lift(np.eye(self.state_size), offset)
        stages = []
        for stage in self.stages:
            sampling = (interpolations or {}).get(stage.name)
            part = stage if sampling is None else stage.restrict(sampling.points)
            stages.append(replace(part, argument=part.argument.substitute(lifts)))
            if sampling is not None:
                lifts[stage.name] = Lift(sampling.lift)
        output = self.output if test is None else self.output.project(test)
        state_size = self.state_size if trial is None else trial.shape[1]
        return StageChain(state_size, self.input_size, tuple(stages), output.substitute(lifts))

    def numbered(self, start: int = 1) -> StageChain:
        """Rename the stages to g{start}, g{start + 1}, … in their order."""
        names = {stage.name: f"g{number}" for number, stage in enumerate(self.stages, start)}

        def renamed(affine: AffineMap) -> AffineMap:
            return replace(affine, sources=tuple(names.get(source, source) for source in affine.sources))

        stages = tuple(replace(s, name=names[s.name], argument=renamed(s.argument)) for s in self.stages)
        return replace(self, stages=stages, output=renamed(self.output))

    def __neg__(self) -> StageChain:
        return replace(self, output=-self.output)


def _needs(needed: dict[str, np.ndarray], affine: AffineMap) -> dict[str, np.ndarray]:
    for source in affine.sources:
        if source not in ("u", "t"):
            needed[source] = np.union1d(needed.get(source, np.zeros(0, dtype=np.int64)), affine.used(source))
    return needed
