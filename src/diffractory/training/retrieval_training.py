"""The stage behind the rule `train_retrieval_network`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor

from diffractory.store import InputError, generator
from diffractory.training.crystals import PairBatch, PairBatches, layers_of, pairs
from diffractory.training.fit import Training, fit
from diffractory.training.launch import Job
from diffractory.training.retrieval_networks import NETWORKS, RetrievalNetwork, check_length
from diffractory.training.spots import varied
from diffractory.training.stage import follow, trained

GALLERY = 1000
"""Most validation pairs that are told apart: beyond it they are divided into galleries."""


class RetrievalTraining(Training):
    """A network of layers and patterns in training."""

    named = "materials"
    gradient_clip = 1.0
    network: RetrievalNetwork

    def loss(self, batch: PairBatch) -> Tensor:
        """Return the loss of layers and varied patterns."""
        spots, mask = varied(batch.spots, batch.mask, self.settings)
        if self.settings["position_jitter"]:
            moved = self.settings["position_jitter"] * torch.randn_like(spots[..., :2])
            spots = torch.cat([spots[..., :2] + moved, spots[..., 2:]], dim=-1)
        return self.network.loss(*self.network(batch.crystals, spots, mask))

    def measures(self, batch: PairBatch) -> Iterator[tuple[str, Tensor]]:
        """Return the loss, and how often the layer of a pattern is among the 1 and 10 nearest."""
        embeddings = self.network(batch.crystals, batch.spots, batch.mask)
        yield "validation_loss", self.network.loss(*embeddings) * len(batch.pattern)
        similarities = self.network.similarities(*embeddings)
        nearer = (similarities > similarities.diagonal()[:, None]).sum(dim=1)
        for k in (1, 10):
            yield f"top_{k}", (nearer < k).sum()


def train_retrieval_network(
    name: str,
    patterns: Path,
    layers: Path,
    model: Path,
    settings: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
    minutes: float | None = None,
) -> None:
    """Train one network and write the folder ``model``, whose name the record goes by.

    Kills and limits of time are survived as `train_network` does.

    Parameters
    ----------
    name
        ``dd2d`` or ``invariant``.
    patterns, layers
        Pattern store and ``layers.parquet``; layers without a pattern are left out.
    model
        Folder to write: model.safetensors (the epoch of lowest validation loss), hparams.json,
        architecture.json, last.ckpt, metrics.csv, logs for TensorBoard and run.json.
    settings
        Sections ``network`` and ``training`` of the network.
    hardware
        Configuration section ``structure_2d.hardware``. One process alone can train: the loss of a
        batch is not the mean of the losses of its parts.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.

    Raises
    ------
    InputError
        If there is nothing to train or to validate with, a layer is too long for the network, more
        than one process is asked for, the device is not there, the loss is not finite, a checkpoint
        is damaged, or another process trains this model.
    """
    if hardware["devices"] * hardware["nodes"] > 1:
        raise InputError(
            "structure_2d.hardware asks for several devices or nodes, but its networks learn from "
            "whole batches: set devices and nodes to 1"
        )
    data = {"patterns": str(patterns), "layers": str(layers)}
    job = Job(__name__, "structure_2d", name, data, dict(settings), dict(hardware), seed)
    with trained(model, job, {name: dict(settings)}, [patterns, layers], minutes) as result:
        network = NETWORKS[name](**settings["network"]).eval()
        network.load_state_dict(result.weights)
        hparams = {
            "model": name,
            "network": dict(settings["network"]),
            "training": dict(settings["training"]),
            "loss": network.loss_name,
        }
        of_layers = pd.read_parquet(layers)
        table = pairs(of_layers, patterns, "train")
        first = layers_of(of_layers), table[:1]
        one = PairBatches(patterns, *first, 1, network.q_max, seed, shuffle=False)[0]
        example: Any = (one.crystals, one.spots, one.mask)
        result.write(network, hparams, follow(network, *example))
        result.facts["training_patterns"] = len(table)
        result.facts["validation_patterns"] = len(pairs(of_layers, patterns, "validation"))
        result.facts["parameters"] = sum(p.numel() for p in network.parameters())


def train_epochs(job: Job, environment: ClusterEnvironment) -> None:
    """Train a network.

    Parameters
    ----------
    environment
        Tells that this process is alone.

    Raises
    ------
    InputError
        As `train_retrieval_network` does.
    """
    how, patterns = job.settings["training"], Path(job.data["patterns"])
    of_layers = pd.read_parquet(job.data["layers"])
    layers = layers_of(of_layers)
    tables = [pairs(of_layers, patterns, split) for split in ("train", "validation")]
    torch.manual_seed(int(generator(job.seed, job.name, "weights").integers(2**63)))
    network = NETWORKS[job.name](**job.settings["network"])
    check_length(network, layers)
    sizes = how["batch_size"], GALLERY
    batches, validation = (
        PairBatches(patterns, layers, table, size, network.q_max, job.seed, shuffle)
        for table, size, shuffle in zip(tables, sizes, (True, False), strict=True)
    )
    ids = pd.concat(tables).set_index("pattern")["material_id"]
    training = RetrievalTraining(network, how, len(batches), job.seed, ids, Path(job.state))
    fit(training, batches, validation, job.hardware, environment, job.deadline)
