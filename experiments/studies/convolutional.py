"""`torchmor convolutional`: image networks with a convolutional ODE layer."""

from torchmor.adapters.solving.steps import COARSE, Steps
from torchmor.experiments.studies.candidates import Distillation, Levels
from torchmor.experiments.studies.experiment import Experiment
from torchmor.experiments.studies.networks import CONVOLUTIONAL

#: What is compared.
EXPERIMENT = Experiment(
    name="convolutional",
    title="Faster convolutional Neural ODEs",
    recipes=CONVOLUTIONAL,
    levels=Levels(
        sizes=((256, 512), (128, 256), (64, 128), (32, 64), (16, 32), (8, 16)),
        kept=(14, 12, 10, 8, 4, 2),
        ranks=(12, 8, 6, 4, 2, 1),
        dense_ranks=(256, 128, 64, 32, 16, 8),
        distilled={
            "a": (Distillation(48, 256, Steps("midpoint", 1)),),
            "b": (Distillation(32, 384, Steps("midpoint", 1)),),
        },
        teacher=Steps("rk4", 1),
    ),
    coarse=lambda layer: COARSE,
)
