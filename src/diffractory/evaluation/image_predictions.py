"""The stages that write the predictions for images, from which tables and figures are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffractory.models.c_vae import CVae, distance_to_line
from diffractory.models.wide_resnet import WideResNet
from diffractory.store import InputError, recorded, write_parquet
from diffractory.training.image_networks import for_inference, load_image_network, predict
from diffractory.training.images import read_samples

OF_EXPERIMENT = ("time", "scan", "split")
"""Columns that predictions for an experiment keep of its samples."""


def evaluate_classifier(
    model: Path,
    images: Path,
    samples: Path,
    predictions: Path,
    run: Path,
    splits: Sequence[str],
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write one row per image of some splits: truth, prediction and probabilities.

    Those of an experiment have its times and scans, and the split.

    Raises
    ------
    InputError
        If there is no such image, the model cannot be read, or the device is not there.
    """
    torch.set_num_threads(hardware["threads"])
    inputs = [model / "model.safetensors", model / "hparams.json", images, samples]
    config = {"splits": list(splits), "hardware": dict(hardware)}
    stage, device = "evaluate_classifier", hardware["device"]
    with recorded(run, stage, config, inputs, [predictions], seed, device) as facts:
        truth = read_samples(images, samples, splits)
        network, hparams = load_image_network(model)
        if not isinstance(network, WideResNet):
            raise InputError(f"{model} is no classifier of images: give one")
        network = for_inference(network, hardware)
        probability = predict(network.probabilities, images, truth, device).numpy()
        of_experiment = OF_EXPERIMENT if "time" in truth else ()
        table = truth[["sample", "kind", *of_experiment]].copy()
        table["predicted"] = np.array(hparams["classes"])[probability.argmax(axis=1)]
        table[[f"probability_{kind}" for kind in hparams["classes"]]] = probability
        write_parquet(predictions, table)
        facts["images"] = len(table)


def evaluate_c_vae(
    model: Path,
    images: Path,
    samples: Path,
    predictions: Path,
    run: Path,
    splits: Sequence[str],
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write one row per image of some splits: where it is in latent space, and what is lost there.

    ``distance`` is to the segment between the mean latent vectors of the two phases, and
    ``reconstruction_error`` the mean squared error of the scaled image (0 to 1).

    Raises
    ------
    InputError
        If there is no such image, the model cannot be read, or the device is not there.
    """
    torch.set_num_threads(hardware["threads"])
    inputs = [model / "model.safetensors", model / "hparams.json", images, samples]
    config = {"splits": list(splits), "hardware": dict(hardware)}
    stage, device = "evaluate_c_vae", hardware["device"]
    with recorded(run, stage, config, inputs, [predictions], seed, device) as facts:
        truth = read_samples(images, samples, splits)
        network, _ = load_image_network(model)
        if not isinstance(network, CVae):
            raise InputError(f"{model} is no autoencoder of images: give one")
        network = for_inference(network, hardware)

        def look(batch: Tensor) -> Tensor:
            scaled = network.scaled(batch)
            z, _ = network.encode(scaled)
            error = (network.decode(z) - scaled).square().mean((1, 2, 3))
            return torch.column_stack([z, distance_to_line(z, *network.ends), error])

        seen = predict(look, images, truth, device).numpy()
        latent = [f"latent_{i}" for i in range(seen.shape[1] - 2)]
        columns = [*latent, "distance", "reconstruction_error"]
        found = pd.DataFrame(seen, columns=columns)
        write_parquet(predictions, truth[["sample", "kind"]].join(found))
        facts["images"] = len(truth)
