"""The stage behind the rule `train_network`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor, nn

from diffractory.models.pooling import fit_pooling, log_probability
from diffractory.models.spot_lists import SpotListNetwork
from diffractory.store import CRYSTAL_SYSTEMS, SpotReader, generator
from diffractory.store.labels import labels_of_split
from diffractory.training.conventions import conventions
from diffractory.training.fit import Training, fit
from diffractory.training.launch import Job
from diffractory.training.spot_networks import NETWORKS, predict
from diffractory.training.spots import Batch, SpotBatches, varied
from diffractory.training.stage import follow, trained

SAMPLE = 100
"""Batches that a network takes its normalization from."""

SPOTS_OF_EXAMPLE = 45
"""Spots of the pattern whose way through a network `architecture` follows."""


class SpotTraining(Training):
    """A network of spot lists in training."""

    named = "materials"
    gradient_clip = 1.0
    network: SpotListNetwork

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of varied patterns."""
        output = self.network(*varied(batch.spots, batch.mask, self.settings))
        return self.network.loss(output, batch.crystal_system, batch.space_group)

    def measures(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Return the negative logarithms of the probabilities of the truth, and what is right."""
        said = self.network.opinions(self.network(batch.spots, batch.mask))
        for name, probability, truth in (
            ("crystal_system", said.crystal_system, batch.crystal_system),
            ("space_group", said.space_group, batch.space_group),
        ):
            if probability is not None:
                of_truth = probability.gather(1, truth[:, None]).clamp(min=1e-12)
                yield "validation_loss", -of_truth.log().sum()
                yield f"{name}_accuracy", (probability.argmax(dim=-1) == truth).sum()


def train_network(
    name: str,
    patterns: Path,
    structures: Path,
    model: Path,
    settings: Mapping[str, Any],
    max_spots: int,
    hardware: Mapping[str, Any],
    seed: int,
    minutes: float | None = None,
) -> None:
    """Train one network and write the folder ``model``, whose name the record goes by.

    The state after every epoch is kept beside that folder, in ``{model}.training``: after a kill
    the training goes on from there, to the same bytes as if it had not been killed.

    Parameters
    ----------
    name
        A key of `spot_networks.NETWORKS`.
    patterns, structures
        Pattern store and ``structures.parquet``.
    model
        Folder to write: model.safetensors (the epoch of lowest validation loss), hparams.json,
        architecture.json, last.ckpt, metrics.csv, logs for TensorBoard and run.json.
    settings
        Configuration section ``symmetry.{name}``, or that of an ablation of this network.
    max_spots
        Most spots of a pattern that the network reads, the brightest.
    hardware
        Configuration section ``symmetry.hardware``. Its ``devices`` and ``nodes`` share each batch.
    minutes
        Time that the job of this process has, if it is limited. Before it is over the training
        stops after an epoch, and the process ends with the exit status 75.

    Raises
    ------
    InputError
        If there is nothing to train or to validate with, the device is not there, the loss is not
        finite, a checkpoint is damaged, or another process trains this model.
    """
    config = {name: dict(settings), "max_spots": max_spots}
    data = {"patterns": str(patterns), "structures": str(structures), "max_spots": max_spots}
    job = Job(__name__, "symmetry", name, data, dict(settings), dict(hardware), seed)
    with trained(model, job, config, [patterns, structures], minutes) as result:
        network = NETWORKS[name](**settings["network"]).eval()
        network.load_state_dict(result.weights)
        train, validation = _labels(patterns, structures)
        if network.pooling is not None:
            size = settings["training"]["batch_size"]
            everything = SpotBatches(patterns, validation, size, max_spots, seed, False, False)
            _fit_pooling(network, everything, validation, hardware, seed)
        hparams = {
            "model": name,
            "network": network.hparams,
            "training": dict(settings["training"]),
            "loss": network.loss_name,
            "max_spots": max_spots,
            "patterns": conventions(patterns, train["pattern"].to_numpy()),
        }
        result.write(network, hparams, architecture(network.cpu()))
        result.facts["training_patterns"] = len(train)
        result.facts["training_materials"] = int(train["material_id"].nunique())
        result.facts["parameters"] = sum(p.numel() for p in network.parameters())


def train_epochs(job: Job, environment: ClusterEnvironment) -> None:
    """Train a network, as one of the processes that share the work.

    Parameters
    ----------
    environment
        Tells this process from the others.

    Raises
    ------
    InputError
        As `train_network` does.
    """
    how, patterns = job.settings["training"], Path(job.data["patterns"])
    train, validation = _labels(patterns, Path(job.data["structures"]))
    # Evenly over the materials, which follow each other in the store.
    held_out = validation[:: max(1, len(validation) // how["validation_patterns"])]
    in_memory = fits(patterns, job.hardware["data_memory"])
    max_spots = job.data["max_spots"]
    batches, validation_batches = (
        SpotBatches(patterns, labels, how["batch_size"], max_spots, job.seed, shuffle, whole)
        for labels, shuffle, whole in ((train, True, in_memory), (held_out, False, True))
    )
    torch.manual_seed(int(generator(job.seed, job.name, "weights").integers(2**63)))
    network = NETWORKS[job.name](**job.settings["network"])
    _normalize(network, batches)
    steps = max(1, how["patterns_per_epoch"] // how["batch_size"])
    material_id = pd.concat([train, held_out]).set_index("pattern")["material_id"]
    training = SpotTraining(network, how, steps, job.seed, material_id, Path(job.state))
    who = environment.global_rank(), environment.world_size()
    shares = batches.shared(*who), validation_batches.shared(*who)
    fit(training, *shares, job.hardware, environment, job.deadline)


def _labels(patterns: Path, structures: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `labels_of_split` does of the patterns to train and to validate with."""
    labels = labels_of_split(patterns, structures, "train", "validation")
    train, validation = (labels[labels["split"] == split] for split in ("train", "validation"))
    return train, validation


def fits(patterns: Path, memory: float) -> bool:
    """Return whether the spots of a store fit into so many GiB."""
    return bool(12 * SpotReader(patterns).offsets[-1] <= memory * 2**30)


def _normalize(network: SpotListNetwork, batches: SpotBatches) -> None:
    some = [batches[k] for k in range(min(SAMPLE, len(batches)))]
    # The step that sees a number that is not finite tells its material.
    masks = [b.mask & b.spots.isfinite().all(dim=-1) for b in some]
    most = max(batch.mask.shape[1] for batch in some)
    network.normalize_with(
        torch.cat([nn.functional.pad(b.spots, (0, 0, 0, most - b.spots.shape[1])) for b in some]),
        torch.cat([nn.functional.pad(mask, (0, most - mask.shape[1])) for mask in masks]),
    )


def _fit_pooling(
    network: SpotListNetwork,
    batches: SpotBatches,
    labels: pd.DataFrame,
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Fit the pooling to how often the network is right on patterns that it has not seen."""
    pattern, said = predict(network, batches, hardware)
    materials = labels.set_index("pattern").loc[pattern]
    order = np.argsort(materials["material_id"].to_numpy(), kind="stable")
    materials = materials.iloc[order]
    weight, power = fit_pooling(
        log_probability(said.crystal_system.numpy()[order]),
        pd.Index(CRYSTAL_SYSTEMS).get_indexer(pd.Index(materials["crystal_system"])),
        materials["material_id"].factorize()[0],
        generator(seed, "pooling", 0),
    )
    network.pooling = torch.tensor([weight, power])


def architecture(network: nn.Module) -> list[dict[str, Any]]:
    """Return what `follow` does for a pattern of 45 spots."""
    spots = torch.rand(1, SPOTS_OF_EXAMPLE, 3, generator=torch.Generator().manual_seed(0))
    return follow(network, spots, torch.ones(1, SPOTS_OF_EXAMPLE, dtype=torch.bool))
