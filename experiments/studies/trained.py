"""Trained networks, kept in a folder, so that they are trained once."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.engine.errors import FileFormatError
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.progress import progress
from torchmor.experiments.studies.networks import NetworkRecipe
from torchmor.experiments.studies.training import train


def trained_network(recipe: NetworkRecipe, data: DataSet, seed: int, folder: Path) -> nn.Module:
    """Return the trained network of a recipe, from the folder if it is there, and otherwise trained and put there.

    Law: the file is used only if all settings are the same: the recipe, the data, the seed, the version of torch.

    Parameters
    ----------
    recipe
        The network.
    data
        It is trained on the training part.
    seed
        Of the weights and of the order of the samples.
    folder
        Where the files are; it is made if it is missing.

    Raises
    ------
    FileFormatError
        The file is damaged.
    """
    network, samples = recipe.network(data, seed), len(data.train)
    settings = {
        "recipe": recipe.key,
        "network": str(network),
        "training": asdict(recipe.training) | {"epochs": recipe.training.epochs_on(samples)},
        "data": data.name,
        "contents": _digest(data),
        "seed": seed,
        "torch": torch.__version__,
    }
    text = json.dumps(settings, sort_keys=True)
    path = folder / f"{recipe.key}-seed-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
    if path.exists():
        return _load(network, path, text).eval()
    with progress(f"training network {recipe.key}, seed {seed}", recipe.training.epochs_on(samples)) as bar:
        train(network, data, seed=seed, progress=bar, **recipe.training.arguments(samples))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:  # safetensors' own writing would raise other errors
        temporary.write_bytes(save(network.state_dict(), metadata={"settings": text}))
    return network


def _load(network: nn.Module, path: Path, settings: str) -> nn.Module:
    try:
        with safe_open(path, "pt") as file:
            kept, names = (file.metadata() or {}).get("settings"), file.keys()
            state = {key: file.get_tensor(key) for key in names}
        if kept != settings:
            raise ValueError("its settings are others than its name says")
        network.load_state_dict(state)
    except Exception as error:  # safetensors raises exceptions of its own
        raise FileFormatError(
            f"expected a trained network in {path}, got a file that cannot be used ({error}): delete it, and it is "
            "trained again"
        ) from error
    return network


def _digest(data: DataSet) -> str:
    digest = hashlib.sha256()
    for part in (data.train.inputs, data.train.labels):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()[:16]
