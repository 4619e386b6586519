"""Networks of spot lists: those that there are, trained ones, and what they predict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffractory.models.mvof_ml import MvofMl
from diffractory.models.ours import Ours
from diffractory.models.pe_ag_gmoe import PeAgGmoe
from diffractory.models.spot_lists import Opinions, SpotListNetwork
from diffractory.store import track
from diffractory.training.batches import check_device, loader
from diffractory.training.saved import load_trained
from diffractory.training.spots import SpotBatches

NETWORKS: dict[str, type[SpotListNetwork]] = {
    "pe_ag_gmoe": PeAgGmoe,
    "mvof_ml": MvofMl,
    "ours": Ours,
}


def load_network(model: Path) -> tuple[SpotListNetwork, int]:
    """Return the trained network of a folder, and how many spots of a pattern it reads.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    network, hparams = load_trained(model, lambda h: NETWORKS[h["model"]](**h["network"]))
    return network, hparams["max_spots"]


def predict(
    network: SpotListNetwork, batches: SpotBatches, hardware: Mapping[str, Any]
) -> tuple[np.ndarray[Any, Any], Opinions]:
    """Return the patterns of all batches by their index in the store, and opinions about them."""
    check_device(hardware, "symmetry")
    device = torch.device(hardware["device"])
    network = network.to(device)
    patterns, opinions = [], []
    half = hardware["precision"] == "bf16-mixed"
    some = track(loader(batches, None, 0), "Predicting", len(batches), "batches")
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for batch in some:
            output = network(batch.spots.to(device), batch.mask.to(device))
            patterns.append(batch.pattern)
            opinions.append(network.opinions(output))
    parts = zip(*opinions, strict=True)
    joined = [None if part[0] is None else torch.cat(part).cpu() for part in parts]
    return torch.cat(patterns).numpy(), Opinions(*joined)  # type: ignore[arg-type]
