"""`torchmor one-call`: what one default call of `reduce_network` returns, states and takes, on every network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import nn

from torchmor.adapters.reduction.wish import MAX_LOSSES
from torchmor.experiments.architectures.small_networks import dense_network, grouped_network
from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.delivery import Call, Delivery, deliver
from torchmor.experiments.measure.surroundings import surroundings, threads_in_words
from torchmor.experiments.report.one_call_report import print_one_call, write_one_call_report
from torchmor.experiments.report.results_file import ResultsFile
from torchmor.experiments.studies.coverage import KEY, SMALL_IN_WORDS, small_call
from torchmor.experiments.studies.demo import TRAINING
from torchmor.experiments.studies.functions import (
    Setting,
    controlled_network,
    enlarged,
    latent_network,
    normalised_network,
    rate_network,
)
from torchmor.experiments.studies.networks import CONVOLUTIONAL, LAYER, RECURRENT, NetworkRecipe

#: Inputs that a call is given at most.
CALIBRATION = 20_000

#: Seconds of the timed calls of one part at one batch, and in a quick run.
BUDGET_S, QUICK_BUDGET_S = 2.0, 0.1

#: Networks, samples of each part of their data, and small networks of a quick run.
QUICK_KEYS, QUICK_SAMPLES, QUICK_COVERAGE = ("latent", "dense"), 300, 3


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that is reduced by one call.

    Parameters
    ----------
    key, title
        Its short name, and what it is.
    data
        The data set.
    trained
        Makes the trained network.
    options
        What the call is given beside the data.
    """

    key: str
    title: str
    data: DataSet
    trained: Callable[[DataSet, Setting], nn.Module]
    options: Mapping[str, Any]

    def call(self, setting: Setting) -> Call:
        """Return the call, on the network of the setting's seed."""
        validation, labelled = self.data.validation, self.options["metric"] == "accuracy"
        return Call(
            network=self.trained(self.data, setting),
            name=LAYER,
            calibration=self.data.train.inputs[:CALIBRATION],
            validation=(validation.inputs, validation.labels) if labelled else validation.inputs,
            options=self.options,
            choose=validation,
            test=self.data.test,
            seed=setting.seed,
        )


def subjects(images: DataSet, sequences: DataSet, seed: int = 0) -> list[Subject]:
    """Return every network: those of the other studies, and two small classifiers of digits.

    Parameters
    ----------
    images, sequences
        Data sets.
    seed
        Of the split of the digits.
    """
    accuracy = {"metric": "accuracy"}
    tight = accuracy | {"max_loss": 0.003}
    small = digits(seed)
    return [
        *(_of_recipe(recipe, images, tight) for recipe in CONVOLUTIONAL),
        *(_of_recipe(recipe, sequences, accuracy) for recipe in RECURRENT),
        Subject("normalised", "Three normalisations", enlarged(images), normalised_network, accuracy),
        Subject("latent", "Latent trajectories", sequences, latent_network, {"metric": "relative"}),
        Subject("rates", "Rates, 256 units", sequences, rate_network, accuracy),
        Subject("controlled", "Neural CDE", sequences, controlled_network, accuracy),
        _of_recipe(
            NetworkRecipe("dense", "Perceptron on digits", "", lambda _: dense_network(), TRAINING), small, accuracy
        ),
        _of_recipe(
            NetworkRecipe("grouped", "Group norms on digits", "", lambda _: grouped_network(), TRAINING),
            small,
            accuracy,
        ),
    ]


def run_one_call(
    chosen: Sequence[Subject],
    seeds: Sequence[int],
    coverage: int,
    setting: Setting,
    *,
    command: str,
    console: Console,
) -> list[Delivery]:
    """Make all calls, and report; calls that the folder has results of are not made again.

    Parameters
    ----------
    chosen
        The networks.
    seeds
        Of their weights.
    coverage
        Number of small networks on which it is counted how often a stated bound holds.
    setting
        Where everything is written, and how: its seed is that of the first small network.
    command
        The command that repeats this run, for the report.
    console
        Where to print to.
    """
    setting.folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "data": {subject.key: subject.data.name for subject in chosen},
        "split": f"seed {setting.seed}",
        "calls": {
            subject.key: ", ".join(f"{name}={value!r}" for name, value in subject.options.items()) for subject in chosen
        },
        "default loss": MAX_LOSSES,
        "calibration": f"at most {CALIBRATION:,} training inputs; validation data, with labels where there are any",
        "small networks": SMALL_IN_WORDS,
        "timing": threads_in_words(setting.timing_threads),
        **({"quick": "trainings are short"} if setting.quick else {}),
        **{key: value for key, value in surroundings().items() if key != "threads"},
    }
    results = ResultsFile(setting.folder / "results.jsonl", settings, Delivery)
    aside = Console(stderr=True)  # what is printed begins with the verdict
    if results.renamed is not None:
        aside.print(f"results of a run with other settings are now in {results.renamed}", highlight=False)
    if results.damaged:
        aside.print(f"{results.damaged} damaged lines of {results.path} are measured again", highlight=False)
    found = []
    for key, seed, make in _calls(chosen, seeds, coverage, setting):
        known = results.find(key, seed, "one call", {}, "own")
        if not isinstance(known, Delivery):
            budget_s = QUICK_BUDGET_S if setting.quick else BUDGET_S
            timing_threads = None if key == KEY else setting.timing_threads
            known = deliver(key, make(), timing_threads=timing_threads, budget_s=budget_s)
            results.add(key, seed, "one call", {}, "own", known)
            words = escape(known.found or known.said)
            aside.print(f"{key}, seed {seed}: {words} [dim]({known.offline_s:.0f} s)[/dim]", highlight=False)
        found.append(known)
    titles = {subject.key: subject.title for subject in chosen}
    report = setting.folder / "report.html"
    write_one_call_report(report, command, found, titles, KEY, settings)
    print_one_call(console, found, titles, KEY)
    console.print(f"\nReport: {report}", highlight=False, soft_wrap=True)
    return found


def in_short(
    chosen: Sequence[Subject], seeds: Sequence[int], coverage: int
) -> tuple[list[Subject], Sequence[int], int]:
    """Return few small networks, one seed, and few runs for the coverage: to see that everything works."""
    few = [replace(one, data=one.data.shortened(QUICK_SAMPLES)) for one in chosen if one.key in QUICK_KEYS]
    return few, seeds[:1], min(coverage, QUICK_COVERAGE)


def _calls(
    chosen: Sequence[Subject], seeds: Sequence[int], coverage: int, setting: Setting
) -> Iterator[tuple[str, int, Callable[[], Call]]]:
    """Yield key, seed, and how to make the call: on the networks, and on small ones."""
    for seed in seeds:
        for subject in chosen:
            yield subject.key, seed, partial(subject.call, replace(setting, seed=seed))
    for seed in range(setting.seed, setting.seed + coverage):
        yield KEY, seed, partial(small_call, seed)


def _of_recipe(recipe: NetworkRecipe, data: DataSet, options: Mapping[str, Any]) -> Subject:
    def trained(data: DataSet, setting: Setting) -> nn.Module:
        return setting.network(recipe.key, data, recipe.build, recipe.training)

    return Subject(recipe.key, recipe.title, data, trained, options)
