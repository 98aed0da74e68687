"""One call of `reduce_network`, as its user makes it: what it returned and stated, and what is true of that."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from torchmor.adapters import reduce_network
from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.networks.timing import compare_times
from torchmor.adapters.reduction.metrics import loss
from torchmor.adapters.reduction.wish import MAX_LOSSES
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import COARSE, FixedSteps, Steps, solved_by, solver_name
from torchmor.engine.errors import SolverError, TorchmorError
from torchmor.engine.explanation import Explanation
from torchmor.engine.findings import Clock, ConfirmedLoss, TimedCall, Tuning
from torchmor.experiments.data.labelled import Labelled
from torchmor.experiments.measure.accuracy import accuracy, predict
from torchmor.experiments.measure.comparison import BATCHES, evaluations, layer_arguments
from torchmor.experiments.measure.surroundings import threads

#: What is timed.
PARTS: tuple[Literal["layer", "network"], ...] = ("layer", "network")

#: What came of a call: a reduced network, or an error with the best one found, with coarse steps, or with neither.
Ending = Literal["reduced", "best", "steps", "nothing"]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of `reduce_network`, and the data to measure by what it returns.

    Parameters
    ----------
    network
        The trained network.
    name
        Name of its ODE layer.
    calibration
        Inputs (k, …).
    validation
        Inputs, or a tuple (inputs, labels), as the call is given them; None if it isn't.
    options
        Its other arguments: "metric", and "max_loss" where it isn't the default.
    choose
        What coarse steps of the full layer are chosen on.
    test
        What nobody has seen.
    seed
        Of the call.
    """

    network: nn.Module
    name: str
    calibration: Tensor
    validation: Any
    options: Mapping[str, Any]
    choose: Labelled
    test: Labelled
    seed: int = 0

    @property
    def metric(self) -> str:
        """What losses are."""
        return str(self.options["metric"])

    @property
    def max_loss(self) -> float:
        """The largest loss that it allows."""
        return float(self.options.get("max_loss", MAX_LOSSES[self.metric]))

    def loss(self, network: nn.Module, samples: Labelled) -> float:
        """Return the loss of another network on samples; infinity where its ODE has no solution."""
        try:
            found = _outputs(network, samples.inputs)
        except SolverError:
            return float("inf")
        return loss(self.metric, found, _outputs(self.network, samples.inputs), samples.labels)


@dataclass(frozen=True)
class Delivery:
    """What a call returned and stated, and what is true of it on test data.

    Parameters
    ----------
    network, seed
        Key of the network, and its seed.
    metric, max_loss
        What losses are, and the largest that was allowed.
    ending
        What came of the call.
    found
        Sizes and solver of the network that came, in words.
    loss
        Of that network on test data; None if there is none.
    layer_error
        Relative error of its layer's output there.
    confirmed, tuning, clock
        What it states of itself; None where it doesn't.
    times
        Measured again for this study: of the network, of the full one, and of the full one with its cheapest adequate
        coarse steps, if there are any; None if nothing was timed.
    accuracy
        Of the full network on test data, in percent; None where it has no classes.
    offline_s
        Seconds that the call took.
    said
        The error's words, or those of `explain()`.
    """

    network: str
    seed: int
    metric: str
    max_loss: float
    ending: Ending
    found: str
    loss: float | None
    layer_error: float | None
    confirmed: ConfirmedLoss | None
    tuning: Tuning | None
    clock: Clock | None
    times: Clock | None
    accuracy: float | None
    offline_s: float
    said: str

    @property
    def bound(self) -> float | None:
        """The bound of the loss that was stated; None if none was."""
        return None if self.confirmed is None else self.confirmed.bound

    @property
    def held(self) -> bool | None:
        """Whether the loss on test data is within that bound."""
        return None if self.loss is None or self.bound is None else self.loss <= self.bound

    def gains(self, part: Literal["layer", "network"], batch: int) -> tuple[float, float] | None:
        """Return how many times as fast it is as the full one, with its own solver and with its cheapest adequate one.

        They are the same where no coarse steps are adequate; None if nothing was timed.
        """
        if self.times is None:
            return None
        own, *coarse = self.times.gains(part, batch).values()
        return own, coarse[0] if coarse else own

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Delivery":
        """Return the delivery that `to_json` made the data of."""
        kinds = {
            "confirmed": lambda found: ConfirmedLoss(**found),
            "tuning": lambda found: Tuning(**found),
            "clock": Clock.from_json,
            "times": Clock.from_json,
        }
        return cls(**data | {key: kind(data[key]) for key, kind in kinds.items() if data[key] is not None})


def deliver(key: str, call: Call, *, timing_threads: int | None = None, budget_s: float = 1.0) -> Delivery:
    """Make the call, and measure what comes.

    Parameters
    ----------
    key
        Of the network.
    call
        The call.
    timing_threads
        Threads of the timed calls; None times nothing.
    budget_s
        Seconds that the timed calls of a part at a batch may take.
    """
    start = time.perf_counter()
    small: nn.Module | None
    ending: Ending = "reduced"
    said = ""
    try:
        small = reduce_network(
            call.network,
            call.name,
            call.calibration,
            validation=call.validation,
            seed=call.seed,
            progress=False,
            **call.options,
        )
    except TorchmorError as error:
        said, ending, small = _what_is_left(error)
    offline_s = time.perf_counter() - start
    explanation = _explanation(small, call.name)
    return Delivery(
        network=key,
        seed=call.seed,
        metric=call.metric,
        max_loss=call.max_loss,
        ending=ending,
        found="" if small is None else _words(small.get_submodule(call.name), explanation),
        loss=None if small is None else call.loss(small, call.test),
        layer_error=None if small is None else _layer_error(call, small),
        confirmed=None if explanation is None else explanation.confirmed,
        tuning=None if explanation is None else explanation.tuning,
        clock=None if explanation is None else explanation.clock,
        times=None if small is None or timing_threads is None else _times(call, small, timing_threads, budget_s),
        accuracy=None
        if call.metric == "relative"
        else accuracy(predict(call.network, call.test.inputs), call.test.labels),
        offline_s=offline_s,
        said=said or str(explanation),
    )


def cheapest_adequate(call: Call) -> nn.Module | None:
    """Return the full network with the fewest evaluations of its ODE function that are within the call's loss.

    None if no coarse steps are, or none that are fewer than those of its own solver.
    """
    layer = cast(SolvingLayer, call.network.get_submodule(call.name))
    example = call.choose.inputs[: max(BATCHES)]
    most, found = evaluations(call.network, call.name, example), []
    for i, steps in enumerate(coarse_solvers(layer, most)):
        coarse = solved_by(call.network, call.name, steps)
        with suppress(SolverError):
            count = evaluations(coarse, call.name, example)
            if count < most:
                found.append((count, call.loss(coarse, call.choose), i, coarse))
    good = [entry for entry in found if entry[1] <= call.max_loss]
    return min(good)[-1] if good else None


def coarse_solvers(layer: SolvingLayer, most: int) -> list[FixedSteps]:
    """Return the steps that a full layer is tried with: a few, shares of its own evaluations, and from time to time."""
    shares = [Steps("euler", count) for count in (most // 4, most // 2) if count > 4]
    return [*COARSE, *shares, *(["euler", "midpoint"] if len(layer.t) > 2 else [])]


def _what_is_left(error: TorchmorError) -> tuple[str, Ending, nn.Module | None]:
    """Return what an error says, and the network that it carries."""
    words = f"{type(error).__name__}: {error}"
    attributes: tuple[tuple[Ending, str], ...] = (("best", "best"), ("steps", "network"))
    for ending, name in attributes:
        network = getattr(error, name, None)
        if network is not None:
            return words, ending, network
    return words, "nothing", None


def _explanation(small: nn.Module | None, name: str) -> Explanation | None:
    explain = None if small is None else getattr(small.get_submodule(name), "explain", None)
    return None if explain is None else explain()


def _words(layer: Any, explanation: Explanation | None) -> str:
    if explanation is None:
        return f"the full layer, {solver_name(layer)}"
    state, *stages = explanation.parts
    points = "/".join(str(stage.reduced) for stage in stages if stage.fate != "absorbed")
    return f"state {state.reduced}, points {points}, {solver_name(layer)}"


def _outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad(), evaluation(network):
        return torch.cat([network(batch) for batch in inputs.split(max(BATCHES))])


def _layer_error(call: Call, small: nn.Module) -> float:
    arguments = layer_arguments(call.network, call.name, call.test.inputs)
    with torch.no_grad():
        exact, found = (network.get_submodule(call.name)(*arguments) for network in (call.network, small))
    return loss("relative", found, exact)


def _times(call: Call, small: nn.Module, timing_threads: int, budget_s: float) -> Clock:
    """Time layers and networks, at both batches, interleaved."""
    inputs = call.test.inputs
    inputs = inputs.repeat(-(-max(BATCHES) // len(inputs)), *[1] * (inputs.ndim - 1))
    coarse = cheapest_adequate(call)
    networks = [small, call.network, *([] if coarse is None else [coarse])]
    layers = [cast(SolvingLayer, network.get_submodule(call.name)) for network in networks]
    found = []
    with threads(timing_threads):
        for batch in BATCHES:
            of_layer = layer_arguments(call.network, call.name, inputs[:batch])
            for part in PARTS:
                modules, arguments = (layers, of_layer) if part == "layer" else (networks, (inputs[:batch],))
                calls = {i: partial(module, *arguments) for i, module in enumerate(modules)}
                for i, timing in compare_times(calls, budget_s=budget_s, seed=call.seed).items():
                    of: Literal["reduced", "full"] = "full" if i else "reduced"
                    found.append(TimedCall(of, solver_name(layers[i]), part, batch, timing.wall_s))
    return Clock(tuple(found), timing_threads, "cpu")
