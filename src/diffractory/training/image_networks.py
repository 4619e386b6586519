"""Networks of diffraction images: those that there are, trained ones, and what they predict."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from diffractory.models.c_vae import CVae
from diffractory.models.wide_resnet import WideResNet
from diffractory.store import InputError, track
from diffractory.training.batches import check_device, loader
from diffractory.training.images import ImageBatches
from diffractory.training.saved import load_trained

BATCH_SIZE = 32
"""Images that a network predicts at a time."""

ImageNetwork = WideResNet | CVae
Network = TypeVar("Network", WideResNet, CVae)


def build(
    name: str, settings: Mapping[str, Any], shape: Sequence[int], classes: Sequence[str]
) -> ImageNetwork:
    """Return a network with random weights.

    Raises
    ------
    InputError
        If its settings do not go together, or not with the shape of the images.
    """
    if name == "c_vae":
        network = CVae(**settings)
        if settings["image_size"] % 2 ** len(settings["channels"]):
            raise InputError(
                f"image_size is {settings['image_size']} pixels, which cannot be halved "
                f"{len(settings['channels'])} times: take a multiple of "
                f"{2 ** len(settings['channels'])}"
            )
        return network
    least = settings["pool"] ** (len(settings["channels"]) - 2)
    if min(shape) < least:
        raise InputError(
            f"images of {shape[0]} x {shape[1]} pixels are too small for pool: "
            f"{settings['pool']}, which needs {least}: lower it"
        )
    return WideResNet(shape, len(classes), **settings)


def load_image_network(model: Path) -> tuple[ImageNetwork, dict[str, Any]]:
    """Return the trained network of a folder, and its hparams.json.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    return load_trained(
        model, lambda h: build(h["model"], h["network"], h["image_shape"], h["classes"])
    )


def for_inference(network: Network, hardware: Mapping[str, Any]) -> Network:
    """Return a trained network on a device and in the precision that it predicts with.

    Against the network itself, probabilities change by at most 1e-4 with 32-true, and 0.05 with
    bf16-mixed.
    """
    check_device(hardware, "ued")
    half = hardware["precision"] == "bf16-mixed"
    network = network.folded(torch.bfloat16 if half else torch.float32)
    return network.to(hardware["device"])


def predict(
    function: Callable[[Tensor], Tensor], images: Path, samples: pd.DataFrame, device: str
) -> Tensor:
    """Return what a function says of the images of some samples, one row each, in their order.

    Parameters
    ----------
    function
        Takes images on the device, shape (B, rows, columns).
    """
    batches = ImageBatches(images, samples, [], BATCH_SIZE, 0, shuffle=False, in_memory=False)
    some = track(loader(batches, None, 0), "Predicting", len(batches), "batches")
    with torch.inference_mode():
        return torch.cat([function(batch.images.to(device)).cpu() for batch in some])
