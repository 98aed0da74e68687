"""The comparison of the literature: accuracy against time of every method, on networks trained on real data."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from rich.console import Console
from torch import nn

from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.networks.timing import FEWEST
from torchmor.adapters.solving.solve_settings import ADAPTIVE_METHODS
from torchmor.adapters.solving.steps import Steps
from torchmor.engine.errors import TorchmorError
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.comparison import (
    Candidate,
    Measurement,
    Row,
    adequate,
    layer_arguments,
    on_one_yardstick,
    size_words,
)
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.progress import Progress, progress
from torchmor.experiments.measure.surroundings import surroundings, threads_in_words
from torchmor.experiments.report.experiment_report import print_summary, write_experiment_report
from torchmor.experiments.report.results import NetworkResult, Showcase
from torchmor.experiments.report.results_file import ResultsFile
from torchmor.experiments.studies.candidates import Compression, Job, Levels
from torchmor.experiments.studies.networks import LAYER, NetworkRecipe, ode_layer
from torchmor.experiments.studies.trained import trained_network


@dataclass(frozen=True)
class Experiment:
    """A comparison on networks of one kind.

    Parameters
    ----------
    name
        Its command.
    title
        Title of its report.
    recipes
        The networks.
    levels
        How strongly they are compressed.
    coarse
        Layer → the coarse solvers that the full network is shown with.
    """

    name: str
    title: str
    recipes: Sequence[NetworkRecipe]
    levels: Levels
    coarse: Callable[[ODELayer], Sequence[Steps]]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Parameters
    ----------
    seeds
        Of the networks' weights and of what is chosen at random; the networks of the first one are timed.
    repeats, budget_s
        Of the timed calls.
    timing_threads
        Threads of the timed calls; everything else takes those that torch is set to.
    quick
        Whether this is a run to see that everything works.
    """

    seeds: Sequence[int]
    repeats: int = 15
    budget_s: float = 0.6
    timing_threads: int = 1
    quick: bool = False


def run_experiment(
    experiment: Experiment, data: DataSet, folder: Path, scale: Scale, *, command: str, console: Console
) -> list[NetworkResult]:
    """Train, compress, measure and report; rows that the folder has are not measured again.

    Parameters
    ----------
    experiment
        What to compare.
    data
        The data set.
    folder
        Gets results.jsonl, results.csv, report.html, plots/ and networks/; it is made if it is missing.
    scale
        How much to measure.
    command
        The command that repeats this run, for the report.
    console
        Where to print to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "experiment": experiment.name,
        "data": f"{data.name}; {len(data.train):,} to train, {len(data.validation):,} to validate, "
        f"{len(data.test):,} to test",
        "split": f"seed {scale.seeds[0]}",
        "levels": experiment.levels.in_words(),
        "networks": {recipe.key: recipe.description for recipe in experiment.recipes},
        "training": {recipe.key: recipe.training.words(len(data.train)) for recipe in experiment.recipes},
        "timing": f"{threads_in_words(scale.timing_threads)}, median of {scale.repeats} calls, or of at least {FEWEST} "
        f"that take {scale.budget_s:g} s together",
        **{key: value for key, value in surroundings().items() if key != "threads"},
    }
    results = ResultsFile(folder / "results.jsonl", settings, Row)
    if results.renamed is not None:
        console.print(f"results of a run with other settings are now in {results.renamed}", highlight=False)
    if results.damaged:
        console.print(f"{results.damaged} damaged lines of {results.path} are measured again", highlight=False)
    found = [_Run(experiment, recipe, data, folder, scale, results, console).result() for recipe in experiment.recipes]
    write_experiment_report(
        folder, experiment.title, command, found, {"seeds": ", ".join(map(str, scale.seeds)), **settings}
    )
    print_summary(console, found)
    console.print(f"\nReport with pictures: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    return found


@dataclass(frozen=True, eq=False)
class _Run:
    """An experiment on one network."""

    experiment: Experiment
    recipe: NetworkRecipe
    data: DataSet
    folder: Path
    scale: Scale
    results: ResultsFile[Row]
    console: Console

    def result(self) -> NetworkResult:
        """Measure what is missing, and return everything."""
        rows: dict[int, list[Row]] = {}
        failures: list[str] = []
        companion = None
        for seed in self.scale.seeds:
            start = time.perf_counter()
            network = trained_network(self.recipe, self.data, seed, self.folder / "networks")
            on_seed = _OnSeed(self, network, seed)
            rows[seed], found = on_seed.rows(companion)
            companion = on_seed.companion
            failures += found
            self.console.print(
                f"network {self.recipe.key}, seed {seed}: {rows[seed][0].accuracy:.1f} %, {len(rows[seed])} rows "
                f"[dim]({time.perf_counter() - start:.0f} s)[/dim]",
                highlight=False,
            )
            if seed == self.scale.seeds[0]:
                rows[seed] = on_one_yardstick(rows[seed])
                showcase = Showcase(network, on_seed.compression.showcase(), LAYER, self.data.validation.inputs[:64])
        recipe = self.recipe
        description = f"{recipe.description} Training: {recipe.training.words(len(self.data.train))}."
        return NetworkResult(recipe.key, recipe.title, description, rows, failures, showcase)


class _OnSeed:
    """The rows of one trained network."""

    def __init__(self, run: _Run, network: nn.Module, seed: int):
        self.run, self.network, self.seed = run, network, seed
        self.timed = seed == run.scale.seeds[0]
        self.compression = Compression(run.recipe.key, network, LAYER, run.data, run.experiment.levels, seed)
        self.companion: Steps | None = None
        self.failures: list[str] = []

    @cached_property
    def measurement(self) -> Measurement:
        scale = self.run.scale
        return Measurement(
            self.network,
            LAYER,
            self.run.data,
            repeats=scale.repeats,
            budget_s=scale.budget_s,
            timing_threads=scale.timing_threads,
            seed=self.seed,
        )

    def rows(self, companion: Steps | None) -> tuple[list[Row], list[str]]:
        """Return all rows, the full network with its own solver first, and what failed.

        Parameters
        ----------
        companion
            Coarse solver of the compressed networks; None for the cheapest that is adequate for the full one.
        """
        layer = ode_layer(self.network)
        coarse = list(self.run.experiment.coarse(layer))
        own = self.timed or layer.method not in ADAPTIVE_METHODS
        jobs = list(self.compression.jobs(None, control=self.timed))
        full = Job("full", {"n": layer_size(self.network, self.run.data)}, lambda: self.network)
        words = f"measuring network {self.run.recipe.key}, seed {self.seed}"
        rows_to_come = 1 + len(coarse) + len(jobs) + own * sum(job.own_solver for job in jobs)
        with progress(words, rows_to_come) as bar:
            rows = [
                row
                for solver in (None, *coarse)
                for row in self._measured(full, lambda: (self.network, 0.0), solver, bar)
            ]
            self.companion = companion or self._cheapest_adequate(rows, coarse)
            for job in self.compression.jobs(self.companion, control=self.timed):
                made = cache(partial(_timed, job.make))
                solvers: list[Steps | None] = [None] if (own and job.own_solver) or self.companion is None else []
                solvers += [] if self.companion is None or job.method == "skipped" else [self.companion]
                solvers = solvers if job.solver is None else [job.solver]
                for solver in solvers:
                    rows += self._measured(job, made, solver, bar)
        return rows, self.failures

    def _cheapest_adequate(self, rows: Sequence[Row], coarse: Sequence[Steps]) -> Steps | None:
        good = [
            (steps.evaluations, -row.validation_accuracy, i)
            for i, (steps, row) in enumerate(zip(coarse, rows[1:], strict=True))
            if adequate(row, rows[0])
        ]
        return coarse[min(good)[-1]] if good else None

    def _measured(
        self, job: Job, made: Callable[[], tuple[nn.Module, float]], solver: Steps | None, bar: Progress
    ) -> Iterator[Row]:
        """Yield the row of a job if there is one; `made` returns its network and the seconds that it took to make."""
        key = (self.run.recipe.key, self.seed, job.method, job.sizes, str(solver or "own"))
        found = self.run.results.find(*key)
        if found is None:
            try:
                network, offline_s = made()
                candidate = Candidate(job.method, job.sizes, network, solver, offline_s)
                found = self.measurement.row(candidate, timed=self.timed)
            except TorchmorError as error:
                found = f"{type(error).__name__}: {error}"
            self.run.results.add(*key, found)
        bar.advance()
        if isinstance(found, Row):
            yield found
        else:
            words = ", ".join(filter(None, (METHODS[job.method].words, size_words(job.sizes), str(solver or ""))))
            self.failures.append(f"{words}, seed {self.seed}: {found}")


def _timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def layer_size(network: nn.Module, data: DataSet) -> int:
    """Return the number of states of the ODE layer."""
    return layer_arguments(network, LAYER, data.validation.inputs[:1])[0].numel()


def in_short(experiment: Experiment, scale: Scale, data: DataSet) -> tuple[Experiment, Scale, DataSet]:
    """Return an experiment with few levels, little training and little data: to see that everything works."""
    levels = experiment.levels
    few = replace(
        levels,
        sizes=levels.sizes[3:5],
        kept=levels.kept[3:4],
        ranks=levels.ranks[3:4],
        dense_ranks=levels.dense_ranks[3:4],
        distilled={key: distilled[-1:] for key, distilled in levels.distilled.items()},
        calibration=200,
        epochs=10,
    )
    recipes = [
        replace(recipe, training=replace(recipe.training, epochs=1, least_steps=100)) for recipe in experiment.recipes
    ]
    return (
        replace(experiment, levels=few, recipes=recipes),
        replace(scale, seeds=scale.seeds[:1], repeats=3, budget_s=0.1, quick=True),
        data.shortened(),
    )
