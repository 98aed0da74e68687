"""`torchmor recurrent`: networks for sequences, with an ODE layer that is driven by them."""

from torchmor.adapters import ODELayer
from torchmor.adapters.solving.steps import COARSE, Steps
from torchmor.experiments.studies.candidates import Distillation, Levels
from torchmor.experiments.studies.experiment import Experiment
from torchmor.experiments.studies.networks import RECURRENT


def _coarse(layer: ODELayer) -> list[Steps]:
    """The usual ones, and one Euler step for every second and every fourth time of the sequence."""
    steps = len(layer.input_times)
    own = [Steps("euler", count) for count in (steps // 4, steps // 2) if count > 4]
    return [*COARSE, *own]


#: What is compared.
EXPERIMENT = Experiment(
    name="recurrent",
    title="Faster recurrent Neural ODEs",
    recipes=RECURRENT,
    levels=Levels(
        sizes=((64, 128), (32, 128), (32, 64), (16, 64), (8, 32), (4, 16)),
        kept=(224, 192, 160, 128, 64, 32),
        ranks=(96, 64, 32, 16, 8, 4),
        dense_ranks=(),
        weights=("recurrent",),  # A; Z is small
        distilled=dict.fromkeys(("c", "d"), (Distillation(32, 128), Distillation(16, 64), Distillation(8, 32))),
    ),
    coarse=_coarse,
)
