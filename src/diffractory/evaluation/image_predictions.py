"""The stage that writes the predictions for images, from which tables and figures are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffractory.models.c_vae import CVae, distance_to_line
from diffractory.models.wide_resnet import WideResNet
from diffractory.store import recorded, write_parquet
from diffractory.training.image_networks import for_inference, load_image_network, predict
from diffractory.training.images import read_samples

OF_EXPERIMENT = ("time", "scan", "split")
"""Columns that predictions for an experiment keep of its samples."""


def evaluate_image_network(
    model: Path,
    images: Path,
    samples: Path,
    predictions: Path,
    run: Path,
    splits: Sequence[str],
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write one row per image of some splits: truth, and what the network says of it.

    A classifier says ``predicted`` and probabilities. A C-VAE says where the image is in latent
    space, its ``distance`` there to the segment between the means of the two phases, and the
    ``reconstruction_error``, the mean squared error of the scaled image (0 to 1). Rows of an
    experiment have its times and scans, and the split.

    Raises
    ------
    InputError
        If there is no such image, the model cannot be read, or the device is not there.
    """
    torch.set_num_threads(hardware["threads"])
    inputs = [model / "model.safetensors", model / "hparams.json", images, samples]
    config = {"splits": list(splits), "hardware": dict(hardware)}
    stage, device = "evaluate_image_network", hardware["device"]
    with recorded(run, stage, config, inputs, [predictions], seed, device) as facts:
        truth = read_samples(images, samples, splits)
        network, hparams = load_image_network(model)
        data = images, truth, device
        if isinstance(network, WideResNet):
            said = _classified(for_inference(network, hardware), hparams["classes"], *data)
        else:
            said = _encoded(for_inference(network, hardware), *data)
        of_experiment = OF_EXPERIMENT if "time" in truth else ()
        write_parquet(predictions, truth[["sample", "kind", *of_experiment]].join(said))
        facts["images"] = len(truth)


def _classified(
    network: WideResNet, classes: Sequence[str], images: Path, samples: pd.DataFrame, device: str
) -> pd.DataFrame:
    probability = predict(network.probabilities, images, samples, device).numpy()
    table = pd.DataFrame({"predicted": np.array(classes)[probability.argmax(axis=1)]})
    table[[f"probability_{kind}" for kind in classes]] = probability
    return table


def _encoded(network: CVae, images: Path, samples: pd.DataFrame, device: str) -> pd.DataFrame:
    def look(batch: Tensor) -> Tensor:
        scaled = network.scaled(batch)
        z, _ = network.encode(scaled)
        error = (network.decode(z) - scaled).square().mean((1, 2, 3))
        return torch.column_stack([z, distance_to_line(z, *network.ends), error])

    seen = predict(look, images, samples, device).numpy()
    latent = [f"latent_{i}" for i in range(seen.shape[1] - 2)]
    return pd.DataFrame(seen, columns=[*latent, "distance", "reconstruction_error"])
