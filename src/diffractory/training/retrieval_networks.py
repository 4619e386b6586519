"""Networks that find crystals by their patterns: those that there are, trained ones, embeddings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffractory.models.dd2d import DD2D
from diffractory.models.invariant_2d import Invariant2D
from diffractory.store import InputError, Patterns, track
from diffractory.training.batches import check_device
from diffractory.training.crystals import Layers, padded
from diffractory.training.saved import load_trained

BATCH_SIZE = 256
"""Structures or patterns that are embedded at a time."""

RetrievalNetwork = DD2D | Invariant2D

NETWORKS: dict[str, type[DD2D] | type[Invariant2D]] = {"dd2d": DD2D, "invariant": Invariant2D}


def load_retrieval_network(model: Path) -> RetrievalNetwork:
    """Return the trained network of a folder.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    return load_trained(model, lambda h: NETWORKS[h["model"]](**h["network"]))[0]


def check_length(network: RetrievalNetwork, layers: Layers) -> None:
    """Check that the network can read all layers.

    Raises
    ------
    InputError
        If one has too many atoms.
    """
    if not isinstance(network, DD2D):
        return
    most = (network.max_length - 8) // 4
    too_long = layers.material_id[np.diff(layers.offsets) > most]
    if len(too_long):
        raise InputError(
            f"{', '.join(too_long[:5])}{', ...' if len(too_long) > 5 else ''} have more than the "
            f"{most} atoms that max_length: {network.max_length} leaves room for: raise max_length "
            "of dd2d, or lower max_sites of the layers"
        )


def embed_structures(
    network: RetrievalNetwork, layers: Layers, hardware: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Return the embeddings of all layers, of length 1, shape (L, width).

    Raises
    ------
    InputError
        If a layer is too long for the network, or the device is not there.
    """
    check_length(network, layers)

    def embed(rows: NDArray[np.int64], device: torch.device) -> Tensor:
        crystals = layers.batch(rows, network.q_max)
        return network.structures(type(crystals)(*(part.to(device) for part in crystals)))

    return _embedded(network, embed, np.diff(layers.offsets), hardware)


def embed_patterns(
    network: RetrievalNetwork, patterns: Patterns, hardware: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Return the embeddings of all patterns, of length 1, shape (P, width).

    Raises
    ------
    InputError
        If the device is not there.
    """
    values = np.stack([patterns.qx, patterns.qy, patterns.intensity], axis=1)

    def embed(rows: NDArray[np.int64], device: torch.device) -> Tensor:
        spots, mask = padded(values, patterns.offsets, rows)
        return network.patterns(spots.to(device), mask.to(device))

    return _embedded(network, embed, np.diff(patterns.offsets), hardware)


def _embedded(
    network: RetrievalNetwork,
    embed: Callable[[NDArray[np.int64], torch.device], Tensor],
    size: NDArray[np.int64],
    hardware: Mapping[str, Any],
) -> NDArray[np.float32]:
    """Return what ``embed`` makes of all rows, those of about the same size together."""
    check_device(hardware, "structure_2d")
    device = torch.device(hardware["device"])
    network.to(device)
    half = hardware["precision"] == "bf16-mixed"
    order = np.argsort(size, kind="stable")
    batches = np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE))
    some = track(batches, "Embedding", len(order), "items", BATCH_SIZE)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        parts = [embed(rows, device).cpu() for rows in some]
    return torch.cat(parts).numpy()[np.argsort(order)]
